"""ONNX models in 8-bit integers, by onnxruntime's static quantisation, and what that costs in accuracy."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.normalize import pixel_normalization
from rn50_jax.data.options import loader_options
from rn50_jax.errors import UserError
from rn50_jax.exporting.check import Run, evenly
from rn50_jax.exporting.form import Form
from rn50_jax.inference.image_files import Found, batched, decode_files, find_images, found_in
from rn50_jax.io.files import to_json
from rn50_jax.runtime.progress_bar import progress

_BATCH = 32
# What carries the arithmetic; the rest of the graph stays in float32.
_OPERATORS = ["Conv", "Gemm", "Add", "MaxPool", "GlobalAveragePool"]


class Quantisation(NamedTuple):
    """What 8-bit models need: images that show the ranges of activations, and others to measure accuracy on."""

    calibration: list[Found]
    val: ImageSet


def find_calibration(folder: Path, count: int) -> list[Found]:
    """Up to `count` images of a folder, drawn evenly over all in it.

    Raises:
      UserError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise UserError(f"--calibration {folder} is not a folder")
    found = [image for image in find_images([str(folder)]) if not image.problem]
    if not found:
        raise UserError(f"--calibration {folder} holds no images")
    return [found[place] for place in evenly(len(found), count)]


def quantise(
    source: Path, target: Path, calibration: Sequence[Found], config: ConfigDict, form: Form
) -> dict[str, Any]:
    """Writes an ONNX model with 8-bit weights and activations.

    Weights are symmetric int8 with a scale for each output channel, activations int8 with a scale and zero point for
    each tensor, from the smallest and largest value that the images give (Jacob et al. 2018, arXiv:1712.05877).

    Returns:
      How it was done.

    Raises:
      UserError: none of the calibration images can be decoded.
    """
    from onnxruntime import quantization

    used = 0

    def batches() -> Generator[dict[str, np.ndarray]]:
        nonlocal used
        decoded = decode_files(calibration, loader_options(config))
        images = (image.image for image in decoded if image.image is not None)
        for batch in batched(images, _BATCH):
            used += len(batch)
            yield {"image": form.convert(np.stack(batch), pixel_normalization(config.data.mean, config.data.std))}

    with closing(batches()) as reader:
        # It warns of a preparation that a graph with folded BatchNorm and known shapes does not need.
        logging.disable(logging.WARNING)
        try:
            quantization.quantize_static(
                source,
                target,
                SimpleNamespace(get_next=lambda: next(reader, None)),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        except ValueError:
            if used:
                raise
            raise UserError(
                f"none of the images of --calibration, such as {calibration[0].file}, can be decoded"
            ) from None
        finally:
            logging.disable(logging.NOTSET)
    return {
        "method": "static, QDQ, int8 weights per channel, int8 activations per tensor, MinMax",
        "calibration_images": used,
        "operators": _OPERATORS,
        "bytes_before": source.stat().st_size,
        "bytes_after": target.stat().st_size,
    }


def compare(before: Run, after: Run, images: ImageSet, config: ConfigDict, form: Form) -> dict[str, Any]:
    """Top-1 of two models on the same images.

    Returns:
      val_images, those that could be decoded; top1_before, top1_after and top1_loss in per cent; same_class, the
      per cent of images to which both give the same class.
    """
    decoded = zip(decode_files(found_in(images), loader_options(config)), images.labels, strict=True)
    good = ((item.image, label) for item, label in decoded if item.image is not None)
    counts = np.zeros(4, np.int64)  # images, hits before, hits after, same class
    with progress("measuring top-1", len(images.files), unit="img") as advance:
        for batch in batched(good, _BATCH):
            pixels = form.convert(
                np.stack([image for image, _ in batch]), pixel_normalization(config.data.mean, config.data.std)
            )
            labels = np.array([label for _, label in batch])
            first, second = before(pixels).argmax(axis=1), after(pixels).argmax(axis=1)
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


def mark_quantised(path: Path, facts: dict[str, Any]) -> None:
    """Adds what is known of the quantisation to what the ONNX file says about itself."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {entry.key: entry.value for entry in model.metadata_props} | {"quantisation": to_json(facts)}
    )
    path.write_bytes(model.SerializeToString())
