"""Processor time of this process, all its threads, and the processes that it started."""

import os
import time
from pathlib import Path


class TreeClock:
    """Wall and processor time between `start` and `stop`; Linux."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """From here on."""
        self._wall, self._cpu = time.perf_counter(), tree_seconds()

    def stop(self) -> tuple[float, float]:
        """Seconds by the clock, and processor seconds of the tree, since `start`.

        Right as long as the processes of the tree live through all of it, or have ended and been waited for.
        """
        return time.perf_counter() - self._wall, tree_seconds() - self._cpu


def tree_seconds() -> float:
    """Processor seconds so far: of this process and its living descendants, and of those that have been waited for.

    Descendants count in ticks, of 10 ms mostly.
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
    me = os.getpid()
    below = {pid for pid in parents if pid != me and _descends(pid, me, parents)}
    own, waited = time.process_time(), os.times()
    return own + waited.children_user + waited.children_system + sum(ticks[pid] for pid in below) / tick


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor
