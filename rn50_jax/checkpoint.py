"""Checkpoints: the state and what is needed to understand it. The only place that imports orbax.

A folder `<directory>/<step>` is a checkpoint. Which ones to keep and which is the best is decided here, from what was
saved with them.
"""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from rn50_jax import hosts
from rn50_jax.errors import RunStopped, UserError, warn
from rn50_jax.integrity import check_finite, describe_arrays, describe_entry, first_line, score, seal
from rn50_jax.quiet import settle, without_noise
from rn50_jax.state import TrainState

FORMAT = 3
_OTHER = "the run's next start sets it aside and falls back to an older one"
DAMAGED, REPLACED = ".damaged", ".replaced"  # ends of the names of folders that are no checkpoints, or not yet again
_FAILURES = 3  # saves in a row that may fail before the run stops
Meta = dict[str, Any]


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was saved. The message names it."""


class Checkpoints:
    """The checkpoints of a run; use it in a `with`, whose end waits for the save that is still being written.

    Args:
      directory: holds a folder for each checkpoint.
      keep: newest checkpoints to keep; the best by `val.top1` or `val_ema.top1` is kept besides.
      read_only: for evaluation beside a training run: nothing is changed or cleaned up.
    """

    def __init__(self, directory: Path, *, keep: int = 1, read_only: bool = False) -> None:
        absl_logging.set_verbosity(absl_logging.FATAL)  # orbax tells every step of its work, and errors twice
        self.directory, self._keep = directory.resolve(), keep
        self._writes = not read_only and jax.process_index() == 0
        self._failures = 0
        self._saving: tuple[int, dict[str, Any]] | None = None
        self._remove_unfinished()
        options = ocp.CheckpointManagerOptions(read_only=read_only, create=not read_only)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        self._stack = ExitStack()
        self._stack.enter_context(without_noise())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            try:
                self.wait()
            finally:
                self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal() and path.is_dir())

    def save(self, state: TrainState, meta: Meta, metrics: dict[str, float]) -> None:
        """Starts writing a checkpoint of step `meta["step"]`; returns as soon as the state has been copied to the host.

        A save that failed is told of, and made good by this one.

        Args:
          meta: JSON values to find again in `read_meta`: step, epoch, config, class_names, ...
          metrics: validation metrics; may be empty. The larger of `val.top1` and `val_ema.top1` decides which
            checkpoint is the best.

        Raises:
          RunStopped: several saves in a row have failed, or the state is not finite.
        """
        self.wait(retry=False)
        step = int(meta["step"])
        arrays = jax.device_get(flax.serialization.to_state_dict(state))
        check_finite(arrays, step)
        metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        meta = meta | {"format": FORMAT, "time": time.time(), "metrics": metrics, "arrays": describe_arrays(arrays)}
        meta["seal"] = seal(meta)
        self._start(step, {"state": arrays, "meta": meta})

    def _start(self, step: int, items: dict[str, Any]) -> None:
        self._saving = step, items
        if self._writes and step in self.steps():  # saved before its validation, or by a run of other steps
            place = self.directory / str(step)
            place.rename(place.with_name(place.name + REPLACED))
        hosts.barrier(f"checkpoint {step}")
        self._manager.reload()
        args = ocp.args.Composite(state=ocp.args.StandardSave(items["state"]), meta=ocp.args.JsonSave(items["meta"]))
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # orbax raises many types, bare Exception among them
            self._failed(error)

    def wait(self, *, retry: bool = True) -> None:
        """Waits until the last save is complete, then removes checkpoints that are not to be kept.

        Args:
          retry: try a failed save once more, having made room.

        Raises:
          RunStopped: it failed for good.
        """
        if self._saving is None:
            return
        step, items = self._saving
        try:
            self._manager.wait_until_finished()
            if self._writes and step not in self.steps():  # a save that failed before it began tells nothing here
                raise FileNotFoundError("it was not written")
        except Exception as error:
            self._failed(error)
            if retry:
                self._start(step, items)
                self.wait(retry=self._failures < _FAILURES)
            return
        self._saving, self._failures = None, 0
        self._prune(step)

    def _failed(self, error: Exception) -> None:
        assert self._saving is not None
        step, _ = self._saving
        self._failures += 1
        settle()
        self._remove_unfinished()  # it may be what fills the disk
        self._manager.reload()
        last = self.steps()[-1:]
        left = f"the newest complete one is of step {last[0]}" if last else "there is no complete one"
        told = f"checkpoint {self.directory / str(step)} could not be written ({first_line(error)}); {left}"
        stop = RunStopped(f"{told}. Make room or choose another --workdir, and run the same command again")
        hosts.end_if_several(stop)
        if self._failures >= _FAILURES:
            self._saving = None
            raise stop from None
        warn(f"{told}; trying again")

    def _prune(self, saved: int) -> None:
        # Later steps than the one just saved are of a time when an epoch had more steps, on fewer devices.
        steps = [step for step in self.steps() if step <= saved]
        kept = {*steps[-self._keep :], self._best(steps)}  # on all processes: orbax' reads wait for each other
        for step in set(self.steps()) - kept if self._writes else ():
            # Renamed first: a run killed meanwhile leaves no half checkpoint under its name.
            path = self.directory / str(step)
            path.rename(path.with_name(path.name + ".removed"))
        self._remove_unfinished()
        self._manager.reload()

    def _remove_unfinished(self) -> None:
        # Not by orbax, whose background thread outlives a run that ends at once.
        if not self._writes:
            return
        for replaced in self.directory.glob(f"*{REPLACED}"):
            place = replaced.with_suffix("")
            if place.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(place)
        for pattern in ("*.orbax-checkpoint-tmp*", "*.removed"):
            for unfinished in self.directory.glob(pattern):
                shutil.rmtree(unfinished, ignore_errors=True)

    def set_aside(self, step: int) -> None:
        """Renames a checkpoint so that it is no longer one."""
        if self._writes:
            path = self.directory / str(step)
            shutil.rmtree(path.with_name(path.name + DAMAGED), ignore_errors=True)
            path.rename(path.with_name(path.name + DAMAGED))
        self._manager.reload()

    def _best(self, steps: list[int]) -> int | None:
        scores = {}
        for step in steps:
            try:
                scores[step] = score(self._meta(step)["metrics"])
            except DamagedError:
                continue
        validated = {step: score for step, score in scores.items() if score >= 0}
        return max(validated, key=lambda step: (validated[step], step)) if validated else None

    def read_meta(self, which: str) -> Meta:
        """What was saved beside the state of checkpoint "latest", "best" or a step number.

        Raises:
          UserError: no such checkpoint, or one that this version cannot read.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.directory} has no checkpoint; train first, with the same --workdir")
        if which == "latest":
            step = steps[-1]
        elif which == "best":
            best = self._best(steps)
            if best is None:
                raise UserError(f"{self.directory} has no validated checkpoint to call best; use --checkpoint latest")
            step = best
        elif which.isdecimal() and int(which) in steps:
            step = int(which)
        else:
            raise UserError(f"{self.directory} has no checkpoint {which!r}; use best, latest or one of {steps}")
        try:
            return self._meta(step)
        except DamagedError as error:
            raise UserError(f"{error}; {_OTHER}") from error

    def _meta(self, step: int) -> Meta:
        place = self._place(step)
        try:
            meta: Meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            sealed = meta.pop("seal", None) if isinstance(meta, dict) else None
            intact = meta.get("format") != FORMAT or (sealed == seal(meta) and meta["step"] == step)
        except Exception as error:
            settle()
            raise DamagedError(f"{place} cannot be read ({first_line(error)})") from error
        if not intact:
            raise DamagedError(f"{place} is damaged: its description is not what was saved")
        if meta.get("format") != FORMAT:
            raise UserError(f"{place} has format {meta.get('format')}, this version reads {FORMAT}")
        return meta

    def restore(self, meta: Meta, like: TrainState) -> TrainState:
        """The state of the checkpoint that `meta` was read from, verified array by array.

        Args:
          like: a state (or its `jax.eval_shape`) of the shapes and dtypes to expect.

        Returns:
          The state, as host arrays.

        Raises:
          UserError: the checkpoint is of another model, or is damaged.
        """
        try:
            return self._restore(meta, like)
        except DamagedError as error:
            raise UserError(f"{error}; {_OTHER}") from error

    def _restore(self, meta: Meta, like: TrainState) -> TrainState:
        place = self._place(meta["step"])
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), flax.serialization.to_state_dict(like))
        saved, wanted = meta["arrays"], describe_arrays(target)
        # orbax itself neither compares shapes of host arrays nor refuses to cast dtypes.
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name, [])[:2] != wanted.get(name, [])[:2]:
                raise UserError(
                    f"{place} is of another model: {name} is {describe_entry(saved.get(name))} there and "
                    f"{describe_entry(wanted.get(name))} here; give the config that it was trained with"
                )
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            arrays = self._manager.restore(meta["step"], args=args)["state"]
        except Exception as error:
            settle()
            raise DamagedError(f"{place} cannot be read ({first_line(error)})") from error
        found = describe_arrays(arrays)
        damaged = [name for name in saved if saved[name] != found[name]]
        if damaged:
            raise DamagedError(f"{place} is damaged: {len(damaged)} array(s) differ from what was saved ({damaged[0]})")
        restored: TrainState = flax.serialization.from_state_dict(like, arrays)
        return restored

    def restore_newest(self, like: TrainState, check: Callable[[Meta], None]) -> tuple[TrainState, Meta] | None:
        """The newest checkpoint that is whole; damaged ones are named, set aside, and the next older one is taken.

        Args:
          check: refuses, by a `UserError`, what was saved for another run.

        Returns:
          Its state, as host arrays, and what was saved beside it; None if there never was a checkpoint.

        Raises:
          UserError: all are damaged, or what `check` raises.
        """
        for step in reversed(self.steps()):
            try:
                meta = self._meta(step)
                check(meta)
                state = self._restore(meta, like)
            except DamagedError as error:
                warn(f"{error}; it is set aside as {step}{DAMAGED}, and the checkpoint before it is used")
                self.set_aside(step)
                continue
            return state, meta
        if any(self.directory.glob(f"*{DAMAGED}")):
            raise UserError(
                f"all checkpoints in {self.directory} are damaged; restore one from a copy, or choose another --workdir"
            )
        return None

    def _place(self, step: int) -> str:
        return f"checkpoint {self.directory / str(step)}"
