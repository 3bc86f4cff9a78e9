"""Random images that stand for a data set, to time everything but the input."""

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax.data.batch import Batch
from rn50_jax.data.image_set import Dataset, ImageSet
from rn50_jax.distributed.devices import local_indices, shard


def synthetic_dataset(config: ConfigDict) -> Dataset:
    """A data set of `data.synthetic_images` images without files; 1,000 classes unless `model.num_classes` is set."""
    train, val = (ImageSet((), np.zeros(count, np.int32)) for count in config.data.synthetic_images)
    return Dataset(train, val, tuple(str(label) for label in range(_num_classes(config))))


def synthetic_batch(config: ConfigDict, device_batch: int, mesh: Mesh, image_size: int = 0) -> Batch:
    """One random batch that stays on the devices: images uint8 [D, B, S, S, 3], labels below the number of classes.

    Args:
      image_size: S; 0 for that of the config.
    """
    size, classes = image_size or config.data.image_size, _num_classes(config)
    streams = [np.random.default_rng([config.seed, device]) for device in local_indices(mesh)]
    images = [rng.integers(0, 256, (device_batch, size, size, 3), np.uint8) for rng in streams]
    labels = [rng.integers(0, classes, device_batch, np.int32) for rng in streams]
    weights = [np.ones(device_batch, np.float32)] * len(streams)
    return {
        "image": shard(images, mesh),
        "label": shard(labels, mesh),
        "weight": shard(weights, mesh),
    }


def _num_classes(config: ConfigDict) -> int:
    return int(config.model.num_classes or 1000)
