"""Checkpoints on disk: the same bits back, the right ones kept, and damage or a wrong model told."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import assert_same_bits, make_model, make_state

from rn50_jax import checkpoint
from rn50_jax.errors import UserError
from rn50_jax.state import TrainState


@pytest.fixture(scope="module")
def state() -> TrainState:
    return jax.device_get(make_state(make_model(), loss_scale=128.0))


def save(directory: Path, state: TrainState, top1: dict[int, float | None], keep: int = 1) -> None:
    with checkpoint.open_manager(directory, keep=keep) as manager:
        for step, value in top1.items():
            metrics = {} if value is None else {"val.top1": value}
            checkpoint.save(manager, state._replace(step=np.int32(step)), {"step": step, "epoch": step}, metrics)


def read(directory: Path, which: str) -> dict[str, Any]:
    with checkpoint.open_manager(directory, read_only=True) as manager:
        return checkpoint.read_meta(manager, which)


def load(directory: Path, which: str, like: TrainState) -> TrainState:
    with checkpoint.open_manager(directory, read_only=True) as manager:
        return checkpoint.restore(manager, checkpoint.read_meta(manager, which), like)


def test_state_comes_back_bit_for_bit(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {7: 50.0})
    like = jax.eval_shape(lambda: make_state(make_model()))
    assert_same_bits(load(tmp_path / "c", "latest", like), state._replace(step=np.int32(7)))
    meta = read(tmp_path / "c", "7")
    assert (meta["step"], meta["epoch"], meta["metrics"]) == (7, 7, {"val.top1": 50.0})


@pytest.mark.parametrize(
    ("top1", "keep", "left", "best"),
    [
        ({1: 10.0, 2: 50.0, 3: 40.0, 4: 30.0}, 1, ["2", "4"], 2),
        ({1: 10.0, 2: 50.0, 3: 40.0, 4: 30.0}, 2, ["2", "3", "4"], 2),
        ({1: 10.0, 2: 50.0, 3: float("nan"), 4: 30.0}, 1, ["2", "4"], 2),
        ({1: 10.0, 2: None, 3: None}, 1, ["1", "3"], 1),
        ({1: 10.0, 2: 20.0}, 1, ["2"], 2),
    ],
)
def test_newest_and_best_are_kept(
    tmp_path: Path, state: TrainState, top1: dict[int, float | None], keep: int, left: list[str], best: int
) -> None:
    save(tmp_path / "c", state, top1, keep)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == left
    assert read(tmp_path / "c", "best")["step"] == best
    assert read(tmp_path / "c", "latest")["step"] == int(left[-1])


def test_averaged_weights_can_be_the_best(tmp_path: Path, state: TrainState) -> None:
    metrics = [{"val.top1": 10.0, "val_ema.top1": 60.0}, {"val.top1": 50.0, "val_ema.top1": 40.0}, {"val.top1": 5.0}]
    with checkpoint.open_manager(tmp_path / "c") as manager:
        for step, values in enumerate(metrics, 1):
            meta = {"step": step, "epoch": step}
            checkpoint.save(manager, state._replace(step=np.int32(step)), meta, values)
    assert read(tmp_path / "c", "best")["step"] == 1
    assert checkpoint.ema_is_better(metrics[0]) and not checkpoint.ema_is_better(metrics[1])
    assert checkpoint.ema_is_better({})  # nothing was validated


def test_missing_checkpoints(tmp_path: Path, state: TrainState) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no checkpoint; train first"):
        read(tmp_path / "empty", "latest")
    save(tmp_path / "c", state, {3: None})
    with pytest.raises(UserError, match=r"no checkpoint '9'; use best, latest or one of \[3\]"):
        read(tmp_path / "c", "9")
    with pytest.raises(UserError, match="use --checkpoint latest"):
        read(tmp_path / "c", "best")


def test_another_model_is_refused_by_name(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {1: 1.0})
    other = state._replace(params=state.params | {"fc": {"kernel": np.zeros((64, 7), np.float32), "bias": np.zeros(7)}})
    with pytest.raises(
        UserError, match=r"is of another model: params.fc.bias is float32\[5\] there and float64\[7\] here"
    ):
        load(tmp_path / "c", "latest", other)
    without = state._replace(batch_stats={})
    with pytest.raises(UserError, match=r"batch_stats.bn1.mean is float32\[8\] there and missing here"):
        load(tmp_path / "c", "latest", without)


def test_changed_bytes_are_noticed(tmp_path: Path, state: TrainState) -> None:
    noisy = jax.tree.map(lambda x: np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype), state)
    noisy = noisy._replace(params=noisy.params | {"big": np.random.default_rng(1).standard_normal(300_000)})
    save(tmp_path / "c", noisy, {1: 1.0})
    largest = max((tmp_path / "c").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(UserError, match=r"checkpoint .*/1 (is damaged: 1 array|cannot be read)"):
        load(tmp_path / "c", "latest", noisy)


def test_unreadable_metadata_is_a_user_error(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {1: 1.0})
    (tmp_path / "c/1/meta/metadata").write_text("{")
    with pytest.raises(UserError, match=r"checkpoint .*/1 cannot be read .*remove that folder"):
        read(tmp_path / "c", "latest")


def test_what_a_killed_save_left_is_removed(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {1: 1.0})
    left = tmp_path / "c/2.orbax-checkpoint-tmp/state"
    left.mkdir(parents=True)
    with checkpoint.open_manager(tmp_path / "c", read_only=True):
        assert left.exists()  # it may be another process's save
    with checkpoint.open_manager(tmp_path / "c") as manager:
        assert not left.parent.exists() and list(manager.all_steps()) == [1]
