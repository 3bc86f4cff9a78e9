"""What a benchmark has measured: kept in a file from the start, and told however the command ends."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rn50_jax import cli
from rn50_jax.bench import budget, report
from rn50_jax.bench.stops import Stops
from rn50_jax.cli import is_command
from rn50_jax.errors import Interrupted, UserError
from rn50_jax.io.files import telling_of_writes, write_whole
from rn50_jax.io.json_files import write_json
from rn50_jax.loggers import goodput


class Record:
    """The document of one call, and what of it is still to be measured; used in a `with`, at whose end it is told.

    A signal ends the command within with what there is, see `Stops`, if it is a command and not somebody's own program.

    Args:
      json: file that holds the document from `plan` on, None for none.
      markdown: file for the tables at the end.
      seconds: since the process's start, after which nothing is begun; None for no limit.
      tell: called with a line of progress.
    """

    def __init__(
        self,
        *,
        json: Path | None = None,
        markdown: Path | None = None,
        seconds: float | None = None,
        tell: Callable[[str], None],
    ) -> None:
        self._json, self._markdown, self._seconds, self._tell = json, markdown, seconds, tell
        self._parts: dict[str, Any] = {}
        self._pending: list[str] = []
        self._left_out: list[str] = []
        self._done, self._single = 0, False
        self._warned = False
        self.stops = Stops(self._stop, listening=is_command())

    def __enter__(self) -> "Record":
        self.stops.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stops.__exit__(kind, error, trace)
        if error is None or self._done or self._parts.get("results"):
            self._report(complete=error is None)

    def plan(self, cases: Sequence[str], *, single: bool, **parts: Any) -> None:
        """Says what is to be measured, and puts parts into the document.

        Args:
          single: there will be one result, whose keys stand at the top of the file too.

        Raises:
          UserError: a file cannot be written; found before anything is measured.
        """
        for path in filter(None, (self._json, self._markdown)):
            _check_writable(path)
        with self.stops.lock:
            self._pending, self._single = list(cases), single
            self._parts |= parts
            self._write(complete=False)

    def begins(self, case: str, expected: float) -> bool:
        """Returns whether there is time for a case that takes `expected` seconds; if not, it is noted as left out."""
        left = float("inf") if self._seconds is None else self._seconds - goodput.process_age()
        if budget.fits(left, expected):
            return True
        self._tell(f"left out for --budget {self._seconds:g}: {case}")
        with self.stops.lock:
            self._pending.remove(case)
            self._left_out.append(case)
            self._keep()
        return False

    def put(self, **parts: Any) -> None:
        """Puts parts into the document in place of those of the same name; a list given is not to change any more."""
        with self.stops.lock:
            self._parts |= parts
            self._keep()

    def done(self, case: str, **parts: Any) -> None:
        """Puts parts, as `put` does, with which a case is measured."""
        with self.stops.lock:
            self._pending.remove(case)
            self._done += 1
            self.put(**parts)

    def drop(self, cases: Sequence[str]) -> None:
        """Takes cases off the plan, of something that has failed before."""
        with self.stops.lock:
            self._pending = [case for case in self._pending if case not in cases]

    def get(self, name: str, default: Any) -> Any:
        """Returns a part of the document."""
        return self._parts.get(name, default)

    @property
    def exit_code(self) -> int:
        """0, or 1 if nothing could be measured for lack of time, memory or precision."""
        results = self._parts.get("results", [])
        if results:
            return int(all("error" in result for result in results))
        return int(not self._done)

    def _document(self, *, complete: bool) -> dict[str, Any]:
        rest = [{"case": case, "why": "budget"} for case in self._left_out]
        rest += [{"case": case, "why": "stopped"} for case in self._pending]
        limit = {} if self._seconds is None else {"budget": self._seconds}
        return self._parts | limit | {"complete": complete, "not_run": rest}

    def _write(self, *, complete: bool) -> None:
        if self._json:
            with telling_of_writes():
                write_json(self._json, report.as_json(self._document(complete=complete), single=self._single))

    def _keep(self) -> None:
        """Writes the file; a disk that is full for now ends nothing, and is tried again."""
        try:
            self._write(complete=False)
        except UserError as error:
            if not self._warned:
                self._tell(f"{error}; going on")
            self._warned = True

    def _report(self, *, complete: bool) -> None:
        text = report.as_markdown(self._document(complete=complete))
        try:
            self._write(complete=complete)
            if self._markdown:
                with telling_of_writes():
                    write_whole(self._markdown, text + "\n")
        finally:
            results = self._parts.get("results", [])
            if self._single and results and "error" not in results[0]:
                text += f"\n\n{results[0]['images_per_second']:.1f} images per second at the median step"
            print(text, flush=True)

    def _stop(self, number: int) -> None:
        """Ends the command with what there is; the thread of `Stops` has the lock."""
        try:
            self._report(complete=False)
        except Exception as error:
            cli.tell(error)
        name, rest = signal.Signals(number).name, len(self._pending) + len(self._left_out)
        cli.tell(Interrupted(number, f"stopped by {name}: {self._done} measured, {rest} not"))
        with suppress(Exception):
            sys.stdout.flush()


def _check_writable(path: Path) -> None:
    """Raises UserError unless a file can be made or replaced there; what is there stays."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe or device
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
