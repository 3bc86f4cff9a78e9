"""Devices, where arrays live on them, and the only place that says `pmap`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rn50_jax.errors import UserError
from rn50_jax.io.messages import warn
from rn50_jax.io.text import first_line
from rn50_jax.runtime.jax_setup import HOW_TO_GPU, share_beside_dali, unused_gpu

AXIS = "batch"


def find_devices(*, backend: str, precision: str) -> list[jax.Device]:
    """Returns all devices of all processes, refused early if they cannot do what the config asks for.

    Warns of a GPU that is not used, or whose memory JAX and DALI share.
    """
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX cannot start: {first_line(error)}; for GPUs: {HOW_TO_GPU}") from error
    platform = devices[0].platform
    if told := unused_gpu(platform, jax.config.jax_platforms or ""):
        warn(told)
    if backend == "dali-gpu" and platform != "gpu":
        raise UserError(f"config.data.backend='dali-gpu' needs a GPU, and JAX found only {platform}; use dali-cpu")
    if told := share_beside_dali(backend, platform):
        warn(told)
    capability = float(getattr(devices[0], "compute_capability", None) or "99")
    if platform == "gpu" and precision in ("bf16", "tf32") and capability < 8.0:
        raise UserError(
            f"config.precision={precision!r} needs compute capability 8.0, and {devices[0].device_kind} has "
            f"{capability}; use 'fp16' or 'fp32'"
        )
    return devices


def local_indices(mesh: Mesh) -> list[int]:
    """Returns the places in the mesh of this process's devices."""
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the one-dimensional mesh of data parallelism."""
    return Mesh(np.asarray(devices), (AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies the arrays to every device. Placed once before the first step, so that the step compiles once.

    Made by a compiled copy: a step that donates its state writes over the buffers, so none may be shared with the host
    or appear twice, and `device_put` to several devices shares them even with `may_alias=False` (jax 0.10).
    """
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=NamedSharding(mesh, P()))
    return copy(tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """Puts host arrays on every device, to be read alone: on a CPU they may stay where they are."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard(per_device: Iterable[jax.Array | np.ndarray], mesh: Mesh) -> jax.Array:
    """Puts one array on each device of this process, without stacking them on the host.

    Args:
      per_device: as many arrays [B, ...] as there are `local_indices`, on the host or already on their device.

    Returns:
      [D, B, ...], sharded over all D devices of the mesh, of which other processes place theirs.
    """
    devices = [mesh.devices.flat[i] for i in local_indices(mesh)]
    parts = [jax.device_put(_host_view(x)[None], d) for x, d in zip(per_device, devices, strict=True)]
    shape = (mesh.devices.size, *parts[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, P(AXIS)), parts)


def _host_view(x: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    on_host = isinstance(x, np.ndarray) or all(d.platform == "cpu" for d in x.devices())
    return np.asarray(x) if on_host else x


def map_over_devices(
    step: Callable[[Any, Any], Any], mesh: Mesh, *, mode: str, donate_state: bool = False, stacked: bool = False
) -> Callable[[Any, Any], Any]:
    """Compiles a per-device function of (state, batch) for all devices of the mesh.

    Args:
      step: function of a replicated state and its device's part of the batch [B, ...], with collectives over `AXIS`.
      mode: "pmap", or "shard_map" for the same through `jax.shard_map`; both give the same bits.
      donate_state: the caller's state is used up; its memory becomes the new state's.
      stacked: False if the results are the same on every device and leave once;
        True if each device has its own, leaving as [D, ...].
    """
    donate = (0,) if donate_state else ()
    if mode == "pmap":
        out_axes = 0 if stacked else None
        devices = list(mesh.devices.flat)
        mapped: Callable[[Any, Any], Any] = jax.pmap(
            step, AXIS, in_axes=(None, 0), out_axes=out_axes, devices=devices, donate_argnums=donate
        )
        return mapped

    def body(state: Any, batch: Any) -> Any:
        result = step(state, jax.tree.map(lambda x: x[0], batch))
        return jax.tree.map(lambda x: x[None], result) if stacked else result

    # check_vma=False gives pmap's meaning to "gradient, then pmean"; the default would sum the gradients twice.
    out_specs = P(AXIS) if stacked else P()
    mapped_body = jax.shard_map(body, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=out_specs, check_vma=False)
    return jax.jit(mapped_body, donate_argnums=donate)


def find_divergence(mesh: Mesh, *, mode: str) -> Callable[[Any], str | None]:
    """Makes a check that all devices, of all processes, hold the same state bit for bit.

    Returns:
      A function of a replicated tree of 4-byte leaves, to None or a sentence that says which devices differ from the
      first and in what. Only 4 bytes per leaf and device travel.
    """

    def hash_step(tree: Any, _: Any) -> jax.Array:
        hashes = jnp.stack([_hash(leaf) for leaf in jax.tree.leaves(tree)])
        return lax.all_gather(hashes, AXIS)

    compiled = map_over_devices(hash_step, mesh, mode=mode)
    nothing = shard([np.zeros(1, np.int32)] * len(local_indices(mesh)), mesh)

    def check(tree: Any) -> str | None:
        hashes = np.asarray(compiled(tree, nothing))
        different = hashes != hashes[0]
        if not different.any():
            return None
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        places = [f"{i} (process {mesh.devices.flat[i].process_index})" for i in np.flatnonzero(different.any(axis=1))]
        wrong = np.flatnonzero(different.any(axis=0))
        called = "device" if len(places) == 1 else "devices"
        return (
            f"{called} {', '.join(places)} with other values than device 0 in {len(wrong)} of {len(names)} arrays of "
            f"the state, {names[wrong[0]]} the first"
        )

    return check


def _hash(leaf: jax.Array) -> jax.Array:
    # Each word is scrambled and weighted by its place: neither a changed bit nor two swapped values go unnoticed.
    words = lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
    place = lax.iota(jnp.uint32, words.size) * jnp.uint32(2654435761) + jnp.uint32(1)
    words = (words ^ (words >> 15)) * jnp.uint32(2246822519)
    return jnp.sum((words ^ (words >> 13)) * (place | jnp.uint32(1)), dtype=jnp.uint32)
