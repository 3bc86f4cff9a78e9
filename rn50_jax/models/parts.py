"""The parts of a ResNet by name, for fine-tuning. Nothing is imported here: the schema reads it without JAX."""


def part_names(num_stages: int) -> tuple[str, ...]:
    """Returns the parts from the input to the output: "stem", "layer1", "layer2", ..., "fc" (the classifier)."""
    return ("stem", *(f"layer{stage + 1}" for stage in range(num_stages)), "fc")


def part_of(module: str) -> str:
    """Returns the part that a top-level module belongs to: "conv1" -> "stem", "layer2_0" -> "layer2", "fc" -> "fc"."""
    return "stem" if module.startswith(("conv1", "bn1")) else module.partition("_")[0]
