"""Checkpoints: the state and what is needed to understand it. The only place that imports orbax.

A folder `<directory>/<step>` is a checkpoint, see `folder.py`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from rn50_jax.checkpoint.array_headers import check_headers
from rn50_jax.checkpoint.description import FORMAT, Meta
from rn50_jax.checkpoint.faults import reason
from rn50_jax.checkpoint.folder import NEXT_START, CheckpointFolder, DamagedError, VanishedError, look
from rn50_jax.checkpoint.integrity import describe_arrays, describe_entry, describe_shapes, not_finite, seal
from rn50_jax.checkpoint.orbax_noise import settle, without_noise
from rn50_jax.checkpoint.step_folders import DAMAGED, check_files, clean_up, find_steps
from rn50_jax.distributed import processes
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted

T = TypeVar("T")

_FAILURES = 3  # saves in a row that may fail before the run stops


class _Place(ocp.path.step.Metadata):
    """Where a checkpoint lies; orbax would ask a file in it when it was saved, and may never come back from a pipe."""

    @property
    def commit_timestamp(self) -> datetime:
        return datetime.min.replace(tzinfo=UTC)


class _Names(ocp.path.step.NameFormat[_Place]):
    """Tells orbax which folders are checkpoints, looking at their names alone."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[_Place]:
        return (self.find_step(base_path, step) for step in find_steps(Path(base_path)))

    def find_step(self, base_path: Any, step: int) -> _Place:
        return _Place(step=step, path=base_path / str(step))


