"""What a benchmark keeps when it is stopped, runs out of time or cannot write; with real signals and processes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, TINY, Run
from helpers.runs import PATIENCE, wait_until

from rn50_jax.bench.record import Record
from rn50_jax.bench.stops import Stops
from rn50_jax.loggers import goodput

CONFIG = ("--config", REPO / "configs/quickstart.py", *TINY, "--config.model.stages=(1, 1)", "--config.batch_size=4")
HARDWARE = {"platform": "cpu", "device": "CPU (x)", "devices": 1, "processor": "x", "cores": 2}
HEADER = {"command": ["x"], "date": "2026-11-28", "hardware": HARDWARE, "environment": {}, "versions": {"jax": "0"}}


def test_what_can_be_expected_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    age = 0.0
    monkeypatch.setattr(goodput, "process_age", lambda: age)
    record = Record(seconds=1000, tell=print)

    def expects(seconds: float, *, case: str, program: str) -> bool:
        """So many seconds are enough for it, and one less is not."""
        nonlocal age
        before, found = age, []
        for left in (seconds, seconds - 1):
            age = 1000 - left
            record.plan(["x"], single=False)
            found.append(record.begins("x", case=case, program=program))
        age = before
        return found == [True, False]

    def takes(seconds: float, case: str, program: str) -> None:
        nonlocal age
        record.plan(["x"], single=False)
        assert record.begins("x", case=case, program=program)
        age += seconds
        record.done("x")

    assert expects(1, case="a", program="ours")  # the first of all, of which nobody knows
    takes(90, "a", "ours")
    takes(30, "a", "torch")
    takes(20, "a", "ours")
    assert expects(20, case="a", program="ours") and expects(30, case="a", program="torch")
    assert expects(90, case="a", program="timm")
    # In the next comparison everybody compiles again.
    assert expects(90, case="b", program="ours") and expects(30, case="b", program="torch")
    takes(100, "b", "ours")
    assert expects(100, case="b", program="timm")


def test_the_file_holds_what_there_is_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age = 5.0
    monkeypatch.setattr(goodput, "process_age", lambda: age)
    path, page, told = tmp_path / "a.json", tmp_path / "a.md", list[str]()

    def read() -> Any:
        return json.loads(path.read_text())

    def rest() -> list[tuple[str, str]]:
        return [(one["case"], one["why"]) for one in read()["not_run"]]

    with Record(json=path, markdown=page, seconds=60, tell=told.append) as record:
        record.plan(["a", "b", "c", "d"], single=False, **HEADER)
        assert rest() == [(case, "stopped") for case in "abcd"]
        assert page.read_text().startswith("# Benchmark on CPU\n") and "not measured: a; b; c; d" in page.read_text()
        assert record.begins("a")
        record.put(ceilings={"fp32": {"tflops": 1.0, "gbytes_per_second": 2.0}})
        assert read()["ceilings"] and len(rest()) == 4
        age = 25.5
        record.done("a", results=[])
        assert (read()["complete"], rest()) == (False, [(case, "stopped") for case in "bcd"])
        age = 40
        assert not record.begins("b")
        assert rest() == [("b", "budget"), ("c", "stopped"), ("d", "stopped")]
        age = 39
        assert record.begins("c")
        record.done("c")
        record.drop(["d"])
    assert (read()["complete"], rest(), read()["budget"]) == (True, [("b", "budget")], 60)
    assert record.exit_code == 0 and told == ["not run for --budget 60: b"]
    assert page.read_text().endswith("\n\nnot run for --budget 60: b\n")


def test_nothing_in_time_is_code_1(capfd: pytest.CaptureFixture[str]) -> None:
    with Record(seconds=1e-6, tell=print) as record:
        record.plan(["a"], single=True)
        assert not record.begins("a")
    assert record.exit_code == 1
    assert capfd.readouterr().out.splitlines()[-1] == "not run for --budget 1e-06: a"


def test_a_disk_that_is_full_ends_nothing_until_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, told = tmp_path / "gone" / "a.json", list[str]()
    path.parent.mkdir()
    with Record(json=path, tell=told.append) as record:
        record.plan(["a", "b"], single=False, **HEADER)
        path.unlink()
        path.parent.rmdir()
        record.done("a")
        record.put(results=[])
        assert len(told) == 1 and str(path) in told[0] and told[0].endswith("; it is tried again")
        path.parent.mkdir()
        record.done("b")
    assert json.loads(path.read_text())["complete"]
    with pytest.raises(ZeroDivisionError), Record(json=path, tell=told.append) as record:
        record.plan(["a", "b"], single=False, **HEADER)
        record.done("a")
        raise ZeroDivisionError
    left = json.loads(path.read_text())
    assert (left["complete"], left["not_run"]) == (False, [{"case": "b", "why": "stopped"}])
    assert capfd.readouterr().out.rstrip().endswith("not measured: b")


def test_handlers_are_put_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with Stops(print, listening=False):
        assert [signal.getsignal(number) for number in numbers] == before
    with Stops(print, listening=True):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in numbers] == before
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    assert fd == -1


def start(env: dict[str, str], *args: object, tmp: Path) -> subprocess.Popen[str]:
    tmp.mkdir(exist_ok=True)
    command = [sys.executable, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env | {"TMPDIR": str(tmp)}, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def holds(path: Path, text: str) -> Callable[[], bool]:
    return lambda: path.is_file() and text in path.read_text()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_a_sweep_that_is_stopped_keeps_its_cases(process_env: dict[str, str], tmp_path: Path) -> None:
    path, page = tmp_path / "a.json", tmp_path / "a.md"
    sizes = range(2, 42)  # so many that the signal comes before the last, however busy the machine is
    options = ("--batch_sizes", ",".join(map(str, sizes)), "--steps", 2, "--warmup", 0)
    files = ("--json", path, "--markdown", page)
    process = start(process_env, "-m", "rn50_jax.benchmark", *CONFIG, *options, *files, tmp=tmp_path / "tmp")
    wait_until(holds(path, '"step_seconds"'), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    found = json.loads(path.read_text())
    done = [result["batch_size_per_device"] for result in found["results"]]
    assert done and done == list(sizes)[: len(done)]
    rest = [{"case": f"train, fp32, {n} images on 1 device", "why": "stopped"} for n in sizes[len(done) :]]
    assert (process.returncode, found["complete"], found["not_run"]) == (143, False, rest), err
    assert err.splitlines()[-1] == f"stopped by SIGTERM: {len(done)} measured, {len(sizes) - len(done)} not"
    assert "### Every case" in out and "train, fp32, 41 images on 1 device" in out.splitlines()[-1]
    assert page.read_text() == out


# A trial that has reported, and then goes on with something else and a process of its own.
WORKER = """
import json, os, subprocess, sys, threading
from rn50_jax.bench import worker
threading.Thread(target=worker._end_with_the_parent, daemon=True).start()
child = subprocess.Popen(["sleep", "10000"])
with open(sys.argv[1] + ".unfinished", "w") as file:
    json.dump({"pids": [os.getpid(), child.pid]}, file)
