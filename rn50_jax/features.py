"""Features of images: `python -m rn50_jax.features --workdir W DIR --out features.npz`, or `--weights FILE`."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.batch import Batch
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.formats.class_folders import SUFFIXES, scan_split
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.loader import eval_batches
from rn50_jax.data.normalize import Normalization, normalize, pixel_normalization
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, place
from rn50_jax.errors import UserError
from rn50_jax.inference import image_files
from rn50_jax.inference.trained_model import TrainedModel, load_model, warn_assumed
from rn50_jax.io.files import telling_of_writes, written_whole
from rn50_jax.io.messages import say
from rn50_jax.io.text import counted
from rn50_jax.models.network import Network
from rn50_jax.models.walk import Variables
from rn50_jax.runtime.progress_bar import progress


def feature_step(
    variables: Variables, batch: Batch, *, model: Network, axis_name: str, normalization: Normalization
) -> jax.Array:
    """Returns the classifier's input for each image: the last stage's mean over the pixels, float32 [B, C]."""
    del axis_name  # every device answers for its own images
    images = normalize(batch["image"], normalization)
    features: jax.Array = model.apply(variables, images, train=False, head=False)
    return features


def find_images(folder: Path) -> tuple[tuple[str, ...], ImageSet]:
    """Finds the images of a folder, in the order of their names: of its class folders, or else directly in it.

    Returns:
      The class names, and the images with their labels; without class folders no names and the label -1.

    Raises:
      UserError: no such folder, no images, a class folder without any, or images beside class folders.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if any(path.is_dir() for path in entries):
        if here := [path for path in entries if path.name.lower().endswith(SUFFIXES) and path.is_file()]:
            raise UserError(f"{folder} holds images, such as {here[0]}, beside class folders; give one or the other")
        if {path.name for path in entries} == {"train", "val"}:
            raise UserError(f"{folder} is a data set; give one of its folders, {folder / 'train'} or {folder / 'val'}")
        return scan_split(folder)
    found = list(image_files.find_images([str(folder)], notes=True))
    if found[0].problem:
        raise UserError(f"{folder} {found[0].problem}")
    return (), ImageSet(tuple(image.file for image in found), np.full(len(found), -1, np.int32))


def extract(trained: TrainedModel, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Computes the features of every image, once and in order, seen through the transform of evaluation.

    Returns:
      float32 [G, C], 2,048 channels of ResNet-50, of the images that could be decoded; and which these are, bool [N].
      The others are named in notes.

    Raises:
      UserError: none can be decoded; or with `data.max_bad_images` of 0, naming the first that cannot be.
    """
    count, devices = len(images.files), trained.devices
    mesh = make_mesh(devices)
    config = trained.config
    device_batch = min(config.batch_size, math.ceil(count / len(devices)))
    normalization = pixel_normalization(config.data.mean, config.data.std)
    step = partial(feature_step, model=trained.model, axis_name=AXIS, normalization=normalization)
    compiled = map_over_devices(step, mesh, mode=config.compute.parallel, stacked=True)
    variables = place(trained.load(), mesh)
    result: np.ndarray | None = None
    good = np.zeros(count, np.bool_)
    bad_images = BadImages(None, limit=count if config.data.max_bad_images else 0)
    done = 0
    with progress("features", count, unit="img") as advance:
        for batch in eval_batches(images, config.data, mesh, device_batch=device_batch, bad_images=bad_images):
            part = np.asarray(compiled(variables, batch))
            part = part.reshape(-1, part.shape[-1])[: count - done]  # the last batch is filled up at its end
            if result is None:
                result = np.empty((count, part.shape[1]), np.float32)
            result[done : done + len(part)] = part
            # Another image takes the place of a bad one, with weight 0.
            good[done : done + len(part)] = np.asarray(batch["weight"]).reshape(-1)[: len(part)] > 0
            done += len(part)
            advance(len(part))
    assert result is not None and done == count
    return (result if good.all() else result[good]), good


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 1 if an image could not be decoded."""
    parser = cli.CommandLine(
        prog="rn50_jax.features",
        description="Write the pooled features of a folder's images, what the classifier sees of them, to an .npz "
        "file: features (float32 [N, C]), files, labels (int32, -1 without class folders), class_names, and skipped, "
        "the files that could not be decoded.",
        epilog="Exit code 1: some files could not be decoded; the others have their features. With "
        "--config.data.max_bad_images=0 the first one ends the command.\n\n"
        "Any key of the model's config can be changed with --config.key=value, e.g. --config.batch_size=64.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of images or of class folders")
    cli.add_model_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file to write")
    args, overrides = configs.parse_args(parser, argv)
    need_dali()
    if args.out.suffix != ".npz":
        raise UserError(f"--out {args.out} must end in .npz")
    if not args.out.parent.is_dir():
        raise UserError(f"cannot write {args.out}: {args.out.parent} is not a folder")
    class_names, images = find_images(args.folder)
    trained = load_model(args, overrides)
    if trained.config.data.backend == "synthetic":
        raise UserError(f"{trained.name} has config.data.backend='synthetic'; pass --config.data.backend=dali-cpu")
    features, good = extract(trained, images)
    names = np.array([str(Path(file).relative_to(args.folder)) for file in images.files])
    with telling_of_writes(), written_whole(args.out) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            features=features,
            files=names[good],
            labels=images.labels[good],
            class_names=np.array(class_names, np.str_),
            skipped=names[~good],
        )
    classes = f", {counted(len(class_names), 'class')}" if class_names else ""
    warn_assumed(trained)
    say(trained.name)
    skipped = f"; {np.sum(~good)} skipped, see the notes" if not good.all() else ""
    say(
        f"{counted(len(features), 'image')}{classes}, {counted(features.shape[1], 'feature')} each, "
        f"written to {args.out}{skipped}"
    )
    return 0 if good.all() else 1


if __name__ == "__main__":
    cli.run(main)
