"""Batches on the devices, made ready ahead of the step.

A batch is {"image": uint8 [D, B, S, S, 3], "label": int32 [D, B], "weight": float32 [D, B]}, sharded over D devices.
Of several processes each decodes and places the images of its own devices.
"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax.config.derived import Plan
from rn50_jax.data.bad_images import Quarantine
from rn50_jax.data.batch import Batch, Position, TrainBatch
from rn50_jax.data.image_set import ImageSet, fingerprint
from rn50_jax.data.images.transform import eval_resize, rendering_of
from rn50_jax.data.prefetch import prefetch
from rn50_jax.data.sampler import crop_seed, eval_order, train_order
from rn50_jax.data.synthetic import synthetic_batch
from rn50_jax.distributed.devices import local_indices, shard
from rn50_jax.io.json_files import to_json
from rn50_jax.runtime.machine import dali_version

if TYPE_CHECKING:
    from rn50_jax.data import dali


def train_size(config: ConfigDict, epoch: int) -> int:
    """Height and width of the training images in an epoch (from 0), in pixels."""
    sizes = [size for first, size in config.data.image_sizes if first <= epoch]
    return int(sizes[-1] if sizes else config.data.image_size)


def train_batches(
    config: ConfigDict, images: ImageSet, plan: Plan, mesh: Mesh, start: Position, quarantine: Quarantine | None = None
) -> Generator[TrainBatch]:
    """All batches of the run from `start` on, `plan.steps_per_epoch` an epoch.

    One stream for all epochs: while the last steps and the validation of one run, the next one's files are opened.
    From a position that was kept, the stream goes on with the very bits that it would have had. An image that cannot
    be decoded goes to the `quarantine`; another one takes its place, with weight 0.
    """
    if start.step == plan.steps_per_epoch:
        start = Position(start.epoch + 1, 0)
    if config.data.backend == "synthetic":
        for epoch in range(start.epoch, config.epochs):
            batch = synthetic_batch(config, plan.device_batch, mesh, train_size(config, epoch))
            steps = plan.steps_per_epoch - (start.step if epoch == start.epoch else 0)
            yield from repeat(TrainBatch(batch, ()), steps)
        return
    bad_images = quarantine or make_quarantine(config)
    starts = chain([start], (Position(epoch, 0) for epoch in range(start.epoch + 1, config.epochs)))
    batches = (batch for start in starts for batch in _train_epoch(config, images, plan, mesh, start, bad_images))
    yield from prefetch(batches, config.data.prefetch)


def stream_facts(config: ConfigDict, images: ImageSet, plan: Plan) -> dict[str, Any]:
    """What decides the stream of an epoch: a position in it means something only where all of this is the same."""
    keys = ("backend", "image_size", "image_sizes", "crop_area", "crop_aspect", "transform", "flip", "augment")
    facts = {f"config.data.{key}": config.data[key] for key in (*keys, "randaugment")} | {
        "config.seed": config.seed,
        "the number of devices": plan.num_devices,
        "the number of images per device and update": plan.device_batch,
        "the training set": fingerprint(images),
    }
    if config.data.backend != "synthetic":
        facts["the version of DALI"] = dali_version() or _own_version()
        facts |= {f"config.data.{key}": value for key, value in rendering_of(config)._asdict().items()}
    return facts


def _own_version() -> str:
    """Of a DALI that was installed without pip, by what it says itself."""
    from rn50_jax.data import dali

    return dali.VERSION


def changed_fact(saved: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """The first of `stream_facts` that is another one now than in a checkpoint, as JSON gives it back, if any."""
    now = json.loads(to_json(facts))
    return next((name for name in now | saved if saved.get(name) != now.get(name)), None)


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


def _train_epoch(
    config: ConfigDict, images: ImageSet, plan: Plan, mesh: Mesh, start: Position, quarantine: Quarantine
) -> Iterator[TrainBatch]:
    from rn50_jax.data import dali  # a second to import, and not needed for synthetic data

    order = _order(config, images, plan, start.epoch)
    crops = dali.Crops(
        config.data.crop_area,
        config.data.crop_aspect,
        config.data.flip,
        config.data.augment,
        config.data.randaugment,
    )

    def make(device: int, indices: np.ndarray, position: bytes | None) -> Any:
        pipeline = dali.train_pipeline(
            images,
            indices,
            crops=crops,
            image_size=train_size(config, start.epoch),
            seed=crop_seed(config.seed, start.epoch, device),
            enable_checkpointing=True,
            checkpoint=position,
            **_pipeline_args(config, mesh, device, plan.device_batch),
        )
        if position is not None:
            dali.go_on(pipeline)
        return pipeline

    kept = start.pipelines or (None,) * len(local_indices(mesh))
    steps = _run(images, order, np.ones(order.shape, np.float32), mesh, make, quarantine, "train", start, kept)
    for batch, deliveries in steps:
        yield TrainBatch(batch, tuple(delivery.position for delivery in deliveries))


def eval_batches(
    config: ConfigDict, images: ImageSet, mesh: Mesh, *, epoch: int = 0, quarantine: Quarantine | None = None
) -> Iterator[Batch]:
    """Every image of the set exactly once, the last batch filled up with images of weight 0.

    Args:
      epoch: of the training run that validates, from 0.
      quarantine: of that run; images in it have weight 0.
    """
    num_devices = mesh.devices.size
    order, weights = eval_order(len(images.labels), num_devices=num_devices, device_batch=config.batch_size)
    if config.data.backend == "synthetic":
        batch = synthetic_batch(config, config.batch_size, mesh)
        devices = local_indices(mesh)
        yield from (batch | {"weight": shard(w[devices], mesh)} for w in weights)
        return
    from rn50_jax.data import dali

    def make(device: int, indices: np.ndarray, _: bytes | None) -> Any:
        return dali.eval_pipeline(
            images,
            indices,
            image_size=config.data.image_size,
            resize=eval_resize(config.data.image_size, config.data.resize),
            **_pipeline_args(config, mesh, device, config.batch_size),
        )

    bad_images = quarantine or make_quarantine(config)
    steps = _run(images, order, weights, mesh, make, bad_images, "val", Position(epoch, 0), None)
    yield from prefetch((batch for batch, _ in steps), config.data.prefetch)


def make_quarantine(config: ConfigDict, path: Path | None = None) -> Quarantine:
    """The list of bad images that the config wants, kept in `path` if there is one."""
    return Quarantine(path, policy=config.data.on_bad_file, limit=config.data.max_bad_files)


def _run(
    images: ImageSet,
    order: np.ndarray,
    weights: np.ndarray,
    mesh: Mesh,
    make: Callable[[int, np.ndarray, bytes | None], Any],
    quarantine: Quarantine,
    split: str,
    start: Position,
    kept: Sequence[bytes | None] | None,
) -> Iterator[tuple[Batch, "Sequence[dali.Delivery]"]]:
    """The batches of one epoch from all devices of this process; `kept` are the positions to go on from, if any."""
    from rn50_jax.data.device_stream import Part, first_good, stream

    if len(left_out := quarantine.left_out(split, images, start.epoch)):
        bad = np.isin(order, left_out)
        order, weights = np.where(bad, first_good(images), order), np.where(bad, np.float32(0), weights)
    devices = local_indices(mesh)
    streams = [
        stream(
            images,
            Part(order[:, device], weights[:, device]),
            partial(make, device),
            lambda index, reason: quarantine.add(split, images, index, epoch=start.epoch, reason=reason),
            start=start.step,
            position=kept[i] if kept else None,
            remember=kept is not None,
        )
        for i, device in enumerate(devices)
    ]
    for step, deliveries in enumerate(zip(*streams, strict=True), start.step):
        batch = {
            "image": shard([delivery.images for delivery in deliveries], mesh),
            "label": shard(images.labels[order[step, devices]], mesh),
            "weight": shard(weights[step, devices], mesh),
        }
        yield batch, deliveries


def _pipeline_args(config: ConfigDict, mesh: Mesh, device: int, batch_size: int) -> dict[str, Any]:
    from rn50_jax.data.dali import Decoding

    on_gpu = config.data.backend == "dali-gpu"
    ordinal = mesh.devices.flat[device].local_hardware_id if on_gpu else None
    return {
        "decoding": Decoding(config.data.transform, on_gpu, config.data.hw_decoder_load, rendering_of(config)),
        "batch_size": batch_size,
        "num_threads": config.data.workers,
        "device_id": ordinal,
    }
