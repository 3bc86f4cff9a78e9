"""The folder of a run's checkpoints: which there are, what they say, which are kept. What cannot be judged stays."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from rn50_jax.checkpoint.description import Meta, read_description
from rn50_jax.checkpoint.faults import passing_fault, reason
from rn50_jax.checkpoint.selection import rank
from rn50_jax.checkpoint.step_folders import (
    DAMAGED,
    EARLIER,
    REPLACED,
    check_files,
    clean_up,
    find_steps,
    parse_step,
    remove,
    rename,
)
from rn50_jax.errors import UserError
from rn50_jax.io.files import check_writable
from rn50_jax.io.messages import warn

T = TypeVar("T")

NEXT_START = "the run's next start sets it aside and falls back to an older one"
_LOOKS = 40  # at a folder in which a run beside removes and replaces checkpoints
_BETWEEN = 0.25  # seconds between two of them


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was saved. The message names it."""


class VanishedError(UserError):
    """A checkpoint that was there a moment ago: the run beside has removed or replaced it."""


class Found(NamedTuple):
    """Checkpoints of a folder. metas: what those say whose description is whole. damaged: the others."""

    metas: dict[int, Meta]
    damaged: dict[int, DamagedError]

    def by_age(self) -> list[int]:
        """Steps in the order in which they were saved, which is not theirs where an epoch had more steps before."""
        orders = {step: meta["order"] for step, meta in self.metas.items()}
        newest = max(orders.values(), default=0)
        return sorted({*self.metas, *self.damaged}, key=lambda step: (orders.get(step, newest), step))

    def best(self) -> int | None:
        """Returns the step that validated best by `selection.rank`; None if none was validated."""
        ranks = {step: rank(meta["metrics"], meta["epoch"]) for step, meta in self.metas.items()}
        validated = [step for step in self.by_age() if step in ranks and ranks[step][0] >= 0]
        return max(validated, key=lambda step: ranks[step], default=None)


def is_gathered(epochs: int) -> bool:
    """Returns whether NVIDIA's --gather-checkpoints keeps the checkpoint after so many epochs: 1 to 11, 21, 31, ..."""
    return epochs > 0 and (epochs <= 10 or epochs % 10 == 1)


def _ends_gathered(meta: Meta) -> bool:
    """Whether a checkpoint is the last of such an epoch: a run that is to validate it yet stands at its last step."""
    position = meta.get("position")
    return isinstance(position, dict) and position.get("step") == 0 and is_gathered(meta["epoch"])


