"""Work for other processes that kills them; imports little, so that they start soon."""

import os
import signal
from collections.abc import Sequence


def double(items: Sequence[int]) -> list[int]:
    """Twice each item; a process that is given 13 dies, as one whose decoder crashes does."""
    if 13 in items:
        os.kill(os.getpid(), signal.SIGKILL)
    return [2 * item for item in items]
