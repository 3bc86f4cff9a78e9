"""The options of data sets and of the loader, as values."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rn50_jax.data.images.transform import Rendering, eval_resize


@dataclass(frozen=True)
class DatasetOptions:
    """A data set: the config's keys of these names.

    num_classes: that it must have, 0 for any. seed: draws the share for validation.
    """

    dir: str
    train_list: str
    val_list: str
    val_share: float
    builtin: str
    backend: str
    synthetic_images: tuple[int, int]
    num_classes: int
    seed: int

    @property
    def root(self) -> Path:
        """The folder `dir`, with `~` for the user's home, if there is one."""
        return Path(os.path.expanduser(self.dir))  # noqa: PTH111, that of Path raises where there is none


class Crops(NamedTuple):
    """The random part of the training transform.

    area: share of the image's, aspect: width over height, each (smallest, largest). flip: probability. augment: none,
    randaugment, autoaugment or trivialaugment. randaugment: number of operations and their magnitude (0 to 30).
    """

    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: float
    augment: str = "none"
    randaugment: tuple[int, int] = (2, 9)


@dataclass(frozen=True)
class LoaderOptions:
    """The way from files to batches: the config's keys of these names, and what follows from them.

    resize: pixels of the shorter side before the center crop. num_classes: of synthetic labels.
    """

    backend: str
    image_size: int
    image_sizes: tuple[tuple[int, int], ...]
    resize: int
    transform: str
    rendering: Rendering
    crops: Crops
    workers: int
    hw_decoder_load: float
    prefetch: int
    on_bad_file: str
    max_bad_files: int
    num_classes: int
    seed: int

    def train_size(self, epoch: int) -> int:
        """Returns the height and width of the training images in an epoch (from 0), in pixels."""
        sizes = [size for first, size in self.image_sizes if first <= epoch]
        return sizes[-1] if sizes else self.image_size


def dataset_options(config: Any) -> DatasetOptions:
    """Returns the values of a config that name its data set."""
    data = config.data
    return DatasetOptions(
        dir=data.dir,
        train_list=data.train_list,
        val_list=data.val_list,
        val_share=data.val_share,
        builtin=data.builtin,
        backend=data.backend,
        synthetic_images=data.synthetic_images,
        num_classes=config.model.num_classes,
        seed=config.seed,
    )


def loader_options(config: Any) -> LoaderOptions:
    """Returns the values of a config that its loader takes."""
    data = config.data
    return LoaderOptions(
        backend=data.backend,
        image_size=data.image_size,
        image_sizes=data.image_sizes,
        resize=eval_resize(data.image_size, data.resize),
        transform=data.transform,
        rendering=Rendering(data.exif_rotation, tuple(data.background)),
        crops=Crops(data.crop_area, data.crop_aspect, data.flip, data.augment, data.randaugment),
        workers=data.workers,
        hw_decoder_load=data.hw_decoder_load,
        prefetch=data.prefetch,
        on_bad_file=data.on_bad_file,
        max_bad_files=data.max_bad_files,
        num_classes=config.model.num_classes or 1000,
        seed=config.seed,
    )