class CheckpointFolder:
    """A folder `<step>` is a checkpoint.

    Args:
      directory: holds them; it need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._told: set[str] = set()

    def prepare(self) -> None:
        """Makes the folder if need be, and cleans up what a killed process has left in it.

        Raises:
          UserError: it cannot be made or written to.
        """
        try:
            check_writable(self.directory)
            clean_up(self.directory)
        except OSError as error:
            told = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise UserError(
                f"cannot write checkpoints to {self.directory}: {told}; mend that, or choose another --workdir"
            ) from error

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, in ascending order.

        Raises:
          UserError: the directory cannot be read.
        """
        try:
            return find_steps(self.directory)
        except OSError as error:
            raise UserError(f"{self.directory} cannot be read: {error.strerror}") from error

    def readable(self) -> Found:
        """Returns those checkpoints whose description can be read now."""
        metas = {}
        with suppress(UserError):
            for step in self.steps():
                with suppress(DamagedError, UserError):
                    metas[step] = self.meta(step)
        return Found(metas, {})

    def find(self, which: str) -> Meta:
        """Reads what checkpoint "latest", "best" or a step number says.

        Raises:
          VanishedError: it is being replaced.
          UserError: there is none, or it cannot be read, or not by this version.
        """
        step, known = parse_step(which), self.steps()
        if step in known:
            known = [step]
        elif (step is not None or not known) and (
            replaced := next(self.directory.glob(f"{'*' if step is None else step}{REPLACED}"), None)
        ):
            raise VanishedError(f"{replaced} is being replaced; if its run was killed meanwhile, start that again")
        if not known:
            raise UserError(f"{self.directory} has no checkpoint; train first, with the same --workdir")
        if step not in known and which not in ("best", "latest"):
            raise UserError(f"{self.directory} has no checkpoint {which!r}; use best, latest or one of {known}")
        found = self.survey(known)
        if which == "best":
            for error in found.damaged.values():
                warn(f"{error}; {NEXT_START}")
        if step is None:
            step = found.by_age()[-1] if which == "latest" else found.best()
        if step is None:
            raise UserError(f"{self.directory} has no validated checkpoint to call best; use --checkpoint latest")
        if step in found.damaged:
            raise UserError(f"{found.damaged[step]}; {NEXT_START}")
        return found.metas[step]

    def survey(self, steps: list[int] | None = None) -> Found:
        """Reads what checkpoints say: those of the steps, or all.

        Raises:
          VanishedError: one has gone meanwhile.
          UserError: one cannot be read for now, or not by this version.
        """
        metas, damaged = {}, {}
        for step in self.steps() if steps is None else steps:
            try:
                metas[step] = self.meta(step)
            except DamagedError as error:
                damaged[step] = error
        return Found(metas, damaged)

    def meta(self, step: int) -> Meta:
        """Reads what a checkpoint says.

        Raises:
          DamagedError, VanishedError, UserError: see `judged`.
        """
        with self.judged(step):
            return read_description(self.directory / str(step), step)

    @contextmanager
    def judged(self, step: int) -> Iterator[None]:
        """Tells damage from what only keeps one from reading.

        Raises:
          DamagedError: what failed inside did so for what the files hold.
          VanishedError: the checkpoint has gone.
          UserError: of the machine, nothing can be said about the files; or raised inside.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # orbax raises many types
            raise self._judge(step, error) from error

    def _judge(self, step: int, error: Exception) -> Exception:
        place = self.directory / str(step)
        fault = passing_fault(error)
        try:
            place.lstat()
            check_files(place, read=True)  # orbax takes what it may not read for missing
        except (OSError, ValueError) as found:
            if isinstance(found, FileNotFoundError) and str(found.filename) == str(place):
                return VanishedError(f"{self.place(step)} has gone; its run keeps only the newest and the best")
            fault = fault or passing_fault(found)
        if fault:
            return UserError(f"{self.place(step)} cannot be read: {fault}; it was left as it is")
        return DamagedError(f"{self.place(step)} cannot be read ({reason(error)})")

    def make_room(self, meta: Meta, gather: bool) -> None:
        """Takes its name from the checkpoint of a step that is saved again, and will say this of itself.

        Args:
          gather: as in `prune`.

        Raises:
          OSError: it cannot be renamed, or is no checkpoint.
        """
        step = meta["step"]
        place = self.directory / str(step)
        if step not in self.steps():
            if os.path.lexists(place):  # orbax would wait for a pipe
                raise FileExistsError(errno.EEXIST, "it is there already, and no folder", str(place))
            return
        found = self.readable()
        # Saved before its validation, or of a time when an epoch had another number of steps.
        before = found.metas.get(step, {})
        role = ""
        if found.best() == step and rank(before["metrics"], before["epoch"]) > rank(meta["metrics"], meta["epoch"]):
            role = "the best"
        elif gather and _ends_gathered(before) and before["position"] != meta.get("position"):
            role = f"that of epoch {before['epoch']}"
        if role:
            left = rename(place, EARLIER)
            warn(f"step {step} is reached again, in an epoch of other steps: its checkpoint, {role}, is now {left}")
        else:
            place.rename(place.with_name(place.name + REPLACED))

    def prune(self, keep: int, gather: bool) -> None:
        """Removes all checkpoints but the newest, the best and those that cannot be judged; tells once what fails.

        Args:
          keep: how many of the newest stay.
          gather: those of the ends of the epochs of `is_gathered` stay too.
        """
        metas: dict[int, Meta] = {}
        with self._telling():
            for step in self.steps():
                with self._telling():
                    try:
                        metas[step] = self.meta(step)
                    except DamagedError as error:
                        warn(f"{error}; it is set aside as {self.set_aside(step)}")
        found = Found(metas, {})
        gathered = [step for step, meta in metas.items() if gather and _ends_gathered(meta)]
        for step in metas.keys() - {*found.by_age()[-keep:], found.best(), *gathered}:
            with self._telling():
                try:
                    remove(self.directory / str(step))
                except OSError as error:
                    raise UserError(f"{self.place(step)} cannot be removed: {error.strerror}") from error
        with suppress(OSError):
            clean_up(self.directory)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                warn(str(error))

    def set_aside(self, step: int) -> str:
        """Renames a checkpoint so that it is no longer one; returns its new name.

        Raises:
          UserError: it cannot be renamed.
        """
        try:
            return rename(self.directory / str(step), DAMAGED).name
        except OSError as error:
            raise UserError(f"{self.place(step)} is damaged and cannot be renamed: {error.strerror}") from error

    def place(self, step: int) -> str:
        """Returns what messages call a checkpoint."""
        return f"checkpoint {self.directory / str(step)}"


def look(read: Callable[[], T]) -> T:
    """Reads, once more whenever a run beside has just removed or replaced what was to be read.

    Raises:
      UserError: that was so for ten seconds, or what `read` raises.
    """
    for _ in range(_LOOKS - 1):
        with suppress(VanishedError):
            return read()
        time.sleep(_BETWEEN)
    return read()
