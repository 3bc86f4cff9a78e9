"""Faults around checkpoints: what is damage and what is not, what is kept, what a stranger's checkpoint may say."""

import base64
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest
import tensorstore
from conftest import REPO, Run, assert_user_error
from helpers.runs import PATIENCE, SMALL, read_lines, read_meta
from helpers.tiny import assert_same_bits, make_model, make_state

from rn50_jax.checkpoint import description
from rn50_jax.checkpoint import folder as checkpoint_folder
from rn50_jax.checkpoint.faults import passing_fault, reason
from rn50_jax.checkpoint.integrity import describe_shapes, seal
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.checkpoint.step_folders import find_steps
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.inference.trained_model import load_run
from rn50_jax.training.state import TrainState

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


@pytest.fixture(scope="module")
def state() -> TrainState:
    return jax.device_get(make_state(make_model()))


def save(checkpoints: Checkpoints, state: TrainState, step: int, top1: float | None = None) -> None:
    metrics = {} if top1 is None else {"val.top1": top1}
    checkpoints.save(state._replace(step=np.int32(step)), {"step": step, "epoch": step}, metrics)


def make(directory: Path, state: TrainState, top1: dict[int, float | None], keep: int = 9) -> Path:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step, value in top1.items():
            save(checkpoints, state, step, value)
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def newest(directory: Path, like: TrainState) -> int:
    with Checkpoints(directory, keep=9) as checkpoints:
        found = checkpoints.restore_newest(like, lambda meta: None)
    assert found is not None and int(found[0].step) == found[1]["step"]
    return int(found[0].step)


def read(directory: Path, which: str, like: TrainState | None = None) -> int:
    with Checkpoints(directory, read_only=True) as checkpoints:
        meta = checkpoints.read_meta(which)
        if like is not None:
            checkpoints.restore(meta, like)
    return int(meta["step"])


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = [
    *(OSError(number, os.strerror(number)) for number in (errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE)),
    caused(ValueError("Error reading an array"), PermissionError(errno.EPERM, os.strerror(errno.EPERM))),
    ValueError('PERMISSION_DENIED: Error opening "zarr" driver: [OS error 13: EACCES Permission denied]'),
    ValueError("DATA_LOSS: Error reading local file: [OS error 5: EIO Input/output error]"),
    ExceptionGroup("several", [ValueError("one"), OSError(errno.ENFILE, os.strerror(errno.ENFILE))]),
    RuntimeError("can't start new thread"),
    MemoryError(),
]
OF_FILES = [
    ValueError("DATA_LOSS: CRC-32C checksum mismatch"),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
    OSError(errno.EINVAL, "it is no plain file"),
    KeyError("params"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_says_nothing_about_the_files_is_told_apart(error: Exception) -> None:
    assert passing_fault(error) and "\n" not in reason(error)


@pytest.mark.parametrize("error", OF_FILES, ids=repr)
def test_what_the_files_hold_is_damage(error: Exception) -> None:
    assert passing_fault(error) is None and reason(error)


@pytest.mark.parametrize("error", [PASSING[0], PASSING[4], PASSING[5]], ids=repr)
def test_a_fault_of_the_moment_sets_nothing_aside(tmp_path: Path, state: TrainState, error: Exception) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 1.0})

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    with Checkpoints(folder) as checkpoints:
        works, checkpoints._manager.restore = checkpoints._manager.restore, fail
        with pytest.raises(UserError, match=r"checkpoint .*/2 cannot be read: \w.*; it was left as it is"):
            checkpoints.restore_newest(state, lambda meta: None)
        assert names(folder) == ["1", "2"]
        checkpoints._manager.restore = works
        found = checkpoints.restore_newest(state, lambda meta: None)
        assert found is not None and found[1]["step"] == 2


def fail_at(monkeypatch: pytest.MonkeyPatch, part: str, number: int) -> None:
    """Lets descriptions whose path has this part fail to open."""
    works = description.open_regular

    def open_regular(path: Path) -> Any:
        if part in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return works(path)

    monkeypatch.setattr(description, "open_regular", open_regular)


def test_a_description_that_cannot_be_read_for_now(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 1.0})
    fail_at(monkeypatch, "/2/meta", errno.EACCES)
    for look in (lambda: newest(folder, state), lambda: read(folder, "latest"), lambda: read(folder, "best")):
        with pytest.raises(UserError, match=r"checkpoint .*/2 cannot be read: Permission denied"):
            look()
    assert names(folder) == ["1", "2"] and read(folder, "1", state) == 1


