"""Keeps a library's after-effects off the console; its errors are told by whoever called it."""

import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_noise() -> Iterator[None]:
    """Keeps what orbax leaves behind after a failure, pages of tracebacks of its coroutines, off the console."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, RuntimeError | GeneratorExit | BaseExceptionGroup):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # for good: it may speak whenever garbage is collected
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = before


def settle() -> None:
    """Waits a moment for what was under way when a read or write failed."""
    # Reads and writes that were under way when one failed still report to an event loop that is closed.
    time.sleep(0.3)
    gc.collect()
