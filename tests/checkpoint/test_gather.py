"""`checkpoint.gather`: the ends of NVIDIA's epochs stay, whatever else a run saves, and nothing else does."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Run
from helpers.tiny import make_model, make_state

from rn50_jax.checkpoint.folder import is_gathered
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.training.state import TrainState


@pytest.fixture(scope="module")
def state() -> TrainState:
    whole = jax.device_get(make_state(make_model()))
    few = {"params": {"fc": whole.params["fc"]}, "batch_stats": {}}  # each array takes orbax its time
    return whole._replace(**few, opt_state=few["params"])


def save(
    folder: Path,
    state: TrainState,
    places: list[tuple[int, int]],
    *,
    steps: int,
    top1: float | None = None,
    gather: bool = True,
) -> None:
    """Saves at (epochs done, steps after them) of a run that keeps one checkpoint; `steps` are those of an epoch."""
    with Checkpoints(folder, keep=1, gather=gather) as checkpoints:
        for epoch, step in places:
            meta = {"step": epoch * steps + step, "epoch": epoch, "position": {"epoch": epoch, "step": step}}
            metrics = {} if top1 is None else {"val.top1": top1}
            checkpoints.save(state._replace(step=np.int32(meta["step"])), meta, metrics)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_epochs_are_those_of_nvidias_flag() -> None:
    # Its code counts from 0 and names the file by the number of epochs done.
    wanted = {epoch + 1 for epoch in range(250) if epoch < 10 or epoch % 10 == 0}
    assert {epochs for epochs in range(251) if is_gathered(epochs)} == wanted
    assert sorted(wanted)[:13] == [*range(1, 12), 21, 31]


def test_only_ends_of_epochs_are_gathered(tmp_path: Path, state: TrainState) -> None:
    folder = tmp_path / "c"
    save(folder, state, [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0), (2, 3)], steps=4)
    assert names(folder) == {"4", "8", "11"}  # the last is of the middle of an epoch, and the newest
    save(folder, state, [(10, 0), (11, 0)], steps=4)
    save(folder, state, [(12, 0)], steps=4, top1=50.0)
    save(folder, state, [(14, 0), (20, 0), (21, 0), (22, 0), (30, 0)], steps=4)
    assert names(folder) == {"4", "8", "40", "44", "48", "84", "120"}
    save(folder, state, [(30, 4)], steps=4)  # epoch 31 is still to be validated
    save(folder, state, [(31, 2)], steps=4)
    assert names(folder) == {"4", "8", "40", "44", "48", "84", "126"}
    save(folder, state, [(32, 0)], steps=4, gather=False)
    assert names(folder) == {"48", "128"}


def test_an_epoch_of_other_steps_takes_no_place(
    tmp_path: Path, state: TrainState, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "c"
    save(folder, state, [(1, 0), (2, 0)], steps=10)
    save(folder, state, [(2, 0)], steps=10)  # again, as after a failed write
    assert names(folder) == {"10", "20"} and capfd.readouterr().err == ""
    save(folder, state, [(3, 0), (4, 0)], steps=5)
    assert names(folder) == {"10", "15", "20", "20.earlier"}
    assert "its checkpoint, that of epoch 2, is now" in capfd.readouterr().err
    epochs = {name: json.loads((folder / name / "meta/metadata").read_text())["epoch"] for name in names(folder)}
    assert epochs == {"10": 1, "15": 3, "20": 4, "20.earlier": 2}
    save(folder, state, [(2, 5)], steps=5, gather=False)
    assert names(folder) == {"15", "20.earlier"}  # what was set apart is the user's


@pytest.mark.slow
def test_a_run_that_is_prolonged_keeps_them(call_train: Run, call: Run, tmp_path: Path) -> None:
    small = ("--config.model.stages=(1,)", "--config.data.backend=synthetic")
    small += ("--config.data.synthetic_images=(64, 32)", "--config.log.tensorboard=False")
    gather = ("--config.checkpoint.gather=True", "--config.checkpoint.every_epochs=5")
    for epochs in (4, 13):
        done = call_train(tmp_path, *small, *gather, f"--config.epochs={epochs}")
        assert done.returncode == 0, done.stderr
    assert names(tmp_path / "checkpoints") == {str(2 * epoch) for epoch in (*range(1, 12), 13)}
    done = call("evaluate", "--workdir", tmp_path, "--checkpoint", 14, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["step"], result["epoch"]) == (14, 7)


def test_a_step_within_a_later_epoch_takes_no_place(tmp_path: Path, state: TrainState) -> None:
    folder = tmp_path / "c"
    save(folder, state, [(3, 0), (4, 0)], steps=10)
    save(folder, state, [(4, 8), (5, 0)], steps=8)  # step 40 again, as many epochs done, but of the next one's end
    assert names(folder) == {"30", "40", "40.earlier"}
    save(folder, state, [(5, 0)], steps=8)  # and the same place once more is the same checkpoint
    assert names(folder) == {"30", "40", "40.earlier"}
