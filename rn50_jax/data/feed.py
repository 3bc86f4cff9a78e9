"""Batches on the devices, made ready ahead of the step.

A batch is {"image": uint8 [D, B, S, S, 3], "label": int32 [D, B], "weight": float32 [D, B]}, sharded over D devices.
Of several processes each decodes and places the images of its own devices.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import parallel
from rn50_jax.data.folder import ImageSet, fingerprint
from rn50_jax.data.order import crop_seed, eval_order, train_order
from rn50_jax.data.synthetic import synthetic_batch
from rn50_jax.plan import Plan
from rn50_jax.step import Batch
from rn50_jax.workdir import versions

if TYPE_CHECKING:
    from rn50_jax.data import dali

T = TypeVar("T")


class Position(NamedTuple):
    """A place in the stream of training batches: so many steps into an epoch (both from 0).

    pipelines: for each device of this process, where its pipeline stands; empty at the start of an epoch, and for
    synthetic data.
    """

    epoch: int
    step: int
    pipelines: tuple[bytes, ...] = ()


class TrainBatch(NamedTuple):
    """A batch, and `Position.pipelines` behind it."""

    batch: Batch
    pipelines: tuple[bytes, ...]


def train_batches(
    config: ConfigDict, images: ImageSet, plan: Plan, mesh: Mesh, start: Position
) -> Generator[TrainBatch]:
    """All batches of the run from `start` on, `plan.steps_per_epoch` an epoch.

    One stream for all epochs: while the last steps and the validation of one run, the next one's files are opened.
    From a position that was kept, the stream goes on with the very bits that it would have had.
    """
    if start.step == plan.steps_per_epoch:
        start = Position(start.epoch + 1, 0)
    if config.data.backend == "synthetic":
        batch = synthetic_batch(config, plan.device_batch, mesh)
        yield from repeat(TrainBatch(batch, ()))
    starts = chain([start], (Position(epoch, 0) for epoch in range(start.epoch + 1, config.epochs)))
    batches = (batch for start in starts for batch in _train_epoch(config, images, plan, mesh, start))
    yield from prefetch(batches, config.data.prefetch)


def stream_facts(config: ConfigDict, images: ImageSet, plan: Plan) -> dict[str, Any]:
    """What decides the stream of an epoch: a position in it means something only where all of this is the same."""
    keys = ("backend", "image_size", "crop_area", "crop_aspect", "transform", "flip")
    facts = {f"config.data.{key}": config.data[key] for key in keys} | {
        "config.seed": config.seed,
        "the number of devices": plan.num_devices,
        "the number of images per device and update": plan.device_batch,
        "the training set": fingerprint(images),
    }
    if config.data.backend != "synthetic":
        facts["the version of DALI"] = next(v for name, v in versions().items() if "dali" in name)
    return facts


def _order(config: ConfigDict, images: ImageSet, plan: Plan, epoch: int) -> np.ndarray:
    return train_order(
        len(images.labels),
        steps=plan.steps_per_epoch,
        num_devices=plan.num_devices,
        device_batch=plan.device_batch,
        seed=config.seed,
        epoch=epoch,
    )


def files_of_step(config: ConfigDict, images: ImageSet, plan: Plan, step: int) -> list[str]:
    """The images of the update with number `step` of the run (from 0), over all devices; none of synthetic data."""
    if config.data.backend == "synthetic":
        return []
    epoch, step = divmod(step, plan.steps_per_epoch)
    return [images.files[index] for index in _order(config, images, plan, epoch)[step].flat]


def _train_epoch(config: ConfigDict, images: ImageSet, plan: Plan, mesh: Mesh, start: Position) -> Iterator[TrainBatch]:
    from rn50_jax.data import dali  # a second to import, and not needed for synthetic data

    order = _order(config, images, plan, start.epoch)
    devices = parallel.local_indices(mesh)
    files = _files_per_device(images, order, devices)
    kept = start.pipelines or (None,) * len(devices)
    pipelines = [
        dali.train_pipeline(
            device_files,
            image_size=config.data.image_size,
            crop_area=config.data.crop_area,
            crop_aspect=config.data.crop_aspect,
            flip=config.data.flip,
            seed=crop_seed(config.seed, start.epoch, device),
            enable_checkpointing=True,
            checkpoint=position,
            **_pipeline_args(config, mesh, device, plan.device_batch),
        )
        for device, device_files, position in zip(devices, files, kept, strict=True)
    ]
    weights = np.ones(order.shape, np.float32)
    done = start.step * plan.device_batch
    runs = [dali.run_pipeline(*args, done=done, remember=True) for args in zip(pipelines, files, strict=True)]
    for step, deliveries in enumerate(zip(*runs, strict=True), start.step):
        batch = _place(deliveries, images, order, weights[step], mesh)
        yield TrainBatch(batch, tuple(delivery.position for delivery in deliveries))


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
    batches = (
        _place(step, images, order, step_weights, mesh) for step, step_weights in zip(steps, weights, strict=True)
    )
    yield from prefetch(batches, config.data.prefetch)


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
    deliveries: "Sequence[dali.Delivery]", images: ImageSet, order: np.ndarray, weights: np.ndarray, mesh: Mesh
) -> Batch:
    devices = parallel.local_indices(mesh)
    # DALI numbers a device's files from 0; their place in `order` is the image's index in the data set.
    labels = [images.labels[order[:, d].flat[it.samples]] for d, it in zip(devices, deliveries, strict=True)]
    return {
        "image": parallel.shard([it.images for it in deliveries], mesh),
        "label": parallel.shard(labels, mesh),
        "weight": parallel.shard(weights[devices], mesh),
    }


def prefetch(batches: Iterator[T], depth: int) -> Iterator[T]:
    """Keeps up to `depth` batches ready, made in a background thread in their order."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as worker:
        ready = deque(worker.submit(next, batches, None) for _ in range(depth))
        while (batch := ready.popleft().result()) is not None:
            ready.append(worker.submit(next, batches, None))
            yield batch
