"""ONNX models in 8-bit integers, by onnxruntime's static quantization, and what that costs in accuracy."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from rn50_jax.errors import UserError
from rn50_jax.exporting.check import Decode, Run, evenly
from rn50_jax.inference.image_files import Found, batched, find_images
from rn50_jax.runtime.progress_bar import progress

# From decoded images to what a model takes, both of [N, ...].
Convert = Callable[[np.ndarray], np.ndarray]

_BATCH = 32
# What carries the arithmetic; the rest of the graph stays in float32.
_OPERATORS = ["Conv", "Gemm", "Add", "MaxPool", "GlobalAveragePool"]


def find_calibration(folder: Path, count: int) -> list[Found]:
    """Returns up to `count` images of a folder, drawn evenly over all in it.

    Raises:
      UserError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise UserError(f"--calibration {folder} is not a folder")
    found = [image for image in find_images([str(folder)]) if not image.problem]
    if not found:
        raise UserError(f"--calibration {folder} holds no images")
    return evenly(found, count)


def quantize(
    data: bytes, calibration: Sequence[Found], *, decode: Decode, convert: Convert
) -> tuple[bytes, dict[str, Any]]:
    """Returns an ONNX file with 8-bit weights and activations, and how it was done.

    Weights are symmetric int8 with a scale for each output channel, activations int8 with a scale and zero point for
    each tensor, from the smallest and largest value that the images give (Jacob et al. 2018, arXiv:1712.05877).

    Args:
      data: the file in float32.
      calibration: images like those that the model will see, which are decoded into memory.

    Raises:
      UserError: none of the calibration images can be decoded.
    """
    from onnxruntime import quantization

    images = [decoded.image for decoded in decode(calibration) if decoded.image is not None]
    if not images:
        raise UserError(f"none of the images of --calibration, such as {calibration[0].file}, can be decoded")
    batches = ({"image": convert(np.stack(batch))} for batch in batched(images, _BATCH))
    # It warns of a preparation that a graph with folded BatchNorm and known shapes does not need.
    logging.disable(logging.WARNING)
    try:
        # Elsewhere than the result: onnxruntime takes no path that is not UTF-8.
        with TemporaryDirectory() as folder:
            source, target = Path(folder, "float32"), Path(folder, "int8")
            source.write_bytes(data)
            quantization.quantize_static(
                source,
                target,
                SimpleNamespace(get_next=lambda: next(batches, None)),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            small = target.read_bytes()
    finally:
        logging.disable(logging.NOTSET)
    return small, {
        "method": "static, QDQ, int8 weights per channel, int8 activations per tensor, MinMax",
        "calibration_images": len(images),
        "operators": _OPERATORS,
        "bytes_before": len(data),
        "bytes_after": len(small),
    }


def compare(
    before: Run, after: Run, images: Sequence[tuple[Found, int]], *, decode: Decode, convert: Convert
) -> dict[str, Any]:
    """Measures top-1 of two models on the same images, each with its label.

    Returns:
      val_images, those that could be decoded; top1_before, top1_after and top1_loss in per cent; same_class, the
      per cent of images to which both give the same class.
    """
    pairs = zip(decode([found for found, _ in images]), images, strict=True)
    good = ((decoded.image, label) for decoded, (_, label) in pairs if decoded.image is not None)
    counts = np.zeros(4, np.int64)  # images, hits before, hits after, same class
    with progress("measuring top-1", len(images), unit="img") as advance:
        for batch in batched(good, _BATCH):
            inputs = convert(np.stack([image for image, _ in batch]))
            labels = np.array([label for _, label in batch])
            first, second = before(inputs).argmax(axis=1), after(inputs).argmax(axis=1)
            counts += [len(batch), np.sum(first == labels), np.sum(second == labels), np.sum(first == second)]
            advance(len(batch))
    share = 100 * counts / max(counts[0], 1)
    return {
        "val_images": int(counts[0]),
        "top1_before": float(share[1]),
        "top1_after": float(share[2]),
        "top1_loss": float(share[1] - share[2]),
        "same_class": float(share[3]),
    }
