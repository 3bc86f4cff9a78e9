"""Batches made ahead of their use."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(batches: Iterator[T], depth: int) -> Iterator[T]:
    """Keeps up to `depth` batches ready, made in a background thread in their order."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as worker:
        ready = deque(worker.submit(next, batches, None) for _ in range(depth))
        while (batch := ready.popleft().result()) is not None:
            ready.append(worker.submit(next, batches, None))
            yield batch
