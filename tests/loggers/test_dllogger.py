"""NVIDIA's report: lines that its parsers read, and what they say."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Run, assert_user_error
from helpers.logs import files_of_at_most, logged, read_dle

from rn50_jax.config import loading as configs
from rn50_jax.errors import UserError
from rn50_jax.loggers.base import RunFacts
from rn50_jax.loggers.dllogger import METRICS, DleLog, dle_parameters


def test_lines_and_numbers(tmp_path: Path) -> None:
    log = DleLog(tmp_path / "r.json", {"mixup": 0.0, "batch_size": 32}, steps_per_epoch=10)
    times = {"train.data_time": 0.5, "train.compute_time": 1.0, "train.top1": 50.0, "train.loss_scale": 64.0}
    with closing(log):
        for epoch, (first, last, top1) in enumerate([(4.0, 1.0, 70.0), (3.0, 2.0, 60.0)]):
            log.train(epoch * 10 + 8, epoch, 8, {"train.loss": first, "lr": 0.1, **times})
            log.train(epoch * 10 + 10, epoch, 2, {"train.loss": last, "lr": 0.2, **times})
            latency = {"val.compute_latency": 2.0 + epoch, "val.compute_latency_at100": 3.0 + epoch}
            losses = {"val.loss": 1.5, "val.loss_smoothed": 1.0 + epoch}
            log.epoch(epoch, {"val.top1": top1, "val.images": 9, **losses, **latency})
        log.summary()
    lines = read_dle(tmp_path / "r.json")
    assert (lines[0]["type"], lines[0]["step"], lines[0]["data"]["batch_size"]) == ("LOG", "PARAMETER", 32)
    units = {line["metric"]: line["metadata"] for line in lines if line["type"] == "METADATA"}
    assert units.keys() == METRICS.keys()
    assert units["val.top1"] == {"unit": "%", "format": ":.2f"}
    assert units["train.total_ips"] == {"unit": "img/s", "format": ":.2f"}
    assert all({"timestamp", "datetime", "elapsedtime", "type"} <= line.keys() for line in lines)
    updates, epochs, (run,) = (logged(lines, length) for length in (2, 1, 0))
    assert [line["step"] for line in updates] == [[0, 8], [0, 10], [1, 8], [1, 10]]
    assert updates[0]["data"] == {
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
    assert [epochs[1]["data"][f"val.compute_{name}"] for name in ("time", "latency")] == [3.0, 3.0]
    assert [run["data"][f"val.compute_{name}"] for name in ("time", "latency", "latency_at100")] == [2.5, 2.5, 4.0]


def test_a_validation_by_itself_counts_for_no_training(tmp_path: Path) -> None:
    path, trains, evaluates = tmp_path / "r.json", {"mixup": 0.0, "evaluate": False}, {"mixup": 0.0, "evaluate": True}
    for parameters, epoch, top1 in ((trains, 0, 70.0), (evaluates, 0, 100.0), (evaluates, 0, 50.0), (trains, 1, 60.0)):
        with closing(DleLog(path, parameters, steps_per_epoch=10)) as log:
            if parameters is trains:
                log.train(10 * epoch + 10, epoch, 10, {"train.loss": 4.0 - epoch})
            log.epoch(epoch, {"val.top1": top1})
            log.summary()
    summaries = [line["data"] for line in logged(read_dle(path), 0)]
    assert summaries == [
        {"train.loss": 4.0, "val.top1": 70.0},
        {"val.top1": 100.0},
        {"val.top1": 50.0},
        {"train.loss": 3.0, "val.top1": 70.0},
    ]


def test_a_step_that_compiled_has_no_times(tmp_path: Path) -> None:
    untimed = {"train.loss": 3.0, "train.total_ips": 0.0, "train.compute_ips": 0.0, "train.compute_time": 1e-9}
    timed = {"train.loss": 1.0, "train.total_ips": 10.0, "train.compute_ips": 20.0, "train.compute_time": 0.5}
    with closing(DleLog(tmp_path / "r.json", {"mixup": 0.0}, steps_per_epoch=3)) as log:
        log.train(1, 0, 1, untimed)
        log.train(2, 0, 1, timed)
        log.train(3, 0, 1, timed)
        log.epoch(0, {})
    lines = read_dle(tmp_path / "r.json")
    assert logged(lines, 2)[0]["data"] == {"train.loss": 3.0}
    assert logged(lines, 1)[0]["data"] == timed | {"train.loss": pytest.approx(5 / 3)}


def test_parameters_say_what_an_iteration_is(tmp_path: Path) -> None:
    config, _ = configs.load("configs/dgx1_90e.py:fp32")
    found = dle_parameters(RunFacts(tmp_path, config, num_devices=8, peak_lr=2.048, accumulation=2))
    assert found["iteration"] == "one update of 2 forward passes on each device"
    assert (found["lr"], found["optimizer_batch_size"], found["batch_size"], found["world_size"]) == (
        2.048,
        2048,
        128,
        8,
    )


def test_validation_of_a_mixup_run_is_not_smoothed(tmp_path: Path) -> None:
    with closing(DleLog(tmp_path / "r.json", {"mixup": 0.2}, steps_per_epoch=10)) as log:
        log.epoch(0, {"val.loss": 1.5, "val.loss_smoothed": 1.0})
    assert logged(read_dle(tmp_path / "r.json"), 1)[0]["data"]["val.loss"] == 1.5


def test_foreign_lines_and_a_full_disk_spoil_no_summary(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with closing(DleLog(path, {"mixup": 0.0}, steps_per_epoch=10)) as log:
        log.epoch(0, {"val.top1": 70.0, "val.loss": float("nan")})
        log.train(12, 1, 2, {"train.loss": 4.0})
        with files_of_at_most(100):
            for _ in range(2):
                with pytest.raises(OSError, match="File too large"):
                    log.train(20, 1, 8, {"train.loss": 1.0})
                with pytest.raises(OSError, match="File too large"):
                    log.epoch(1, {"val.top1": 60.0})
        log.train(20, 1, 8, {"train.loss": 2.0})
        log.epoch(1, {"val.top1": 60.0})
        lines = read_dle(path)
        with path.open("ab") as file:
            for line in (
                b"\xff",
                b"x",
                b"DLLL {",
                b"DLLL [1]",
                b'DLLL {"step": ["x"], "data": {}}',
                b"DLLL " + b"[" * 9999,
            ):
                file.write(line + b"\n")
            file.write(b'DLLL {"step": [5], "data": {"val.top1": null}}\n')
        log.summary()
    first, second = logged(lines, 1)
    assert first["data"]["val.loss"] is None
    assert second["data"]["train.loss"] == pytest.approx(2.4)  # of 2 and 8 steps, each once
    last = json.loads(path.read_text(errors="replace").splitlines()[-1].removeprefix("DLLL "))
    assert (last["step"], last["data"]["val.top1"]) == ([], 70.0)


@pytest.mark.parametrize("content", ["notes without an end of line", '{"a": 1}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=r"r\.json holds something else; choose another file"):
        DleLog(tmp_path / "r.json", {"mixup": 0.0}, steps_per_epoch=10)
    assert (tmp_path / "r.json").read_text() == content


def test_an_unwritable_report_is_told_before_training(call_train: Run, tmp_path: Path) -> None:
    done = call_train(tmp_path / "run", f"--config.log.dle_json={tmp_path}/none/r.json")
    assert_user_error(done, "config.log.dle_json: cannot write", "No such file")