@NOT_ROOT
@pytest.mark.parametrize("what", [".", "state", "state/manifest.ocdbt", "state/d", "meta/metadata"])
def test_what_one_may_not_read_is_left_alone(tmp_path: Path, state: TrainState, what: str) -> None:
    # orbax takes some of it for missing.
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 1.0})
    place = folder / "2" / what
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        with pytest.raises(UserError, match=r"checkpoint .*/2 cannot be read: Permission denied"):
            newest(folder, state)
    finally:
        place.chmod(mode)
    assert names(folder) == ["1", "2"] and newest(folder, state) == 2


def test_the_best_stays_when_an_epoch_gets_fewer_steps(
    tmp_path: Path, state: TrainState, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "c", state, {46: 50.0, 92: 60.0, 138: 90.0, 184: 80.0}, keep=2)
    assert names(folder) == ["138", "184"]
    make(folder, state, {44: 20.0}, keep=2)
    assert names(folder) == ["138", "184", "44"]  # the newest two and the best
    assert (read(folder, "latest"), read(folder, "best"), newest(folder, state)) == (44, 138, 44)
    make(folder, state, {66: 30.0}, keep=2)
    assert names(folder) == ["138", "44", "66"]
    assert (read(folder, "latest"), read(folder, "best", state), newest(folder, state)) == (66, 138, 66)
    assert capfd.readouterr().err == ""
    make(folder, state, {138: 70.0}, keep=1)  # the same number of steps, but not the same checkpoint
    assert names(folder) == ["138", "138.earlier"]
    assert "its checkpoint, the best, is now" in capfd.readouterr().err
    meta = json.loads((folder / "138.earlier/meta/metadata").read_text())
    assert meta["metrics"] == {"val.top1": 90.0}
    make(folder, state, {138: 71.0}, keep=1)
    assert names(folder) == ["138", "138.earlier"] and read(folder, "best", state) == 138


def test_a_best_that_cannot_be_judged_at_a_prune_stays(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "c"
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, state, 1, 90.0)
        save(checkpoints, state, 2, 10.0)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            fail_at(patch, "/1/meta", errno.EMFILE)
            save(checkpoints, state, 3, 20.0)
            save(checkpoints, state, 4, 21.0)
            checkpoints.wait()
        assert names(folder) == ["1", "4"]
        err = capfd.readouterr().err
        assert re.fullmatch(r"note: checkpoint .*/1 cannot be read: Too many open files; it was left as it is\n", err)
        (folder / "1/meta/metadata").write_text("{")
        save(checkpoints, state, 5, 22.0)
    assert names(folder) == ["1.damaged", "5"]
    assert "it is set aside as 1.damaged" in capfd.readouterr().err


def test_only_plain_numbers_are_names_of_checkpoints(tmp_path: Path, state: TrainState) -> None:
    folder = make(tmp_path / "c", state, {2: 1.0, 3: 2.0})
    others = [
        "007",
        "+5",
        "\N{FULLWIDTH DIGIT FIVE}",
        "1.damaged",
        "4 ",
        "9" * 30,
        str(2**63),
        "-1",
        "1_0",
        "0x9",
        "8.removed.txt",
        "best",
    ]
    for name in others:
        shutil.copytree(folder / "3", folder / name)
    (folder / "99").touch()
    (folder / "98").symlink_to("nowhere")
    assert find_steps(folder) == [2, 3]
    assert (newest(folder, state), read(folder, "best", state), read(folder, "latest", state)) == (3, 3, 3)
    for name in ("007", "5", "\N{FULLWIDTH DIGIT FIVE}", "+3", "3 ", "03"):
        with pytest.raises(UserError, match=r"no checkpoint .*; use best, latest or one of \[2, 3\]"):
            read(folder, name)
    make(folder, state, {7: 3.0}, keep=1)
    assert names(folder) == sorted([*others, "99", "98", "7"])


def test_an_earlier_damaged_checkpoint_of_the_same_step_stays(tmp_path: Path, state: TrainState) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 1.0})
    (folder / "2.damaged").mkdir()
    (folder / "2.damaged/mine").touch()
    (folder / "2/state/manifest.ocdbt").write_bytes(b"")
    assert newest(folder, state) == 1
    assert names(folder) == ["1", "2.damaged", "2.damaged-2"] and (folder / "2.damaged/mine").exists()


