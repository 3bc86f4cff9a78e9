"""NVIDIA's report: lines that its parsers read, and what they say."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, TINY, assert_user_error
from test_reliability import wait_until
from test_train import read_lines

from rn50_jax.dle import METRICS, DleLog
from rn50_jax.errors import UserError

Train = Callable[..., subprocess.CompletedProcess[str]]


def read_dle(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def logged(lines: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """The LOG lines whose step has that many numbers."""
    return [line for line in lines if isinstance(line.get("step"), list) and len(line["step"]) == length]


def test_lines_and_numbers(tmp_path: Path) -> None:
    log = DleLog(tmp_path / "r.json", {"mixup": 0.0, "batch_size": 32}, steps_per_epoch=10)
    times = {"train.data_time": 0.5, "train.compute_time": 1.0, "train.top1": 50.0, "train.loss_scale": 64.0}
    with closing(log):
        for epoch, (first, last, top1) in enumerate([(4.0, 1.0, 70.0), (3.0, 2.0, 60.0)]):
            log.train(epoch * 10 + 8, epoch, 8, {"train.loss": first, "lr": 0.1, **times})
            log.train(epoch * 10 + 10, epoch, 2, {"train.loss": last, "lr": 0.2, **times})
            log.epoch(epoch, {"val.top1": top1, "val.loss": 1.5, "val.loss_smoothed": 1.0 + epoch, "val.images": 9})
        log.summary()
    lines = read_dle(tmp_path / "r.json")
    assert (lines[0]["type"], lines[0]["step"], lines[0]["data"]["batch_size"]) == ("LOG", "PARAMETER", 32)
    units = {line["metric"]: line["metadata"] for line in lines if line["type"] == "METADATA"}
    assert units.keys() == METRICS.keys()
    assert units["val.top1"] == {"unit": "%", "format": ":.2f"}
    assert units["train.total_ips"] == {"unit": "img/s", "format": ":.2f"}
    assert all({"timestamp", "datetime", "elapsedtime", "type"} <= line.keys() for line in lines)
    windows, epochs, (run,) = (logged(lines, length) for length in (2, 1, 0))
    assert [line["step"] for line in windows] == [[0, 8], [0, 10], [1, 8], [1, 10]]
    assert windows[0]["data"] == {
        "train.loss": 4.0,
        "train.data_time": 0.5,
        "train.compute_time": 1.0,
        "lr": 0.1,
        "train.lr": 0.1,
        "train.grad_scale": 64.0,
    }
    assert [line["data"]["train.loss"] for line in epochs] == pytest.approx([3.4, 2.8])
    assert [line["data"]["val.loss"] for line in epochs] == [1.0, 2.0]  # the reference validates with smoothing
    assert run["data"]["train.loss"] == pytest.approx(2.8)
    assert (run["data"]["val.top1"], run["data"]["val.loss"], run["data"]["lr"]) == (70.0, 1.0, 0.2)


def test_validation_of_a_mixup_run_is_not_smoothed(tmp_path: Path) -> None:
    with closing(DleLog(tmp_path / "r.json", {"mixup": 0.2}, steps_per_epoch=10)) as log:
        log.epoch(0, {"val.loss": 1.5, "val.loss_smoothed": 1.0})
    assert logged(read_dle(tmp_path / "r.json"), 1)[0]["data"]["val.loss"] == 1.5


def test_a_killed_run_goes_on_with_the_same_file(
    train_tiny: Train, process_env: dict[str, str], digits: Path, tmp_path: Path
) -> None:
    workdir, report = tmp_path / "run", tmp_path / "report.json"
    options = (f"--config.report.dle_json={report}", "--config.recipe.exact_reference=true")
    line = [sys.executable, "-m", "rn50_jax.train", "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    line += [f"--config.data.dir={digits}", *TINY, *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, env=process_env, cwd=REPO, stdout=pipe, stderr=pipe, text=True)
    wait_until((workdir / "checkpoints/46").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with report.open("a") as file:
        file.write('DLLL {"timestamp": "17')  # half a line
    done = train_tiny(workdir, *options)
    assert done.returncode == 0, done.stderr
    lines = read_dle(report)
    parameters = [line["data"] for line in lines if line.get("step") == "PARAMETER"]
    assert len(parameters) == 2
    assert (parameters[0]["arch"], parameters[0]["lr"], parameters[0]["epochs"]) == ("resnet18", 0.02, 2)
    epochs = {line["step"][0]: line["data"] for line in logged(lines, 1)}
    assert epochs.keys() == {0, 1}
    ours = [line for line in read_lines(workdir) if "val.top1" in line]
    for epoch, line in ((0, ours[0]), (1, ours[-1])):
        assert epochs[epoch]["val.top1"] == line["val.top1"]
        assert epochs[epoch]["val.loss"] == line["val.loss_smoothed"]
        assert epochs[epoch]["val.compute_latency_at99"] > 0
    (run,) = logged(lines, 0)
    assert run["data"]["val.top1"] == max(line["val.top1"] for line in ours)
    # With the reference's quirks the rate stays within an epoch: the peak in both of them.
    assert {round(line["data"]["lr"], 6) for line in logged(lines, 2)} == {0.02}


@pytest.mark.parametrize("content", ["notes without an end of line", '{"a": 1}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=r"r\.json holds something else; choose another file"):
        DleLog(tmp_path / "r.json", {"mixup": 0.0}, steps_per_epoch=10)
    assert (tmp_path / "r.json").read_text() == content


def test_an_unwritable_report_is_told_before_training(train_tiny: Train, tmp_path: Path) -> None:
    done = train_tiny(tmp_path / "run", f"--config.report.dle_json={tmp_path}/none/r.json")
    assert_user_error(done, "config.report.dle_json: cannot write", "No such file")
