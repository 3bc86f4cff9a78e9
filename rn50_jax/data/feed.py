"""Batches on the devices, made ready ahead of the step.

A batch is {"image": uint8 [D, B, S, S, 3], "label": int32 [D, B], "weight": float32 [D, B]}, sharded over D devices.
Of several processes each decodes and places the images of its own devices.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import parallel
from rn50_jax.data.folder import ImageSet
from rn50_jax.data.order import crop_seed, eval_order, train_order
from rn50_jax.data.synthetic import synthetic_batch
from rn50_jax.plan import Plan
from rn50_jax.step import Batch


def train_batches(config: ConfigDict, images: ImageSet, plan: Plan, mesh: Mesh, first_epoch: int) -> Generator[Batch]:
    """All batches of the run from `first_epoch` on, `plan.steps_per_epoch` an epoch.

    One stream for all epochs: while the last steps and the validation of one run, the next one's files are opened.
    """
    if config.data.backend == "synthetic":
        yield from repeat(synthetic_batch(config, plan.device_batch, mesh))
    batches = (
        batch
        for epoch in range(first_epoch, config.epochs)
        for batch in _train_epoch(config, images, plan, mesh, epoch)
    )
    yield from prefetch(batches, config.data.prefetch)


def _train_epoch(config: ConfigDict, images: ImageSet, plan: Plan, mesh: Mesh, epoch: int) -> Iterator[Batch]:
    from rn50_jax.data import dali  # a second to import, and not needed for synthetic data

    order = train_order(
        len(images.labels),
        steps=plan.steps_per_epoch,
        num_devices=plan.num_devices,
        device_batch=plan.device_batch,
        seed=config.seed,
        epoch=epoch,
    )
    devices = parallel.local_indices(mesh)
    files = _files_per_device(images, order, devices)
    pipelines = [
        dali.train_pipeline(
            device_files,
            image_size=config.data.image_size,
            crop_area=config.data.crop_area,
            crop_aspect=config.data.crop_aspect,
            flip=config.data.flip,
            seed=crop_seed(config.seed, epoch, device),
            **_pipeline_args(config, mesh, device, plan.device_batch),
        )
        for device, device_files in zip(devices, files, strict=True)
    ]
    weights = np.ones(order.shape, np.float32)
    steps = zip(*map(dali.run_pipeline, pipelines, files), strict=True)
    yield from _place(steps, images, order, weights, mesh)


def eval_batches(config: ConfigDict, images: ImageSet, mesh: Mesh) -> Iterator[Batch]:
    """Every image of the set exactly once, the last batch filled up with images of weight 0."""
    num_devices = mesh.devices.size
    order, weights = eval_order(len(images.labels), num_devices=num_devices, device_batch=config.batch_size)
    devices = parallel.local_indices(mesh)
    if config.data.backend == "synthetic":
        batch = synthetic_batch(config, config.batch_size, mesh)
        yield from (batch | {"weight": parallel.shard(w[devices], mesh)} for w in weights)
        return
    from rn50_jax.data import dali

    files = _files_per_device(images, order, devices)
    pipelines = [
        dali.eval_pipeline(
            device_files,
            image_size=config.data.image_size,
            resize=config.data.resize,
            **_pipeline_args(config, mesh, device, config.batch_size),
        )
        for device, device_files in zip(devices, files, strict=True)
    ]
    steps = zip(*map(dali.run_pipeline, pipelines, files), strict=True)
    yield from prefetch(_place(steps, images, order, weights, mesh), config.data.prefetch)


def _files_per_device(images: ImageSet, order: np.ndarray, devices: Sequence[int]) -> list[list[str]]:
    return [[images.files[i] for i in order[:, device].flat] for device in devices]


def _pipeline_args(config: ConfigDict, mesh: Mesh, device: int, batch_size: int) -> dict[str, Any]:
    on_gpu = config.data.backend == "dali-gpu"
    ordinal = mesh.devices.flat[device].local_hardware_id if on_gpu else None
    return {
        "transform": config.data.transform,
        "batch_size": batch_size,
        "num_threads": config.data.workers,
        "device_id": ordinal,
        "on_gpu": on_gpu,
    }


def _place(
    steps: Iterable[tuple[tuple[jax.Array, np.ndarray], ...]],
    images: ImageSet,
    order: np.ndarray,
    weights: np.ndarray,
    mesh: Mesh,
) -> Iterator[Batch]:
    devices = parallel.local_indices(mesh)
    for step, outputs in enumerate(steps):
        # DALI numbers a device's files from 0; their place in `order` is the image's index in the data set.
        labels = [images.labels[order[:, d].flat[index]] for d, (_, index) in zip(devices, outputs, strict=True)]
        yield {
            "image": parallel.shard([pixels for pixels, _ in outputs], mesh),
            "label": parallel.shard(labels, mesh),
            "weight": parallel.shard(weights[step, devices], mesh),
        }


def prefetch(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """Keeps up to `depth` batches ready, made in a background thread in their order."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as worker:
        ready = deque(worker.submit(next, batches, None) for _ in range(depth))
        while (batch := ready.popleft().result()) is not None:
            ready.append(worker.submit(next, batches, None))
            yield batch
