"""DALI pipelines: encoded images in, uint8 images [B, S, S, 3] as JAX arrays out."""

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from rn50_jax.config.sections.data import DataConfig
from rn50_jax.data.dali_errors import PACKAGES, in_words, no_dali
from rn50_jax.data.image_set import ImageSet, read_image
from rn50_jax.data.images.decodable import quiet_decoders, to_decodable
from rn50_jax.data.images.headers import ImageProblem
from rn50_jax.data.images.transform import Rendering, rendering_of
from rn50_jax.errors import UserError

try:
    from nvidia import dali
    from nvidia.dali import fn, math, pipeline_def, types
    from nvidia.dali.plugin.jax import DALIGenericIterator
except Exception as error:  # of many kinds, from those of Python to those of the libraries that it loads
    raise no_dali(error) from error

VERSION: str = dali.__version__


class DecodeError(Exception):
    """An image that cannot be read or decoded, which DALI does not name; the pipeline is dead."""


def decoder_arguments(rendering: Rendering, hw_decoder_load: float | None) -> dict[str, Any]:
    """The arguments of all decoders, of files as `to_decodable` gives them."""
    common = {"output_type": types.RGB, "adjust_orientation": rendering.exif_rotation}
    if hw_decoder_load is None:
        return common | {"device": "cpu"}
    # Room for ImageNet's largest image at once, so that no batch waits for its buffers to grow.
    hints = {"preallocate_width_hint": 5980, "preallocate_height_hint": 6430}
    return common | {"device": "mixed", "hw_decoder_load": hw_decoder_load, **hints}


def _decoder_arguments_of(data: DataConfig) -> dict[str, Any]:
    return decoder_arguments(rendering_of(data), data.hw_decoder_load if data.backend == "dali-gpu" else None)


def train_pipeline(
    images: ImageSet,
    indices: np.ndarray,
    data: DataConfig,
    *,
    image_size: int,
    **pipeline_args: Any,
) -> Any:
    """Random-resized crop and flips, as the reference's training transform, and augmentation if asked for.

    Reads images[indices] in that order, once. Only the crop is decoded.

    Args:
      indices: int [N], N a multiple of the batch size.
      data: what is done to them, and on which device they are decoded.
      image_size: of the crops, in pixels.
      pipeline_args: batch_size, num_threads, device_id, seed, enable_checkpointing, checkpoint.

    Returns:
      A pipeline with outputs image uint8 [B, image_size, image_size, 3] and int32 [B], places in `indices`.
    """
    rules, rendering = _TRANSFORMS[data.transform], rendering_of(data)

    @pipeline_def(enable_conditionals=data.augment != "none", **pipeline_args)
    def pipeline() -> Any:
        encoded, places = _read(images, indices, pipeline_args["batch_size"], rendering)
        pixels = fn.decoders.image_random_crop(
            encoded,
            random_area=list(data.crop_area),
            random_aspect_ratio=list(data.crop_aspect),
            num_attempts=rules.crop_attempts,
            **_decoder_arguments_of(data),
        )
        pixels = fn.resize(pixels, size=[image_size, image_size], **rules.resize)
        pixels = fn.flip(pixels, horizontal=fn.random.coin_flip(probability=data.flip))
        if data.vertical_flip:
            pixels = fn.flip(pixels, horizontal=0, vertical=fn.random.coin_flip(probability=data.vertical_flip))
        return _augment(pixels, image_size, data), places

    with warnings.catch_warnings(record=data.augment != "none"):
        # DALI warns, whatever the filters, of operators that its own augmentations still use under their old names.
        return pipeline()


def eval_pipeline(images: ImageSet, indices: np.ndarray, data: DataConfig, **pipeline_args: Any) -> Any:
    """Shorter side to `data.eval_resize`, then a center crop of `data.image_size`.

    Arguments and outputs are as in `train_pipeline`.
    """

    @pipeline_def(**pipeline_args)
    def pipeline() -> Any:
        encoded, places = _read(images, indices, pipeline_args["batch_size"], rendering_of(data))
        decoded = fn.decoders.image(encoded, **_decoder_arguments_of(data))
        return eval_transform(decoded, data.transform, data.image_size, data.eval_resize), places

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


def _read(images: ImageSet, indices: np.ndarray, batch_size: int, rendering: Rendering) -> tuple[Any, Any]:
    """Encoded images and their places in `indices`."""
    encoded, places = fn.external_source(
        source=_Reader(images, indices, batch_size, rendering),
        num_outputs=2,
        batch=True,
        batch_info=True,
        dtype=[types.UINT8, types.INT32],
        ndim=[1, 1],
        no_copy=True,
    )
    return encoded, fn.squeeze(places, axes=0)


