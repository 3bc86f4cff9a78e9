"""What a run takes from the weights that it starts from: the architecture, and of another run all that it knows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO, Run, assert_user_error
from helpers.networks import make_net
from helpers.trees import make_config

from rn50_jax.config import loading as configs
from rn50_jax.convert import main as convert
from rn50_jax.errors import UserError
from rn50_jax.training.pretrained import list_differences, load_start, read_pretrained, take_architecture
from rn50_jax.weights.files import WeightFile, read_weights

CUSTOM = {
    "model.arch": "se-resnet50",
    "model.stages": (2, 1, 1),
    "model.width": 8,
    "model.widths": (8, 12, 20),
    "model.se_units": 16,
}
SHORT = ("--config.run.prof=2", "--config.epochs=1")


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    """PyTorch's weights of a network that is none of the family's."""
    torch.save(make_net((2, 1, 1), widths=(8, 12, 20), se_units=16).state_dict(), tmp_path / "x.pth")
    return tmp_path / "x.pth"


def take(source: Path, *overrides: tuple[str, str]) -> tuple[dict[str, Any], str]:
    config = make_config("data", ("model.pretrained_weights", str(source)), *overrides)
    taken, told = take_architecture(config, overrides)
    return taken.flat(), told


def test_the_architecture_of_a_file_is_taken(custom: Path) -> None:
    config, told = take(custom)
    assert {key: config[key] for key in CUSTOM} == CUSTOM
    assert told.startswith(f"architecture of {custom}: model.arch=se-resnet50, model.stages=(2, 1, 1), model.width=8")
    # What is given is compared, the rest taken.
    config, told = take(custom, ("model.stages", "(2, 1, 1)"), ("model.width", "8"))
    assert {key: config[key] for key in CUSTOM} == CUSTOM and "model.stages" not in told


def test_other_words_for_the_same_architecture_are_kept(tmp_path: Path) -> None:
    torch.save(make_net((1, 1, 1)).state_dict(), tmp_path / "x.pth")
    given = [("model.stages", "(1, 1, 1)"), ("model.width", "8"), ("model.widths", "(8, 16, 32)")]
    config, told = take(tmp_path / "x.pth", *given, ("model.se_units", "16"))  # which it has no use for
    assert told == "" and config["model.widths"] == (8, 16, 32) and config["model.se_units"] == 16
    with pytest.raises(UserError, match=r"config.model.widths=\(8, 16, 33\) is not .*--config.model.widths=\(\)'"):
        take(tmp_path / "x.pth", *given[:2], ("model.widths", "(8, 16, 33)"))


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("model.arch", "resnet50", "--config.model.arch=se-resnet50"),
        ("model.stages", "(2, 2, 1)", "'--config.model.stages=(2, 1, 1)'"),
        ("model.widths", "()", "'--config.model.widths=(8, 12, 20)'"),
        ("model.se_units", "8", "--config.model.se_units=16"),
    ],
)
def test_another_architecture_ends_with_what_to_write(custom: Path, key: str, value: str, wanted: str) -> None:
    with pytest.raises(UserError) as error:
        take(custom, (key, value))
    assert f"config.{key}=" in str(error.value) and f" is not the architecture of {custom}, which " in str(error.value)
    assert str(error.value).endswith(f"write {wanted}, or leave it out")


def test_a_config_without_weights_is_as_it_was(tmp_path: Path) -> None:
    config = make_config("data")
    assert take_architecture(config, [], tmp_path) == (config, "")
    with pytest.raises(UserError, match="does not exist"):
        take(tmp_path / "none.pth")
    with pytest.raises(UserError, match="has no checkpoints"):
        take(tmp_path)


def test_a_run_goes_on_when_its_weight_file_has_gone(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    weights, workdir = tmp_path / "w.pth", tmp_path / "run"
    assert convert([str(trained[0]), str(weights)]) == 0
    command = ("--config", REPO / "configs/quickstart.py", f"--config.data.dir={digits}", "--workdir", workdir)
    command += ("--pretrained_weights", weights, "--config.recipe.lr=0.001", "--config.log.print_every=10")
    done = call("train", *command, "--config.epochs=1")
    assert done.returncode == 0, done.stderr
    assert f"architecture of {weights}: model.arch=resnet18, model.stages=(1, 1), model.width=8" in done.stdout
    assert "assuming" not in done.stderr and "replaced by a new one" not in done.stdout
    for file in (weights, Path(f"{weights}.json")):
        file.unlink()
    done = call("train", *command, "--config.epochs=2")
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 1" in done.stdout and "architecture of" not in done.stdout
    done = call("train", *command, "--config.epochs=2", "--config.model.arch=resnet50")
    assert_user_error(done, "config.model.arch was 'resnet18' and is 'resnet50' now")
    done = call("train", *command, "--workdir", tmp_path / "new")
    assert_user_error(done, f"weight file {weights} does not exist")


def test_a_run_starts_from_a_run(trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path) -> None:
    command = ("--config", REPO / "configs/quickstart.py", f"--config.data.dir={digits}", *SHORT)
    start = ("--pretrained_weights", trained[0])
    done = call("train", *command, *start, "--workdir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"starting from the weights of checkpoint best of {trained[0]}: step 92, epoch 2" in done.stdout
    assert "replaced by a new one" not in done.stdout and "assuming" not in done.stderr
    # Validation alone gives what the run has.
    data = (*command[:3], "--config.run.evaluate=true", "--workdir", tmp_path / "none")
    done = call("train", *data, *start)
    assert done.returncode == 0, done.stderr
    best = max(json.loads(line).get("val.top1", 0) for line in (trained[0] / "metrics.jsonl").read_text().splitlines())
    assert f"{best:.2f}" in done.stdout
    assert_user_error(call("train", *data, *start, "--config.model.width=16"), "write --config.model.width=8, or leave")


def test_a_run_says_of_itself_what_a_file_of_it_says(trained: tuple[Path, str], tmp_path: Path) -> None:
    name, file = read_pretrained(trained[0])
    assert convert([str(trained[0]), str(tmp_path / "w.npz")]) == 0
    wanted = read_weights(tmp_path / "w.npz")
    assert name == file.meta["source"] and file.meta == wanted.meta and file.arrays.keys() == wanted.arrays.keys()
    for key, array in file.arrays.items():
        np.testing.assert_array_equal(array, wanted.arrays[key])
    config = configs.override(make_config("data"), [("model.pretrained_weights", str(trained[0]))])
    config, _ = take_architecture(config, [])
    stored = load_start(config, tuple("0123456789"))
    assert stored.class_names == tuple("0123456789") and stored.model.width == 8


def test_what_a_run_does_otherwise_or_assumes_is_told() -> None:
    head = {"fc.weight": np.zeros((2, 4), np.float32)}
    config = make_config("data", ("data.val_share", "0.2"), ("seed", "1"))

    def told(names: str, **meta: Any) -> list[str]:
        return list_differences(WeightFile(head, meta), config, names, "x.pth")

    (line,) = told("ab")
    assert line.startswith("assuming config.data.mean and config.data.std, and the data's 2 classes in their order")
    assert line.endswith("as x.pth does not say what it was trained with")
    (line,) = told("abc")  # whose classifier is new
    assert line == "assuming config.data.mean and config.data.std, as x.pth does not say what it was trained with"
    same = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "class_names": ["a", "b"]}  # ImageNet's
    assert told("ab", **same, val_share=0.2, seed=1) == []
    (line,) = told("ab", **{**same, "mean": [127.5, 127.5, 127.5]})
    assert line.endswith("to keep it, add '--config.data.mean=(0.5, 0.5, 0.5)'")
    (line,) = told("ab", **same, val_share=0.2, seed=0)
    assert "was trained with config.data.val_share=0.2 and config.seed=0; on the same images" in line
    assert told("bc", **same, val_share=0.2, seed=0) == []
