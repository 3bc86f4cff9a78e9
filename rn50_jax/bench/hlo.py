"""The text of an optimized HLO module, as XLA prints it: its instructions and the bytes that they touch."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
SIZES |= {"u8": 1, "s8": 1, "pred": 1}

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(rf"\b({'|'.join(SIZES)})\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of a computation.

    shape: of its result, as text; a tuple's has all its arrays. operands: names, each once. path: where it was traced,
    JAX's op_name, such as "jit(step)/jvp(network)/ResNet/conv1/norm/mul"; "" if unknown. target: of a custom call, else
    "". window and labels: sizes and dimensions of a convolution, such as "3x3" and "b01f_01io->b01f", else "". called:
    the computation of a fusion, else "".
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    path: str
    target: str
    window: str
    labels: str
    called: str


class Program(NamedTuple):
    """A module. computations: their instructions in order, by name. instructions: all of them, by name.

    users: names of the instructions that read what one makes, by its name.
    """

    entry: str
    computations: dict[str, list[Instruction]]
    instructions: dict[str, Instruction]
    users: dict[str, list[str]]


def parse_program(text: str) -> Program:
    """Reads the text of `compiled.as_text()`; what is no instruction is passed over."""
    entry, computations, current = "", dict[str, list[Instruction]](), list[Instruction]()
    for line in text.splitlines():
        if line.startswith(" "):
            if match := _INSTRUCTION.match(line):
                current.append(_instruction(match))
        elif match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
    instructions = {i.name: i for body in computations.values() for i in body}
    users: dict[str, list[str]] = {}
    for each in instructions.values():
        for operand in each.operands:
            users.setdefault(operand, []).append(each.name)
    return Program(entry, computations, instructions, users)


def _instruction(match: re.Match[str]) -> Instruction:
    name, shape, opcode, rest = match.groups()
    operands = tuple(dict.fromkeys(re.findall(r"%([\w.\-]+)", rest.split("), ")[0])))

    def value(pattern: str) -> str:
        found = re.search(pattern, rest)
        return found[1] if found else ""

    return Instruction(
        name=name,
        opcode=opcode,
        shape=shape,
        operands=operands,
        path=value(r'op_name="([^"]*)"'),
        target=value(r'custom_call_target="([^"]*)"'),
        window=value(r"window=\{size=(\w+)"),
        labels=value(r"dim_labels=([^\s,]+)"),
        called=value(r"calls=%?([\w.\-]+)"),
    )


def arrays(shape: str) -> Iterator[tuple[str, int]]:
    """Yields type and number of elements of each array of a shape."""
    for dtype, sizes in _ARRAY.findall(shape):
        yield dtype, math.prod(int(n) for n in sizes.split(",") if n)


def shapes_of(instruction: Instruction, program: Program) -> list[str]:
    """Returns the shapes of the result and of each operand."""
    operands = (program.instructions[name].shape for name in instruction.operands if name in program.instructions)
    return [instruction.shape, *operands]


def bytes_of(instruction: Instruction, program: Program) -> int:
    """Bytes of all results and operands, each once, as if no cache held anything of them."""
    return sum(SIZES[dtype] * count for shape in shapes_of(instruction, program) for dtype, count in arrays(shape))


def body_of(instruction: Instruction, program: Program) -> list[Instruction]:
    """Returns the instructions that run as one: those inside a fusion, else itself."""
    inside = program.computations.get(instruction.called) if instruction.opcode == "fusion" else None
    return inside or [instruction]
