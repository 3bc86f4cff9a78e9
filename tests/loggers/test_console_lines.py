"""What a run looks like: in a terminal, in a narrow one, in one without a cursor, and in a file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from helpers.runs import in_a_terminal as run_in_a_terminal

from rn50_jax.config.derived import Plan
from rn50_jax.io.text import size_text
from rn50_jax.loggers.console import Console, clock, result_table, train_line

PLAN = Plan(1, 1, 32, 32, steps_per_epoch=10, total_steps=20, peak_lr=0.1)
STEPS = {"train.loss": 2.5, "train.top1": 12.5, "lr": 0.1, "train.data_time": 0.1, "train.compute_time": 0.3}
STEPS |= {"train.total_ips": 80.0}
SCRIPT = """
from rn50_jax.io.text import size_text
from rn50_jax.loggers.console import Console, print_rows
from rn50_jax.config.derived import Plan
from rn50_jax.loggers.report import Report

print_rows({"batch": "32 per device x 1 device x 1 pass = 32 per update, and so on, and so on, and so on"})
plan = Plan(1, 1, 32, 32, steps_per_epoch=10, total_steps=20, peak_lr=0.1)
steps = {"train.loss": 2.5, "train.top1": 12.5, "lr": 0.1, "train.data_time": 0.1, "train.compute_time": 0.3,
          "train.total_ips": 80.0, "train.skipped_steps": 0, "train.skipped_in_a_row": 0}
console = Console(plan, 2, eval_batches=4, classes=10)
with Report(console, [], 10, 0) as report:
    console._progress.refresh()
    report.advance(5)
    report.train(5, 0, steps)
    console._progress.refresh()
    report.validating(3)
    console._progress.refresh()
    report.epoch(10, 0, {"val.top1": 50.0, "val.top5": 90.0, "val.loss": 1.5, "val.images": 9, "val.total_ips": 9.0})
    report.end(20, 1, {"startup": 1.0, "compile": 0, "train": 3.0, "data": 0, "validation": 0, "checkpoint": 0,
                       "lost": 0}, finished=True)
"""


def in_a_terminal(process_env: dict[str, str], columns: int, **env: str) -> str:
    """What the script writes to a terminal of so many columns."""
    env = process_env | {"TERM": "xterm-256color"} | env
    written, code = run_in_a_terminal([sys.executable, "-c", SCRIPT], env, columns, REPO)
    assert code == 0, written
    return written


def test_a_terminal_has_two_live_bars_below_the_lines(process_env: dict[str, str]) -> None:
    written = in_a_terminal(process_env, 120)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert re.search(r"epoch 1/2 +━+ +0/10 compiling 0:00:0", plain)
    assert re.search(r"epoch 1/2 +[━╸╺]+ +5/10 ETA 0:00:02", plain)
    assert re.search(r"run +[━╸╺]+ +5/20 ETA 0:00:06", plain)
    assert re.search(r"validation [━╸╺]+ +3/4", plain)
    assert "epoch 1/2  step  5/20  loss  2.5000  top-1  12.50  lr 0.10000      80.0 img/s  data  25%" in plain
    assert "\x1b[38;5" in written or "\x1b[3" in written  # colours
    assert written.endswith("\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K")  # the bars are gone at the end


@pytest.mark.slow
def test_colours_narrow_terminals_and_none(process_env: dict[str, str]) -> None:
    without = in_a_terminal(process_env, 120, NO_COLOR="1")
    assert not re.search(r"\x1b\[(3|4|9)\d", without) and "ETA" in without
    narrow = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", in_a_terminal(process_env, 50))
    assert "━" not in narrow and re.search(r"run +5/20 ETA", narrow)
    assert "epoch 1/2  loss  2.5000  top-1  12.50\r\n" in narrow  # the rest has no room
    assert "x 1 pass = 32\r\n           per update, " in narrow  # wrapped below its beginning
    dumb = in_a_terminal(process_env, 120, TERM="dumb")
    assert "\x1b" not in dumb and "compiling" not in dumb and "epoch 1/2  step  5/20" in dumb


@pytest.mark.parametrize("more", [{}, {"FORCE_COLOR": "1"}])
def test_a_file_gets_the_lines_alone(process_env: dict[str, str], more: dict[str, str]) -> None:
    env = process_env | {"COLUMNS": "30"} | more
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].endswith("and so on") and lines[1].startswith("epoch 1/2  step  5/20  loss  2.5000")
    assert lines[1].endswith("data  25%  ETA 0:00:06")
    assert lines[2].startswith("expected   about 0:00:06 of training to go, until ")
    validation = "epoch 1/2  validation  top-1 50.000 %  top-5 90.000 %  loss 1.50000  9 images  9.0 img/s"
    assert lines[3] == f"{validation}  best so far"
    assert lines[-2:] == ["time       4 s in all: startup 25%, train 75%", "goodput    75% of it was training"]


def test_the_line_before_any_speed_is_known() -> None:
    line = "  ".join(text for _, text in train_line(STEPS | {"train.total_ips": 0.0}, "epoch 1/2", "step 1/20", None))
    assert "       - img/s" in line and line.endswith("ETA -")
    scaled = "  ".join(text for _, text in train_line(STEPS | {"train.loss_scale": 128.0}, "", "", 5.0))
    assert "scale 128  ETA 0:00:05" in scaled


def test_results_name_the_best_and_the_last() -> None:
    first = {"epoch": 1, "val.top1": 60.0, "val.top5": 80.0, "val.loss": 1.0}
    second = {"epoch": 2, "val.top1": 70.0, "val.top5": 90.0, "val.loss": 0.9, "val_ema.top1": 71.0}
    second |= {"val_ema.top5": 91.0, "val_ema.loss": None}
    third = {"epoch": 3, "val.top1": 65.0, "val.top5": 85.0, "val.loss": 0.5}
    assert result_table([third, first, second], classes=10) == [
        "result      epoch   top-1 %   top-5 %      loss",
        "  best          2    70.000    90.000   0.90000",
        "  best          2    71.000    91.000         - averaged",
        "  last          3    65.000    85.000   0.50000",
    ]
    assert result_table([], classes=10) == []


def test_small_words() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]
    assert [size_text(size) for size in (17, 4.2e5, 1.23e8, 1.24e10, 9.996e11)] == [
        "17 bytes",
        "420 kB",
        "123 MB",
        "12.4 GB",
        "1 TB",
    ]


def test_advancing_is_cheap_without_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    console = Console(PLAN, 2, classes=10)
    console.start()
    for step in range(21):
        console.advance(step)
    console.line("a [bracket] is no markup")
    console.close()
    assert capsys.readouterr().out == "a [bracket] is no markup\n"
