"""Which validation is the best: one rule for the console, the page, and the checkpoints that are kept and read."""

import itertools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.tiny import make_model, make_state

from rn50_jax.analysis.page import _epochs, _tiles
from rn50_jax.analysis.results import saved_text
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.checkpoint.selection import best_validation, better_weights
from rn50_jax.config.derived import Plan
from rn50_jax.loggers.base import Record
from rn50_jax.loggers.console import Console, result_table
from rn50_jax.loggers.history import History
from rn50_jax.training.state import TrainState

# (top-1, loss) of the epochs, and the best of them.
CASES = [
    ([(50.0, 1.0), (50.0, 1.0), (50.0, 1.0)], 1),
    ([(50.0, 1.0), (50.0, 0.9), (50.0, 0.9)], 2),
    ([(50.0, 0.5), (60.0, 2.0), (60.0, 3.0)], 2),
    ([(60.0, math.nan), (60.0, 9.0), (10.0, 0.1)], 2),
    ([(60.0, math.nan), (60.0, math.inf), (10.0, 0.1)], 1),
    ([(0.0, 3.0), (0.0, 2.0), (0.0, 2.0)], 2),
]


@pytest.fixture(scope="module")
def state() -> TrainState:
    return jax.device_get(make_state(make_model()))


def validations(values: list[tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "step": 10 * epoch, "val.top1": top1, "val.top5": 99.0, "val.loss": loss}
        for epoch, (top1, loss) in enumerate(values, 1)
    ]


def save(folder: Path, state: TrainState, lines: list[dict[str, Any]], keep: int = 1) -> list[int]:
    """Saves each validation as a run does; returns the steps that are kept."""
    with Checkpoints(folder, keep=keep) as checkpoints:
        for line in lines:
            step = line["step"]
            metrics = {name: value for name, value in line.items() if name.startswith("val")}
            saved = state._replace(step=np.int32(step))
            checkpoints.save(saved, {"step": step, "epoch": line["epoch"]}, metrics)
        checkpoints.wait()
        return checkpoints.steps()


def brute_force(values: list[tuple[float, float]]) -> int:
    """The epoch that no other one beats."""

    def beats(a: int, b: int) -> bool:
        (top1, loss), (other_top1, other_loss) = values[a], values[b]
        if top1 != other_top1:
            return top1 > other_top1
        return loss < other_loss or (loss == other_loss and a < b)

    (best,) = (a for a in range(len(values)) if not any(beats(b, a) for b in range(len(values)) if b != a))
    return best + 1


def test_the_rule_against_brute_force() -> None:
    for values in itertools.product(itertools.product((10.0, 20.0), (0.5, 0.7)), repeat=4):
        lines = validations(list(values))
        assert best_validation(lines)["epoch"] == best_validation(lines[::-1])["epoch"] == brute_force(list(values))


@pytest.mark.parametrize(("values", "best"), CASES)
def test_all_name_the_same_epoch(
    tmp_path: Path, state: TrainState, capsys: pytest.CaptureFixture[str], values: list[tuple[float, float]], best: int
) -> None:
    lines = validations(values)
    kept = save(tmp_path / "c", state, lines)
    assert kept == sorted({10 * best, 30})
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.read_meta("best")["epoch"] == best
    assert result_table(lines, classes=10)[1].split()[:2] == ["best", str(best)]
    history = History([line | {"epochs_done": line["epoch"]} for line in lines])
    assert next(iter(_tiles(history))).more == f"epoch {best}"
    table = _epochs(history)
    assert table is not None and table.bold == best - 1
    assert f"{10 * best} (best)" in saved_text(tmp_path / "c")

    capsys.readouterr()
    plan = Plan(1, 1, 32, 32, 10, 30, 0.1)
    console = Console(plan, 3, classes=10)
    for line in lines:
        metrics = line | {"val.images": 9, "val.total_ips": 9.0}
        console.log(Record("epoch", 0.0, line["step"], line["epoch"] - 1, line["epoch"], metrics))
    told = capsys.readouterr().out.splitlines()
    marked = [number for number, line in enumerate(told, 1) if line.endswith("  best so far")]
    assert marked[-1] == best and marked[0] == 1


def test_live_and_averaged_weights_are_ranked_alike(tmp_path: Path, state: TrainState) -> None:
    def metrics(live: tuple[float, float], averaged: tuple[float, float]) -> dict[str, float]:
        names = ("val.top1", "val.loss", "val_ema.top1", "val_ema.loss")
        return dict(zip(names, (*live, *averaged), strict=True))

    assert better_weights(metrics((50.0, 1.0), (50.0, 0.9))) == "val_ema"
    assert better_weights(metrics((50.0, 0.9), (50.0, 1.0))) == "val"
    assert better_weights(metrics((50.0, 1.0), (50.0, 1.0))) == "val_ema"
    assert better_weights(metrics((51.0, 1.0), (50.0, 0.1))) == "val"
    # The averaged weights of epoch 2 are as right as the live ones of epoch 1, at a lower loss.
    lines = [
        {"epoch": 1, "step": 10} | metrics((60.0, 0.8), (40.0, 0.1)),
        {"epoch": 2, "step": 20} | metrics((50.0, 0.2), (60.0, 0.7)),
        {"epoch": 3, "step": 30} | metrics((60.0, 0.7), (60.0, 0.9)),
    ]
    assert best_validation(lines)["epoch"] == 2
    assert save(tmp_path / "c", state, lines) == [20, 30]


def test_checkpoints_are_named_at_the_end(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, validations([(40.0, 1.0), (60.0, 1.0), (50.0, 1.0)])[:2], keep=5)
    assert saved_text(tmp_path / "c") == f"{tmp_path / 'c'} (of steps 10, 20 (best))"
    assert saved_text(tmp_path / "none") == ""
