"""The purpose of a kernel of the training step or of inference, by its instruction in the compiled program."""

import re

from rn50_jax.bench.hlo import Instruction, Program, body_of, shapes_of

CONV_FORWARD, CONV_INPUT = "convolution forward", "convolution input gradient"
CONV_KERNEL, DOT = "convolution kernel gradient", "matrix product"
SUMS_FORWARD, SUMS_BACKWARD = "sums for BatchNorm forward", "sums for BatchNorm backward"
NORM_FORWARD, NORM_BACKWARD = "normalize and ReLU forward", "normalize and ReLU backward"
POOL, INPUT = "pooling", "augmentation and stem input"
UPDATE, LOSS = "optimizer and state", "loss and metrics"
COLLECTIVE, COPY, OTHER = "all-reduce", "copies and casts", "other"
GROUPS = (
    *(CONV_FORWARD, CONV_INPUT, CONV_KERNEL, DOT, SUMS_FORWARD, SUMS_BACKWARD, NORM_FORWARD, NORM_BACKWARD),
    *(POOL, INPUT, UPDATE, LOSS, COLLECTIVE, COPY, OTHER),
)

# Ops whose time is that of the ops inside them.
CONTAINERS = frozenset(("while", "call", "conditional", "async-start", "async-done"))
# Ops that start no kernel.
FREE = frozenset(("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"))

_COLLECTIVES = re.compile(r"all-reduce|all-gather|reduce-scatter|collective|all-to-all", re.IGNORECASE)
_CALLS = re.compile(r"conv(?!ert)", re.IGNORECASE)
_PRODUCTS = re.compile(r"cublas|gemm|matmul|dot", re.IGNORECASE)
_REDUCES = ("reduce", "reduce-window")
_MOVES = frozenset(("copy", "copy-start", "copy-done", "transpose", "slice", "reshape", "convert", "broadcast", "iota"))
_MOVED = FREE | _MOVES | {"reverse", "concatenate", "pad", "dynamic-slice", "dynamic-update-slice"}
# A mean over all pixels and its gradient, which kernels do beside their work; no pooling over windows is these alone.
_MEAN = FREE | {"add", "broadcast", "convert", "copy", "divide", "multiply", "reduce", "reshape"}

# Named scopes of a path, whatever modules and networks are called: "augment" and "network" are opened around what they
# name, the others within the layers. "jit(norm)" is a function of that name, no scope.
_SCOPE = re.compile(r"(?:^|/|\bjvp\()(augment|network|conv|norm|pool|linear)(?=[/)]|$)")
_BACKWARD = "transpose(jvp("
_PLANE = re.compile(r"\[\d+,\d")  # of two axes or more
_IMAGES = re.compile(r"\[\d+(,\d+){3}")
_PIXELS = re.compile(r"\bu8\[\d+(,\d+){3}")

# Names of GPU kernels, for those that no instruction is known of.
_KERNELS = (
    (COLLECTIVE, re.compile(r"nccl|all_?reduce|all_?gather", re.IGNORECASE)),
    (CONV_KERNEL, re.compile(r"wgrad|backward_?filter|bwd_?filter", re.IGNORECASE)),
    (CONV_INPUT, re.compile(r"dgrad|backward_?data|bwd_?data", re.IGNORECASE)),
    (CONV_FORWARD, re.compile(r"fprop|conv|cudnn", re.IGNORECASE)),
    (DOT, re.compile(r"gemm|nvjet|cublas|cutlass|xmma|triton_dot", re.IGNORECASE)),
    (COPY, re.compile(r"memcpy|memset|transpose|nhwc|nchw|copy", re.IGNORECASE)),
)


def group_of_kernel(name: str) -> str:
    """Returns the group that the kernel's own name tells: convolutions, matrix products, copies; else "other"."""
    return next((group for group, pattern in _KERNELS if pattern.search(name)), OTHER)


