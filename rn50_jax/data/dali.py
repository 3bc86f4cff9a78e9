"""DALI pipelines: files in, uint8 images [B, S, S, 3] as JAX arrays out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.backend import TensorListCPU
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.jax import DALIGenericIterator

from rn50_jax.errors import UserError


def train_pipeline(
    files: Sequence[str],
    *,
    transform: str,
    image_size: int,
    crop_area: tuple[float, float],
    crop_aspect: tuple[float, float],
    flip: float,
    on_gpu: bool,
    **pipeline_args: Any,
) -> Any:
    """Random-resized crop and flip, as the reference's training transform.

    Reads `files` in their order, once. Only the crop is decoded. Images are not rotated by their EXIF tag,
    as torchvision and the reference do not.

    Args:
      transform: a key of `_TRANSFORMS`.
      pipeline_args: batch_size, num_threads, device_id, seed, enable_checkpointing, checkpoint.

    Returns:
      A pipeline with outputs image uint8 [B, image_size, image_size, 3] and index int32 [B] into `files`.
    """
    rules = _TRANSFORMS[transform]

    @pipeline_def(**pipeline_args)
    def pipeline() -> Any:
        encoded, index = _read(files)
        images = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            random_area=list(crop_area),
            random_aspect_ratio=list(crop_aspect),
            num_attempts=rules.crop_attempts,
        )
        images = fn.resize(images, size=[image_size, image_size], **rules.resize)
        images = fn.flip(images, horizontal=fn.random.coin_flip(probability=flip))
        return images, index

    return pipeline()


def eval_pipeline(
    files: Sequence[str], *, transform: str, image_size: int, resize: int, on_gpu: bool, **pipeline_args: Any
) -> Any:
    """Shorter side to `resize`, then a centre crop of `image_size`.

    Reads `files` in their order, once. Arguments and outputs are as in `train_pipeline`.
    """

    @pipeline_def(**pipeline_args)
    def pipeline() -> Any:
        encoded, index = _read(files)
        return _eval_transform(encoded, transform, image_size, resize, on_gpu), index

    return pipeline()


class _Transform(NamedTuple):
    resize: dict[str, Any]
    crop_attempts: int


_TRANSFORMS = {
    # subpixel_scale=False puts every pixel where torchvision puts it.
    "torchvision": _Transform({"interp_type": types.INTERP_LINEAR, "antialias": True, "subpixel_scale": False}, 10),
    # The reference's DALI pipeline: DALI's defaults, no antialiasing.
    "dali": _Transform({"interp_type": types.INTERP_LINEAR, "antialias": False}, 100),
}


def _read(files: Sequence[str]) -> tuple[Any, Any]:
    encoded, index = fn.readers.file(files=list(files), labels=list(range(len(files))), name="Reader")
    return encoded, fn.squeeze(index, axes=0)


def _eval_transform(encoded: Any, transform: str, image_size: int, resize: int, on_gpu: bool) -> Any:
    rules = _TRANSFORMS[transform]
    images = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    if transform == "torchvision":
        return _resize_and_crop_as_torchvision(images, image_size, resize, rules)
    images = fn.resize(images, resize_shorter=resize, **rules.resize)
    return fn.crop(images, crop=(image_size, image_size))


def _resize_and_crop_as_torchvision(images: Any, image_size: int, resize: int, rules: _Transform) -> Any:
    # To the pixel: the longer side is cut, where DALI's `resize_shorter` rounds it (640 x 427 becomes 383 x 256), and
    # the crop starts at Python's round() of half the margin, which goes to the even one of two neighbours.
    height, width = images.shape()[0], images.shape()[1]
    shorter = math.min(height, width)
    sides = [side * resize // shorter for side in (height, width)]
    images = fn.resize(images, size=fn.cast(fn.stack(*sides), dtype=types.FLOAT), **rules.resize)
    halves = [((side - image_size) // 2, (side - image_size) & 1) for side in sides]
    start = fn.cast(fn.stack(*(half + odd * (half & 1) for half, odd in halves)), dtype=types.INT32)
    return fn.slice(images, start=start, shape=[image_size, image_size], axes=[0, 1])


class Delivery(NamedTuple):
    """One batch of a pipeline.

    images: on the pipeline's device. samples: int32 [B], indices into its files. position: where the pipeline stands
    afterwards, whatever it has read ahead, to be given to a new one as `checkpoint`; or empty.
    """

    images: jax.Array
    samples: np.ndarray
    position: bytes


def run_pipeline(pipeline: Any, files: Sequence[str], *, done: int = 0, remember: bool = False) -> Iterator[Delivery]:
    """Runs a pipeline until its files are used up.

    Args:
      done: images that it has delivered before, if it was made from a position.
      remember: give positions, from a pipeline made with `enable_checkpointing`.

    Raises:
      UserError: naming an image that cannot be read or decoded.
    """
    try:
        batches = DALIGenericIterator(
            pipeline,
            ["image", "index"],
            reader_name="Reader",
            last_batch_policy=LastBatchPolicy.DROP,
            prepare_first_batch=False,
        )
        for batch in batches:
            index = np.asarray(batch["index"])
            done += len(index)
            yield Delivery(batch["image"], index, batches.checkpoints()[0] if remember else b"")
    except RuntimeError as error:
        # DALI often keeps the name to itself; its reader is a few batches ahead of what it has delivered.
        decode = make_decoder(transform="torchvision", image_size=32, resize=32, workers=1)
        suspects = files[done : done + 8 * pipeline.max_batch_size]
        name = next((file for file in suspects if not _can_decode(file, decode)), None)
        where = f"{name} is damaged or no image" if name else "an image cannot be read"
        raise UserError(f"{where} ({_cause(error)}); repair or remove it") from error


def _can_decode(file: str, decode: Callable[[bytes], np.ndarray]) -> bool:
    try:
        decode(Path(file).read_bytes())
    except (OSError, ValueError):
        return False
    return True


def make_decoder(*, transform: str, image_size: int, resize: int, workers: int) -> Callable[[bytes], np.ndarray]:
    """The evaluation transform for single encoded images, on the CPU.

    Returns:
      A function from a file's bytes to uint8 [image_size, image_size, 3]; it raises ValueError for what is no image.
    """

    @pipeline_def(batch_size=1, num_threads=workers, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return _eval_transform(encoded, transform, image_size, resize, on_gpu=False)

    live: list[Any] = []

    def decode(encoded: bytes) -> np.ndarray:
        if not live:
            live.append(pipeline())
        try:
            live[0].feed_input("encoded", [np.frombuffer(encoded, np.uint8)])
            (images,) = live[0].run()
        except RuntimeError as error:
            live.clear()  # an error leaves a pipeline unusable
            raise ValueError(_cause(error)) from error
        assert isinstance(images, TensorListCPU)
        return np.array(images.at(0))

    return decode


def _cause(error: RuntimeError) -> str:
    """The line of DALI's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    for line in lines:
        if "Failed to decode" in line or "ailed: " in line or "Could not open" in line or "nvImageCodec" in line:
            return line.split("] ", 1)[-1]
    return lines[0] if lines else type(error).__name__
