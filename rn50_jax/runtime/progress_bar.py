"""Progress of long work on files."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from rn50_jax.io.text import printable


@contextmanager
def progress(text: str, total: int | Callable[[], int] | None, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Shows a progress bar, if standard error is a terminal; call what it yields with how many more are done.

    Args:
      total: how many there are; where finding out takes its time, a function that is called in the background.
      unit: to show so many per second.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else what is printed to a file would come out here
    ) as bar:
        task = bar.add_task(printable(text), total=None if callable(total) else total, speed="")
        if callable(total) and console.is_terminal:
            count_all = total
            Thread(target=lambda: bar.update(task, total=count_all()), daemon=True).start()

        def advance(count: int) -> None:
            bar.advance(task, count)
            if unit:
                bar.update(task, speed=f"{bar.tasks[task].speed or 0:.1f} {unit}/s")

        yield advance
