"""What tests need of a run in other processes: to wait for what it does, and to read what it has written."""

import json
import os
import pty
import re
import socket
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn50_jax.checkpoint.manager import Checkpoints

# Seconds after which something will not happen any more, however busy the machine. No test says how fast anything is.
PATIENCE = 1200.0

# A network and a run smaller still than conftest's TINY, with everything a state can hold but a loss scale.
SMALL = ("--config.model.stages=(1,)", "--config.epochs=1", "--config.recipe.ema_decay=0.9")


def read_lines(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def read_meta(workdir: Path) -> dict[str, Any]:
    """The description of the latest checkpoint."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.read_meta("latest")


def final_arrays(workdir: Path) -> dict[str, Any]:
    """Dtype, shape and sha256 of every array of the latest checkpoint."""
    return read_meta(workdir)["arrays"]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for a condition that the process is to bring about.

    Raises:
      AssertionError: the process ended before.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None or condition(), process.communicate()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen[str], *, behind: int = 0) -> None:
    """Waits until the metrics tell of the step or a later one, behind so many characters of an earlier process."""
    metrics = workdir / "metrics.jsonl"

    def reached() -> bool:
        text = metrics.read_text()[behind:] if metrics.exists() else ""
        return any(int(number) >= step for number in re.findall(r'"step": (\d+)', text))

    wait_until(reached, process)


def in_a_terminal(command: list[str], env: dict[str, str], columns: int, cwd: Path) -> tuple[str, int]:
    """Runs a command in a terminal of so many columns; returns what it writes there, and its exit code."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (30, columns))
    process = subprocess.Popen(command, env=env, stdout=follower, stderr=follower, stdin=follower, cwd=cwd)
    os.close(follower)
    written = b""
    while True:
        try:
            written += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    return written.decode(), process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


TRAIN_METRICS = {
    "train.loss",
    "train.top1",
    "train.total_ips",
    "train.compute_ips",
    "train.data_time",
    "train.compute_time",
    "train.skipped_steps",
    "train.skipped_in_a_row",
    "lr",
}


VAL_METRICS = {
    "val.loss",
    "val.top1",
    "val.top5",
    "val.images",
    "val.total_ips",
    "val.compute_ips",
    "val.data_time",
    "val.compute_latency",
    "val.compute_latency_at90",
    "val.compute_latency_at95",
    "val.compute_latency_at99",
    "val.compute_latency_at100",
    "val.loss_smoothed",
}
