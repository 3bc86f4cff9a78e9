"""One device's batches of an epoch; images that cannot be decoded are exchanged for good ones."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rn50_jax.data.dali import DecodeError, Delivery, deliver
from rn50_jax.data.dali_decoders import make_check
from rn50_jax.data.image_set import ImageSet, read_image
from rn50_jax.data.images.headers import ImageProblem
from rn50_jax.errors import UserError

# Batches that a pipeline may be ahead of the one that it delivers when it meets a bad file.
_HORIZON = 8
_TRIES = 3  # of a batch in which nothing is found wrong


class Part(NamedTuple):
    """The images of one device in an epoch; bad ones are replaced in place.

    order: int64 [steps, B], indices of images. weights: float32 [steps, B].
    """

    order: np.ndarray
    weights: np.ndarray


Make = Callable[[np.ndarray, bytes | None], Any]


def decoded_batches(
    images: ImageSet,
    part: Part,
    make: Make,
    report: Callable[[int, str], None],
    *,
    start: int = 0,
    position: bytes | None = None,
    remember: bool = True,
) -> Iterator[Delivery]:
    """Yields the batches of `part` from step `start` on, with a good image in place of each that cannot be decoded.

    The good one is the first of the set, with weight 0. All other images get the pixels that they would have had, as
    random crops belong to places in the order, not to files.

    Args:
      make: makes a pipeline for indices int [N] that continues from a position.
      report: called with the index of each bad image and the reason; may raise.
      position: of an earlier delivery, the one before `start`.
      remember: deliveries have positions, from which pipelines can be made; otherwise one starts at the failed batch.
    """
    step = start

    def pipeline(order: np.ndarray) -> Iterator[Delivery]:
        if remember:
            return deliver(make(order.reshape(-1), position), remember=True)
        return deliver(make(order[step:].reshape(-1), None), remember=False)

    while step < len(part.order):
        try:
            for delivery in pipeline(part.order):
                step, position = step + 1, delivery.position
                yield _numbered(delivery, step - 1)
            return
        except DecodeError:
            pass
        # DALI has read ahead and does not name the image. Until it is found, batches go one by one, with good images
        # in place of all that follow: each either comes out as it always would, or is the bad one.
        good = first_good(images)
        for _ in range(min(_HORIZON, len(part.order) - step)):
            repaired, tries = False, 0
            while True:
                alone = np.full_like(part.order, good)
                alone[step] = part.order[step]
                try:
                    delivery = next(pipeline(alone))
                    break
                except DecodeError as error:
                    bad = _find_bad(images, part.order[step]) or _find_bad_crops(pipeline, alone, step, good)
                    tries += not bad  # a file server that failed for a moment
                    if tries == _TRIES:
                        names = ", ".join(images.files[index] for index in part.order[step, :3])
                        raise UserError(f"a batch cannot be decoded, with {names} and others in it: {error}") from error
                    _replace(part, step, good, bad, report)
                    repaired = True
            step, position = step + 1, delivery.position
            yield _numbered(delivery, step - 1)
            if repaired:
                break


def _numbered(delivery: Delivery, step: int) -> Delivery:
    """With places in the whole of a device's epoch, also if the pipeline began within it."""
    count = len(delivery.places)
    return delivery._replace(places=np.arange(step * count, (step + 1) * count, dtype=np.int32))


def _find_bad(images: ImageSet, indices: np.ndarray) -> dict[int, str]:
    """Returns which of a batch's images cannot be decoded, and the reasons."""
    check = make_check()
    return {index: why for index in np.unique(indices).tolist() if (why := _what_is_wrong(images, index, check))}


def _find_bad_crops(
    pipeline: Callable[[np.ndarray], Iterator[Delivery]], order: np.ndarray, step: int, good: int
) -> dict[int, str]:
    """Returns which images of a batch can be decoded whole, but not the crop that they get here."""
    bad = {}
    for place, index in enumerate(order[step].tolist()):
        alone = np.full_like(order, good)
        alone[step, place] = index
        try:
            next(pipeline(alone))
        except DecodeError:
            bad[index] = "damaged: a part of it cannot be decoded; save it anew"
    return bad


def _replace(part: Part, step: int, good: int, bad: dict[int, str], report: Callable[[int, str], None]) -> None:
    for index, why in bad.items():
        report(index, why)
        places = part.order[step] == index
        part.order[step, places], part.weights[step, places] = good, 0.0


def first_good(images: ImageSet) -> int:
    """Returns the index of the first image that can be decoded.

    Raises:
      UserError: there is none.
    """
    check = make_check()
    for index in range(len(images.files)):
        if not _what_is_wrong(images, index, check):
            return index
    raise UserError(f"none of {len(images.files)} images can be decoded, {images.files[0]} among them")


def _what_is_wrong(images: ImageSet, index: int, check: Callable[[bytes], None]) -> str:
    """Returns the reason why an image cannot be decoded; empty if it can be."""
    try:
        check(read_image(images, index))  # the whole of it: a crop may miss what is missing
    except OSError as error:
        return error.strerror or "it cannot be read"
    except ImageProblem as error:
        return str(error)
    return ""
