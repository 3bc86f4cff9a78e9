"""Where the time of a step goes: a trace by JAX's profiler, and its kernels by what they do."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rn50_jax.bench.groups import CONTAINERS, GROUPS, group_of_instruction, group_of_kernel
from rn50_jax.bench.hlo import Instruction, Program, bytes_of, parse_program
from rn50_jax.errors import UserError

IDLE = "idle"
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


def profile(
    run: Callable[[int], Any],
    program_text: str,
    folder: Path,
    *,
    steps: int,
    mode: str,
    copy_gbytes_per_second: float | None = None,
) -> dict[str, Any]:
    """Runs `steps` steps under the profiler; the trace in `folder` opens in XProf, TensorBoard or Perfetto.

    Args:
      run: does so many steps and waits for them.
      program_text: the optimised HLO that they run.
      mode: "train" or "infer".
      copy_gbytes_per_second: what a large copy reached on the same device, bytes read and written; None if unknown.

    Returns:
      dir, steps, and what `summarise` makes of the trace; if that has no kernels, "error" instead.

    Raises:
      UserError: the folder cannot be written.
    """
    run(2)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with jax.profiler.trace(str(folder), profiler_options=options):
            run(steps)
    except OSError as error:
        raise UserError(f"cannot write a trace to {folder}: {error.strerror}") from error
    events = list(read_events(newest_trace(folder)))
    about = {"dir": str(folder), "steps": steps}
    if not events:
        return about | {"error": "the profiler saw no kernels; on a GPU it needs CUPTI and the right to use it"}
    return about | summarise(events, parse_program(program_text), mode, steps, copy_gbytes_per_second)


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


def summarise(
    events: Sequence[Event], program: Program, mode: str, steps: int, copy_gbytes_per_second: float | None = None
) -> dict[str, Any]:
    """Adds up the events by group and by instruction. All numbers are of one step on one device, the mean over both.

    Args:
      events: at least one.

    Returns:
      step_seconds: from the start of the first kernel to the end of the last one, over the number of steps.
      "groups": of each of `GROUPS` and of `IDLE`, when no kernel ran, seconds, share of the step and number of kernels.
      Where several kernels run at once, each counts for its part of that time, so that the groups add up to the step.
      "kernels": the 20 instructions that took most, each with name, kernel (of several, the longest), group, count,
      seconds (its own, also if others ran beside it), bytes read and written, gbytes_per_second and of_copy_ceiling;
      the last three are None where they are not known.
    """
    find = _Finder(program, mode)
    counted = [event for event in events if find(event).group]
    by_device: dict[str, list[Event]] = defaultdict(list)
    for event in counted:
        by_device[event.device].append(event)
    runs = steps * max(len(by_device), 1)
    wall = sum(max(e.end for e in some) - min(e.start for e in some) for some in by_device.values())
    seconds: dict[str, float] = dict.fromkeys((*GROUPS, IDLE), 0.0)
    for some in by_device.values():
        for group, share in share_out([(find(e).group, e.start, e.end) for e in some]).items():
            seconds[group or IDLE] += share
    numbers = Counter(find(event).group for event in counted)
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
        "kernels": _largest(counted, find, runs, copy_gbytes_per_second),
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
    """What an event belongs to. group: "" if its time is that of other events."""

    group: str
    instruction: Instruction | None


class _Finder:
    """Finds what events belong to, each kind of event once."""

    def __init__(self, program: Program, mode: str) -> None:
        self.program, self._mode = program, mode
        # XLA names a GPU kernel after its instruction, with "_" for what a symbol cannot hold.
        self._by_kernel = {_symbol(name): name for name in program.instructions}
        self._known: dict[tuple[str, str], _Found] = {}

    def __call__(self, event: Event) -> _Found:
        key = (event.kernel, event.op)
        if key not in self._known:
            self._known[key] = self._find(event)
        return self._known[key]

    def _find(self, event: Event) -> _Found:
        # Kernels in a CUDA graph carry no op.
        name = event.op or self._by_kernel.get(_symbol(event.kernel), "")
        instruction = self.program.instructions.get(name)
        if instruction is None:
            return _Found(group_of_kernel(event.kernel), None)
        if instruction.opcode not in CONTAINERS:
            return _Found(group_of_instruction(instruction, self.program, self._mode), instruction)
        # On CPU, a loop as a whole; on a GPU, what its thunk runs itself: a copy of the condition.
        return _Found("" if event.kernel == event.op else group_of_kernel(event.kernel), None)


def _symbol(name: str) -> str:
    return re.sub(r"[.\-]", "_", name)


def _largest(
    events: Sequence[Event], find: _Finder, runs: int, copy_gbytes_per_second: float | None, top: int = 20
) -> list[dict[str, Any]]:
    spent: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    found: dict[str, _Found] = {}
    for event in events:
        this = find(event)
        name = this.instruction.name if this.instruction else event.op or event.kernel
        found[name] = this
        spent[name][event.kernel].append(event.end - event.start)
    seconds = {name: {kernel: sum(times) for kernel, times in own.items()} for name, own in spent.items()}
    kernels = []
    for name in sorted(seconds, key=lambda name: -sum(seconds[name].values()))[:top]:
        group, instruction = found[name]
        counts = [len(times) / runs for times in spent[name].values()]
        total = sum(seconds[name].values()) / runs
        # An instruction may start several kernels: it ran as often as the rarest of them.
        nbytes = min(counts) * bytes_of(instruction, find.program) if instruction else None
        speed = nbytes / total / 1e9 if nbytes is not None and total else None
        kernels.append(
            {
                "name": name,
                "kernel": max(seconds[name], key=lambda kernel: seconds[name][kernel]),
                "group": group,
                "count": sum(counts),
                "seconds": total,
                "bytes": nbytes,
                "gbytes_per_second": speed,
                "of_copy_ceiling": speed / copy_gbytes_per_second if speed and copy_gbytes_per_second else None,
            }
        )
    return kernels
