"""Seconds of single steps; and what it cost to compile them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


def time_queued(call: Callable[[], Any], count: int) -> list[float]:
    """Seconds between the ends of `count` calls with one more queued behind each, as training runs them.

    `call` starts work and returns arrays that are ready when it is done.
    """
    ready, previous = [time.perf_counter()], None
    for number in range(count):
        result = call()
        if number:
            jax.block_until_ready(previous)
            ready.append(time.perf_counter())
        previous = result
    jax.block_until_ready(previous)
    ready.append(time.perf_counter())
    return [float(x) for x in np.diff(ready)]


def time_single(call: Callable[[], Any], count: int) -> list[float]:
    """Seconds of `count` calls, each waited for before the next: latency."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds


class Compilation(NamedTuple):
    """A program, what making it cost, and what XLA says about it.

    lowered: to be compiled again with other options. compiled: for its text. seconds: of tracing and of compiling.
    cached: any part came from the compilation cache. memory_bytes: of arguments, results and temporaries at once, what
    results share with arguments counted once. bytes_accessed: by all operations of one call, on one device; XLA's
    estimate, 0 if it has none.
    """

    lowered: Any
    compiled: Any
    trace_seconds: float
    compile_seconds: float
    cached: bool
    memory_bytes: int
    bytes_accessed: float


def compile_program(function: Any, *args: Any) -> Compilation:
    """Compiles a jitted or pmapped function for its arguments, so that the first call need not."""
    events: list[str] = []

    def note(event: str, **_: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(note)
    try:
        start = time.perf_counter()
        lowered = function.lower(*args)
        traced = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()
    finally:
        jax.monitoring.unregister_event_listener(note)
    memory = compiled.memory_analysis()
    used = sum(getattr(memory, f"{part}_size_in_bytes", 0) for part in ("argument", "output", "temp"))
    return Compilation(
        lowered=lowered,
        compiled=compiled,
        trace_seconds=traced - start,
        compile_seconds=done - traced,
        cached=any("cache_hits" in event for event in events),
        memory_bytes=used - getattr(memory, "alias_size_in_bytes", 0),
        bytes_accessed=float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0)),
    )
