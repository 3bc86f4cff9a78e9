"""Means over the training steps between two reports."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np


class Meters:
    """Metrics and times of the training steps since the last report, kept on the device until `summary`.

    The first step of a process, which compiles, counts in the metrics but not in the times.

    compiled: whether the first step is behind. skipped: of the steps of the last summary, those without finite
    gradients, counted back from its end (-1: the last).
    """

    skipped: list[int]

    def __init__(self, global_batch: int, *, loss_scaling: bool) -> None:
        self._global_batch, self._loss_scaling = global_batch, loss_scaling
        self.compiled = False
        self.skipped = []
        self.restart()

    def restart(self) -> None:
        """Forgets the past: the clock starts now."""
        self._pending: list[dict[str, jax.Array]] = []
        self._timed = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, which may still be being computed."""
        self._pending.append(metrics)
        self._timed += 1
        if not self.compiled:
            jax.block_until_ready(metrics)
            self.compiled, self._timed, self._waited = True, 0, 0.0
            self._start = time.perf_counter()
        elif len(self._pending) > 2:
            # Two steps stay queued: the device never idles, and batches cannot pile up in its memory.
            jax.block_until_ready(self._pending[-3])

    def summary(self) -> dict[str, float]:
        """Waits for the last step, averages, and restarts.

        Returns:
          train.loss, of the steps that were not skipped; train.top1 in per cent; the last lr; with float16
          train.loss_scale; train.skipped_steps of the run so far and train.skipped_in_a_row, the longest row
          since the last summary; train.data_time and train.compute_time in seconds per step; train.total_ips and
          train.compute_ips in images per second, with and without waiting for data.
        """
        steps = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._start
        timed = max(self._timed, 1)
        data_time = self._waited / timed
        compute_time = max(seconds - self._waited, 1e-9) / timed
        losses = [s["loss"] for s in steps]
        self.skipped = [i - len(steps) for i, s in enumerate(steps) if s["skipped_in_a_row"]]
        result = {
            "train.loss": float(np.mean([x for x in losses if np.isfinite(x)] or losses)),
            "train.top1": 100 * float(np.mean([s["top1"] for s in steps])),
            "lr": float(steps[-1]["lr"]),
            "train.total_ips": self._global_batch / (data_time + compute_time) if self._timed else 0.0,
            "train.compute_ips": self._global_batch / compute_time if self._timed else 0.0,
            "train.data_time": data_time,
            "train.compute_time": compute_time,
            "train.skipped_steps": int(steps[-1]["skipped_steps"]),
            "train.skipped_in_a_row": int(max(s["skipped_in_a_row"] for s in steps)),
        }
        if self._loss_scaling:
            result["train.loss_scale"] = float(steps[-1]["loss_scale"])
        self.restart()
        return result