def group_of_instruction(instruction: Instruction, program: Program, mode: str) -> str:
    """Returns one of `GROUPS`.

    Opcodes and targets of calls tell convolutions, matrix products, all-reduces and copies. The rest is told by the
    named scope that it was traced in. A kernel with a sum over a BatchNorm's activations counts among the sums,
    whatever else it does; one with a part of a pooling over windows, among the poolings; what the network does in no
    scope of a layer, such as a gate, with normalizing.

    Args:
      mode: "train" or "infer": whether what is outside of the network is the update or the probabilities.
    """
    body = body_of(instruction, program)
    opcodes = {inner.opcode for inner in body}
    if _COLLECTIVES.search(instruction.opcode):
        return COLLECTIVE
    convolution = next((i for i in body if i.opcode == "convolution" or _CALLS.search(i.target)), None)
    if convolution:
        return _direction(convolution, instruction.path or convolution.path)
    if "dot" in opcodes or _PRODUCTS.search(instruction.target):
        return DOT
    path = _path_of(instruction, program)
    scope = scope_of(path)
    sums = [i.path or path for i in body if i.opcode in _REDUCES and scope_of(i.path or path) == "norm"]
    if sums:
        return SUMS_BACKWARD if _BACKWARD in sums[0] else SUMS_FORWARD
    if scope == "linear":
        return DOT
    if scope == "pool" or any(_pools(i, path) for i in body):
        return POOL
    shapes = shapes_of(instruction, program)
    reads_pixels = not scope and any(_PIXELS.search(shape) for shape in shapes)
    if scope == "augment" or reads_pixels or (scope and _BACKWARD not in path and _reads_images(instruction, program)):
        return INPUT
    if scope == "conv" and "reduce" in opcodes:
        return DOT  # the parts of a product that was split
    if opcodes <= _MOVED:
        return COPY
    if "/" not in path:
        return OTHER
    if not scope:
        return LOSS if "jvp(" in path or mode == "infer" else UPDATE
    # A kernel of channels alone makes means and factors of the sums, or the running averages.
    of_channels = mode == "train" and scope != "conv" and not any(_PLANE.search(shape) for shape in shapes)
    if _BACKWARD in path:
        return SUMS_BACKWARD if of_channels else NORM_BACKWARD
    return SUMS_FORWARD if of_channels else NORM_FORWARD


def scope_of(path: str) -> str:
    """Returns the innermost named scope of a path: "augment"; in the network its layer's, or "network"; else ""."""
    scopes = _SCOPE.findall(path)
    return scopes[-1] if scopes else ""


def _path_of(instruction: Instruction, program: Program) -> str:
    """Its own path, or that of the last one in it that has some.

    XLA on CPU adds large arrays in stages and names only the last: the others are `reduce-window`s, with its path.
    """
    body = body_of(instruction, program)
    paths = [i.path for i in body if i.path]
    if instruction.path or paths or body[-1].opcode != "reduce-window":
        return instruction.path or (paths[-1] if paths else "")
    readers = [program.instructions[name] for name in program.users.get(instruction.name, ())]
    return next((path for reader in readers if (path := _path_of(reader, program))), "")


def _pools(instruction: Instruction, path: str) -> bool:
    """By its scope; by its opcode, where the network has none around it or XLA on CPU dropped the path."""
    if scope_of(instruction.path) == "pool" and instruction.opcode not in _MEAN:
        return True
    by_opcode = not path or scope_of(path) == "network"
    windows = by_opcode and instruction.opcode == "reduce-window" and _IMAGES.search(instruction.shape)
    return bool(windows) or instruction.opcode == "select-and-scatter"


def _reads_images(instruction: Instruction, program: Program) -> bool:
    """Whether it does a part of the augmentation too, or reads what comes out of it, to cast and pad images."""
    operands = [program.instructions[name] for name in instruction.operands if name in program.instructions]
    augments = [i for i in (*body_of(instruction, program), *operands) if scope_of(i.path) == "augment"]
    return any(_IMAGES.search(each.shape) for each in augments)


def _direction(convolution: Instruction, path: str) -> str:
    """cuDNN's gradients have targets of their own, except those of inputs that it computes as a convolution forward.

    Without a target, the gradient of a kernel is the one whose window, an image, is larger than its result; on CPU, XLA
    rewrites it and loses its path.
    """
    if "BackwardFilter" in convolution.target:
        return CONV_KERNEL
    if not convolution.target and (_BACKWARD in path or not path) and _reads_an_image(convolution):
        return CONV_KERNEL
    return CONV_INPUT if "BackwardInput" in convolution.target or _BACKWARD in path else CONV_FORWARD


def _reads_an_image(convolution: Instruction) -> bool:
    height, place = re.match(r"\d+", convolution.window), convolution.labels.partition("->")[2].find("0")
    result = re.findall(r"\d+", convolution.shape.partition("[")[2].partition("]")[0])
    return height is not None and 0 <= place < len(result) and int(height[0]) > int(result[place])
