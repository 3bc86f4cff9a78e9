"""Windows of metrics, and the curves drawn from a metrics file."""

import json
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from PIL import Image

from rn50_jax.errors import UserError
from rn50_jax.plan import Plan
from rn50_jax.plot import plot_run, read_metrics
from rn50_jax.report import Report, Window


def step(loss: float, lr: float = 0.5) -> dict:
    counts = {"loss_scale": jnp.float32(8), "skipped_steps": jnp.int32(0), "skipped_in_a_row": jnp.int32(0)}
    return {"loss": jnp.float32(loss), "top1": jnp.float32(0.25), "lr": jnp.float32(lr)} | counts


def test_a_window_averages_and_times_its_steps() -> None:
    window = Window(global_batch=100, loss_scaling=False)
    window.add(step(9.0))  # the compiling step: its metrics count, its time does not
    for loss in (1.0, 2.0):
        with window.waiting():
            time.sleep(0.05)
        time.sleep(0.02)
        window.add(step(loss, lr=loss))
    result = window.summary()
    assert result["train.loss"] == 4.0
    assert result["train.top1"] == 25.0
    assert result["lr"] == 2.0
    assert result["train.data_time"] >= 0.05
    assert result["train.total_ips"] == pytest.approx(100 / (result["train.data_time"] + result["train.compute_time"]))
    assert result["train.compute_ips"] == pytest.approx(100 / result["train.compute_time"])
    window.add(step(7.0))
    assert window.summary()["train.loss"] == 7.0


def test_a_window_of_the_compiling_step_alone_claims_no_speed() -> None:
    window = Window(global_batch=100, loss_scaling=False)
    window.add(step(1.0))
    assert window.summary()["train.total_ips"] == 0


def write(path: Path, lines: list[dict], tail: str = "") -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 10, "epoch": 1, "train.loss": 3.0}, {"step": 20, "epoch": 2, "train.loss": 2.0}]
    write(path, [*lines, {"step": 20, "epoch": 2, "train.loss": 1.0}], tail='{"step": 3')
    assert read_metrics(path)["train.loss"] == {10: 3.0, 20: 1.0}


def test_a_resumed_run_writes_after_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": 10, "epoch": 1, "train.loss": 3.0}], tail='{"step": 20, "tra')
    plan = Plan(1, 1, 32, 32, steps_per_epoch=10, total_steps=40, peak_lr=0.1)
    metrics = {"val.top1": 1.0, "val.top5": 2.0, "val.loss": 3.0, "val.images": 4, "val.total_ips": 5.0}
    with Report(path, plan, epochs=4, first_step=10) as report:
        report.epoch(20, 1, metrics)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert lines[1]["epoch"] == 2


def test_bad_metrics_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("x\n{}\n")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_metrics(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("validated", [True, False])
def test_curves_are_drawn(tmp_path: Path, validated: bool) -> None:
    lines = [
        {"step": s, "epoch": 1 + s // 20, "train.loss": 1.0, "train.top1": 2.0, "lr": 0.1, "train.total_ips": 9.0}
        for s in (10, 20)
    ]
    if validated:
        lines.append({"step": 20, "epoch": 1, "val.loss": 1.0, "val.top1": 3.0, "val.top5": 4.0, "val.total_ips": 5.0})
    write(tmp_path / "metrics.jsonl", lines)
    plot_run(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.width > 1000
