"""The loader alone, beside a PyTorch DataLoader on the same files: images per second and processor time per image."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rn50_jax.bench import stats
from rn50_jax.bench.compiled import num_classes
from rn50_jax.bench.cpu_time import time_batches
from rn50_jax.bench.device import describe_hardware, find_local_devices
from rn50_jax.bench.record import Record
from rn50_jax.bench.report import make_header
from rn50_jax.bench.trials import Found, Terms, describe, run_trials, trial_names
from rn50_jax.config.derived import Plan, make_plan
from rn50_jax.config.loading import from_saved
from rn50_jax.config.schema import Config
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.loader import train_batches
from rn50_jax.distributed.devices import make_mesh
from rn50_jax.runtime import jax_setup
from rn50_jax.runtime.machine import dali_version

OURS, TORCH = "rn50_jax loader", "torch DataLoader"


@contextmanager
def open_loader(config: Config, images: ImageSet, plan: Plan, mesh: Mesh, steps: int) -> Iterator[Iterator[Any]]:
    """Gives the batches of training as a run has them, at least so many, over however many epochs that takes."""
    batches = train_batches(
        images,
        config.data,
        mesh,
        seed=config.seed,
        num_classes=num_classes(config),
        epochs=max(config.epochs, steps // plan.steps_per_epoch + 3),
        steps_per_epoch=plan.steps_per_epoch,
        device_batch=plan.device_batch,
    )
    with closing(batches):
        yield batches


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs one trial of our own loader: makes batches, places them on the devices, and drops them."""
    config = from_saved(spec["config"], source="the trial").config
    jax_setup.prepare_runtime(config.data.backend, config.compute.xla_flags)
    devices = find_local_devices(spec["device"])
    images = open_dataset(config, need_val=False).train
    plan = make_plan(config, num_images=len(images.labels), num_devices=len(devices))
    steps = spec["warmup"] + spec["steps"]
    with open_loader(config, images, plan, make_mesh(devices), steps) as batches:
        timed = time_batches(
            batches,
            steps=spec["steps"],
            warmup=spec["warmup"],
            wait=lambda batch: jax.block_until_ready(batch.batch),
        )
    dali = dali_version() or "unknown"
    return timed | {
        "images": spec["steps"] * plan.global_batch,
        "header": make_header(spec["command"], devices),
        "about": f"{config.data.backend}, DALI {dali}, {config.data.workers} threads per device, "
        f"{len(devices)} x {describe_hardware(devices)['device']}",
    }


def measure_input(config: Config, record: Record, terms: Terms) -> None:
    """Times both loaders in turns, each trial in a process of its own.

    Both decode the same files to uint8 batches of the config's crop, size and flip; the DataLoader's with Pillow in
    `data.workers` processes, and without placing them on a device.

    Into the record's "input" go the setting, what the files are like, and "programs": images_per_second and
    cpu_ms_per_image by trial, their median and extremes, and ours over theirs.

    Raises:
      UserError: the data cannot be used, or the first trial of ours failed.
    """
    images = open_dataset(config, need_val=False).train
    shared = terms._asdict() | {"config": config.to_dict()}
    theirs = shared | {"kind": "torch-loader", "folder": str(config.data.root / "train")}
    programs = {OURS: shared | {"kind": "loader"}, TORCH: theirs | {"workers": config.data.workers}}
    setting = {
        "dir": str(config.data.dir),
        "files": describe_files(images),
        "batch_size": config.batch_size,
        "image_size": config.data.image_size,
        "workers": config.data.workers,
        "steps": terms.steps,
        "rounds": terms.trials,
    }
    record.plan(trial_names("input", list(programs), terms.trials), single=False)

    def parts(found: Found) -> dict[str, Any]:
        header = found[OURS]["trials"][0]["header"] if found[OURS]["trials"] else {}
        return {"input": setting | {"programs": summarize(found)}} | header

    run_trials("input", programs, record, terms, parts=parts)


def describe_files(images: ImageSet, sample: int = 2000) -> dict[str, float]:
    """Returns the number of images, and mean and median bytes of an evenly spread sample."""
    every = max(len(images.files) // sample, 1)
    if images.members is None:
        sizes = [Path(file).stat().st_size for file in images.files[::every]]
    else:
        sizes = [int(size) for size in images.members.size[::every]]
    return {
        "images": len(images.labels),
        "mean_bytes": float(np.mean(sizes)),
        "median_bytes": float(np.median(sizes)),
    }


def summarize(found: Found) -> list[dict[str, Any]]:
    """Returns what `trials.run_trials` found, as speeds, processor time and ratios."""
    result = []
    ours: dict[str, list[float]] = {}
    for entry, reports in describe(found):
        result.append(entry)
        if not reports:
            continue
        measures = {
            "images_per_second": [report["images"] / report["seconds"] for report in reports],
            "cpu_ms_per_image": [1000 * report["cpu_seconds"] / report["images"] for report in reports],
        }
        entry["about"] = reports[-1]["about"]
        for key, values in measures.items():
            entry[key] = {"rounds": values, **stats.spread_of(values)}
            if ours:
                entry[f"ours_over_it_{key}"] = stats.ratios(ours[key], values)
        ours = measures if entry["name"] == OURS else ours
    return result
