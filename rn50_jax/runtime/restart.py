"""Commands that start anew, as the same process, with what Python or the C library reads when a process starts."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rn50_jax.runtime.hardware import signs_of_gpu


def is_command() -> bool:
    """Returns whether this process is a command: not a test or somebody's own program that calls a `main`."""
    program = Path(sys.argv[0])
    return program.name == "rn50-jax" or program.parent == Path(__file__).parent


def restart(**variables: str) -> None:
    """Starts this command anew with more variables in its environment; returns only where that cannot be done."""
    with suppress(OSError, AttributeError):  # what was closed at the start is None
        sys.stdout.flush()
    with suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables)


def use_utf8() -> None:
    """Starts this command anew in Python's UTF-8 mode where the locale has another encoding for names of files.

    A class folder would else have another name in each locale: one of ASCII characters and bytes in C, for example.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1" and is_command():
        restart(PYTHONUTF8="1")


def trains(command: str, words: Sequence[str]) -> bool:
    """Returns whether a command trains: `train`, and `benchmark` unless its words name a mode that does not."""
    others = {"infer", "input", "--mode=infer", "--mode=input"}
    return command == "train" or (command == "benchmark" and not others & set(words))


_HUGE_PAGES = "glibc.malloc.hugetlb"
_ASKED = "RN50_JAX_HUGE_PAGES"


def use_huge_pages() -> None:
    """Starts this command anew, as the same process, with memory in huge pages; only where JAX computes on the CPU.

    XLA takes the memory of a step's activations from the system at each step and gives it back. Handing it out in
    pages of 4 kB takes the system a quarter of a step or so, in pages of 2 MB next to nothing. glibc (from 2.35) asks
    for those if its tunable says so, which it reads when a process starts. Nothing is done where Linux gives no huge
    pages or gives them unasked, where the tunable has been set, or where the environment has RN50_JAX_HUGE_PAGES.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _HUGE_PAGES in tunables or _ASKED in os.environ or not is_command() or not _huge_pages_on_request():
        return
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] != "cpu" and signs_of_gpu():
        return
    # The second variable ends it even where the first one does not get through.
    restart(**{"GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1"))), _ASKED: "asked"})


def _huge_pages_on_request() -> bool:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        enough = name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
        return enough and "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
