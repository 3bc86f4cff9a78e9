"""The order of images: pure functions of seed and epoch, the same on every host."""

import numpy as np


def train_order(
    num_images: int, *, steps: int, num_devices: int, device_batch: int, seed: int, epoch: int
) -> np.ndarray:
    """Returns one epoch's images: a fresh permutation of all, of which each is used at most once.

    The images of a step do not depend on how many devices share them.

    Returns:
      int64 [steps, num_devices, device_batch], indices into the training set.
    """
    permutation = np.random.default_rng([seed, epoch]).permutation(num_images)
    used = steps * num_devices * device_batch
    return permutation[:used].reshape(steps, num_devices, device_batch)


def eval_order(num_images: int, *, num_devices: int, device_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images in their own order, filled up to whole batches with the last image at weight 0.

    Returns:
      Indices, int64 [steps, num_devices, device_batch], and weights, float32 of the same shape.
    """
    shape = (-1, num_devices, device_batch)
    global_batch = num_devices * device_batch
    slots = np.arange(-(-num_images // global_batch) * global_batch)
    weights = (slots < num_images).astype(np.float32)
    return np.minimum(slots, num_images - 1).reshape(shape), weights.reshape(shape)


def crop_seed(seed: int, epoch: int, device: int) -> int:
    """Returns the seed of a device's random crops and flips in an epoch, a non-negative int32."""
    return int(np.random.SeedSequence([seed, epoch, device]).generate_state(1)[0] >> 1)
