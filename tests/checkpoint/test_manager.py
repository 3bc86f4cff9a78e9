"""Checkpoints on disk: the same bits back, the right ones kept, and damage or a wrong model told."""

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import REPO
from helpers.tiny import assert_same_bits, make_model, make_state

from rn50_jax.checkpoint.folder import CheckpointFolder
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.checkpoint.selection import better_weights
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.training.state import TrainState


@pytest.fixture(scope="module")
def state() -> TrainState:
    return jax.device_get(make_state(make_model(), loss_scale=128.0, ema=True))


def save(directory: Path, state: TrainState, top1: dict[int, float | None], keep: int = 1) -> None:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step, value in top1.items():
            metrics = {} if value is None else {"val.top1": value}
            checkpoints.save(state._replace(step=np.int32(step)), {"step": step, "epoch": step}, metrics)


def read(directory: Path, which: str) -> dict[str, Any]:
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.read_meta(which)


def load(directory: Path, which: str, like: TrainState) -> TrainState:
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.restore(checkpoints.read_meta(which), like)


def test_state_comes_back_bit_for_bit(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {7: 50.0})
    like = jax.eval_shape(lambda: state)
    assert_same_bits(load(tmp_path / "c", "latest", like), state._replace(step=np.int32(7)))
    meta = read(tmp_path / "c", "7")
    assert (meta["step"], meta["epoch"], meta["metrics"]) == (7, 7, {"val.top1": 50.0})


def test_parts_of_a_state_are_read_alone(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {7: 50.0})
    like = jax.eval_shape(lambda: {"params": state.params, "batch_stats": state.batch_stats})
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        found = checkpoints.restore(checkpoints.read_meta("7"), like)
    assert found.keys() == like.keys()
    for name, part in found.items():
        assert_same_bits(part, getattr(state, name))


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
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step, values in enumerate(metrics, 1):
            meta = {"step": step, "epoch": step}
            checkpoints.save(state._replace(step=np.int32(step)), meta, values)
    assert read(tmp_path / "c", "best")["step"] == 1
    assert [better_weights(found) for found in metrics[:2]] == ["val_ema", "val"]
    assert better_weights({}) == "val_ema"  # nothing was validated


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
    with pytest.raises(UserError, match=r"checkpoint .*/1 cannot be read .*falls back to an older one"):
        read(tmp_path / "c", "latest")


def test_what_a_killed_save_left_is_removed(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {1: 1.0})
    left = tmp_path / "c/2.orbax-checkpoint-tmp/state"
    left.mkdir(parents=True)
    (tmp_path / "c/0.removed").mkdir()
    (tmp_path / "c/1").rename(tmp_path / "c/1.replaced")  # killed between the old one and the new one
    with Checkpoints(tmp_path / "c", read_only=True):
        assert left.exists()  # it may be another process's save
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"] and checkpoints.steps() == [1]


def damage(rng: np.random.Generator, checkpoint: Path) -> None:
    """Changes a bit, overwrites, cuts off or removes one file."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
    if rng.random() < 0.5:  # most bytes are in few files
        files = sorted(files, key=lambda path: path.stat().st_size)[-3:]
    file = files[rng.integers(len(files))]
    data = bytearray(file.read_bytes())
    at = int(rng.integers(len(data)))
    match rng.integers(4):
        case 0:
            data[at] ^= 1 << int(rng.integers(8))
        case 1:
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        case 2:
            del data[at:]
        case _:
            file.unlink()
            return
    file.write_bytes(data)


@pytest.mark.slow
def test_no_damage_is_ever_loaded(tmp_path: Path, state: TrainState, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    # Few arrays: each takes orbax its time, and the damage is to files.
    few = {"params": {"fc": state.params["fc"]}, "batch_stats": {"bn1": state.batch_stats["bn1"]}}
    state = state._replace(**few, opt_state=few["params"], ema=few)
    states = [jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), state) for _ in range(2)]
    with Checkpoints(tmp_path / "whole", keep=2) as checkpoints:
        for step, one in enumerate(states, 1):
            checkpoints.save(one, {"step": step, "epoch": step}, {"val.top1": 1.0})
    noticed = 0
    for number in range(40):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        damage(rng, folder / "2")
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.restore_newest(state, lambda meta: None)
        assert found is not None
        restored, meta = found
        assert_same_bits(restored, states[meta["step"] - 1])
        if meta["step"] == 1:
            noticed += 1
            assert {path.name for path in folder.iterdir()} == {"1", "2.damaged"}
            err = capfd.readouterr().err
            assert len(err.strip().splitlines()) == 1, err
            assert re.search(r"note: checkpoint .*/2 (is damaged|cannot be read).*; it is set aside as 2.damaged", err)
    assert noticed > 10


def test_a_gutted_or_empty_folder_is_no_checkpoint(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {1: 1.0})
    (tmp_path / "c/99").mkdir()
    shutil.copytree(tmp_path / "c/1/state", tmp_path / "c/5/state")
    with Checkpoints(tmp_path / "c") as checkpoints:
        found = checkpoints.restore_newest(state, lambda meta: None)
    assert found is not None and found[1]["step"] == 1
    with Checkpoints(tmp_path / "c") as checkpoints:
        CheckpointFolder(tmp_path / "c").set_aside(1)
        with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
            checkpoints.restore_newest(state, lambda meta: None)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {1: 1.0})
    bad = state._replace(batch_stats=jax.tree.map(lambda x: x * np.float32(np.nan), state.batch_stats))
    with pytest.raises(RunStopped, match=r"state of step 2 is not finite \(batch_stats.bn1.mean\) and is not saved"):
        save(tmp_path / "c", bad, {2: 99.0})
    assert read(tmp_path / "c", "best")["step"] == read(tmp_path / "c", "latest")["step"] == 1


def test_a_step_can_be_saved_again_and_later_ones_are_outdated(tmp_path: Path, state: TrainState) -> None:
    save(tmp_path / "c", state, {10: None, 20: 5.0})
    changed = jax.tree.map(lambda x: x + np.ones((), x.dtype), state)
    save(tmp_path / "c", changed, {10: 50.0})  # fewer steps an epoch, on more devices
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["10"]
    assert_same_bits(load(tmp_path / "c", "best", state), changed._replace(step=np.int32(10)))


def test_a_checkpoint_of_an_earlier_day(state: TrainState) -> None:
    """A format that cannot read it needs a new number, and this test a new checkpoint.

    It was written on 2026-11-29 with orbax-checkpoint 0.12.8, by `Checkpoints.save` of `golden_state(state)` with the
    description {"step": 7, "epoch": 1, "class_names": ["a", "b"]} and the metrics {"val.top1": 12.5}.
    """
    golden = REPO / "tests/golden"
    assert read(golden, "latest")["metrics"] == {"val.top1": 12.5}
    assert_same_bits(load(golden, "latest", state), golden_state(state))


def golden_state(like: TrainState) -> TrainState:
    """Values that depend on nothing but their number and place."""
    leaves, structure = jax.tree.flatten(like)
    values = [
        (np.arange(leaf.size, dtype=np.int64) * (number + 1) % 251).reshape(leaf.shape).astype(leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, values)
