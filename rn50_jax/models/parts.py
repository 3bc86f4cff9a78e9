"""Fine-tuning: the parts of a network by name, which of them are trained, and how fast."""

from collections.abc import Iterable
from typing import Any


def part_names(num_stages: int) -> tuple[str, ...]:
    """Returns the parts from the input to the output: "stem", "layer1", "layer2", ..., "fc" (the classifier)."""
    return ("stem", *(f"layer{stage + 1}" for stage in range(num_stages)), "fc")


def part_of(module: str) -> str:
    """Returns the part that a top-level module belongs to: "conv1" -> "stem", "layer2_0" -> "layer2", "fc" -> "fc"."""
    return "stem" if module in ("conv1", "bn1") else module.partition("_")[0]


def split_frozen(tree: dict[str, Any], frozen: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters or running statistics into those of the parts that are trained, and of the `frozen` ones.

    `trained | frozen` is the tree again.
    """
    names = set(frozen)
    fixed = {module: value for module, value in tree.items() if part_of(module) in names}
    return {module: value for module, value in tree.items() if module not in fixed}, fixed
