"""How much memory a device needs, before and while it needs it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan
from rn50_jax.state import TrainState
from rn50_jax.tune import split


class Memory(NamedTuple):
    """Bytes on each device. state: parameters, momentum, statistics, averages. gradients. activations: what one forward
    pass keeps for its backward pass, an upper limit. images: batches in use and made ready."""

    state: int
    gradients: int
    activations: int
    images: int


def estimate_memory(config: ConfigDict, model: ResNet, plan: Plan, state: TrainState) -> Memory:
    """What training needs, besides XLA's workspace; nothing is computed or compiled."""
    size = max([config.data.image_size, *(pixels for _, pixels in config.data.image_sizes)])
    kept = jax.eval_shape(partial(_backward, model.clone(sync=None)), state, jnp.zeros((1, size, size, 3), jnp.uint8))
    images = [x for x in jax.tree.leaves(kept) if x.ndim == 4 and x.shape[0] == 1]
    pixels = size * size * 3 * (config.data.prefetch + 2)
    return Memory(
        state=sum(x.nbytes for x in jax.tree.leaves(state)),
        gradients=sum(x.nbytes for x in jax.tree.leaves(split(state.params, model.frozen)[0])),
        activations=config.batch_size * sum(x.size * x.dtype.itemsize for x in images),
        images=plan.device_batch * pixels,
    )


def _backward(model: ResNet, state: TrainState, images: jax.Array) -> Any:
    trained, held = split(state.params, model.frozen)

    def forward(trained: Any) -> Any:
        variables = {"params": trained | held, "batch_stats": state.batch_stats}
        return model.apply(variables, images.astype(jnp.float32), train=True, mutable=["batch_stats"])

    return jax.vjp(forward, trained)[1]


def memory_text(memory: Memory) -> str:
    """One line for people."""
    parts = ", ".join(f"{megabytes(value)} {name}" for name, value in memory._asdict().items())
    return f"about {megabytes(sum(memory))} per device ({parts}) and XLA's workspace"


def megabytes(size: float) -> str:
    """For example "123 MB" or "12.3 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def peak_text() -> str:
    """The most that a device of this process has used so far; "" where it does not tell."""
    used = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not used:
        return ""
    peak = max(used, key=lambda stats: stats["peak_bytes_in_use"])
    return f"{megabytes(peak['peak_bytes_in_use'])} of {megabytes(peak['bytes_limit'])} device memory at most"
