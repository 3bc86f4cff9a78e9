"""Data sets and batches of a config."""

from collections.abc import Generator, Iterable, Iterator
from typing import Any

from jax.sharding import Mesh

from rn50_jax.config.derived import Plan
from rn50_jax.config.schema import Config
from rn50_jax.data import dataset, loader
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.batch import BEGINNING, Batch, Position, TrainBatch
from rn50_jax.data.image_set import Dataset, ImageSet
from rn50_jax.inference import image_files


def open_data(config: Config, **options: Any) -> Dataset:
    return dataset.open_dataset(config, **options)


def train_data(
    config: Config,
    images: ImageSet,
    plan: Plan,
    mesh: Mesh,
    start: Position = BEGINNING,
    bad_images: BadImages | None = None,
) -> Generator[TrainBatch]:
    shape = {"steps_per_epoch": plan.steps_per_epoch, "device_batch": plan.device_batch, "epochs": config.epochs}
    return loader.train_batches(
        images,
        config.data,
        mesh,
        seed=config.seed,
        num_classes=config.model.num_classes or 1000,
        **shape,
        start=start,
        bad_images=bad_images,
    )


def eval_data(config: Config, images: ImageSet, mesh: Mesh, **options: Any) -> Iterator[Batch]:
    return loader.eval_batches(images, config.data, mesh, device_batch=config.batch_size, **options)


def decode_data(config: Config, files: Iterable[image_files.Found], **options: Any) -> Iterator[image_files.Decoded]:
    return image_files.decode_files(files, config.data, **options)
