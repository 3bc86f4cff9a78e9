"""The time of a step by kernel and group: a trace by JAX's profiler, and its kernels by what they do."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rn50_jax.bench import compiled as programs
from rn50_jax.bench.groups import CONTAINERS, GROUPS, group_of_instruction, group_of_kernel
from rn50_jax.bench.hlo import Instruction, Program, bytes_of, parse_program
from rn50_jax.errors import UserError

IDLE = "idle"
_COMMAND_BUFFERS = "xla_gpu_enable_command_buffer"
_TIMED = 20  # steps at most that are timed without command buffers
# On a GPU's streams, but nothing that runs.
_BOOKKEEPING = frozenset(("MemoryAlloc", "MemoryFree", "MemoryResidency", "HostRegister", "HostUnregister"))


class Event(NamedTuple):
    """One execution of a kernel, start and end in seconds.

    op: the XLA instruction that it belongs to, "" if the trace does not say.
    """

    device: str
    kernel: str
    op: str
    start: float
    end: float


def has_command_buffers(platform: str, xla_flags: str) -> bool:
    """Returns whether XLA records kernels in command buffers (CUDA graphs), in which a profiler cannot name them.

    Args:
      platform: of the devices. xla_flags: as in the environment; the last of the same name counts.
    """
    given = [flag.partition("=")[2] for flag in xla_flags.split() if flag.partition("=")[0] == f"--{_COMMAND_BUFFERS}"]
    return platform == "gpu" and (not given or given[-1] != "")


def profile(
    program: programs.Program,
    folder: Path,
    *,
    steps: int,
    mode: str,
    images_per_second: float,
    copy_gbytes_per_second: float | None,
    command_buffers: bool,
) -> dict[str, Any]:
    """Traces at most ten steps of a program that has been timed; XProf, TensorBoard and Perfetto open the trace.

    Args:
      steps: that were timed. mode: "train" or "infer". images_per_second: what was timed.
      copy_gbytes_per_second: what a large copy reached on the same device, bytes read and written; None if unknown.
      command_buffers: the program has them: it is compiled once more, without.

    Returns:
      "profile": dir, steps, and what `summarize` makes of the trace; if that has no kernels, "error" instead. If there
      were command buffers also "command_buffers": images_per_second with and images_per_second_without, each at the
      median step, and "ratio", with over without; or "error", if XLA does not compile without, and the program was
      traced as it is.

    Raises:
      UserError: the folder cannot be written.
    """
    run, compiled = program.run, program.compilation.compiled
    found: dict[str, Any] = {}
    if command_buffers:
        try:
            run, compiled = program.again({_COMMAND_BUFFERS: ""})
            run(2)
            without = program.images / float(np.median(run(min(steps, _TIMED))))
            ratio = images_per_second / without
            speeds = {"images_per_second": images_per_second, "images_per_second_without": without, "ratio": ratio}
            found["command_buffers"] = speeds
        except jax.errors.JaxRuntimeError as error:
            run, compiled = program.run, program.compilation.compiled
            found["command_buffers"] = {"error": str(error).splitlines()[0]}
    run(2)
    steps = min(steps, 10)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with jax.profiler.trace(str(folder), profiler_options=options):
            run(steps)
    except OSError as error:
        raise UserError(f"cannot write a trace to {folder}: {error.strerror}") from error
    events = list(read_events(newest_trace(folder)))
    made: dict[str, Any] = {"error": "the profiler saw no kernels; on a GPU it needs CUPTI and the right to use it"}
    if events:
        made = summarize(events, parse_program(compiled.as_text()), mode, steps, copy_gbytes_per_second)
    return found | {"profile": {"dir": str(folder), "steps": steps, **made}}


def newest_trace(folder: Path) -> Path:
    """Returns the newest `.xplane.pb` below a folder."""
    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise UserError(f"{folder} holds no trace (*.xplane.pb)")
    return traces[-1]


def read_events(trace: Path) -> Iterator[Event]:
    """Yields the kernels of the devices if there are planes of devices, else the ops that the CPU ran."""
    planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue  # sums over the streams
            for event in line.events:
                stats = dict(event.stats)
                op = str(stats.get("hlo_op", ""))
                device = plane.name if devices else str(stats.get("device_ordinal", ""))
                if op if not devices else event.name not in _BOOKKEEPING:
                    start = event.start_ns / 1e9
                    yield Event(device, event.name, op, start, start + event.duration_ns / 1e9)


def summarize(
    events: Sequence[Event], program: Program, mode: str, steps: int, copy_gbytes_per_second: float | None = None
) -> dict[str, Any]:
    """Adds up the events by group and by instruction. All numbers are of one step on one device, the mean over both.

    Args:
      events: at least one.

    Returns:
      step_seconds: from the start of the first kernel to the end of the last one, over the number of steps.
      "groups": of each of `GROUPS` and of `IDLE`, when no kernel ran, seconds, share of the step and number of kernels.
      Of several kernels that run at once, each counts for its part of that time, so that the groups add up to the step.
      "kernels": the 20 instructions that took most, each with name, kernel (of several, the longest), group, count,
      seconds (its own, also if others ran beside it), bytes read and written, gbytes_per_second and of_copy_ceiling;
      the last three are None where they are not known.
    """
    find = _finder(program, mode)
    counted = [(event, found) for event in events if (found := find(event.kernel, event.op)).group]
    intervals: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for event, found in counted:
        intervals[event.device].append((found.group, event.start, event.end))
    runs = steps * max(len(intervals), 1)
    wall = sum(max(end for *_, end in some) - min(start for _, start, _ in some) for some in intervals.values())
    seconds: dict[str, float] = dict.fromkeys((*GROUPS, IDLE), 0.0)
    for some in intervals.values():
        for group, share in share_out(some).items():
            seconds[group or IDLE] += share
    numbers = Counter(found.group for _, found in counted)
    return {
        "step_seconds": wall / runs,
        "groups": {
            group: {
                "seconds": value / runs,
                "share": value / wall if wall else 0.0,
                "kernels": numbers[group] / runs,
            }
            for group, value in seconds.items()
        },
        "kernels": _largest(counted, program, runs, copy_gbytes_per_second),
    }


def share_out(intervals: Sequence[tuple[str, float, float]]) -> dict[str, float]:
    """Divides the time from the first start to the last end among the intervals that cover it.

    Args:
      intervals: key, start and end of each.

    Returns:
      Time by key, where k intervals overlap a k-th for each; under "" that of none.
    """
    edges = sorted(
        [(start, 1, key) for key, start, end in intervals if end > start]
        + [(end, -1, key) for key, start, end in intervals if end > start]
    )
    shares: dict[str, float] = defaultdict(float)
    running: Counter[str] = Counter()
    total, last = 0, edges[0][0] if edges else 0.0
    for time, change, key in edges:
        for one, count in running.items() if total else [("", 1)]:
            shares[one] += (time - last) * count / max(total, 1)
        running[key] += change
        total += change
        last = time
    return dict(shares)


class _Found(NamedTuple):
    """The instruction that an event belongs to, and its name or the event's. group: "" if its time is other events'."""

    name: str
    group: str
    instruction: Instruction | None


def _finder(program: Program, mode: str) -> Callable[[str, str], _Found]:
    """Returns what finds that by an event's kernel and op."""
    # XLA names a GPU kernel after its instruction, with "_" for what a symbol cannot hold.
    by_kernel = {_symbol(name): name for name in program.instructions}

    @cache
    def find(kernel: str, op: str) -> _Found:
        # Kernels in a CUDA graph carry no op.
        instruction = program.instructions.get(op or by_kernel.get(_symbol(kernel), ""))
        if instruction is not None and instruction.opcode not in CONTAINERS:
            return _Found(instruction.name, group_of_instruction(instruction, program, mode), instruction)
        # Of a loop: on CPU it as a whole; on a GPU what its thunk runs itself, a copy of the condition.
        whole = instruction is not None and kernel == op
        return _Found(op or kernel, "" if whole else group_of_kernel(kernel), None)

    return find


