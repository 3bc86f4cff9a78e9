"""Metrics files that others have written to, or that a disk has damaged: what can be read is, the rest is set aside."""

import json
import os
from pathlib import Path

import pytest
from conftest import Run, assert_user_error
from helpers.metrics_files import make_run, train_line, val_line, write
from helpers.runs import read_lines

from rn50_jax import plot
from rn50_jax.errors import UserError
from rn50_jax.loggers.history import last_line, read_description, read_history, set_aside_unreadable, to_csv

GOOD = {"time": 1, "step": 1, "epoch": 1, "epochs_done": 1}


def without(key: str, value: str = "") -> str:
    """A line of metrics without a key, or with another value for it."""
    items = [f'"{name}": {number}' for name, number in GOOD.items() if name != key]
    return "{" + ", ".join([*items, *([f'"{key}": {value}'] if value else [])]) + "}"


BAD = (
    b"\xff\xfe",
    b"\x00" * 40,
    "{}".encode("utf-16"),
    b"5",
    b"[]",
    b"null",
    b"{}",
    b'{"step": 1',
    *(line.encode() for key in GOOD for line in (without(key), without(key, "null"), without(key, '"1"'))),
    *(without("step", value).encode() for value in ("1.5", "true", "-1")),
    *(without("time", value).encode() for value in ("NaN", "1e300")),
    *(without("epoch", value).encode() for value in ('"<script>"', "0")),
    without("epochs_done", "[1]").encode(),
    *(without("lr", value).encode() for value in ('"low"', "1e39", "9" * 5000)),
    without("val.top1", "null").encode(),
    b"[" * 100_000,
)


@pytest.mark.parametrize("bad", BAD, ids=lambda line: repr(line[:40]))
def test_a_line_that_is_none_of_metrics_is_passed_over(tmp_path: Path, bad: bytes) -> None:
    lines = [train_line(5, 3.0, 0.5), val_line(1, 5.0)]
    path = write(tmp_path / "m.jsonl", lines[:1])
    path.write_bytes(path.read_bytes() + bad + b"\n" + json.dumps(lines[1]).encode() + b"\n")
    history = read_history(path)
    assert history.lines == lines
    assert history.unread == bad.count(b"\n") + 1
    assert last_line(path) == lines[1]


def test_a_loss_that_was_not_finite_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(without("train.loss", "null") + "\n" + without("val.loss", "NaN") + "\n")
    assert [line.get("train.loss", line.get("val.loss")) for line in read_history(path).lines] == [None, None]
    assert read_history(path).unread == 0


def test_what_is_unreadable_is_set_aside_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.jsonl", [train_line(5, 3.0, 0.5)])
    good = path.read_bytes()
    # Bytes of good lines stay as they are, whoever wrote them.
    spaced = b'{ "time": 1, "step": 10,   "epoch": 1, "epochs_done": 1, "train.loss": 1 }\n'
    path.write_bytes(good + b"\xff\xfe\n" + spaced + b"5\n" + b'{"step": 1')
    set_aside_unreadable(path)
    assert path.read_bytes() == good + spaced
    aside = tmp_path / "m.jsonl.damaged"
    assert aside.read_bytes() == b'\xff\xfe\n5\n{"step": 1\n'
    told = f"note: {path}: moved 3 lines without metrics to {aside}\n"
    assert capsys.readouterr().err == told
    set_aside_unreadable(path)
    set_aside_unreadable(tmp_path / "none")
    path.write_bytes(path.read_bytes() + b"7\n")
    set_aside_unreadable(path)
    assert aside.read_bytes() == b'\xff\xfe\n5\n{"step": 1\n7\n'
    assert "1 line " in capsys.readouterr().err


def test_a_damaged_file_ends_no_run_and_no_page(
    own_copy: Path, call_train: Run, call: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = own_copy / "metrics.jsonl"
    before = metrics.read_bytes()
    metrics.write_bytes(before + b"\n".join((*BAD, b"")))
    page = call("plot", own_copy, "--html", tmp_path / "x.html")
    assert page.returncode == 0 and "lines without metrics, passed over" in page.stderr
    assert metrics.read_bytes().startswith(before + BAD[0])  # whoever only reads changes nothing
    done = call_train(own_copy, "--config.epochs=3")
    assert done.returncode == 0, done.stderr
    assert f"lines without metrics to {metrics}.damaged" in done.stderr
    assert metrics.read_bytes().startswith(before)
    assert [line["epoch"] for line in read_lines(own_copy) if "val.top1" in line] == [1, 2, 3]
    assert "  best " in done.stdout and (own_copy / "metrics.jsonl.damaged").read_bytes().startswith(BAD[0])


def test_a_huge_file_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run") / "metrics.jsonl"
    os.truncate(path, 1 << 33)  # of which the disk holds next to nothing
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read: it has more than 1024 MiB"):
        read_history(path)
    assert last_line(path) == {}
    for name in ("config.json", "run.json"):
        (tmp_path / "run" / name).touch()
        os.truncate(tmp_path / "run" / name, 1 << 33)
        assert read_description(tmp_path / "run" / name) == {}
    (tmp_path / "run" / "metrics.jsonl.damaged").touch()
    set_aside_unreadable(path)
    assert not path.exists() and (tmp_path / "run" / "metrics.jsonl.damaged-2").stat().st_size == 1 << 33
    assert "metrics.jsonl is larger than any run's, and was moved to" in capsys.readouterr().err


def test_metrics_without_checkpoints_are_no_beginning_in_silence(own_copy: Path, call_train: Run) -> None:
    (own_copy / "checkpoints").rename(own_copy / "gone")
    done = call_train(own_copy, "--config.epochs=1", "--config.recipe.warmup_epochs=0")
    assert done.returncode == 0
    assert ", but no checkpoints: training starts anew at step 0" in done.stderr


def test_a_file_of_something_else_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"x\.csv holds no line of metrics"):
        plot.main([str(tmp_path / "x.csv")])


def test_names_of_metrics_are_harmless_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(without("=cmd()", '2, "a\\nb": 3, "\\ud800": 4') + "\n")
    assert to_csv(read_history(path)) == "time,step,epoch,epochs_done,'=cmd(),a\\nb,\\ud800\n1,1,1,1,2,3,4\n"


def test_a_table_on_a_full_disk_names_the_file(tmp_path: Path, call: Run) -> None:
    make_run(tmp_path / "run")
    for option in ("--csv", "--html"):
        done = call("plot", tmp_path / "run", option, "/dev/full")
        assert_user_error(done, "cannot write /dev/full: No space left on device")


def test_lines_that_no_run_wrote_are_passed_over(tmp_path: Path) -> None:
    """Deep ones with NaN among them, which only other programs write and which Python's own reader would fail on."""
    good = b'{"time": 1, "step": 46, "epoch": 1, "epochs_done": 1.0, "val.top1": 90.0, "val.loss": NaN}'
    lines = [good, b'{"step": NaN, "a": ' + b"[" * 100_000, b"NaN", b"[NaN]", b'{"step": 1e999}', b"\xff"]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = read_history(path)
    assert found.unread == len(lines) - 1
    assert [line["val.loss"] for line in found.lines] == [None]
    assert last_line(path)["step"] == 46
    assert last_line(tmp_path / "none") == {}
