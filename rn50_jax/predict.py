"""Classifies images: `python -m rn50_jax.predict --workdir W IMAGE [IMAGE ...]`, or `--weights FILE`."""

import io
import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rn50_jax import config as configs
from rn50_jax import errors, parallel
from rn50_jax.data.image_file import MAX_PIXELS
from rn50_jax.data.names import human_names, likely_names
from rn50_jax.errors import UserError
from rn50_jax.step import predict_step
from rn50_jax.stored import StoredModel, add_source_arguments, load_for_inference, load_model

# Images classified at a time: enough to fill a device, and one program for any number of files.
_BATCH = 32


def predict(stored: StoredModel, images: np.ndarray) -> np.ndarray:
    """Class probabilities of decoded images.

    Args:
      stored: its model does the work on its first device.
      images: uint8 [N, S, S, 3], from `data.dali.make_decoder`.

    Returns:
      float32 [N, K].
    """
    mesh = parallel.make_mesh(stored.devices[:1])
    model, loaded = load_for_inference(stored)
    step = partial(predict_step, model=model, axis_name=parallel.AXIS)
    compiled = parallel.spread(step, mesh, mode=stored.config.parallel, stacked=True)
    variables = parallel.replicate(loaded, mesh)
    size = min(_BATCH, len(images))
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.uint8)])
        batch = {"image": parallel.shard([padded], mesh)}
        parts.append(np.asarray(compiled(variables, batch))[0, : len(part)])
    return np.concatenate(parts)


def decode_files(stored: StoredModel, paths: Sequence[Path]) -> tuple[list[np.ndarray], dict[Path, str]]:
    """Decodes each file with the evaluation transform.

    Returns:
      The images, uint8 [S, S, 3], of the files that could be read, in order, and what is wrong with the others.
    """
    from rn50_jax.data.dali import make_decoder

    config = stored.config
    decode = make_decoder(
        transform=config.data.transform,
        image_size=config.data.image_size,
        resize=config.data.resize,
        workers=config.data.workers,
    )
    images, problems = [], {}
    for path in paths:
        try:
            encoded = path.read_bytes()
            if too_large := _too_large(encoded):
                problems[path] = too_large
                continue
            images.append(decode(encoded))
        except OSError as error:
            problems[path] = f"cannot be read: {error.strerror}"
        except ValueError:
            problems[path] = "is not an image that can be decoded (JPEG, PNG, WebP, BMP, TIFF, JPEG 2000 or PNM)"
    return images, problems


def _too_large(encoded: bytes) -> str | None:
    """What is wrong with an image whose few bytes would unpack to gigabytes; None for any other file."""
    pixels = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:  # reads the header alone
                pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = 2 * MAX_PIXELS
    except Exception:  # what Pillow does not know, DALI may
        return None
    return f"is too large: more than {MAX_PIXELS:,} pixels" if pixels > MAX_PIXELS else None


def answer(stored: StoredModel, paths: Sequence[Path], top_k: int) -> list[dict[str, Any]]:
    """For each path {"file", "predictions": [{"class", "index", "probability"}]}, best first, or {"file", "error"}."""
    images, problems = decode_files(stored, paths)
    probabilities = iter(predict(stored, np.stack(images)) if images else [])
    names = human_names(stored.class_names or likely_names(stored.model.num_classes))
    answers: list[dict[str, Any]] = []
    for path in paths:
        if path in problems:
            answers.append({"file": str(path), "error": problems[path]})
            continue
        p = next(probabilities)
        best = np.argsort(-p, kind="stable")[:top_k]
        predictions = [{"class": names[i], "index": int(i), "probability": float(p[i])} for i in best]
        answers.append({"file": str(path), "predictions": predictions})
    return answers


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code: 1 if an image could not be classified."""
    parser = errors.CommandLine(
        prog="rn50_jax.predict",
        description="Name the classes of images, seen through the transform of evaluation.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP, BMP, TIFF, ...")
    add_source_arguments(parser)
    parser.add_argument("--top_k", type=int, default=5, help="how many classes to name (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, overrides = configs.parse_args(parser, argv)
    if args.top_k < 1:
        raise UserError(f"--top_k {args.top_k} must be at least 1")
    # Single files are decoded on the CPU, also for a run that was trained with dali-gpu.
    stored = load_model(args, [("data.backend", "dali-cpu"), *overrides])
    answers = answer(stored, args.images, args.top_k)
    if args.json:
        print(json.dumps(answers, indent=2))
    else:
        for entry in answers:
            print(entry["file"] + (f": {entry['error']}" if "error" in entry else ""))
            for p in entry.get("predictions", []):
                print(f"  {100 * p['probability']:5.1f}%  {p['class']}")
    return 1 if any("error" in entry for entry in answers) else 0


if __name__ == "__main__":
    errors.run(main)