def _symbol(name: str) -> str:
    return re.sub(r"[.\-]", "_", name)


def _largest(
    events: Sequence[tuple[Event, _Found]], program: Program, runs: int, copy_gbytes_per_second: float | None
) -> list[dict[str, Any]]:
    spent: dict[_Found, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event, found in events:
        spent[found][event.kernel].append(event.end - event.start)
    totals = {found: sum(map(sum, own.values())) for found, own in spent.items()}
    kernels = []
    for found in sorted(totals, key=lambda found: -totals[found])[:20]:
        own, seconds = spent[found], totals[found] / runs
        # An instruction may start several kernels: it ran as often as the rarest of them.
        times = min(map(len, own.values())) / runs
        nbytes = times * bytes_of(found.instruction, program) if found.instruction else None
        speed = nbytes / seconds / 1e9 if nbytes is not None and seconds else None
        kernels.append(
            {
                "name": found.name,
                "kernel": max(own, key=lambda kernel: sum(own[kernel])),
                "group": found.group,
                "count": sum(map(len, own.values())) / runs,
                "seconds": seconds,
                "bytes": nbytes,
                "gbytes_per_second": speed,
                "of_copy_ceiling": speed / copy_gbytes_per_second if speed and copy_gbytes_per_second else None,
            }
        )
    return kernels
