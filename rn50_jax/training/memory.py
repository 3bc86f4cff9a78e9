"""How much memory of a device a program needs, and has used."""

from typing import Any, NamedTuple

import jax

from rn50_jax.io.text import size_text


class Memory(NamedTuple):
    """Bytes on each device. workspace: activations, gradients and whatever else lives within a step."""

    state: int
    images: int
    workspace: int


def analyse_memory(step: Any, state: Any, batch: Any) -> Memory | None:
    """Compiles a training step and returns what XLA says it needs; None where XLA does not say.

    The program is kept by JAX: the first call of `step` with such arguments need not trace or compile again.

    Args:
      step: of `devices.map_over_devices`, with `donate_state`; state: replicated; batch: sharded over the devices.
    """
    analysis = step.lower(state, batch).compile().memory_analysis()
    if analysis is None:
        return None
    arguments, results = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    total = arguments + results - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    image_bytes = sum(x.nbytes for x in jax.tree.leaves(batch)) // max(len(x.devices()) for x in jax.tree.leaves(batch))
    return Memory(state_bytes, image_bytes, max(total - state_bytes - image_bytes, 0))


def memory_text(memory: Memory) -> str:
    """Returns one line for people."""
    parts = f"{size_text(memory.state)} state, {size_text(memory.images)} images, {size_text(memory.workspace)}"
    return f"{size_text(sum(memory))} per device, as XLA plans it: {parts} activations, gradients and workspace"
