"""Steps and batches timed, with the processor time of all threads and processes; without JAX, as `stats`."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rn50_jax.bench.stats import summarize


def time_steps(
    run: Callable[[int], Sequence[float]],
    *,
    steps: int,
    warmup: int,
    began: float,
    ready: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Times `steps` steps after a first one and `warmup` further ones.

    Args:
      run: runs so many steps and returns the seconds of each.
      began: when the program's start did, by `time.perf_counter`.
      ready: called before the steps that count.

    Returns:
      start_seconds, until the end of the first step, and of these first_step_seconds; step_seconds, see
      `stats.summarize`; and cpu_seconds_per_step.
    """
    start = time.perf_counter()
    run(1)
    done = time.perf_counter()
    if warmup:
        run(warmup)
    ready()
    cpu = tree_seconds()
    seconds = run(steps)
    cpu = tree_seconds() - cpu
    return {
        "start_seconds": done - began,
        "first_step_seconds": done - start,
        "step_seconds": summarize(seconds),
        "cpu_seconds_per_step": cpu / steps,
    }


def time_batches(
    batches: Iterator[Any], *, steps: int, warmup: int, wait: Callable[[Any], object] = lambda _: None
) -> dict[str, float]:
    """Returns "seconds" and "cpu_seconds" of `steps` batches after `warmup` ones; `wait` waits until one is there."""
    for _ in range(warmup):
        wait(next(batches))
    start, cpu = time.perf_counter(), tree_seconds()
    for _ in range(steps):
        wait(next(batches))
    return {"seconds": time.perf_counter() - start, "cpu_seconds": tree_seconds() - cpu}


def tree_seconds() -> float:
    """Returns the processor seconds so far of this process, its living descendants and those that were waited for.

    Descendants count in ticks, of 10 ms mostly. A difference of two is right as long as they live through all of it, or
    have ended and been waited for; Linux.
    """
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(stat.parent.name)
        # Fields of proc(5) from the third on: the parent is the 4th; user and system time, own and of children that
        # have been waited for, are the 14th to 17th.
        parents[pid] = int(fields[1])
        ticks[pid] = sum(map(int, fields[11:15]))
    below: set[int] = set()
    found = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in found}:
        below |= found
    own, waited = time.process_time(), os.times()
    return own + waited.children_user + waited.children_system + sum(ticks[pid] for pid in below) / tick
