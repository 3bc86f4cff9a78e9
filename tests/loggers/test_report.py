"""Meters, what a report hands on, and the keys that the documentation explains."""

import importlib.metadata
import json
import re
import time
from pathlib import Path

import jax.numpy as jnp
import pytest
from conftest import REPO
from helpers.runs import TRAIN_METRICS, VAL_METRICS, read_lines

from rn50_jax.config.derived import Plan
from rn50_jax.loggers.base import Record
from rn50_jax.loggers.console import Console
from rn50_jax.loggers.goodput import PHASES
from rn50_jax.loggers.history import KEYS
from rn50_jax.loggers.meters import Meters
from rn50_jax.loggers.report import Report

PLAN = Plan(1, 1, 32, 32, steps_per_epoch=10, total_steps=40, peak_lr=0.1)


def step(loss: float, lr: float = 0.5) -> dict:
    counts = {"loss_scale": jnp.float32(8), "skipped_steps": jnp.int32(0), "skipped_in_a_row": jnp.int32(0)}
    return {"loss": jnp.float32(loss), "top1": jnp.float32(0.25), "lr": jnp.float32(lr)} | counts


def test_meters_average_and_time_their_steps() -> None:
    meters = Meters(global_batch=100, loss_scaling=False)
    meters.add(step(9.0))  # the compiling step: its metrics count, its time does not
    for loss in (1.0, 2.0):
        with meters.waiting():
            time.sleep(0.05)
        time.sleep(0.02)
        meters.add(step(loss, lr=loss))
    result = meters.summary()
    assert result["train.loss"] == 4.0
    assert result["train.top1"] == 25.0
    assert result["lr"] == 2.0
    assert result["train.data_time"] >= 0.05
    assert result["train.total_ips"] == pytest.approx(100 / (result["train.data_time"] + result["train.compute_time"]))
    assert result["train.compute_ips"] == pytest.approx(100 / result["train.compute_time"])
    meters.add(step(7.0))
    assert meters.summary()["train.loss"] == 7.0


def test_meters_of_the_compiling_step_alone_claim_no_speed() -> None:
    meters = Meters(global_batch=100, loss_scaling=False)
    meters.add(step(1.0))
    assert meters.summary()["train.total_ips"] == 0


class Kept:
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.closed = 0

    def log(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


def test_loggers_get_every_record(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept()
    steps = {"train.loss": 2.5, "train.top1": 12.5, "lr": 0.1, "train.total_ips": 80.0}
    steps |= {"train.data_time": 0.1, "train.compute_time": 0.3}
    validation = {"val.top1": 1.0, "val.top5": 2.0, "val.loss": 3.0, "val.images": 4, "val.total_ips": 5.0}
    earlier = [{"epoch": 1, "val.top1": 9.0, "val.top5": 9.0, "val.loss": 9.0}]
    console = Console(PLAN, 4, 12, validations=earlier, classes=10)
    with Report(console, [kept], PLAN.steps_per_epoch, 12) as report:
        report.train(15, 1, steps)
        report.train(20, 1, steps)
        report.epoch(20, 1, validation)
        report.end(20, 1, dict.fromkeys(PHASES, 1.0), finished=True)
    told = [(r.kind, r.step, r.epoch, r.epochs_done, r.steps, r.finished) for r in kept.records]
    assert told == [
        ("train", 15, 1, 1.5, 3, False),
        ("train", 20, 1, 2.0, 5, False),
        ("epoch", 20, 1, 2.0, 0, False),
        ("end", 20, 1, 2.0, 0, True),
    ]
    assert kept.records[2].metrics == validation and kept.records[3].metrics["goodput.train"] == 1.0
    assert kept.closed == 1
    out = capsys.readouterr().out
    assert "  best          1     9.000     9.000   9.00000\n  last          2     1.000" in out
    assert "goodput    14% of it was training" in out


def test_every_key_of_the_metrics_file_is_documented(trained: tuple[Path, str]) -> None:
    text = (REPO / "docs/reports.md").read_text()
    section = text[text.index("## metrics.jsonl") : text.index("## Other logs")]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    documented = {key for cell in cells for key in re.findall(r"`([\w.]+)`", cell)}
    written = {key for line in read_lines(trained[0]) for key in line}
    assert written == set(KEYS) | TRAIN_METRICS | VAL_METRICS | {f"goodput.{phase}" for phase in PHASES}
    optional = {"train.loss_scale"} | {f"val_ema.{name}" for name in ("top1", "top5", "loss", "loss_smoothed")}
    assert documented == written | optional
    meters = Meters(global_batch=100, loss_scaling=True)
    meters.add(step(1.0))
    assert "train.loss_scale" in meters.summary()  # tests/test_train.py sees those of averaged weights


def test_run_json_tells_the_hardware(trained: tuple[Path, str]) -> None:
    facts = json.loads((trained[0] / "run.json").read_text())
    assert facts["devices"] == "1 x CPU" and facts["host"]["system"].startswith("Linux")
    assert facts["host"]["cores"] >= 1 and facts["host"]["memory_gb"] > 0
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert "--xla_backend_optimization_level=0" in facts["environment"]["XLA_FLAGS"]
    assert "gpus" not in facts and "commit" in facts
