"""The files of a work folder: whole or not at all, the folder's lock, and what may be in the way."""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Run, assert_user_error
from helpers.logs import files_of_at_most
from helpers.metrics_files import make_run
from helpers.trees import make_config

from rn50_jax import plot
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.image_set import ImageSet
from rn50_jax.errors import UserError
from rn50_jax.io import files
from rn50_jax.loggers.history import set_aside_unreadable
from rn50_jax.loggers.jsonl import JsonLines
from rn50_jax.runtime.run_folder import make_workdir, write_json, write_run_files
from rn50_jax.runtime.run_lock import locked


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_run_files(tmp_path, config, jax.devices()[:1], ["old"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(path.name for path in before) == ["config.json", "run.json"]
    with files_of_at_most(100), pytest.raises(UserError, match=r"cannot write .*config\.json: File too large"):
        write_run_files(tmp_path, config, jax.devices()[:1], ["new"])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_figures_are_whole_and_a_full_disk_names_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert plot.main([str(run)]) == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    for target in (f"{run}/curves.png", f"{run}/x.pdf"):
        with files_of_at_most(1000), pytest.raises(UserError, match=rf"cannot write {target}: File too large"):
            plot.main([str(run), "--out", target])
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_numbers_that_are_not_finite_are_null_in_results(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("-inf"), 1.0], "c": {"d": float("inf")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0], "c": {"d": None}}


def test_a_deleted_lock_file_lets_nobody_in(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        (tmp_path / "lock").unlink()
        with pytest.raises(UserError, match=r"another run is writing to .*; wait for it, or choose another --workdir"):
            locked(tmp_path).__enter__()
    with locked(tmp_path), pytest.raises(UserError, match=rf"\(process {os.getpid()} on .*, since "):
        locked(tmp_path).__enter__()
    with locked(tmp_path):  # let go of
        pass


def test_where_folders_cannot_be_locked_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def of_nfs(file: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{file}"):  # noqa: PTH112
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", of_nfs)
    with locked(tmp_path), pytest.raises(UserError, match="another run is writing to"):
        locked(tmp_path).__enter__()


@pytest.mark.parametrize("kind", ["folder", "pipe", "somebody else's", "garbage"])
def test_a_lock_file_that_cannot_be_used_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "lock"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff\x00\x1b[2J" * 1000)
        path.chmod(0o444 if kind == "somebody else's" else 0o644)
    with locked(tmp_path), pytest.raises(UserError, match="another run is writing to"):
        locked(tmp_path).__enter__()
    told = capsys.readouterr().err
    expected = kind in ("folder", "pipe") or (kind != "garbage" and os.geteuid() != 0)
    assert ("so it does not tell who writes to the folder" in told) == expected
    assert all(line.startswith("note: ") for line in told.splitlines())


@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.jsonl", "tensorboard", "dle.json"])
def test_what_is_in_the_way_is_told_in_one_line(own_copy: Path, call_train: Run, name: str) -> None:
    path = own_copy / name
    if name == "tensorboard":
        path.rename(own_copy / "other")
        path.touch()
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    done = call_train(own_copy, "--config.epochs=3", "--config.log.dle_json=dle.json")
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
    assert done.returncode == 2 and str(path) in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [link, pipe])
@pytest.mark.parametrize("end", ["", files.UNFINISHED])
def test_a_strangers_folder_leads_to_no_file_outside(
    tmp_path: Path, put: Callable[[Path, Path], None], end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outside, run = tmp_path / "outside", make_run(tmp_path / "run")
    outside.write_text("mine\nhalf")
    lines = (run / "metrics.jsonl").read_bytes()
    names = ["config.json", "run.json", "curves.png", "curves.svg", "quarantine.json", "lock", "quarantine.lock"]
    for name in names if not end else names[:5]:
        (run / name).unlink(missing_ok=True)
        put(run / f"{name}{end}", outside)
    with locked(run):
        write_run_files(run, make_config(tmp_path), jax.devices()[:1], [])
        assert plot.main([str(run)]) == 0
        if put is link and not end:
            (run / "quarantine.json").unlink()  # it is no list of images
        images = ImageSet(("/d/train/a/1.jpg",), np.zeros(1, np.int32), root="/d/train")
        if put is link or end:
            BadImages(run / "quarantine.json", limit=9).add("train", images, 0, epoch=0, reason="")
    for name in names[:4]:
        assert stat.S_ISREG((run / name).lstat().st_mode)
    put(run / "log.jsonl", outside)
    with pytest.raises(UserError, match=r"it is (a link|no plain file)"):
        JsonLines(run / "log.jsonl")
    set_aside_unreadable(run / "log.jsonl")
    assert outside.read_text() == "mine\nhalf"
    assert (run / "metrics.jsonl").read_bytes() == lines
    assert ("lock cannot be written (it is a link)" in capsys.readouterr().err) == (put is link and not end)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "checkpoints/x", "link/lock"])
def test_a_log_by_its_full_name_is_none_of_the_runs_files(own_copy: Path, call_train: Run, name: str) -> None:
    (own_copy / "link").symlink_to(own_copy)
    done = call_train(own_copy, "--config.epochs=3", f"--config.log.dle_json={own_copy / name}")
    assert done.returncode == 2 and "is a file of the run's own; choose another" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["a" * 300, "file", "file/x"])
def test_work_folders_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the work folder .*; choose another --workdir"):
        make_workdir(tmp_path / name)
    if name != "file":
        with pytest.raises(UserError, match="does not exist"):
            plot.main([str(tmp_path / name)])


def test_a_folder_for_a_result_is_told(call: Run, trained: tuple[Path, str], tmp_path: Path) -> None:
    done = call("plot", trained[0], "--out", tmp_path / "x.png", "--csv", tmp_path)
    assert_user_error(done, f"cannot write {tmp_path}: Is a directory")


def test_a_link_stays_one_and_what_blocks_a_write_is_named(tmp_path: Path) -> None:
    def write(path: Path, text: str) -> None:
        with files.written_whole(path) as unfinished:
            unfinished.write_text(text)

    target = tmp_path / "x"
    (tmp_path / "link").symlink_to(target)
    write(tmp_path / "link", "1")
    assert target.read_text() == "1" and (tmp_path / "link").is_symlink()
    (tmp_path / "x.unfinished").mkdir()
    with pytest.raises(OSError, match=r"x\.unfinished"):
        write(target, "2")
    assert target.read_text() == "1"
