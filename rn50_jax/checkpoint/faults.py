"""What the error of a read or write tells: of the files themselves, or only of the machine at that moment."""

import errno
import os
import re
from collections.abc import Iterator

from rn50_jax.io.text import first_line

# What the system says of files that are not what they should be. All else says nothing about them: no permission, too
# many open files, a device or a file server that fails.
_OF_FILES = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.EFBIG, errno.EOVERFLOW}
)
# Libraries pass on some of them only as text, of which these are the likely ones.
_TOLD = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ENOTCONN),
)
_NUMBER = re.compile(r"\[(?:OS error|Errno) (\d+)")
_STARVED = ("can't start new thread", "bad_alloc", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def passing_fault(error: BaseException) -> str | None:
    """Returns what keeps the machine from reading, in the system's words; None if the files may be at fault."""
    for number in _errnos(error):
        if number not in _OF_FILES:
            return os.strerror(number)
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return os.strerror(errno.ENOMEM)
        if any(sign in str(one) for sign in _STARVED):
            return first_line(one, kind=True)
    return None


def reason(error: BaseException) -> str:
    """Returns what is worth telling of an error, in one line: of orbax' long messages the system's words."""
    number = next((number for number in _errnos(error) if number in _TOLD), None)
    return os.strerror(number) if number else first_line(error, kind=True)


def _errnos(error: BaseException) -> Iterator[int]:
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno:
            yield one.errno
        text = str(one)
        yield from map(int, _NUMBER.findall(text))
        yield from (number for number in _TOLD if os.strerror(number) in text)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all that led to it."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or any(one is other for other in found):
            continue
        found.append(one)
        waiting += [one.__cause__, one.__context__]
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else []
    return found
