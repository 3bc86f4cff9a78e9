"""Random images that stand for a data set, to time everything but the input."""

import numpy as np
from jax.sharding import Mesh

from rn50_jax.data.batch import Batch
from rn50_jax.data.image_set import Dataset, ImageSet
from rn50_jax.distributed.devices import local_indices, shard


def synthetic_dataset(num_train: int, num_val: int, num_classes: int) -> Dataset:
    """Returns a data set of so many images without files; 1,000 classes for a number of 0."""
    train, val = (ImageSet((), np.zeros(count, np.int32)) for count in (num_train, num_val))
    return Dataset(train, val, tuple(str(label) for label in range(num_classes or 1000)))


def synthetic_batch(mesh: Mesh, *, device_batch: int, image_size: int, num_classes: int, seed: int) -> Batch:
    """Returns one random batch that stays on the devices: images uint8 [D, B, S, S, 3], labels below `num_classes`."""
    rngs = [np.random.default_rng([seed, device]) for device in local_indices(mesh)]
    images = [rng.integers(0, 256, (device_batch, image_size, image_size, 3), np.uint8) for rng in rngs]
    labels = [rng.integers(0, num_classes, device_batch, np.int32) for rng in rngs]
    weights = [np.ones(device_batch, np.float32)] * len(rngs)
    return {"image": shard(images, mesh), "label": shard(labels, mesh), "weight": shard(weights, mesh)}