os.rename(sys.argv[1] + ".unfinished", sys.argv[1])
print(os.getpid(), child.pid, file=open(os.environ["PIDS"], "w"))
child.wait()
"""
COMPARISON = f"""
import sys
from pathlib import Path
from rn50_jax.bench import trials
from rn50_jax.bench.record import Record
sys.argv[0] = "rn50-jax"  # a command, whose signals are answered
trials.worker_command = lambda request, answer: [sys.executable, "-c", {WORKER!r}, str(answer)]
terms = trials.Terms((), "cpu", steps=1, warmup=0, trials=1)
with Record(json=Path(sys.argv[1]), tell=print) as record:
    record.plan(trials.trial_names("x", ["a", "b"], 1), single=False)
    trials.run_trials("x", {{"a": {{}}, "b": {{}}}}, record, terms, parts=dict)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_trial_that_is_stopped(process_env: dict[str, str], tmp_path: Path, number: int) -> None:
    path, pids, tmp = tmp_path / "a.json", tmp_path / "pids", tmp_path / "tmp"
    process = start(process_env | {"PIDS": str(pids)}, "-c", COMPARISON, path, tmp=tmp)
    wait_until(holds(pids, "\n"), process)
    running = [int(pid) for pid in pids.read_text().split()]
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    found = json.loads(path.read_text())
    assert not found["complete"]
    if number == signal.SIGINT:
        assert process.returncode == 130 and err.splitlines()[-1] == "stopped by SIGINT: 1 measured, 1 not"
        # What it had reported counts; nothing of it is left.
        (report,) = found["a"]["trials"]
        assert (report["pids"], report["cut_short"]) == (running, "stopped")
        assert found["not_run"] == [{"case": "x, b, trial 1 of 1", "why": "stopped"}]
        assert not list(tmp.iterdir())
    deadline = time.monotonic() + PATIENCE
    while not all(is_gone(pid) for pid in running):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Python does not run while C waits for a command of the shell, as it does not while XLA compiles.
STUCK = """
import ctypes, sys
from rn50_jax.bench import stops
stops._COPIES = -1.0
def end(number):
    print("ending", flush=True)
    if sys.argv[1] == "twice":
        ctypes.CDLL(None).system(b"read _")
with stops.Stops(end, listening=True):
    print("begun", flush=True)
    ctypes.CDLL(None).system(b"read _")
"""


@pytest.mark.parametrize("times", ["once", "twice"])
def test_a_signal_is_answered_while_python_does_not_run(
    process_env: dict[str, str], tmp_path: Path, times: str
) -> None:
    process = start(process_env, "-c", STUCK, times, tmp=tmp_path)
    assert process.stdout is not None
    for line in ("begun\n", "ending\n"):
        assert process.stdout.readline() == line
        if line == "begun\n" or times == "twice":
            process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    process.communicate()


def test_variants_are_beside_the_config_as_it_is(call: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    options = ("--mode", "infer", "--steps", 3, "--warmup", 0, "--vary", "compute.fold_batch_norm=off", "--json", path)
    done = call("benchmark", *CONFIG, *options)
    assert done.returncode == 0, done.stderr
    plain, varied = json.loads(path.read_text())["results"]
    assert (plain["variant"], varied["variant"]) == ("", "compute.fold_batch_norm=off")
    assert (plain["batch_norm"], varied["batch_norm"]) == ("folded", "computed")
    ratio = f"{varied['images_per_second'] / plain['images_per_second']:.3f}"
    table = done.stdout.partition("### Variants")[2].partition("###")[0]
    cells = [[cell.strip() for cell in row.split("|")[1:4:2]] for row in table.splitlines() if row.startswith("|")]
    assert cells[2:] == [["the config as it is", "1.000"], ["compute.fold_batch_norm=off", ratio]]