def test_a_save_that_cannot_begin_ends_the_run_and_leaves_no_thread(
    tmp_path: Path, state: TrainState, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, before = make(tmp_path / "c", state, {1: 1.0}), set(threading.enumerate())
    with pytest.raises(RunStopped, match=r"checkpoint .*/2 could not be written"), Checkpoints(folder) as checkpoints:
        folder.rename(tmp_path / "elsewhere")
        folder.touch()
        save(checkpoints, state, 2, 1.0)
        checkpoints.wait()
    assert not [thread for thread in set(threading.enumerate()) - before if not thread.daemon]
    assert capfd.readouterr().err.count("trying again") == 2
    assert newest(tmp_path / "elsewhere", state) == 1


def test_a_save_again_that_fails_is_not_taken_for_done(tmp_path: Path, state: TrainState) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0})
    with pytest.raises(RunStopped, match="could not be written"), Checkpoints(folder) as checkpoints:

        def fail(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        checkpoints._manager.save = fail
        checkpoints._folder.make_room = lambda *_: None  # what was saved before has its name still
        save(checkpoints, state, 1, 50.0)
        checkpoints.wait()
    assert newest(folder, state) == 1


def test_checkpoints_that_cannot_be_written_are_told_before_anything_compiles(own_copy: Path, call_train: Run) -> None:
    shutil.rmtree(own_copy / "checkpoints")
    (own_copy / "checkpoints").touch()
    done = call_train(own_copy, "--config.epochs=3")
    assert_user_error(done, f"cannot write checkpoints to {own_copy / 'checkpoints'}: it is a file")
    assert_user_error(call_train(own_copy, "--config.run.evaluate=True"), "cannot be read: Not a directory")


@NOT_ROOT
def test_a_folder_that_may_not_be_written_to_is_told_at_once(tmp_path: Path, state: TrainState) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0})
    folder.chmod(0o555)
    with pytest.raises(UserError, match=r"cannot write checkpoints to .*: Permission denied"):
        newest(folder, state)
    assert read(folder, "latest", state) == 1
    folder.chmod(0o755)


def test_a_reader_takes_what_is_there(tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    # Listed, and gone when it is read.
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 2.0})
    for which in ("latest", "best"):
        listed = [[0, 1], [1, 2, 5]]
        monkeypatch.setattr(
            checkpoint_folder, "find_steps", lambda path, listed=listed: listed.pop() if listed else find_steps(path)
        )
        assert read(folder, which, state) == 2 and not listed
    listed = [[1, 2, 5]]
    with pytest.raises(UserError, match=r"no checkpoint '5'; use best, latest or one of \[1, 2\]"):
        read(folder, "5")


def test_a_reader_waits_for_a_checkpoint_that_is_saved_again(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0})
    for which in ("latest", "1"):
        (folder / "1").rename(folder / "1.replaced")
        monkeypatch.setattr(checkpoint_folder.time, "sleep", lambda _: (folder / "1.replaced").rename(folder / "1"))
        assert read(folder, which, state) == 1
    (folder / "1").rename(folder / "1.replaced")
    monkeypatch.setattr(checkpoint_folder.time, "sleep", lambda _: None)
    with pytest.raises(UserError, match=r"1\.replaced is being replaced; if its run was killed meanwhile, start"):
        read(folder, "latest")


def test_a_model_that_was_looked_at_can_be_loaded_whatever_becomes_of_it(own_copy: Path) -> None:
    stored = load_run(own_copy, "best", [])
    expected = load_run(own_copy, "best", []).load()
    shutil.rmtree(own_copy / "checkpoints")
    assert_same_bits(stored.load(), expected)
    with pytest.raises(UserError, match="has no checkpoints"):
        load_run(own_copy, "best", [])


def change(checkpoint: Path, key: str, value: Any, *, sealed: bool = True) -> None:
    """Has a checkpoint say something else, in the section that a dot names."""
    file = checkpoint / "meta/metadata"
    meta = json.loads(file.read_text())
    before = meta.pop("seal")
    place = meta
    *sections, last = key.split("/")
    for section in sections:
        place = place[section]
    place[last] = value
    file.write_text(json.dumps(meta | {"seal": seal(meta) if sealed else before}))


