"""The document of a benchmark: in a file from the start, and printed however the command ends."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rn50_jax import cli
from rn50_jax.bench import report
from rn50_jax.bench.stops import Stops
from rn50_jax.cli import is_command
from rn50_jax.errors import Interrupted, UserError
from rn50_jax.io.files import telling_of_writes, write_whole
from rn50_jax.io.json_files import write_json
from rn50_jax.loggers import goodput


class Record:
    """The document of one call, and what of it is still to be measured; used in a `with`, at whose end it is printed.

    A signal ends the command within with what there is, see `Stops`, if it is a command and not somebody's own program.

    Args:
      json, markdown: files that hold the document and its tables from `plan` on, None for none.
      seconds: since the process's start, after which nothing is begun; None for no limit.
      tell: called with a line of progress, also by those who measure.
    """

    def __init__(
        self,
        *,
        json: Path | None = None,
        markdown: Path | None = None,
        seconds: float | None = None,
        tell: Callable[[str], None],
    ) -> None:
        self._json, self._markdown, self._seconds, self.tell = json, markdown, seconds, tell
        self._parts: dict[str, Any] = {}
        self._pending: list[str] = []
        self._no_time: list[str] = []
        self._took: list[tuple[str, str, float]] = []  # case, program and seconds of what was measured
        self._began = ("", "", 0.0)
        self._single = self._warned = False
        self.stops = Stops(self._stop, listening=is_command())

    def __enter__(self) -> "Record":
        self.stops.__enter__()
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        self.stops.__exit__()
        if error is None or self._took or self._parts.get("results"):
            self._report(complete=error is None)

    def plan(self, names: Sequence[str], *, single: bool, **parts: Any) -> None:
        """Says what is to be measured, and puts parts into the document.

        Args:
          names: of cases or trials.
          single: there will be one result, whose keys stand at the top of the file too.

        Raises:
          UserError: a file cannot be written; found before anything is measured.
        """
        with self.stops.lock:
            self._pending, self._single = list(names), single
            self._parts |= parts
            self._write(complete=False)

    def begins(self, name: str, *, case: str = "", program: str = "") -> bool:
        """Returns whether there is time for what was planned as `name`; if not, it is not run.

        It is expected to take as long as the last trial of the same program in the same case, since the first of them
        compiled it; without one as the longest of the program, and without that as the longest of all.
        """
        age = goodput.process_age()
        same = [seconds for of, by, seconds in self._took if (of, by) == (case, program)]
        of_program = [seconds for _, by, seconds in self._took if by == program]
        expected = same[-1] if program and same else max(of_program or [s for *_, s in self._took], default=0.0)
        left = float("inf") if self._seconds is None else self._seconds - age
        if left > 0 and expected <= left:
            self._began = (case, program, age)
            return True
        self.tell(f"not run for --budget {self._seconds:g}: {name}")
        with self.stops.lock:
            self._pending.remove(name)
            self._no_time.append(name)
            self._keep()
        return False

    def put(self, **parts: Any) -> None:
        """Puts parts into the document in place of those of the same name; a list given is not to change any more."""
        with self.stops.lock:
            self._parts |= parts
            self._keep()

    def done(self, name: str, **parts: Any) -> None:
        """Puts parts, as `put` does, with which what was begun last is measured."""
        with self.stops.lock:
            self._pending.remove(name)
            case, program, began = self._began
            self._took.append((case, program, goodput.process_age() - began))
            self.put(**parts)

    def drop(self, names: Sequence[str]) -> None:
        """Takes off the plan what belongs to something that has failed before."""
        with self.stops.lock:
            self._pending = [name for name in self._pending if name not in names]

    def get(self, name: str, default: Any) -> Any:
        """Returns a part of the document."""
        return self._parts.get(name, default)

    @property
    def exit_code(self) -> int:
        """Returns 0, or 1 if nothing could be measured for lack of time, memory or precision."""
        results = self._parts.get("results", [])
        return int(all("error" in result for result in results) if results else not self._took)

    def _document(self, *, complete: bool) -> dict[str, Any]:
        rest = [{"case": case, "why": "budget"} for case in self._no_time]
        rest += [{"case": case, "why": "stopped"} for case in self._pending]
        limit = {} if self._seconds is None else {"budget": self._seconds}
        return self._parts | limit | {"complete": complete, "not_run": rest}

    def _write(self, *, complete: bool) -> None:
        document = self._document(complete=complete)
        with telling_of_writes():
            if self._json:
                write_json(self._json, report.as_json(document, single=self._single))
            if self._markdown:
                write_whole(self._markdown, report.as_markdown(document) + "\n")

    def _keep(self) -> None:
        """Writes the files; a disk that is full for now ends nothing, and is tried again."""
        try:
            self._write(complete=False)
        except UserError as error:
            if not self._warned:
                self.tell(f"{error}; it is tried again")
            self._warned = True

    def _report(self, *, complete: bool) -> None:
        text = report.as_markdown(self._document(complete=complete))
        try:
            self._write(complete=complete)
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
        name, rest = signal.Signals(number).name, len(self._pending) + len(self._no_time)
        cli.tell(Interrupted(number, f"stopped by {name}: {len(self._took)} measured, {rest} not"))
        with suppress(Exception):
            sys.stdout.flush()
