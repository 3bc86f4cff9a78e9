"""The member of the family that a file's tensors are of, by their names and shapes alone."""

import re
from typing import Any, NamedTuple

from rn50_jax.config.limits import MOST_CLASSES
from rn50_jax.errors import UserError
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY, Variant
from rn50_jax.models.resnet import ResNet
from rn50_jax.models.walk import walk
from rn50_jax.weights.torch_names import Arrays, torch_name, torch_shape


class Architecture(NamedTuple):
    """What the shapes of a file's tensors say: config values by key, and the number of classes."""

    keys: dict[str, Any]
    num_classes: int


def infer_architecture(arrays: Arrays, source: str) -> Architecture:
    """Finds the member of the family, its stages and widths.

    Each kind of the family is laid out with one block in each of the first two stages, as wide as the file's, and
    compared with the tensors of the same names.

    Args:
      arrays: in the common form, see `torch_names`.

    Raises:
      UserError: these are no weights of a ResNet of this family.
    """
    if any(name.startswith("params/") for name in arrays):
        raise UserError(
            f"{source} holds the weights of a custom network; name the code that makes it: "
            "--config.model.arch=FILE.py:FUNCTION"
        )
    try:
        stages = _count_blocks(arrays)
        width, num_classes = arrays["bn1.weight"].shape[0], arrays["fc.weight"].shape[0]
        channels = [_channels(arrays, stage) for stage in range(1, len(stages) + 1)]
    except (KeyError, IndexError) as error:
        raise UserError(_foreign(source, f"{len(arrays)} tensors, among them no {error}")) from None
    if num_classes > MOST_CLASSES:
        raise UserError(f"{source} has a classifier of {num_classes:,} classes; {MOST_CLASSES:,} are the most")
    if hollow := next((name for name, array in arrays.items() if array.size == 0), None):
        raise UserError(f"{source}: tensor {hollow[:80]} has shape {list(arrays[hollow].shape)} and no values")
    units = [arrays[name].shape[0] for stage in range(1, len(stages) + 1) if (name := _squeeze(stage)) in arrays]
    sixteenth = all(u == max(n // 16, 1) for u, n in zip(units, channels, strict=False))
    se_units = 0 if sixteenth else units[0]
    small_stem = "conv1.weight" in arrays and arrays["conv1.weight"].shape[2:] == (3, 3)
    closest: tuple[list[str], str] | None = None
    for arch in _kinds():
        variant = FAMILY[arch]
        widths = tuple(n // variant.expansion for n in channels)
        small = variant._replace(stages=tuple(1 for _ in stages[:2]))
        model = ResNet(small, num_classes, PRECISIONS["fp32"], width, widths[:2], se_units, small_stem)
        if not (differences := _differences(arrays, model)):
            return Architecture(_keys(variant, stages, width, widths, se_units, small_stem), num_classes)
        if closest is None or len(differences) < len(closest[0]):
            closest = differences, arch
    assert closest is not None
    raise UserError(_foreign(source, f"closest to {closest[1]}, but for {'; '.join(closest[0][:3])}"))


def _keys(
    variant: Variant, stages: tuple[int, ...], width: int, widths: tuple[int, ...], se_units: int, small_stem: bool
) -> dict[str, Any]:
    kin = [arch for arch, member in FAMILY.items() if member._replace(stages=()) == variant._replace(stages=())]
    arch = next((arch for arch in kin if FAMILY[arch].stages == stages), kin[0])
    doubling = tuple(width * 2**stage for stage in range(len(stages)))
    return {
        "model.arch": arch,
        "model.stages": () if stages == FAMILY[arch].stages else stages,
        "model.width": width,
        "model.widths": () if widths == doubling else widths,
        "model.se_units": se_units,
        "model.small_stem": small_stem,
    }


def _foreign(source: str, why: str) -> str:
    known = ", ".join(FAMILY)
    return f"{source} does not hold the weights of a ResNet of this family ({why}); known are {known}"


def _squeeze(stage: int) -> str:
    return f"layer{stage}.0.se.fc1.weight"


def _kinds() -> list[str]:
    """The first member of each kind: the others have other numbers of blocks."""
    kinds: dict[Variant, str] = {}
    for arch, member in FAMILY.items():
        kinds.setdefault(member._replace(stages=()), arch)
    return list(kinds.values())


def _differences(arrays: Arrays, model: ResNet) -> list[str]:
    """What the tensors of stem and first blocks have otherwise than a model of one block in each stage."""
    shapes = {torch_name(path[1:]): shape.shape for path, shape in walk(model).shapes.items()}
    wanted = {name: torch_shape(name, shape) for name, shape in shapes.items() if not name.startswith("fc.")}
    beginnings = ("conv1.", "bn1.", *(f"layer{stage + 1}.0." for stage in range(len(model.variant.stages))))
    differences = [f"{name}, which it has" for name in wanted if name not in arrays]
    for name in (name for name in arrays if name.startswith(beginnings) and not name.endswith("num_batches_tracked")):
        shape = arrays[name].shape
        if name not in wanted:
            differences.append(f"{name[:80]}, which it does not have")
        elif shape != wanted[name]:
            differences.append(f"{name[:80]} of shape {list(shape)} instead of {list(wanted[name])}")
    return differences


def _channels(arrays: Arrays, stage: int) -> int:
    """How many leave a block: the most that any of its BatchNorms has."""
    names = re.compile(rf"layer{stage}\.0\.(?!se\.).*\.running_mean")
    sizes = [array.shape[0] for name, array in arrays.items() if array.ndim == 1 and names.fullmatch(name)]
    if not sizes:
        raise KeyError(f"layer{stage}.0.bn1.running_mean")
    return max(sizes)


def _count_blocks(arrays: Arrays) -> tuple[int, ...]:
    """How many blocks each stage has by the names of tensors, which number both without gaps.

    Raises:
      KeyError: one is missing: a single name must not make a model of any size.
    """
    blocks: dict[int, set[int]] = {1: set()}
    for name in arrays:
        if match := re.match(r"layer([0-9]{1,18})\.([0-9]{1,18})\.", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    for stage in range(1, len(blocks) + 1):
        for block in range(len(blocks.get(stage, ())) or 1):
            if block not in blocks.get(stage, ()):
                raise KeyError(f"layer{stage}.{block}")
    return tuple(len(blocks[stage]) for stage in range(1, len(blocks) + 1))
