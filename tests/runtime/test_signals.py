"""Signals that come once or in copies, suspensions, and terminals and disks that go away."""

import errno
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, Run, tiny_args
from helpers.runs import PATIENCE, SMALL, read_lines, read_meta, wait_for_step, wait_until

from rn50_jax.runtime import signals as signals_module
from rn50_jax.runtime import streams
from rn50_jax.runtime import watchdog as guard
from rn50_jax.runtime.signals import FORWARDED, Signals
from rn50_jax.runtime.watchdog import Watchdog

# A process of a run, but for the training: asked to end, it saves for a while.
CHILD = """
import os, sys, time
from rn50_jax.runtime.signals import Signals
with Signals(0) as signals:
    os.write(1, b"ready\\n")
    while not (request := signals.poll(together=True)).stop:
        time.sleep(0.01)
    sys.stdin.readline()
    os.write(1, b"saved\\n")
sys.exit(128 + request.stop)
"""


class Launched:
    """Two such processes under the launcher, in a group of their own, ready; they save when told `finish`."""

    def __init__(self, env: dict[str, str], stack: ExitStack) -> None:
        # Children of a shell's background job would ignore interrupts, and of nohup hang-ups.
        before = "import os, signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (1, 2)]; "
        before += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        line = [sys.executable, "-c", before, str(REPO / "scripts/launch.py"), "--processes", "2", "--"]
        self.process = subprocess.Popen(
            [*line, sys.executable, "-c", CHILD],
            env=env,
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        stack.callback(self._kill)
        assert [self.process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.children = [int(pid) for pid in children.split()]

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def send(self, number: int, whom: str) -> None:
        """To the launcher, the group, or to each by itself, as systemd does, the launcher first or last."""
        if whom == "group":
            os.killpg(self.process.pid, number)
            return
        order = {"launcher": [self.process.pid], "first": [self.process.pid, *self.children]}
        order["last"] = [*self.children, self.process.pid]
        for pid in order[whom]:
            os.kill(pid, number)

    def answers(self) -> None:
        """Waits until both have said that they are about to save."""
        for _ in range(2):
            assert self.process.stderr.readline().startswith("finishing the step and saving")

    def finish(self) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        with suppress(BrokenPipeError):
            self.process.stdin.write("\n\n")
            self.process.stdin.flush()
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.fixture
def launched(process_env: dict[str, str]) -> Iterator[Callable[[], Launched]]:
    with ExitStack() as stack:
        yield lambda: Launched(process_env, stack)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["group", "launcher", "first", "last"])
def test_a_signal_to_the_launcher_and_its_processes_counts_once(launched: Callable[[], Launched], whom: str) -> None:
    number = {"group": signal.SIGINT, "first": signal.SIGHUP}.get(whom, signal.SIGTERM)
    run = launched()
    run.send(number, whom)
    run.answers()
    assert run.finish() == (128 + number, "saved\n" * 2, "")


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["group", "launcher"])
def test_a_second_one_ends_all_at_once(launched: Callable[[], Launched], whom: str) -> None:
    run = launched()
    run.send(signal.SIGINT, whom)
    run.answers()
    ended = False
    while not ended:  # a launcher that gets no time at all may take two for one
        run.send(signal.SIGINT, whom)
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(timeout=10)  # although nobody lets them save
            ended = True
    out, err = run.process.communicate()
    assert run.process.returncode == 130 and "saved" not in out
    assert err == "second signal: ending at once, without saving\n" * 2


@pytest.mark.slow
def test_processes_save_and_end_when_the_launcher_is_killed(launched: Callable[[], Launched]) -> None:
    run = launched()
    run.process.kill()
    run.answers()
    _, out, _ = run.finish()  # the ends of their output too
    assert out == "saved\n" * 2


