"""Where the time of a step goes: a trace by JAX's profiler, and its kernels by what they do."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rn50_jax.errors import UserError

CONV, NORM, UPDATE = "convolution and matrix product", "BatchNorm and elementwise", "optimiser and state"
COPY, COLLECTIVE, OTHER = "copies, transposes, slices", "collectives", "other"
GROUPS = (CONV, NORM, UPDATE, COPY, COLLECTIVE, OTHER)

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVES = re.compile(r"all-reduce|all-gather|reduce-scatter|collective|all-to-all|nccl", re.IGNORECASE)
_SLICES = ("slice", "dynamic-slice", "dynamic-update-slice", "pad", "concatenate", "reshape")
_MOVES = frozenset(("copy", "copy-start", "copy-done", "transpose", "reverse", *_SLICES))
_FREE = frozenset(("fusion", "parameter", "bitcast", "broadcast", "constant", "iota", "tuple", "get-tuple-element"))
# Reductions that XLA rewrote keep only this of their path; a network has them, an update has not.
_REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "reduce_window_max", "select_and_scatter"))
# Ops whose time is that of the ops inside them, which have events of their own.
_CONTAINERS = frozenset(("while", "call", "conditional", "async-start", "async-done"))
# Names of GPU kernels that carry no name of an XLA op, such as those in a CUDA graph.
_KERNELS = (
    (COLLECTIVE, re.compile(r"nccl|all_?reduce|all_?gather", re.IGNORECASE)),
    (CONV, re.compile(r"conv|gemm|cutlass|xmma|cudnn|wgrad|dgrad|fprop|nvjet|triton_dot", re.IGNORECASE)),
    (COPY, re.compile(r"memcpy|memset|transpose|nhwc|nchw|copy", re.IGNORECASE)),
)


class Event(NamedTuple):
    """One execution of a kernel. op: the XLA instruction that it belongs to, "" if the trace does not say."""

    kernel: str
    op: str
    seconds: float


class Instruction(NamedTuple):
    """Of the compiled program. paths: op_names of it and of what is fused into it. opcodes: its own and those fused."""

    opcode: str
    opcodes: frozenset[str]
    paths: tuple[str, ...]
    text: str


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

    Returns:
      dir, steps, kernel_seconds over all devices, "groups": seconds by `GROUPS`, and "kernels": the 20 that took most,
      each {"name", "kernel", "group", "count", "seconds"}.

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
    found = summarise(read_events(newest_trace(folder)), parse_program(program_text), mode)
    return {"dir": str(folder), "steps": steps, **found}


def newest_trace(folder: Path) -> Path:
    """The newest `.xplane.pb` below a folder."""
    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise UserError(f"{folder} holds no trace (*.xplane.pb)")
    return traces[-1]


def read_events(trace: Path) -> Iterator[Event]:
    """The kernels of the devices if there are planes of devices, else the ops that the CPU ran."""
    planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue  # sums over the streams
            for event in line.events:
                op = str(dict(event.stats).get("hlo_op", ""))
                if devices or op:
                    yield Event(event.name, op, event.duration_ns / 1e9)


def parse_program(text: str) -> dict[str, Instruction]:
    """The instructions of an optimised HLO text by name, those inside fusions too."""
    bodies: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = bodies.setdefault(match[1], [])
        elif _INSTRUCTION.match(line):
            current.append(line)
    return {
        match[1]: _instruction(line, match[2], bodies) for line in _lines(bodies) if (match := _INSTRUCTION.match(line))
    }


def _lines(bodies: dict[str, list[str]]) -> Iterator[str]:
    for body in bodies.values():
        yield from body


def _instruction(line: str, opcode: str, bodies: dict[str, list[str]]) -> Instruction:
    called = re.search(r"calls=%?([\w.\-]+)", line)
    inside = [line, *(bodies.get(called[1], []) if called and opcode == "fusion" else [])]
    opcodes = frozenset(match[2] for text in inside if (match := _INSTRUCTION.match(text)))
    paths = tuple(match[1] for text in inside if (match := re.search(r'op_name="([^"]*)"', text)))
    return Instruction(opcode, opcodes, paths, line)


def group_of(event: Event, program: dict[str, Instruction], mode: str) -> str | None:
    """What an event's kernel does, one of `GROUPS`; None if its time is counted elsewhere.

    By the XLA instruction that it belongs to: opcodes tell convolutions, copies and collectives; of the rest, what
    was traced inside the network or the loss is BatchNorm and elementwise (pooling too), and what a training step does
    outside of both is the update.
    """
    instruction = program.get(event.op) or program.get(_as_instruction(event.kernel, program))
    if instruction is None:
        return next((group for group, pattern in _KERNELS if pattern.search(event.kernel)), OTHER)
    if instruction.opcode in _CONTAINERS:
        return None
    if _COLLECTIVES.search(instruction.opcode):
        return COLLECTIVE
    target = re.search(r'custom_call_target="([^"]*)"', instruction.text)
    if instruction.opcodes & {"convolution", "dot"} or (target and _KERNELS[1][1].search(target[1])):
        return CONV
    if instruction.opcodes <= _MOVES | _FREE:
        return COPY if instruction.opcodes & _MOVES else OTHER
    if not instruction.paths:
        return NORM if "reduce-window" in instruction.opcodes else OTHER
    inside = sum("jvp" in path or "ResNet" in path or path in _REDUCTIONS for path in instruction.paths)
    if 2 * inside >= len(instruction.paths):
        return NORM
    return UPDATE if mode == "train" else OTHER


def _as_instruction(kernel: str, program: dict[str, Instruction]) -> str:
    # XLA names a GPU kernel after its instruction, with "_" for what a symbol cannot hold.
    name = re.sub(r"[.\-]", "_", kernel)
    return next((op for op in program if re.sub(r"[.\-]", "_", op) == name), "")


def summarise(events: Iterable[Event], program: dict[str, Instruction], mode: str, top: int = 20) -> dict[str, Any]:
    """Adds up the events by group and by kernel."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    counts: Counter[tuple[str, str]] = Counter()
    known: dict[tuple[str, str], str | None] = {}
    for event in events:
        key = (event.kernel, event.op)
        if key not in known:
            known[key] = group_of(event, program, mode)
        seconds[key] += event.seconds
        counts[key] += 1
    groups = {group: sum(s for key, s in seconds.items() if known[key] == group) for group in GROUPS}
    counted = [key for key in sorted(seconds, key=lambda key: -seconds[key]) if known[key]]
    kernels = [
        {
            "name": op or kernel,
            "kernel": kernel,
            "group": known[kernel, op],
            "count": counts[kernel, op],
            "seconds": seconds[kernel, op],
        }
        for kernel, op in counted[:top]
    ]
    return {"kernel_seconds": sum(groups.values()), "groups": groups, "kernels": kernels}
