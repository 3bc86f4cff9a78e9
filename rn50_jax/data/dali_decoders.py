"""DALI as a decoder of single files: what decodes here decodes in a pipeline."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rn50_jax.data.dali import decoder_arguments, eval_transform
from rn50_jax.data.images.decodable import diagnose, quiet_decoders, to_decodable
from rn50_jax.data.images.headers import ImageProblem
from rn50_jax.data.images.transform import AS_STORED, Rendering

from nvidia.dali import fn, pipeline_def, types  # isort: skip  (the module above says what is wrong if it is missing)


def make_decoder(
    *, transform: str, image_size: int, resize: int, workers: int, rendering: Rendering = AS_STORED
) -> Callable[[bytes], np.ndarray]:
    """The evaluation transform for single encoded images, on the CPU.

    Returns:
      A function from a file's bytes to uint8 [image_size, image_size, 3]; it raises ImageProblem, a ValueError,
      saying why it cannot be decoded.
    """
    sizes = {"image_size": image_size, "resize": resize}
    decode = make_batch_decoder(transform=transform, **sizes, workers=workers, rendering=rendering, batch_size=1)
    return lambda encoded: decode([encoded])[0]


def make_batch_decoder(
    *, transform: str, image_size: int, resize: int, workers: int, batch_size: int, rendering: Rendering = AS_STORED
) -> Callable[[Sequence[bytes]], np.ndarray]:
    """The evaluation transform for batches of encoded images, on the CPU: an image a thread at a time.

    Returns:
      A function from the bytes of up to `batch_size` files to uint8 [N, image_size, image_size, 3]; it raises
      ImageProblem, a ValueError, if one of them cannot be decoded.
    """
    finish = partial(eval_transform, transform=transform, image_size=image_size, resize=resize)
    run = _make_run(finish, workers=workers, batch_size=batch_size, rendering=rendering)
    return lambda encoded: np.array(run(encoded).as_tensor())  # the pipeline writes over its own


def make_check() -> Callable[[bytes], None]:
    """Returns a function that decodes all of a file and raises ImageProblem if it cannot."""
    run = _make_run(lambda images: images, workers=1, batch_size=1, rendering=AS_STORED)

    def check(encoded: bytes) -> None:
        run([encoded])

    return check


def _make_run(
    finish: Callable[[Any], Any], *, workers: int, batch_size: int, rendering: Rendering
) -> Callable[[Sequence[bytes]], Any]:
    quiet_decoders()

    @pipeline_def(batch_size=batch_size, num_threads=workers, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return finish(fn.decoders.image(encoded, **decoder_arguments(rendering, None)))

    live: list[Any] = []

    def run(encoded: Sequence[bytes]) -> Any:
        decodable = [np.frombuffer(to_decodable(file, rendering), np.uint8) for file in encoded]
        if not live:
            live.append(pipeline())
        try:
            live[0].feed_input("encoded", decodable)
            (images,) = live[0].run()
        except (RuntimeError, MemoryError) as error:
            live.clear()  # an error leaves a pipeline unusable
            problem = ImageProblem("damaged")
            raise (diagnose(problem, encoded[0]) if len(encoded) == 1 else problem) from error
        return images

    return run