@pytest.mark.slow
def test_one_that_ends_in_order_is_not_taken_for_a_failure(launched: Callable[[], Launched]) -> None:
    run = launched()
    run.send(signal.SIGTERM, "launcher")
    run.answers()
    run.process.stdin.write("\n")  # one is done; the other takes its time, which the launcher does not cut short
    run.process.stdin.flush()
    assert run.process.stdout.readline() == "saved\n"
    time.sleep(2)
    assert run.finish() == (143, "saved\n", "")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which this process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(guard.os, "_exit", codes.append)
    return codes


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def test_copies_before_the_answer_are_no_second_signal(
    ended: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Signals(0) as signals:
        monkeypatch.setattr(guard.time, "sleep", lambda _: kill(signal.SIGTERM))  # `timeout` signals its group too
        kill(signal.SIGTERM)
        assert signals.poll(together=True).stop == signal.SIGTERM and ended == []
        assert capfd.readouterr().err == "finishing the step and saving; a second signal ends at once\n"
        kill(signal.SIGINT)
        assert ended == [130]


@pytest.mark.parametrize("passed_on_first", [True, False])
def test_a_copy_that_was_passed_on_late(
    ended: list[int], monkeypatch: pytest.MonkeyPatch, passed_on_first: bool
) -> None:
    monkeypatch.setattr(signals_module, "_COPIES", 0)
    told = os.memfd_create("told")
    os.write(told, b".")  # to processes before this one
    monkeypatch.setenv(FORWARDED, f"{told}:{os.fstat(told).st_ino}")

    def passed_on() -> None:
        os.write(told, b".")
        kill(signal.SIGTERM)

    def direct() -> None:
        kill(signal.SIGTERM)

    first, copy = (passed_on, direct) if passed_on_first else (direct, passed_on)
    with Signals(0) as signals:
        first()
        copy()
        assert signals.poll(together=True).stop == signal.SIGTERM and ended == []
        first()
        assert ended == [143]
    os.close(told)


def test_a_file_that_is_not_the_launchers_is_not_counted(
    ended: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Something on the way, `sudo` for one, has closed the launcher's file, and its number is another's now.
    with (tmp_path / "other").open("wb") as other:
        other.truncate(1000)
        for value in (f"{other.fileno()}:1", "1000000:1", "", "x:y"):
            monkeypatch.setenv(FORWARDED, value)
            with Signals(0) as signals:
                kill(signal.SIGTERM)
                assert signals.poll(together=True).stop == signal.SIGTERM and ended == []


def test_a_hang_up_is_heeded_unless_it_was_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        with Signals(0) as signals:
            kill(signal.SIGHUP)
            assert signals.poll(together=True).stop == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Signals(0) as signals:
            kill(signal.SIGHUP)
            assert signals.poll(together=True).stop == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


WATCHED = """
import sys, time
from rn50_jax.runtime import watchdog as guard
guard._SPARE = 0.0
with guard.Watchdog(float(sys.argv[1])) as watchdog:
    watchdog.progress()
    {what}
"""


def watched(env: dict[str, str], seconds: float, what: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", WATCHED.format(what=what), str(seconds)]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=env, cwd=REPO, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_suspension_longer_than_the_limit_is_no_hang(process_env: dict[str, str], tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    lives = f"while True: watchdog.progress(); open({str(beats)!r}, 'a').write('.'); time.sleep(0.01)"
    process = watched(process_env, 6, lives)
    wait_until(lambda: beats.exists() and beats.stat().st_size > 10, process)
    process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", process)
    before = beats.stat().st_size
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: beats.stat().st_size > before + 300, process)  # for longer than the watchdog's interval
    process.kill()
    assert process.communicate()[1] == ""


@pytest.mark.slow
def test_a_hang_ends_the_process(process_env: dict[str, str]) -> None:
    process = watched(process_env, 1, "time.sleep(1e6)")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert "error: no step, batch or checkpoint was finished for" in err and "(config.run.hang_timeout=1)" in err
    assert "most recent call first" in err and 'File "<string>", line 7 in <module>' in err


@pytest.mark.slow
def test_a_hang_that_holds_pythons_lock_ends_the_process(process_env: dict[str, str]) -> None:
    hold = "import ctypes; mutex = ctypes.create_string_buffer(64); lock = ctypes.PyDLL(None).pthread_mutex_lock; "
    process = watched(process_env, 1, hold + "lock(mutex); lock(mutex)")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert "error: Python has not run for" in err and "config.run.hang_timeout" in err
    assert 'File "<string>", line 7 in <module>' in err


@pytest.mark.parametrize("seconds", [1, 10**9, 10**19, 1e300, float("inf")])
def test_any_limit_will_do(seconds: float) -> None:
    with Watchdog(seconds) as watchdog:
        assert list(watchdog.watch(iter("ab"))) == ["a", "b"]
        assert watchdog._thread.is_alive()  # and ends in order, or pytest complains


class Disk(io.RawIOBase):
    """A file whose disk may be full."""

    def __init__(self) -> None:
        self.full = False
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.content += bytes(data)
        return len(data)


def test_lines_come_again_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = Disk()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(disk)))
    with streams.guarded():
        with streams.enduring():
            print("one", flush=True)
            disk.full = True
            for _ in range(10):
                print("two", flush=True)
            disk.full = False
            print("three", flush=True)
        assert re.fullmatch("one\n(two\n)+three\n", disk.content.decode())
        note = (
            "note: standard output cannot be written (No space left on device); the run goes on, without what it says"
        )
        assert capfd.readouterr().err == note + "\n"
        disk.full = True
        with pytest.raises(streams.Unwritable, match=r"^standard output cannot be written: No space left on device$"):
            print("four", flush=True)
        disk.full = False


