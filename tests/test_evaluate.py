"""Offline evaluation: training's numbers, over exactly every image."""

import json
import re
from pathlib import Path

import pytest
from conftest import Run, assert_user_error
from helpers.runs import read_lines


@pytest.mark.slow
def test_it_reproduces_what_training_printed(trained: tuple[Path, str], run: Run, tmp_path: Path) -> None:
    workdir, printed = trained
    validations = {line["step"]: line for line in read_lines(workdir) if "val.loss" in line}
    for which in ("best", "92"):
        done = run("evaluate", "--workdir", workdir, "--checkpoint", which, "--json", tmp_path / "result.json")
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["checkpoint"] == which
        wanted = validations[result["step"]]
        for name in ("val.top1", "val.top5", "val.loss", "val.images", "epoch"):
            assert result[name] == wanted[name], name
        numbers = re.search(r"top-1 .* images", done.stdout)
        assert numbers and numbers[0] in printed


@pytest.mark.parametrize(("batch_size", "devices"), [(7, 1), (297, 1), (500, 1), (10, 4)])
def test_every_image_counts_once(
    trained: tuple[Path, str], call: Run, tmp_path: Path, batch_size: int, devices: int
) -> None:
    workdir, _ = trained
    wanted = next(line for line in reversed(read_lines(workdir)) if "val.loss" in line)
    path = tmp_path / "result.json"
    options = ("--checkpoint", "latest", f"--config.batch_size={batch_size}", "--json", path)
    done = call("evaluate", "--workdir", workdir, *options, devices=devices)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert (result["val.images"], result["val.top1"], result["val.top5"]) == (
        297,
        wanted["val.top1"],
        wanted["val.top5"],
    )
    assert result["val.loss"] == pytest.approx(wanted["val.loss"], rel=1e-5)


def test_mistakes_are_told_in_one_line(trained: tuple[Path, str], call: Run, tmp_path: Path, digits: Path) -> None:
    workdir, _ = trained
    assert_user_error(call("evaluate", "--workdir", tmp_path), "has no checkpoints", "--workdir")
    assert_user_error(
        call("evaluate", "--workdir", workdir, "--checkpoint", "5"), "use best, latest or one of [46, 92]"
    )
    (tmp_path / "train/0").mkdir(parents=True)
    (tmp_path / "train/0/x.jpg").touch()
    missing = call("evaluate", "--workdir", workdir, f"--config.data.dir={tmp_path}")
    assert_user_error(missing, "has train/, but no val/", "--split 0.2")
    assert_user_error(call("evaluate", "--workdir", workdir, "--config.x=1"), "no key 'x'")
    assert_user_error(call("evaluate", "--workdir", workdir, "--ema", "on"), "trained without recipe.ema_decay")
    other = call("evaluate", "--workdir", workdir, "--config.model.stages=(1, 2)")
    assert_user_error(other, "is of another model", "layer2_1.bn1.mean is missing there and float32[16] here")
    unwritable = call("evaluate", "--workdir", workdir, "--json", tmp_path / "none/x.json")
    assert_user_error(unwritable, "cannot write", "No such file")
