"""Devices, where arrays live on them, and the only place that says `pmap`."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rn50_jax.errors import UserError

AXIS = "batch"


_COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer"


def prepare_runtime(backend: str, xla_flags: str = "") -> None:
    """Sets what XLA must know before it first touches a device.

    DALI's GPU buffers are freed with a device synchronisation, which breaks the capture of CUDA graphs
    (command buffers), so these are off when DALI works on the GPU.

    Args:
      xla_flags: of the config. What the environment's XLA_FLAGS says goes before, and both before DALI's need.

    Raises:
      UserError: XLA does not know a flag, or not with this value; it would end the process without a word of Python.
    """
    wanted = xla_flags.split()
    if wanted:
        _check_xla_flags(wanted)
    if backend == "dali-gpu":
        wanted.append(f"{_COMMAND_BUFFERS}=")
    flags = os.environ.get("XLA_FLAGS", "").split()
    for flag in wanted:
        if flag.partition("=")[0] not in {given.partition("=")[0] for given in flags}:
            flags.append(flag)
    if wanted:
        os.environ["XLA_FLAGS"] = " ".join(flags)


def _check_xla_flags(flags: Sequence[str]) -> None:
    # Only XLA knows its flags, and looks at them once in a process.
    env = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", done.stderr)
        problem = f"holds what XLA does not know: {unknown[1].strip()}" if unknown else "is not understood by XLA"
        raise UserError(f"config.run.xla_flags={' '.join(flags)!r} {problem}; flags look like --xla_name=value")


def use_compile_cache(setting: str) -> None:
    """Keeps compiled programs over runs, on GPUs the results of autotuning too.

    Args:
      setting: a folder; "auto" for one in the user's cache, a different one for each kind of CPU; "" for none. The
        environment's JAX_COMPILATION_CACHE_DIR goes before.
    """
    if not setting or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(setting)
    if setting == "auto":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "rn50-jax" / f"compiled-{_cpu_kind()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")


def _cpu_kind() -> str:
    # Programs compiled for one CPU may hold instructions that another one, with the same home folder, does not have.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


def find_devices(*, backend: str, precision: str) -> list[jax.Device]:
    """All devices of all processes, refused early if they cannot do what the config asks for."""
    devices = jax.devices()
    platform = devices[0].platform
    if backend == "dali-gpu" and platform != "gpu":
        raise UserError(f"config.data.backend='dali-gpu' needs a GPU, and JAX found only {platform}; use dali-cpu")
    capability = float(getattr(devices[0], "compute_capability", None) or "99")
    if platform == "gpu" and precision in ("bf16", "tf32") and capability < 8.0:
        raise UserError(
            f"config.precision={precision!r} needs compute capability 8.0, and {devices[0].device_kind} has "
            f"{capability}; use 'fp16' or 'fp32'"
        )
    return devices


def local_indices(mesh: Mesh) -> list[int]:
    """The places in the mesh of this process's devices."""
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """The one-dimensional mesh of data parallelism."""
    return Mesh(np.asarray(devices), (AXIS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies of the arrays on every device. Placed once before the first step, so that the step compiles once.

    Made by a compiled copy: a step that donates its state writes over the buffers, so none may be shared with the host
    or appear twice, and `device_put` to several devices shares them even with `may_alias=False` (jax 0.10).
    """
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=NamedSharding(mesh, P()))
    return copy(tree)


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


def spread(
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
    """A check that all devices, of all processes, hold the same state bit for bit.

    Returns:
      A function of a replicated tree of 4-byte leaves, to None or a sentence that says which devices differ from the
      first and in what. Only 4 bytes per leaf and device travel.
    """

    def hash_step(tree: Any, _: Any) -> jax.Array:
        hashes = jnp.stack([_hash(leaf) for leaf in jax.tree.leaves(tree)])
        return lax.all_gather(hashes, AXIS)

    compiled = spread(hash_step, mesh, mode=mode)
    nothing = shard([np.zeros(1, np.int32)] * len(local_indices(mesh)), mesh)

    def check(tree: Any) -> str | None:
        hashes = np.asarray(compiled(tree, nothing))
        different = hashes != hashes[0]
        if not different.any():
            return None
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        places = [f"{i} (process {mesh.devices.flat[i].process_index})" for i in np.flatnonzero(different.any(axis=1))]
        wrong = np.flatnonzero(different.any(axis=0))
        return (
            f"device(s) {', '.join(places)} differ from device 0 in {len(wrong)} of {len(names)} arrays of the state, "
            f"{names[wrong[0]]} the first"
        )

    return check


def _hash(leaf: jax.Array) -> jax.Array:
    # Each word is scrambled and weighted by its place: neither a changed bit nor two swapped values go unnoticed.
    words = lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
    place = lax.iota(jnp.uint32, words.size) * jnp.uint32(2654435761) + jnp.uint32(1)
    words = (words ^ (words >> 15)) * jnp.uint32(2246822519)
    return jnp.sum((words ^ (words >> 13)) * (place | jnp.uint32(1)), dtype=jnp.uint32)
