"""scripts/ablation.py: its options are options, and its table compares each with the plain runs."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import ablation
import pytest
from scipy import stats
from seeds import Outcome

from rn50_jax.config import loading as configs

RECIPE = "configs/fashion_mnist.py:minutes"
TOP1 = {"plain": (88.0, 88.5, 88.3), "mixup 0.2": (87.0, 87.4, 87.1)}


def fake(command: Sequence[str], workdir: Path) -> Outcome:
    """What a command that is not run comes to: by its option and seed."""
    name = "mixup 0.2" if "--config.recipe.mixup=0.2" in command else "plain"
    seed = next(int(word.partition("=")[2]) for word in command if word.startswith("--config.seed="))
    assert workdir.name == f"{name.replace(' ', '-')}-seed{seed}" and "--config.data.dir=there" in command
    return Outcome(TOP1[name][seed], 60.0, 100.0 if name == "plain" else 150.0)


def test_every_option_changes_the_recipe() -> None:
    plain, _ = configs.load(RECIPE, [])
    for name, options in ablation.OPTIONS.items():
        changed, _ = configs.load(RECIPE, [tuple(option.split("=", 1)) for option in options])
        assert (changed != plain) == (name != ablation.PLAIN), name


def test_the_table_compares_with_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ablation, "outcome", fake)
    line = f"--config {RECIPE} --only 'mixup 0.2' --out runs --config.data.dir=there"
    assert ablation.main(shlex.split(line)) == 0
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()]
    p = stats.ttest_ind(TOP1["mixup 0.2"], TOP1["plain"], equal_var=False).pvalue
    assert rows[2] == ["plain", "88.00 88.50 88.30", "88.27 ± 0.25", "", "1.00"]
    name, values, mean, difference, time = rows[3]
    assert (name, values, mean, time) == ("mixup 0.2", "87.00 87.40 87.10", "87.17 ± 0.21", "1.50")
    assert difference.startswith("-1.10 (") and difference.endswith(f"p = {p:.2g}")