PRINTS = """
import sys
from rn50_jax import cli
def main(argv):
    print("a result", *map(ascii if "ascii" in argv else str, [b"\\xe9".decode(errors="surrogateescape"), "\\u4e2d"]))
    return 0
cli.run(main)
"""


@pytest.mark.parametrize(
    ("redirect", "code", "err"),
    [
        (">/dev/full", 2, "error: standard output cannot be written: No space left on device\n"),
        (">&-", 2, "error: standard output cannot be written: Bad file descriptor\n"),
        ("<&- >&-", 2, "error: standard output cannot be written: Bad file descriptor\n"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>/dev/full", 2, ""),
        (">&- 2>&-", 2, ""),
    ],
)
def test_results_that_cannot_be_written(process_env: dict[str, str], redirect: str, code: int, err: str) -> None:
    line = ["bash", "-c", f'"$@" {redirect}', "-", sys.executable, "-c", PRINTS]
    done = subprocess.run(line, env=process_env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (code, err)
    assert ("a result" in done.stdout) == (code == 0)


def test_help_that_cannot_be_written(process_env: dict[str, str]) -> None:
    for words in (["rn50_jax", "--help"], ["rn50_jax.plot", "--help"]):
        line = ["bash", "-c", '"$@" >/dev/full', "-", sys.executable, "-m", *words]
        done = subprocess.run(line, env=process_env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 2 and done.stderr.startswith("error: standard output cannot be written: No space")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_name_can_be_printed(process_env: dict[str, str], encoding: str) -> None:
    env = process_env | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINTS], env=env, cwd=REPO, capture_output=True, timeout=PATIENCE)
    wanted = {"utf-8": "\u4e2d"}.get(encoding, "\\u4e2d")
    assert (done.returncode, done.stdout.decode()) == (0, f"a result \\udce9 {wanted}\n"), done.stderr


def test_nobody_reads_on(process_env: dict[str, str]) -> None:
    line = ["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "-", sys.executable, "-c", PRINTS]
    done = subprocess.run(line, env=process_env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode in (0, 141) and done.stderr == ""  # 0: it was in time


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/dev/full", "pipe"])
def test_training_goes_on_without_its_output(
    call_train: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    with ExitStack() as stack:
        if name == "pipe":  # `| head`
            read, write = os.pipe()
            os.close(read)
            output = stack.enter_context(os.fdopen(write, "w"))
            reason = "Broken pipe"
        else:
            output = stack.enter_context(Path(name).open("w"))
            reason = "No space left on device"
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            done = call_train(tmp_path / "run", *SMALL)
    assert done.returncode == 0
    assert done.stderr == f"note: standard output cannot be written ({reason}); the run goes on, without what it says\n"
    assert read_lines(tmp_path / "run")[-1]["goodput.train"] > 0 and read_meta(tmp_path / "run")["step"] == 46


@pytest.mark.slow
def test_a_terminal_that_goes_away_saves_the_run(process_env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    # A process gets the terminal as a shell would, and with it the signal of its end.
    before = "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    before += "fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    line = [sys.executable, "-c", before, "-m", "rn50_jax.train", *map(str, tiny_args(digits)), *SMALL]
    process = subprocess.Popen(
        [*line, "--config.epochs=90", "--workdir", str(tmp_path / "run")],
        env=process_env | {"TERM": "xterm-256color"},
        cwd=REPO,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    os.set_blocking(leader, False)

    def read_on() -> bool:
        with suppress(BlockingIOError):
            os.read(leader, 65536)
        return (tmp_path / "run/metrics.jsonl").exists()

    wait_until(read_on, process)
    wait_for_step(tmp_path / "run", 10, process)
    os.close(leader)
    assert process.wait(timeout=PATIENCE) == 129
    assert read_meta(tmp_path / "run")["step"] >= 10
    assert "goodput.train" in read_lines(tmp_path / "run")[-1]
