"""ImageNet's official archives extracted to class folders, and counted."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.data.formats.imagenet_names import IMAGENET_IMAGES, likely_names
from rn50_jax.data.prepare import ilsvrc2012
from rn50_jax.data.prepare.output import holding, require_space, telling_of_the_disk
from rn50_jax.errors import UserError
from rn50_jax.io.messages import say
from rn50_jax.io.text import size_text
from rn50_jax.runtime.progress_bar import progress


class Expected(NamedTuple):
    """The content that the archives must have. synsets: sorted."""

    synsets: tuple[str, ...]
    train: int
    val: int


def imagenet() -> Expected:
    """Returns that of the whole of ILSVRC2012."""
    return Expected(likely_names(1000), IMAGENET_IMAGES["train"], IMAGENET_IMAGES["val"])


def prepare(
    archives: Path, out: Path, expected: Expected, *, check: bool = False, workers: int = 1, spare: int = 0
) -> None:
    """Extracts `out/train/<synset>/*.JPEG` and `out/val/<synset>/*.JPEG`; called again, it continues.

    A class's folder gets its name when all its images are there; no name in an archive leads out of `out`.

    Args:
      archives: folder with the three official archives.
      expected: what must come out.
      check: compare them with the published MD5 sums first.
      workers: threads.
      spare: bytes that must be free besides.

    Raises:
      UserError: an archive is missing, damaged or another one, there is too little room, or the result is not whole.
    """
    train, val, devkit_file = (archives / name for name in (ilsvrc2012.TRAIN, ilsvrc2012.VAL, ilsvrc2012.DEVKIT))
    for file in (devkit_file, val, train):
        if not file.is_file():
            raise UserError(f"{file} is missing; get it from image-net.org (ILSVRC2012, tasks 1 and 2)")
    with telling_of_the_disk(out), holding(out):
        if check:
            _check_md5((devkit_file, val, train))
        devkit = ilsvrc2012.read_devkit(devkit_file)
        if devkit.synsets != expected.synsets:
            raise UserError(f"{devkit_file}: its {len(devkit.synsets):,} classes are not ImageNet's 1,000")
        parts = ilsvrc2012.plan(train, val, out, devkit)
        count, size = sum(part.images for part in parts), sum(part.size for part in parts)
        # Files take whole blocks of a disk, most often of 4 kB.
        say(f"{count:,} images to extract, {size_text(size)}")
        require_space(out, size + 2048 * count + spare)
        with progress("extracting", count) as advance:
            ilsvrc2012.extract(parts, workers=workers, advance=advance)
        _verify(out, devkit, expected)
    say(f"{out}: {expected.train:,} + {expected.val:,} images of {len(expected.synsets):,} classes, complete")


def _check_md5(files: Sequence[Path]) -> None:
    with progress("comparing MD5 sums", sum(file.stat().st_size for file in files)) as advance:
        for file in files:
            if found := ilsvrc2012.wrong_md5(file, advance):
                raise UserError(f"{file} has MD5 {found} instead of {ilsvrc2012.MD5[file.name]}; get it again")


def _verify(out: Path, devkit: ilsvrc2012.Devkit, expected: Expected) -> None:
    """Counts what is there."""
    val_images = Counter(devkit.val_synsets)
    for split, total, wanted in (("train", expected.train, devkit.train_images), ("val", expected.val, val_images)):
        class_names, images = scan_split(out / split)
        if class_names != expected.synsets:
            other = sorted(set(class_names) ^ set(expected.synsets))[0]
            raise UserError(
                f"{out / split} has other class folders than ImageNet's classes, such as {other}; remove it"
            )
        found = np.bincount(images.labels, minlength=len(class_names))
        if found.sum() != total:
            wrong = [name for name, count in zip(class_names, found, strict=True) if count != wanted[name]]
            examples = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            raise UserError(
                f"{out / split} has {found.sum():,} images instead of {total:,}; remove the folders of incomplete "
                f"classes ({examples}) and run the same command again"
            )