def test_a_checkpoint_names_no_programs(own_copy: Path, tmp_path: Path) -> None:
    checkpoint = own_copy / "checkpoints" / str(read_meta(own_copy)["step"])
    change(checkpoint, "config/compute/compile_cache", str(tmp_path / "given"))
    change(checkpoint, "config/compute/xla_flags", "--xla_dump_to=/nowhere")
    compute = load_run(own_copy, "latest", []).config.compute
    assert (compute.compile_cache, compute.xla_flags) == ("auto", "")
    own = [("compute.compile_cache", str(tmp_path / "own"))]
    assert load_run(own_copy, "latest", own).config.compute.compile_cache == str(tmp_path / "own")
    assert not (tmp_path / "given").exists()


WRONG = [
    ("metrics", None),
    ("metrics", {"val.top1": "x"}),
    ("metrics", {"val.top1": float("nan")}),
    ("metrics", [1]),
    ("class_names", 5),
    ("class_names", "0123456789"),
    ("class_names", []),
    ("config", [1]),
    ("config", None),
    ("config", {"a.b": 1}),
    ("config", {}),
    ("config/recipe", 5),
    ("config/recipe/ema_decay", "x"),
    ("config/model/width", 10**30),
    ("config/model/arch", [[["resnet50"]]]),
    ("position", {"epoch": -1, "step": 0, "pipelines": []}),
    ("position", {"epoch": 10**20, "step": 0, "pipelines": []}),
    ("position", [0, 0]),
    ("steps_per_epoch", 0),
    ("steps_per_epoch", "46"),
    ("stream", [1]),
    ("goodput", {"train": -1.0}),
    ("goodput", {"train": [1]}),
    ("goodput", None),
    ("epoch", 1.5),
    ("epoch", True),
    ("time", "now"),
    ("arrays", {"step": 5}),
    ("arrays", []),
    ("order", -1),
]


def test_a_description_of_another_shape_is_one_line(own_copy: Path) -> None:
    (checkpoint, *rest) = (own_copy / "checkpoints").iterdir()
    for other in rest:
        shutil.rmtree(other)
    whole = (checkpoint / "meta/metadata").read_text()
    for key, value in WRONG:
        change(checkpoint, key, value)
        with pytest.raises(UserError) as told:
            load_run(own_copy, "best", [])
        assert "\n" not in str(told.value), (key, value)
        (checkpoint / "meta/metadata").write_text(whole)
    for key in ("position", "class_names", "config", "metrics", "arrays", "time"):
        meta = {name: value for name, value in json.loads(whole).items() if name not in (key, "seal")}
        (checkpoint / "meta/metadata").write_text(json.dumps(meta | {"seal": seal(meta)}))
        with pytest.raises(UserError, match=f"was not saved by this program, or by another version of it: {key}"):
            load_run(own_copy, "latest", [])
    (checkpoint / "meta/metadata").write_text(whole)
    assert load_run(own_copy, "best", []).facts["step"] == int(checkpoint.name)


GARBLED = ["", "{", "[]", "null", "[" * 100_000, '{"format": 3}', "\x00" * 99, '{"a": 1' + "0" * 5000]


@pytest.mark.parametrize("text", GARBLED, ids=range(len(GARBLED)))
def test_a_garbled_description_is_damage(tmp_path: Path, state: TrainState, text: str) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 1.0})
    (folder / "2/meta/metadata").write_text(text)
    with pytest.raises(UserError, match="falls back to an older one"):
        read(folder, "latest")
    assert newest(folder, state) == 1 and names(folder) == ["1", "2.damaged"]


def test_a_changed_format_is_damage_and_another_one_is_not(tmp_path: Path, state: TrainState) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 1.0, 3: 1.0})
    change(folder / "3", "format", 2, sealed=False)
    assert newest(folder, state) == 2 and names(folder) == ["1", "2", "3.damaged"]
    change(folder / "2", "format", 4)
    with pytest.raises(UserError, match="has format 4, this version reads 3"):
        newest(folder, state)
    assert names(folder) == ["1", "2", "3.damaged"]


def test_a_resume_refuses_what_it_did_not_save(own_copy: Path, call_train: Run) -> None:
    step = read_meta(own_copy)["step"]
    for key, value in (("goodput", {"train": "x"}), ("position", {"epoch": 2**40, "step": 0, "pipelines": []})):
        change(own_copy / "checkpoints" / str(step), key, value)
        assert_user_error(call_train(own_copy, "--config.epochs=3"), "was not saved by this program", key)
    assert str(step) in names(own_copy / "checkpoints")


