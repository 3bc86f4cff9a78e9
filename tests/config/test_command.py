"""The command that shows and compares configs, and `--help_config`."""

from pathlib import Path

import pytest

from rn50_jax.config.__main__ import main
from rn50_jax.errors import UserError


def test_what_differs_from_the_default_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--config.seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["seed", "=", "3", "#", "default:", "0"]
    assert "recipe.momentum = 0.875" in lines


def test_numbers_that_six_digits_do_not_tell_apart_are_shown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from configs import default\n\ndef get_config():\n    config = default.get_config()\n"
        "    config.recipe.lr = 0.25600001\n    return config\n"
    )
    assert main(["default", str(recipe)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["recipe.lr", "0.256", "0.25600001"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tune", "it is finetune now"),
        ("report.print_every", "it is log.print_every now"),
        ("lr", "did you mean recipe.lr"),
        ("frobnicate", "its sections are model, data, "),
    ],
)
def test_help_of_what_there_is_not(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"config has no section or option '{name}'; {hint}"):
        main(["--help_config", name])
