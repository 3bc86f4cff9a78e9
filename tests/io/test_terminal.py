"""Lines in narrow terminals: the real commands at 60 and 80 columns, and what is left of their lines in a pipe."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, Run, tiny_args
from helpers.runs import in_a_terminal as run_in_a_terminal

from rn50_jax.io.terminal import columns, fit, width_of, wrap
from rn50_jax.io.text import counted, decimal, plural
from rn50_jax.loggers.console import train_line, validation_text


def in_a_terminal(env: dict[str, str], width: int, *words: object, cwd: Path = REPO) -> list[str]:
    """The lines that a command shows in a terminal of so many columns, without what moves its cursor."""
    command = [sys.executable, "-m", *map(str, words)]
    written, _ = run_in_a_terminal(command, env | {"TERM": "xterm-256color"}, width, cwd)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return re.split(r"[\r\n]+", text)


def assert_whole_words(lines: list[str], width: int) -> None:
    """No line is longer than the terminal is wide, unless it is one word or a command."""
    assert len(lines) > 1
    for line in lines:
        assert len(line) <= width or len(line.split()) == 1 or line.lstrip().startswith("python -m "), line


def as_bash_reads(command: str) -> list[str]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("width", [60, 80])
def test_check_data_and_help(process_env: dict[str, str], digits: Path, width: int) -> None:
    assert_whole_words(in_a_terminal(process_env, width, "rn50_jax.check_data", digits), width)
    assert_whole_words(in_a_terminal(process_env, width, "rn50_jax", "--help"), width)
    lines = in_a_terminal(process_env, width, "rn50_jax.check_data", "--help")
    assert_whole_words(lines, width)
    assert any("128 + N" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80])
def test_every_command(process_env: dict[str, str], trained: tuple[Path, str], digits: Path, width: int) -> None:
    run = ("--workdir", trained[0])
    for words in (
        *((f"rn50_jax.{name}", "--help") for name in ("train", "evaluate", "predict", "plot", "export", "benchmark")),
        ("rn50_jax.evaluate", *run),
        ("rn50_jax.predict", *run, digits / "val/3", "no such file with blanks in its name.jpg"),
        ("rn50_jax.train", *tiny_args(digits), "--config.no.such.key=1"),
    ):
        assert_whole_words(in_a_terminal(process_env, width, *words), width)


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80])
def test_training_and_its_mistakes(process_env: dict[str, str], digits: Path, tmp_path: Path, width: int) -> None:
    words = ("rn50_jax.train", *tiny_args(digits), "--config.epochs=1", "--workdir", "my run")
    lines = in_a_terminal(process_env, width, *words, cwd=tmp_path)
    assert_whole_words(lines, width)
    text = "\n".join(lines)
    (validation,) = (line for line in lines if "  validation  " in line)
    assert re.match(r"epoch 1/1  validation  top-1 \d+\.\d+ %  ", validation)
    assert ("best so far" in validation) == (width == 80) and "img/s" not in validation
    # What is to be copied can be, as it stands.
    command = text[text.index("python -m rn50_jax.plot") : text.index("done")]
    page = ["--html", "my run/report.html"]
    assert as_bash_reads(command) == ["python", "-m", "rn50_jax.plot", "my run", *page]
    # The log has every line whole, and nothing of the bars.
    log = (tmp_path / "my run/console.log").read_text()
    assert re.search(r"^epoch 1/1  validation  top-1 .*  297 images  \d+\.\d img/s  best so far$", log, re.MULTILINE)
    assert "\x1b" not in log and "━" not in log
    words = ("rn50_jax.evaluate", "--workdir", "my run", "--per_class")
    lines = in_a_terminal(process_env, width, *words, cwd=tmp_path)
    assert_whole_words(lines, width)
    assert max(map(len, (line for line in lines if "%" in line))) <= width


def test_wrapping() -> None:
    line = "batch      32 per device x 1 device x 1 pass = 32 per update"
    assert wrap(line, 40) == "batch      32 per device x 1 device x 1\n           pass = 32 per update"
    assert wrap(line, 60) == wrap(line, 100) == line
    assert wrap("note: a b c " + "d" * 30 + " e", 20) == "note: a b c\n  " + "d" * 30 + "\n  e"
    assert wrap("  12.5%  a name of many words here", 30) == "  12.5%  a name of many words\n         here"
    # Wide characters take two columns.
    assert width_of("猫a") == 3 and wrap("猫" * 8 + " " + "犬" * 4, 20) == "猫" * 8 + "\n  " + "犬" * 4


@pytest.mark.parametrize("width", range(24, 90, 7))
def test_a_wrapped_command_is_the_same_command(width: int) -> None:
    words = ["python", "-m", "rn50_jax.plot", "runs/it's my first run", "--html", "a b/c d.html", "--config.data.dir=x"]
    line = f"error: it's not so; use its weights: {shlex.join(words)}"
    wrapped = wrap(line, width)
    assert as_bash_reads(wrapped[wrapped.index("python -m") :]) == words
    assert " ".join(wrapped.split()) == " ".join(line.split())


def test_pipes_get_whole_lines(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        assert columns(file) is None and fit("a " * 200, file) == "a " * 200


def test_numbers() -> None:
    assert decimal(87267838263296.0, 4) == "8.73e+13" and decimal(9999.5, 4) == "9999.5000"
    assert (decimal(float("nan"), 4), decimal(float("inf"), 4), decimal(-2e5, 1)) == ("nan", "inf", "-2.00e+05")
    assert [counted(n, "epoch") for n in (0, 1, 2, 1500)] == ["0 epochs", "1 epoch", "2 epochs", "1,500 epochs"]
    assert list(map(plural, ("class", "pass", "batch", "image"))) == ["classes", "passes", "batches", "images"]


def test_large_losses_and_few_classes() -> None:
    window = {"train.loss": 87267838263296.0, "train.top1": 1.0, "lr": 0.1, "train.data_time": 0.1}
    window |= {"train.compute_time": 0.3, "train.total_ips": 80.0}
    assert "loss 8.73e+13" in [text for _, text in train_line(window, "", "", None)]
    metrics = {"val.top1": 50.0, "val.top5": 100.0, "val.loss": 1.5e7, "val.images": 1, "val.total_ips": 9.0}
    assert validation_text(metrics, classes=5) == (
        "validation  top-1 50.000 %  top-5 -  loss 1.50e+07  1 image  9.0 img/s"
    )
    assert "top-5 100.000 %" in validation_text(metrics, classes=6)


def test_the_log_of_the_console(call_train: Run, own_copy: Path) -> None:
    before = (own_copy / "console.log").read_text()
    assert before.startswith("[") and "\nmodel      resnet18, " in before and before.endswith("\ndone\n")
    done = call_train(own_copy, "--config.epochs=3")
    assert done.returncode == 0
    log = (own_copy / "console.log").read_text()
    assert log.startswith(before)
    header, *lines = log.removeprefix(before).splitlines()
    assert re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] python -m rn50_jax.train --config ", header)
    assert set(done.stdout.splitlines()) <= set(lines)
    assert set(lines) <= {*done.stdout.splitlines(), *done.stderr.splitlines()}


def test_a_log_that_cannot_be_written_ends_no_run(call_train: Run, own_copy: Path) -> None:
    (own_copy / "console.log").unlink()
    (own_copy / "console.log").symlink_to("/dev/full")
    done = call_train(own_copy, "--config.epochs=3")
    assert done.returncode == 0 and done.stdout.endswith("done\n")
    assert done.stderr.count("console.log cannot be written") == 1


def test_the_log_has_the_error_that_ended_the_run(call_train: Run, own_copy: Path) -> None:
    done = call_train(own_copy, "--config.model.width=16")
    assert done.returncode == 2 and (own_copy / "console.log").read_text().endswith(done.stderr)


def test_a_misspelt_run(call: Run, trained: tuple[Path, str], tmp_path: Path) -> None:
    run = trained[0]
    for command in (("evaluate", "--workdir"), ("plot",), ("predict", "x.png", "--workdir")):
        done = call(command[0], *command[1:], run.with_name("tinny"))
        assert done.returncode == 2
        assert done.stderr == f"error: {run.with_name('tinny')} does not exist; did you mean {run}?\n"
    done = call("evaluate", "--workdir", tmp_path / "nothing" / "alike")
    assert "does not exist; name the work folder of a run" in done.stderr
    (tmp_path / "folder").mkdir()
    done = call("evaluate", "--workdir", tmp_path / "folder")
    assert done.returncode == 2 and f"{tmp_path}/folder is no run" in done.stderr


def test_what_the_commands_write_is_ignored_by_git() -> None:
    if subprocess.run(["git", "rev-parse"], cwd=REPO, capture_output=True).returncode:
        pytest.skip("not in a git repository")
    written = set()
    for page in (REPO / "README.md", *(REPO / "docs").glob("*.md")):
        for line in re.findall(r"^python -m rn50_jax\.\w+ .*$", page.read_text(), re.MULTILINE):
            words = shlex.split(line, comments=True)
            options = ("--out", "--json", "--html", "--csv", "--figures", "--workdir", "--predictions", "--markdown")
            written |= {words[i + 1] for i, word in enumerate(words[:-1]) if word in options}
            written |= {words[-1]} if ".convert " in line else set()
    written = {name for name in written if not name.startswith(("/", "-"))} | {
        "curves.svg",
        "model.onnx.json",
        "runs/x",
    }
    assert {"both.svg", "report.html", "result.json", "weights.safetensors", "model.onnx"} <= written
    done = subprocess.run(["git", "check-ignore", *written], cwd=REPO, capture_output=True, text=True)
    assert set(done.stdout.splitlines()) == written
    kept = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=REPO, capture_output=True, text=True)
    assert kept.stdout == ""
