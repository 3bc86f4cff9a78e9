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
_MOVES = frozenset(("copy", "copy-start", "copy-done", "transpose", "slice", "reshape", "convert", "broadcast", "iota"))
_MOVED = FREE | _MOVES | {"reverse", "concatenate", "pad", "dynamic-slice", "dynamic-update-slice"}

# Paths: modules have torch's names, and "augment" and "pool" are scopes that step.py and pool.py open.
_NETWORK = re.compile(r"\bResNet\b")
_BACKWARD = "transpose(jvp("
_BLOCK = re.compile(r"/layer\d+_\d+/")
_NORM = re.compile(r"/(bn\d|downsample_1)/")
_LINEAR = re.compile(r"/fc\d?/")
_CONV = re.compile(r"/(conv\d|downsample_0)/")
_STEM = re.compile(r"(?<!transpose\(jvp\()\bResNet\)*/conv1/")
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

    Opcodes and targets of calls tell convolutions, matrix products, all-reduces and copies. The rest is told by where
    it was traced. A kernel with a sum over a BatchNorm's activations counts among the sums, whatever else it does; one
    with a part of a pooling, among the poolings.

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
    paths = [i.path for i in body if i.path]
    path = instruction.path or (paths[-1] if paths else "")
    sums = [i.path or path for i in body if i.opcode == "reduce" and _NORM.search(i.path or path)]
    if sums:
        return SUMS_BACKWARD if _BACKWARD in sums[0] else SUMS_FORWARD
    if _LINEAR.search(path):
        return DOT
    # In a block, the gradient of a mean is fused into that of the last BatchNorm before it.
    pooled = any("/pool/" in i.path or _pools(i) for i in body)
    if "/pool/" in path or (pooled and not _BLOCK.search(path)):
        return POOL
    shapes = shapes_of(instruction, program)
    reads_pixels = any(_PIXELS.search(shape) for shape in shapes) and not _NETWORK.search(path)
    if reads_pixels or "/augment/" in path or _STEM.search(path):
        return INPUT
    if _CONV.search(path) and "reduce" in opcodes:
        return DOT  # the parts of a product that was split
    if opcodes <= _MOVED:
        return COPY
    if "/" not in path:
        # XLA on CPU adds in two stages, and names only the second.
        users = [program.instructions[name].path for name in program.users.get(instruction.name, ())]
        path = next((p for p in users if _NORM.search(p) and "reduce-window" in opcodes), "")
        return OTHER if not path else SUMS_BACKWARD if _BACKWARD in path else SUMS_FORWARD
    if not _NETWORK.search(path):
        return LOSS if "jvp(" in path or mode == "infer" else UPDATE
    # A kernel of channels alone makes means and factors of the sums.
    of_channels = mode == "train" and _NORM.search(path) and not any(_PLANE.search(shape) for shape in shapes)
    if _BACKWARD in path:
        return SUMS_BACKWARD if of_channels else NORM_BACKWARD
    return SUMS_FORWARD if of_channels else NORM_FORWARD


def _pools(instruction: Instruction) -> bool:
    windows = instruction.opcode == "reduce-window" and _IMAGES.search(instruction.shape)
    return bool(windows) or instruction.opcode == "select-and-scatter"


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
