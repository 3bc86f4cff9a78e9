"""Weight files: PyTorch's `.pth`, `.safetensors` and NumPy's `.npz`. Nothing in a file is ever executed."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from rn50_jax.errors import UserError
from rn50_jax.io.file_kinds import sniff
from rn50_jax.io.files import open_regular, telling_of_writes, write_whole
from rn50_jax.io.json_files import to_json
from rn50_jax.io.text import first_line
from rn50_jax.weights.metadata import has_facts, parse_facts, read_beside, refuse_foreign, write_beside
from rn50_jax.weights.pickles import check_pickles
from rn50_jax.weights.torch_names import Arrays, to_common

_TORCH = (".pth", ".pth.tar", ".pt")
_GRAPHS = (".onnx", ".stablehlo")
SUFFIXES = (*_TORCH, ".safetensors", ".npz")
_META = "rn50_jax"  # where our own files keep what they know besides the weights
_MOST = 2**34  # bytes that a file may unpack to
_SMALL, _RATIO = 2**30, 20  # beyond this size, it may unpack to so many times its own
# What files are by the bytes at an offset, besides what `sniff` knows.
_KINDS = {
    (0, b"PK\x03\x04"): "ZIP",
    (8, b"{"): "safetensors",  # before it is a number, whose bytes may be any
    (0, b"\x80"): "pickle",
    (0, b"version https://git-lfs"): "a Git LFS pointer, fetch the file with git lfs pull",
    (257, b"ustar"): "tar, unpack it",
    (0, b"\x93NUMPY"): "NumPy's .npy",
    (0, b"\x89HDF"): "HDF5",
    (0, b"{"): "JSON",
}
T = TypeVar("T")


class WeightFile(NamedTuple):
    """A file's weights in the common form, and what it says about them; foreign files say nothing.

    meta: class_names (list of str), image_size, resize, step (int), transform (str), mean, std (list of 3 float, on the
    0-255 scale), exif_rotation (bool), background (list of 3 int, or empty), and of runs with `data.val_share` also
    val_share (float) and seed (int); any may be missing.
    """

    arrays: Arrays
    meta: dict[str, Any]


def read_weights(path: Path) -> WeightFile:
    """Reads a weight file of torchvision, timm, NVIDIA or this project.

    Training checkpoints of PyTorch are looked into for "state_dict" or "model". Reading `.pth` needs PyTorch. What the
    file says about itself is inside it, or in `FILE.json` beside it.

    Raises:
      UserError: no such file, unknown suffix, damaged, something else by its content, holding more than tensors and
        plain values, or saying of itself what cannot be, or a `FILE.json` that is damaged or of another file.
    """
    if path.name.lower().endswith(_GRAPHS):
        raise UserError(
            f"{path} is an exported function, whose weights are not read back; give the run or weight file that it was "
            "exported from, or call it as docs/export.md shows"
        )
    suffix = _suffix(path)
    reader = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(suffix, _read_torch)
    tensors, meta = _read(path, suffix, reader)
    if not tensors:
        raise UserError(f"weight file {path} holds no tensors")
    arrays = to_common(tensors, str(path))
    classes = (*arrays["fc.weight"].shape, 0)[0] if "fc.weight" in arrays else None
    return WeightFile(arrays, read_beside(path, classes) if meta is None else parse_facts(meta, classes, path))


def load_torch(path: Path) -> Any:
    """Reads all that a file of PyTorch holds: its containers, plain values and, on the CPU, torch's tensors.

    Raises:
      UserError: no such file, not PyTorch's by its name or content, damaged, or holding Python objects.
    """
    if (suffix := _suffix(path)) not in _TORCH:
        raise UserError(f"{path} is no file of PyTorch by its name; it must end in {', '.join(_TORCH)}")
    return _read(path, suffix, _load_torch)


def _read(path: Path, suffix: str, reader: Callable[[Path, BinaryIO], T]) -> T:
    try:
        with open_regular(path) as file:
            _check_kind(file, suffix)
            with warnings.catch_warnings():  # PyTorch's, of its unfinished parts
                warnings.simplefilter("ignore")
                return reader(path, file)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"weight file {path} does not exist") from None
    except Exception as error:  # each library has its own
        raise UserError(f"weight file {path} cannot be read: {first_line(error)}") from error


def write_weights(path: Path, weights: WeightFile) -> None:
    """Writes a weight file in the format of its suffix, whole or not at all.

    `.safetensors` and `.npz` hold the `meta` too; `.pth` is a bare state_dict, with the `meta` in `FILE.json` beside
    it. All have torchvision's names, torch's layout and the BatchNorms' `num_batches_tracked`, which strict loaders
    want.

    Raises:
      UserError: unknown suffix, the file cannot be written, or `FILE.json` is another program's.
    """
    writers: dict[str, Callable[[Arrays, str], bytes]] = {".npz": _to_npz, ".safetensors": _to_safetensors}
    suffix = _suffix(path)
    to_bytes = writers.get(suffix, _to_torch)
    if bare := suffix in _TORCH and bool(weights.meta):
        refuse_foreign(path)
    tensors: Arrays = {}
    for name, array in weights.arrays.items():
        tensors[name] = array
        if name.endswith("running_var"):
            steps = np.asarray(weights.meta.get("step", 0), np.int64)
            tensors[name.replace("running_var", "num_batches_tracked")] = steps
    with telling_of_writes():
        write_whole(path, to_bytes(tensors, to_json(weights.meta)))
    if bare or has_facts(path):
        write_beside(path, weights.meta)


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise UserError(f"{path} is no weight file by its name; it must end in {', '.join(SUFFIXES)}")


def _check_kind(file: BinaryIO, suffix: str) -> None:
    """Refuses what is something else by its first bytes; leaves the file at its start.

    Raises:
      ValueError: it is.
    """
    head = file.read(512)
    file.seek(0)
    known = (kind for (start, magic), kind in _KINDS.items() if head[start:].startswith(magic))
    kind = next(known, sniff(head)) if head else "empty"
    formats = {".npz": (("ZIP",), "NumPy .npz"), ".safetensors": (("safetensors",), "safetensors")}
    wanted, name = formats.get(suffix, (("ZIP", "pickle"), "PyTorch"))
    if kind not in wanted:
        raise ValueError(f"it is no {name} file: {kind or 'of unknown kind'}")
    if kind == "ZIP":
        try:
            with zipfile.ZipFile(file) as archive:
                inside = archive.infolist()
        except zipfile.BadZipFile as error:
            raise ValueError("it is damaged or cut off") from error
        file.seek(0)
        size, packed = sum(info.file_size for info in inside), sum(info.compress_size for info in inside)
        if size > _MOST or size > max(_SMALL, _RATIO * packed):
            raise ValueError(f"it unpacks to {size} bytes")
        if name == "PyTorch" and not any(info.filename.endswith("/data.pkl") for info in inside):
            raise ValueError(f"it is no {name} file: ZIP of {inside[0].filename if inside else 'nothing'}")


def _read_npz(_: Path, file: BinaryIO) -> tuple[Arrays, str | None]:
    with np.load(file, allow_pickle=False) as stored:
        tensors = {name: stored[name] for name in stored.files}
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray):
            raise ValueError(f"{name} in it is no array")
    meta = tensors.pop(_META, None)
    return tensors, None if meta is None else str(meta)


def _to_npz(tensors: Arrays, meta: str) -> bytes:
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **tensors, **{_META: np.asarray(meta)})
    return data.getvalue()


def _read_safetensors(path: Path, _: BinaryIO) -> tuple[Arrays, str | None]:
    with safetensors.safe_open(path, framework="numpy") as stored:
        meta = (stored.metadata() or {}).get(_META)
        return {name: stored.get_tensor(name) for name in stored.keys()}, meta  # noqa: SIM118


def _to_safetensors(tensors: Arrays, meta: str) -> bytes:
    return safetensors.numpy.save(tensors, metadata={"format": "pt", _META: meta})


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"files in {', '.join(_TORCH)} need PyTorch, which is not installed: pip install torch, or use .safetensors"
        ) from None
    return torch


class _Ignored:
    """What is made in place of an object that a file holds beside its tensors: it keeps nothing and does nothing."""

    def __new__(cls, *_: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# In NVIDIA's training checkpoints: the learning rate of the cosine schedule is a NumPy number, and with --fp16 there is
# apex' loss scaler.
_IGNORED = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("apex.amp.scaler", "LossScaler"),
        ("apex.fp16_utils.loss_scaler", "LossScaler"),
        ("apex.fp16_utils.loss_scaler", "DynamicLossScaler"),
    )
]


def _load_torch(path: Path, file: BinaryIO) -> Any:
    torch = _import_torch()
    check_pickles(file)
    # PyTorch before 2.5 cannot put anything in an object's place.
    putting_in_place = getattr(torch.serialization, "safe_globals", nullcontext)
    try:
        with putting_in_place(_IGNORED):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of all kinds
        if not isinstance(error, pickle.UnpicklingError) or "Unsupported operand" in str(error):
            raise ValueError(f"it is damaged or cut off ({str(error).partition('.')[0]})") from error
        raise UserError(
            f"weight file {path} holds Python objects beside its tensors, which are not loaded because they could "
            "execute code; save its state_dict alone, with torch.save or safetensors"
        ) from error


def _read_torch(path: Path, file: BinaryIO) -> tuple[Arrays, str | None]:
    content = _load_torch(path, file)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"weight file {path} holds a {type(content).__name__}, not a state_dict")
    return _to_numpy(content, path.stat().st_size), None


def to_arrays(content: Mapping[Any, Any], path: Path) -> Arrays:
    """Returns the tensors among a mapping that `load_torch` has read, as NumPy's; bfloat16 becomes float32.

    Raises:
      UserError: a tensor is none that NumPy has, or they repeat their values beyond the size of the file.
    """
    try:
        return _to_numpy(content, path.stat().st_size)
    except (ValueError, TypeError, RuntimeError) as error:  # torch has one for each kind that NumPy lacks
        raise UserError(f"weight file {path} cannot be read: {first_line(error)}") from None


def _to_numpy(content: Mapping[Any, Any], limit: int) -> Arrays:
    torch = _import_torch()
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        kinds = {"sparse": value.layout != torch.strided, "without values": value.is_meta, "nested": value.is_nested}
        kinds |= {"quantised": value.is_quantized, "complex": value.is_complex()}
        if kind := next((kind for kind, is_it in kinds.items() if is_it), None):
            raise ValueError(f"tensor {name[:80]} in it is {kind}")
    # Tensors may share their values, and then repeat one value as often as their shape says.
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    if size > 4 * limit:
        raise ValueError(f"its tensors have {size} bytes, of which it holds {limit} at most")
    # NumPy has no bfloat16; float32 holds each of its values.
    known = (torch.float16, torch.float32, torch.float64)
    return {
        name: (value.float() if value.is_floating_point() and value.dtype not in known else value).resolve_neg().numpy()
        for name, value in tensors.items()
    }


def _to_torch(tensors: Arrays, _: str) -> bytes:
    torch = _import_torch()
    data = io.BytesIO()  # of a full disk, torch's own writer makes a RuntimeError
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}, data)
    return data.getvalue()
