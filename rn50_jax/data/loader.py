"""Batches on the devices, made ready ahead of the step.

A batch is {"image": uint8 [D, B, S, S, 3], "label": int32 [D, B], "weight": float32 [D, B]}, sharded over D devices.
Of several processes each decodes and places the images of its own devices.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from rn50_jax.config.sections.data import DataConfig
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.batch import BEGINNING, Batch, Position, TrainBatch
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.prefetch import prefetch
from rn50_jax.data.sampler import crop_seed, eval_order, train_order
from rn50_jax.data.synthetic import synthetic_batch
from rn50_jax.distributed.devices import local_indices, shard

if TYPE_CHECKING:
    from rn50_jax.data import dali

_AHEAD = 2  # batches made ready on the device: one is being copied there, one waits for the step


def train_batches(
    images: ImageSet,
    data: DataConfig,
    mesh: Mesh,
    *,
    seed: int,
    num_classes: int,
    epochs: int,
    steps_per_epoch: int,
    device_batch: int,
    start: Position = BEGINNING,
    bad_images: BadImages | None = None,
) -> Generator[TrainBatch]:
    """Yields all batches of the run from `start` on, `steps_per_epoch` an epoch, of `device_batch` images a device.

    The next epoch's files are opened while the last steps and the validation of one run. From a saved position, batches
    have the very bits that they would have had. An image that cannot be decoded is added to `bad_images`; another one
    takes its place, with weight 0.

    Args:
      seed: of the order, the crops, and the labels of synthetic data.
      num_classes: of synthetic data.
    """
    if start.step == steps_per_epoch:
        start = Position(start.epoch + 1, 0)
    starts = chain([start], (Position(epoch, 0) for epoch in range(start.epoch + 1, epochs)))
    if data.backend == "synthetic":
        for start in starts:
            batch = synthetic_batch(
                mesh,
                device_batch=device_batch,
                image_size=data.train_size(start.epoch),
                num_classes=num_classes,
                seed=seed,
            )
            yield from repeat(TrainBatch(batch, ()), steps_per_epoch - start.step)
        return
    shape = {"steps": steps_per_epoch, "num_devices": mesh.devices.size, "device_batch": device_batch}
    order_of = partial(train_order, len(images.labels), **shape, seed=seed)
    bad_images = bad_images or BadImages(None, limit=data.max_bad_images)
    batches = (
        batch
        for start in starts
        for batch in _train_epoch(images, data, mesh, order_of(epoch=start.epoch), start, seed, bad_images)
    )
    yield from prefetch(batches, _AHEAD)


def _train_epoch(
    images: ImageSet,
    data: DataConfig,
    mesh: Mesh,
    order: np.ndarray,
    start: Position,
    seed: int,
    bad_images: BadImages,
) -> Iterator[TrainBatch]:
    from rn50_jax.data import dali  # a second to import, and not needed for synthetic data

    def make(device: int, indices: np.ndarray, position: bytes | None) -> Any:
        pipeline = dali.train_pipeline(
            images,
            indices,
            data,
            image_size=data.train_size(start.epoch),
            seed=crop_seed(seed, start.epoch, device),
            enable_checkpointing=True,
            checkpoint=position,
            **_pipeline_args(data, mesh, device, order.shape[-1]),
        )
        if position is not None:
            dali.build_from_position(pipeline)
        return pipeline

    weights, positions = np.ones(order.shape, np.float32), start.pipelines or (None,) * len(local_indices(mesh))
    for batch, deliveries in _batches(images, order, weights, mesh, make, bad_images, "train", start, positions):
        yield TrainBatch(batch, tuple(delivery.position for delivery in deliveries))


def eval_batches(
    images: ImageSet,
    data: DataConfig,
    mesh: Mesh,
    *,
    device_batch: int,
    num_classes: int = 1,
    seed: int = 0,
    epoch: int = 0,
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    """Yields every image of the set exactly once, the last batch filled up with images of weight 0.

    Args:
      device_batch: images per device.
      num_classes, seed: of the labels of synthetic data.
      epoch: of the training run that validates, from 0.
      bad_images: of that run; they have weight 0.
    """
    order, weights = eval_order(len(images.labels), num_devices=mesh.devices.size, device_batch=device_batch)
    if data.backend == "synthetic":
        batch = synthetic_batch(
            mesh, device_batch=device_batch, image_size=data.image_size, num_classes=num_classes, seed=seed
        )
        devices = local_indices(mesh)
        yield from (batch | {"weight": shard(w[devices], mesh)} for w in weights)
        return
    from rn50_jax.data import dali

    def make(device: int, indices: np.ndarray, _: bytes | None) -> Any:
        return dali.eval_pipeline(images, indices, data, **_pipeline_args(data, mesh, device, device_batch))

    bad_images = bad_images or BadImages(None, limit=data.max_bad_images)
    batches = _batches(images, order, weights, mesh, make, bad_images, "val", Position(epoch, 0), None)
    yield from prefetch((batch for batch, _ in batches), _AHEAD)


def _batches(
    images: ImageSet,
    order: np.ndarray,
    weights: np.ndarray,
    mesh: Mesh,
    make: Callable[[int, np.ndarray, bytes | None], Any],
    bad_images: BadImages,
    split: str,
    start: Position,
    positions: Sequence[bytes | None] | None,
) -> Iterator[tuple[Batch, "Sequence[dali.Delivery]"]]:
    """One epoch's batches from all devices of this process; `positions` are those of pipelines that can be saved."""
    from rn50_jax.data.decoded_batches import Part, decoded_batches, first_good

    if len(known := bad_images.known(split, images, start.epoch)):
        bad = np.isin(order, known)
        order, weights = np.where(bad, first_good(images), order), np.where(bad, np.float32(0), weights)
    devices = local_indices(mesh)
    parts = [
        decoded_batches(
            images,
            Part(order[:, device], weights[:, device]),
            partial(make, device),
            lambda index, reason: bad_images.add(split, images, index, epoch=start.epoch, reason=reason),
            start=start.step,
            position=positions[i] if positions else None,
            remember=positions is not None,
        )
        for i, device in enumerate(devices)
    ]
    for step, deliveries in enumerate(zip(*parts, strict=True), start.step):
        batch = {
            "image": shard([delivery.images for delivery in deliveries], mesh),
            "label": shard(images.labels[order[step, devices]], mesh),
            "weight": shard(weights[step, devices], mesh),
        }
        yield batch, deliveries


def _pipeline_args(data: DataConfig, mesh: Mesh, device: int, batch_size: int) -> dict[str, Any]:
    on_gpu = data.backend == "dali-gpu"
    return {
        "batch_size": batch_size,
        "num_threads": data.workers,
        "device_id": mesh.devices.flat[device].local_hardware_id if on_gpu else None,
    }
