"""The account of a run's wall time, carried on over restarts."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# The uses of time, in the order of the report. "lost": trained, but not saved before a kill.
PHASES = ("startup", "compile", "train", "data", "validation", "checkpoint", "lost")


class Goodput:
    """Seconds spent in each of `PHASES`; at any time exactly one of them is on the clock.

    Args:
      before: seconds of the run's earlier processes, as their last checkpoint has them.
      lost: seconds after that checkpoint, whose work is done again.
    """

    def __init__(self, before: Mapping[str, float], lost: float) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float, before)
        self._seconds["lost"] += lost
        self._phase, self._since = "startup", time.perf_counter() - process_age()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Counts the time spent inside for `phase`."""
        outer = self.switch(phase)
        try:
            yield
        finally:
            self.switch(outer)

    def switch(self, phase: str) -> str:
        """Counts for `phase` from now on; returns what was counted for before."""
        now, before = time.perf_counter(), self._phase
        self._seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    def totals(self) -> dict[str, float]:
        """Returns seconds by phase, up to now."""
        self.switch(self._phase)
        return {phase: self._seconds[phase] for phase in PHASES}


def goodput_text(totals: Mapping[str, float]) -> str:
    """Returns two lines: wall time of all the run's processes by phases, and the goodput, the share of training."""
    wall = sum(totals.values())
    shares = ", ".join(f"{phase} {totals[phase] / wall:.0%}" for phase in PHASES if totals[phase] > 0)
    return f"time       {wall:.0f} s in all: {shares}\ngoodput    {totals['train'] / wall:.0%} of it was training"


def process_age() -> float:
    """Returns seconds since the process was started; 0 where the system does not tell."""
    try:
        started = float(
            Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / 100
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