def put_into_an_epoch(run: Path, position: dict[str, Any]) -> None:
    """Has the latest checkpoint say that it is of the first step of the second epoch, but for what is given."""
    meta, checkpoints = read_meta(run), run / "checkpoints"
    step = meta["steps_per_epoch"] + 1
    (checkpoints / str(meta["step"])).rename(checkpoints / str(step))
    change(checkpoints / str(step), "step", step)
    change(checkpoints / str(step), "position", {"epoch": 1, "step": 1, "pipelines": ["AAAA"]} | position)


@pytest.mark.parametrize("place", [b"garbage", b"\n\x04\n\x02\xff\xff"])
def test_a_place_that_the_pipeline_does_not_understand_is_no_images_fault(
    own_copy: Path, call_train: Run, place: bytes
) -> None:
    put_into_an_epoch(own_copy, {"pipelines": [base64.b64encode(place).decode()]})
    done = call_train(own_copy, "--config.epochs=3")
    assert done.returncode == 2 and "left out" not in done.stderr, done.stderr
    assert "place in the stream of images is none that DALI understands" in done.stderr.splitlines()[-1]
    assert not (own_copy / "quarantine.json").exists()


@pytest.mark.parametrize("key", ["position/step", "position/pipelines"])
def test_a_place_that_cannot_be_is_told(own_copy: Path, call_train: Run, key: str) -> None:
    put_into_an_epoch(own_copy, {"step": 2} if key == "position/step" else {"pipelines": []})
    told = "cannot be of step 2 of epoch 2" if key == "position/step" else "images of 0 devices"
    assert_user_error(call_train(own_copy, "--config.epochs=3"), told)


def test_a_pipe_with_the_name_of_the_next_checkpoint_is_told(
    tmp_path: Path, state: TrainState, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0})
    os.mkfifo(folder / "2")
    with pytest.raises(RunStopped, match="it is there already, and no folder"), Checkpoints(folder) as checkpoints:
        save(checkpoints, state, 2)
    assert names(folder) == ["1", "2"]


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    (path.parent / "loop").symlink_to("..")


def nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def secret(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("what", [pipe, device, nowhere, secret, loop])
@pytest.mark.parametrize("file", ["state/manifest.ocdbt", "meta/metadata"])
def test_links_and_pipes_inside_a_checkpoint(
    tmp_path: Path, state: TrainState, what: Callable[[Path], None], file: str
) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0})
    what(folder / "1" / file)
    with pytest.raises(UserError, match=r"checkpoint .*/1 (cannot be read|is damaged)"):
        read(folder, "latest", state)


@pytest.mark.parametrize("claim", [{"shape": [10**9, 10**9]}, {"chunks": [10**9, 10**9]}, {"dtype": "|V1000000000"}])
def test_an_array_that_claims_to_be_huge(tmp_path: Path, state: TrainState, claim: dict[str, Any]) -> None:
    # orbax would make room for it, and C++ end the process.
    folder = make(tmp_path / "c", state, {1: 1.0, 2: 1.0})
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/2/state/"}).result()
    name = "params.fc.kernel/.zarray"
    header = json.loads(store.read(name).result().value)
    assert header["shape"] == list(state.params["fc"]["kernel"].shape)
    store.write(name, json.dumps(header | claim).encode()).result()
    with pytest.raises(
        UserError, match=r"checkpoint .*/2 cannot be read \(.*params.fc.kernel is stored in another shape"
    ):
        read(folder, "latest", state)
    assert newest(folder, state) == 1 and names(folder) == ["1", "2.damaged"]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("what", [pipe, device, "null", '{"commit_timestamp_nsecs": "x"}', "[" * 100_000, "9" * 5000])
def test_what_orbax_notes_beside_a_checkpoint_is_not_believed(
    tmp_path: Path, state: TrainState, what: Any, step: int
) -> None:
    make(tmp_path, state, {1: 1.0, 2: 2.0})
    note = tmp_path / str(step) / "_CHECKPOINT_METADATA"
    what(note) if callable(what) else note.write_text(what)
    assert newest(tmp_path, state) == (1 if callable(what) and step == 2 else 2)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        save(checkpoints, state, 3, 3.0)
    assert read(tmp_path, "latest", state) == 3


def test_a_model_that_claims_to_be_huge_takes_no_memory(tmp_path: Path, state: TrainState) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0})
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2**20, *x.shape), x.dtype), state)
    shapes = describe_shapes(flax.serialization.to_state_dict(like))
    change(folder / "1", "arrays", {name: [*shape, ""] for name, shape in shapes.items()})
    with pytest.raises(UserError, match="is stored in another shape"):
        read(folder, "latest", like)


def test_a_file_that_is_larger_than_any_is_not_read(tmp_path: Path, state: TrainState) -> None:
    make(tmp_path, state, {1: 1.0, 2: 2.0})
    os.truncate(tmp_path / "2" / "state" / "_METADATA", 1 << 36)  # of which the disk holds nothing
    assert newest(tmp_path, state) == 1


def test_a_checkpoint_of_links_to_files_is_as_good(tmp_path: Path, state: TrainState) -> None:
    folder = make(tmp_path / "c", state, {1: 1.0})
    for number, path in enumerate([path for path in (folder / "1").rglob("*") if path.is_file()]):
        path.rename(tmp_path / str(number))
        path.symlink_to(tmp_path / str(number))
    (folder / "1").rename(tmp_path / "elsewhere")
    (folder / "1").symlink_to(tmp_path / "elsewhere")
    assert newest(folder, state) == 1
    make(folder, state, {2: 2.0}, keep=1)
    assert names(folder) == ["2"] and (tmp_path / "elsewhere").is_dir()  # only the link is removed


def test_metrics_without_checkpoints_are_told(own_copy: Path, call_train: Run) -> None:
    last = read_lines(own_copy)[-1]["step"]
    shutil.rmtree(own_copy / "checkpoints")
    done = call_train(own_copy, *SMALL)
    assert done.returncode == 0, done.stderr
    (note,) = done.stderr.strip().splitlines()
    assert note.startswith(f"note: {own_copy} has metrics up to step {last}, but no checkpoints: training starts anew")


# A process that is killed at the N-th renaming, wherever it happens: of a save, a save again, a prune, a damage.
KILLED = """
import os, signal, sys
sys.path[:0] = [{repo!r}, {tests!r}]
import numpy as np
from pathlib import Path
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.training.state import TrainState

folder = Path(sys.argv[1])

def state(step):
    return TrainState(np.int32(step), dict(w=np.full(500, step, np.float32)), dict(), dict(), dict(), dict())

def save(checkpoints, step, top1):
    metrics = dict() if top1 is None else {{"val.top1": top1}}
    checkpoints.save(state(step), {{"step": step, "epoch": step}}, metrics)
    checkpoints.wait()

def work(checkpoints):
    save(checkpoints, 3, None)
    save(checkpoints, 3, 20.0)  # validated
    save(checkpoints, 4, 30.0)
    (folder / "4/state/manifest.ocdbt").write_bytes(b"")
    checkpoints.restore_newest(state(0), lambda meta: None)
    save(checkpoints, 5, 10.0)

def killing(call, at):
    def renamed(*args, **kwargs):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return renamed

def child(what):
    # Only children touch TensorStore, which does not put up with being forked.
    number = os.fork()
    if number == 0:
        try:
            what()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

def prepare():
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 1, 90.0)
        save(checkpoints, 2, 10.0)
    os._exit(0)

def killed(at):
    global count
    count = 0
    os.rename, os.replace = killing(os.rename, at), killing(os.replace, at)
    with Checkpoints(folder, keep=2) as checkpoints:
        work(checkpoints)
    os._exit(0)

def look():
    with Checkpoints(folder, keep=2) as checkpoints:
        left = sorted(path.name for path in folder.iterdir())
        found, meta = checkpoints.restore_newest(state(0), lambda meta: None)
        assert (found.params["w"] == meta["step"]).all()
        best = checkpoints.read_meta("best")
        assert best["metrics"]["val.top1"] == 90.0 and best["step"] == 1
        checkpoints.restore(best, state(0))
    print(meta["step"], *left, flush=True)
    os._exit(0)

for at in range(1, 100):
    assert child(prepare) == 0
    code = child(lambda: killed(at))
    assert code in (0, -signal.SIGKILL), code
    assert child(look) == 0, at
    __import__("shutil").rmtree(folder)
    if code == 0:
        break
"""


@pytest.mark.slow
def test_killed_at_any_renaming_the_best_and_the_newest_are_there(tmp_path: Path, process_env: dict[str, str]) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(repo=str(REPO), tests=str(REPO / "tests")))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path / "c")],
        env=process_env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["2", "1", "2"] and lines[-1] == ["5", "1", "3", "4.damaged", "5"]
    assert {line[0] for line in lines} == {"2", "3", "4", "5"}
    assert all(re.fullmatch(r"\d|4\.damaged", name) for _, *left in lines for name in left), lines
