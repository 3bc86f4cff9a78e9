"""Data sets and batches of a config."""

from collections.abc import Generator, Iterable, Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax.config.derived import Plan
from rn50_jax.data import dataset, loader
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.batch import BEGINNING, Batch, Position, TrainBatch
from rn50_jax.data.image_set import Dataset, ImageSet
from rn50_jax.data.options import dataset_options, loader_options
from rn50_jax.inference import image_files


def open_data(config: ConfigDict, **options: Any) -> Dataset:
    return dataset.open_dataset(dataset_options(config), **options)


def train_data(
    config: ConfigDict,
    images: ImageSet,
    plan: Plan,
    mesh: Mesh,
    start: Position = BEGINNING,
    bad_images: BadImages | None = None,
) -> Generator[TrainBatch]:
    shape = {"steps_per_epoch": plan.steps_per_epoch, "device_batch": plan.device_batch, "epochs": config.epochs}
    return loader.train_batches(images, loader_options(config), mesh, **shape, start=start, bad_images=bad_images)


def eval_data(config: ConfigDict, images: ImageSet, mesh: Mesh, **options: Any) -> Iterator[Batch]:
    return loader.eval_batches(images, loader_options(config), mesh, device_batch=config.batch_size, **options)


def decode_data(
    config: ConfigDict, files: Iterable[image_files.Found], **options: Any
) -> Iterator[image_files.Decoded]:
    return image_files.decode_files(files, loader_options(config), **options)