class Checkpoints:
    """The checkpoints of a run; use it in a `with`, whose end waits for the save that is still being written.

    Args:
      directory: holds a folder for each checkpoint.
      keep: newest checkpoints to keep; the best by `selection.rank` is kept besides.
      gather: also keep those of the ends of the epochs of `is_gathered`.
      read_only: for evaluation beside a training run: nothing is changed or cleaned up.

    Raises:
      UserError: the directory cannot be made, read or written to.
    """

    def __init__(self, directory: Path, *, keep: int = 1, gather: bool = False, read_only: bool = False) -> None:
        absl_logging.set_verbosity(absl_logging.FATAL)  # orbax tells every step of its work, and errors twice
        self._folder, self._read_only = CheckpointFolder(directory), read_only
        self._keep, self._gather = keep, gather
        self.directory = self._folder.directory
        self._writes = not read_only and jax.process_index() == 0
        self._failures = self._order = 0
        self._saving: tuple[int, dict[str, Any]] | None = None
        self._begun = False
        if self._writes:
            self._folder.prepare()
        if not read_only:
            _ = self._manager

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            read_only=self._read_only,
            create=not self._read_only,
            # A thread that waits for folders that could not be made would keep the process from ending.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            step_name_format=_Names(),
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        self._stack = ExitStack()
        self._stack.enter_context(without_noise())
        self._stack.callback(self._close)
        self._stack.callback(self.wait)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close(self) -> None:
        if "_manager" in vars(self):
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, in ascending order.

        Raises:
          UserError: the directory cannot be read.
        """
        return self._folder.steps()

    def save(self, state: Any, meta: Meta, metrics: dict[str, float]) -> None:
        """Starts writing a checkpoint of step `meta["step"]`; returns as soon as the state has been copied to the host.

        A save that failed is told of, and made good by this one.

        Args:
          meta: JSON values to find again in `read_meta`: step, epoch, config, class_names, ...
          metrics: validation metrics; may be empty. `selection.rank` of them decides which checkpoint is the best.

        Raises:
          RunStopped: several saves in a row have failed, or the state is not finite.
        """
        self.wait(retry=False)
        step = int(meta["step"])
        arrays = jax.device_get(flax.serialization.to_state_dict(state))
        if name := not_finite(arrays):
            raise RunStopped(
                f"the state of step {step} is not finite ({name}) and is not saved; the checkpoint before it is whole, "
                "and the same command goes on from there, with a lower config.recipe.lr if need be"
            )
        metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        meta = meta | {"format": FORMAT, "time": time.time(), "metrics": metrics, "arrays": describe_arrays(arrays)}
        if self._writes:
            known = self._folder.readable().metas.values()
            self._order = 1 + max((self._order, *(meta["order"] for meta in known)))
        meta["order"] = self._order
        meta["seal"] = seal(meta)
        self._start(step, {"state": arrays, "meta": meta})

    def _start(self, step: int, items: dict[str, Any]) -> None:
        self._saving, self._begun = (step, items), False
        try:
            if self._writes:
                self._folder.make_room(items["meta"], self._gather)
            processes.barrier(f"checkpoint {step}")
            self._manager.reload()
            state, meta = ocp.args.StandardSave(items["state"]), ocp.args.JsonSave(items["meta"])
            self._manager.save(step, args=ocp.args.Composite(state=state, meta=meta), force=True)
            self._begun = True
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
        if self._is_written(step, items["meta"]):
            self._saving, self._failures = None, 0
            if self._writes:
                self._folder.prune(self._keep, self._gather)
        elif retry:
            self._start(step, items)
            self.wait()

    def _is_written(self, step: int, meta: Meta) -> bool:
        if not self._begun:
            return False  # that has been told
        try:
            self._manager.wait_until_finished()
            if self._writes and (step not in self.steps() or self._folder.meta(step)["order"] != meta["order"]):
                raise FileNotFoundError("it was not written")
        except Exception as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        assert self._saving is not None
        step, _ = self._saving
        self._failures += 1
        settle()
        if self._writes:
            with suppress(OSError):
                clean_up(self.directory)  # it may be what fills the disk
        last = self._folder.readable().by_age()[-1:]
        left = f"the newest complete one is of step {last[0]}" if last else "there is no complete one"
        told = f"checkpoint {self.directory / str(step)} could not be written ({reason(error)}); {left}"
        stop = RunStopped(f"{told}. Make room or choose another --workdir, and run the same command again")
        processes.end_if_several(stop)
        if self._failures >= _FAILURES:
            self._saving = None
            raise stop from None
        warn(f"{told}; trying again")

    def read_meta(self, which: str) -> Meta:
        """Returns what was saved beside the state of checkpoint "latest", "best" or a step number.

        Raises:
          UserError: no such checkpoint, or one that cannot be read, or not by this version.
        """
        return look(lambda: self._folder.find(which))

    def restore(self, meta: Meta, like: T) -> T:
        """Returns the state of the checkpoint that `meta` was read from, as host arrays, verified array by array.

        Args:
          like: a state (or its `jax.eval_shape`) of the shapes and dtypes to expect; or a dict of some of its fields,
            which alone are read.

        Raises:
          UserError: the checkpoint is of another model, is damaged or cannot be read.
        """
        try:
            return self._restore(meta, like)
        except DamagedError as error:
            if self._folder.meta(meta["step"]) != meta:
                raise VanishedError(f"{self._folder.place(meta['step'])} was replaced while it was read") from error
            raise UserError(f"{error}; {NEXT_START}") from error

    def _restore(self, meta: Meta, like: T) -> T:
        place = self._folder.place(meta["step"])
        expected = flax.serialization.to_state_dict(like)
        wanted = describe_shapes(expected)
        saved = {name: entry for name, entry in meta["arrays"].items() if name.partition(".")[0] in expected}
        # orbax itself neither compares shapes of host arrays nor refuses to cast dtypes.
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name, [])[:2] != wanted.get(name, []):
                raise UserError(
                    f"{place} is of another model: {name} is {describe_entry(saved.get(name))} there and "
                    f"{describe_entry(wanted.get(name))} here; give the config that it was trained with"
                )
        arrays = self._read_arrays(meta, expected)
        found = describe_arrays(arrays)
        damaged = [name for name, entry in found.items() if saved[name] != entry]
        if damaged:
            raise DamagedError(f"{place} is damaged: {counted(len(damaged), 'array')} not as saved ({damaged[0]})")
        restored: T = flax.serialization.from_state_dict(like, expected | arrays)
        return restored

    def _read_arrays(self, meta: Meta, expected: dict[str, Any]) -> dict[str, Any]:
        step, place = meta["step"], self.directory / str(meta["step"])
        whole = all(name.partition(".")[0] in expected for name in meta["arrays"])

        def read() -> Any:
            with self._folder.judged(step):
                check_files(place)
                try:
                    check_headers(place / "state", meta["arrays"])
                    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), expected)
                    form = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
                    some, everything = ocp.args.PyTreeRestore, ocp.args.StandardRestore
                    args = everything(target) if whole else some(target, form, partial_restore=True)
                    restored = self._manager.restore(step, args=ocp.args.Composite(state=args))
                    return dict(restored["state"])
                except Exception:
                    settle()
                    raise

        if processes.count() == 1:  # several would have to agree on it
            with suppress(DamagedError):  # it must be found twice
                return read()
        return read()

    def restore_newest(self, like: T, check: Callable[[Meta], None]) -> tuple[T, Meta] | None:
        """Returns the newest whole checkpoint; damaged ones are named, set aside, and the next older one is taken.

        Args:
          check: refuses, by a `UserError`, what was saved for another run.

        Returns:
          Its state, as host arrays, and what was saved beside it; None if there never was a checkpoint.

        Raises:
          UserError: all are damaged, one cannot be read for now, or what `check` raises.
        """
        found = self._folder.survey()
        processes.barrier("checkpoints found")
        for step in reversed(found.by_age()):
            try:
                if step in found.damaged:
                    raise found.damaged[step]
                meta = found.metas[step]
                check(meta)
                state = self._restore(meta, like)
            except DamagedError as error:
                processes.barrier(f"set aside {step}")  # others may still be reading it
                aside = self._folder.set_aside(step) if self._writes else f"{step}{DAMAGED}"
                warn(f"{error}; it is set aside as {aside}, and the checkpoint before it is used")
                continue
            return state, meta
        if any(self.directory.glob(f"*{DAMAGED}*")):
            raise UserError(
                f"all checkpoints in {self.directory} are damaged; restore one from a copy, or choose another --workdir"
            )
        return None
