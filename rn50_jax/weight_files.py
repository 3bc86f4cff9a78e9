"""Weight files: PyTorch's `.pth`, `.safetensors` and NumPy's `.npz`. Nothing in a file is ever executed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from rn50_jax.errors import UserError
from rn50_jax.weights import Arrays, to_common

_TORCH = (".pth", ".pth.tar", ".pt")
SUFFIXES = (*_TORCH, ".safetensors", ".npz")
_META = "rn50_jax"  # where our own files keep what they know besides the weights


class WeightFile(NamedTuple):
    """A file's weights in the common form, and what it says about them; foreign files say nothing.

    meta: class_names (list of str), image_size, resize (int), transform (str), step (int); any may be missing.
    """

    arrays: Arrays
    meta: dict[str, Any]


def read_weights(path: Path) -> WeightFile:
    """Reads a weight file of torchvision, timm, NVIDIA or this project.

    Training checkpoints of PyTorch are looked into for "state_dict" or "model". Reading `.pth` needs PyTorch.

    Raises:
      UserError: no such file, unknown suffix, damaged, or holding more than tensors and plain values.
    """
    suffix = _suffix(path)
    if not path.is_file():
        raise UserError(f"weight file {path} does not exist")
    reader = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(suffix, _read_torch)
    try:
        tensors, meta = reader(path)
    except UserError:
        raise
    except Exception as error:  # each library has its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"weight file {path} cannot be read: {first}") from error
    if not tensors:
        raise UserError(f"weight file {path} holds no tensors")
    return WeightFile(to_common(tensors, str(path)), meta)


def write_weights(path: Path, weights: WeightFile) -> None:
    """Writes a weight file in the format of its suffix, whole or not at all.

    `.pth` holds a bare state_dict, `.safetensors` and `.npz` also the `meta`; all have torchvision's names, torch's
    layout and the BatchNorms' `num_batches_tracked`, which strict loaders want.

    Raises:
      UserError: unknown suffix, or the file cannot be written.
    """
    writers: dict[str, Callable[[Path, Arrays, str], None]]
    writers = {".npz": _write_npz, ".safetensors": _write_safetensors}
    writer = writers.get(_suffix(path), _write_torch)
    tensors: Arrays = {}
    for name, array in weights.arrays.items():
        tensors[name] = array
        if name.endswith("running_var"):
            steps = np.asarray(weights.meta.get("step", 0), np.int64)
            tensors[name.replace("running_var", "num_batches_tracked")] = steps
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        writer(unfinished, tensors, json.dumps(weights.meta))
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise UserError(f"{path} is no weight file by its name; it must end in {', '.join(SUFFIXES)}")


def _read_npz(path: Path) -> tuple[Arrays, dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        tensors = {name: file[name] for name in file.files}
    meta = tensors.pop(_META, None)
    return tensors, {} if meta is None else json.loads(str(meta))


def _write_npz(path: Path, tensors: Arrays, meta: str) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **tensors, **{_META: np.asarray(meta)})


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, Any]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        meta = (file.metadata() or {}).get(_META, "{}")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(meta)  # noqa: SIM118


def _write_safetensors(path: Path, tensors: Arrays, meta: str) -> None:
    # Through bytes: the library's own file writer makes files that only their owner may read.
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt", _META: meta}))


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"files in {', '.join(_TORCH)} need PyTorch, which is not installed: pip install torch, or use .safetensors"
        ) from None
    return torch


def _read_torch(path: Path) -> tuple[Arrays, dict[str, Any]]:
    torch = _import_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" not in str(error):
            raise
        raise UserError(
            f"weight file {path} holds Python objects beside its tensors, which are not loaded because they could "
            "execute code; save its state_dict alone, with torch.save or safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"weight file {path} holds a {type(content).__name__}, not a state_dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    # NumPy has no bfloat16; float32 holds each of its values.
    return {
        name: (value.float() if value.is_floating_point() else value).numpy() for name, value in tensors.items()
    }, {}


def _write_torch(path: Path, tensors: Arrays, meta: str) -> None:
    del meta
    torch = _import_torch()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}, path)
