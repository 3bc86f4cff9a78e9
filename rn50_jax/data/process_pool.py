"""Work on many files in processes of their own, of which some may die."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_Range = tuple[int, int]


def count_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_processes(
    work: Callable[[Sequence[T]], R], items: Sequence[T], *, chunk: int, workers: int, crashed: Callable[[T], R]
) -> Iterator[tuple[int, R]]:
    """Calls `work` with pieces of at most `chunk` items in `workers` processes.

    A process that dies (killed by the memory limit, or by a decoder that a damaged file leads astray) loses nothing but
    the item that killed it, for which `crashed` stands in: what was being worked on is tried again in ever smaller
    pieces.

    Yields:
      The number of a piece's first item and what `work` returned, in any order.

    Raises:
      RuntimeError: processes cannot be started.
    """
    todo = deque((start, min(start + chunk, len(items))) for start in range(0, len(items), chunk))
    while todo:
        running: dict[Future[R], _Range] = {}
        suspects: list[_Range] = []
        with _pool(min(workers, len(todo))) as pool:
            try:
                while todo or running:
                    while todo and len(running) < 2 * workers:
                        start, stop = todo[0]
                        running[pool.submit(work, items[start:stop])] = todo[0]
                        todo.popleft()
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield running[future][0], future.result()
                        del running[future]
            except BrokenProcessPool:
                suspects = sorted(running.values())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        yield from _one_by_one(work, items, suspects, crashed)


def _one_by_one(
    work: Callable[[Sequence[T]], R], items: Sequence[T], pieces: list[_Range], crashed: Callable[[T], R]
) -> Iterator[tuple[int, R]]:
    """The same in one process, that is replaced when it dies, and in smaller pieces of what it died of."""
    while pieces:
        with _pool(1) as pool:
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise RuntimeError("worker processes die as soon as they start") from error
            try:
                while pieces:
                    start, stop = pieces[0]
                    result = pool.submit(work, items[start:stop]).result()
                    yield start, result
                    pieces = pieces[1:]
            except BrokenProcessPool:
                start, stop = pieces[0]
                middle = (start + stop) // 2
                halves = [(start, middle), (middle, stop)] if stop - start > 1 else []
                pieces = halves + pieces[1:]
                if not halves:
                    yield start, crashed(items[start])


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: the parent has threads, and libraries that do not survive it.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)


def _start() -> None:
    """In a new process: interrupts are the parent's business, and without the parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_the_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