class _Reader:
    """Batches of encoded images from files and tars, read by a few threads ahead of their use.

    DALI's own reader would hand on whatever a file holds, and maps files into memory, which ends the process when one
    of them is cut off meanwhile.
    """

    AHEAD = 3  # batches
    CHUNK = 16  # images that a thread reads at a time
    IN_USE = 6  # batches that the pipeline may still be looking at: it gets no copies

    def __init__(self, images: ImageSet, indices: np.ndarray, batch_size: int, rendering: Rendering) -> None:
        self._images, self._indices, self._batch_size, self._rendering = images, indices, batch_size, rendering
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="read")
        self._reading: dict[int, list[Future[list[np.ndarray]]]] = {}
        self._in_use: deque[list[np.ndarray]] = deque(maxlen=self.IN_USE)
        quiet_decoders()

    def __call__(self, info: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        last = len(self._indices) // self._batch_size
        if info.iteration >= last:
            raise StopIteration
        for batch in range(info.iteration, min(info.iteration + self.AHEAD + 1, last)):
            if batch not in self._reading:
                part = self._indices[batch * self._batch_size : (batch + 1) * self._batch_size]
                chunks = [part[i : i + self.CHUNK] for i in range(0, len(part), self.CHUNK)]
                self._reading[batch] = [self._threads.submit(self._read, chunk) for chunk in chunks]
        encoded = [image for chunk in self._reading.pop(info.iteration) for image in chunk.result()]
        self._in_use.append(encoded)
        first = info.iteration * self._batch_size
        return encoded, [np.array([place], np.int32) for place in range(first, first + self._batch_size)]

    def _read(self, indices: np.ndarray) -> list[np.ndarray]:
        try:
            files = (read_image(self._images, index) for index in indices)
            return [np.frombuffer(to_decodable(file, self._rendering), np.uint8) for file in files]
        except (OSError, ImageProblem) as error:
            raise DecodeError(str(error)) from error


def _augment(pixels: Any, image_size: int, data: DataConfig) -> Any:
    if data.augment == "none":
        return pixels
    from nvidia.dali.auto_aug import auto_augment, rand_augment, trivial_augment

    shape = [image_size, image_size]
    if data.augment == "randaugment":
        count, magnitude = data.randaugment
        return rand_augment.rand_augment(pixels, n=count, m=magnitude, shape=shape, fill_value=128)
    if data.augment == "autoaugment":
        return auto_augment.auto_augment_image_net(pixels, shape=shape)
    if data.augment == "trivialaugment":
        return trivial_augment.trivial_augment_wide(pixels, shape=shape)
    raise ValueError(f"{data.augment!r} is no augmentation")


def eval_transform(images: Any, transform: str, image_size: int, resize: int) -> Any:
    rules = _TRANSFORMS[transform]
    if transform == "torchvision":
        return _resize_and_crop_as_torchvision(images, image_size, resize, rules)
    images = fn.resize(images, resize_shorter=resize, **rules.resize)
    return fn.crop(images, crop=(image_size, image_size))


def _resize_and_crop_as_torchvision(images: Any, image_size: int, resize: int, rules: _Transform) -> Any:
    # To the pixel: the longer side is cut, where DALI's `resize_shorter` rounds it (640 x 427 becomes 383 x 256), and
    # the crop starts at Python's round() of half the margin, which goes to the even one of two neighbors.
    height, width = images.shape()[0], images.shape()[1]
    shorter = math.min(height, width)
    sides = [side * resize // shorter for side in (height, width)]
    images = fn.resize(images, size=fn.cast(fn.stack(*sides), dtype=types.FLOAT), **rules.resize)
    halves = [((side - image_size) // 2, (side - image_size) & 1) for side in sides]
    start = fn.cast(fn.stack(*(half + odd * (half & 1) for half, odd in halves)), dtype=types.INT32)
    return fn.slice(images, start=start, shape=[image_size, image_size], axes=[0, 1])


def build_from_position(pipeline: Any) -> None:
    """Builds a pipeline that goes on from a position; if that fails, no image is to blame.

    Raises:
      UserError: it is none of this pipeline.
    """
    try:
        pipeline.build()
    except Exception as error:  # of many kinds
        raise UserError(
            "the newest checkpoint's place in the stream of images is none that DALI understands; remove the folder of "
            "that step to go on from the one before"
        ) from error


class Delivery(NamedTuple):
    """One batch of a pipeline.

    images: on the pipeline's device. places: int32 [B], in its indices. position: where the pipeline stands afterwards,
    whatever it has read ahead, to be given to a new one as `checkpoint`; or empty.
    """

    images: jax.Array
    places: np.ndarray
    position: bytes


def deliver(pipeline: Any, *, remember: bool) -> Iterator[Delivery]:
    """Runs a pipeline until its images are used up.

    Args:
      remember: give positions, from a pipeline made with `enable_checkpointing`.

    Raises:
      DecodeError: an image of this batch, or of one of the next, cannot be read or decoded.
      UserError: this DALI does not run pipelines with its dynamic executor, without which each batch would be copied.
    """
    if not getattr(pipeline, "exec_dynamic", False):
        raise UserError(
            f"DALI {VERSION} lacks the dynamic executor, which hands images on uncopied; install {PACKAGES}"
        )
    try:
        batches = DALIGenericIterator(pipeline, ["image", "place"], prepare_first_batch=False)
        for batch in batches:
            position = batches.checkpoints()[0] if remember else b""
            yield Delivery(batch["image"], np.asarray(batch["place"]), position)
    except RuntimeError as error:
        raise DecodeError(in_words(str(error))) from error
