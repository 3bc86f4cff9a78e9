"""Real training steps from real files, beside the same steps on synthetic data."""

import time
from typing import Any

import jax

from rn50_jax.bench import stats, timing
from rn50_jax.bench.input_pipeline import open_loader
from rn50_jax.bench.record import Record
from rn50_jax.bench.report import make_header
from rn50_jax.bench.trials import Terms
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.synthetic import synthetic_batch
from rn50_jax.distributed.devices import make_mesh, replicate
from rn50_jax.io.messages import warn
from rn50_jax.runtime import jax_setup
from rn50_jax.training.build import build_state, compile_steps
from rn50_jax.training.divergence import explaining_memory


def measure_end_to_end(config: Config, devices: list[jax.Device], record: Record, terms: Terms) -> None:
    """Times `steps` steps on a synthetic batch and on the loader's in turns; two steps queued, as in training.

    Into the record's "end_to_end" go, after each trial, for each kind images_per_second by trial (all images over all
    time), median and extremes; "ratio", real over synthetic by trial; "waiting", the share of the real trials' time
    spent waiting for the loader; and the seconds that the trials took.

    Raises:
      UserError: the data cannot be used.
      RunStopped: a device's memory is too small.
    """
    if hint := jax_setup.share_beside_dali(config.data.backend, devices[0].platform):
        warn(hint)
    dataset = open_dataset(config, need_val=False)
    plan = make_plan(config, num_images=len(dataset.train.labels), num_devices=len(devices))
    trials = [f"end to end, trial {number} of {terms.trials}" for number in range(1, terms.trials + 1)]
    record.plan(trials, single=False, **make_header(terms.command, devices))
    mesh = make_mesh(devices)
    model = build_model(config, num_classes=len(dataset.class_names), platform=devices[0].platform)
    step, _ = compile_steps(config, model, plan, mesh)
    synthetic = synthetic_batch(
        mesh,
        device_batch=plan.device_batch,
        image_size=config.data.image_size,
        num_classes=len(dataset.class_names),
        seed=config.seed,
    )
    state = replicate(build_state(config, model), mesh)
    found: dict[str, list[float]] = {"synthetic": [], "real": [], "waiting": [], "seconds": []}
    total = (terms.warmup + terms.steps) * terms.trials
    with (
        open_loader(config, dataset.train, plan, mesh, total) as batches,
        explaining_memory(config.batch_size, config.data.image_size, config.precision),
    ):
        waited = 0.0

        def synthetic_step() -> Any:
            nonlocal state
            state, metrics = step(state, synthetic)
            return metrics

        def real_step() -> Any:
            nonlocal state, waited
            start = time.perf_counter()
            batch = next(batches).batch
            waited += time.perf_counter() - start
            state, metrics = step(state, batch)
            return metrics

        timing.time_queued(synthetic_step, 1)
        for text in trials:
            if not record.begins(text):
                continue
            record.tell(text)
            start = time.perf_counter()
            for name, one_step in (("synthetic", synthetic_step), ("real", real_step)):
                # The loader has worked ahead while others were timed: the warm-up uses that up.
                timing.time_queued(one_step, max(terms.warmup, 1))
                waited = 0.0
                seconds = sum(timing.time_queued(one_step, terms.steps))
                found[name].append(plan.global_batch * terms.steps / seconds)
                if name == "real":
                    found["waiting"].append(waited / seconds)
            found["seconds"].append(time.perf_counter() - start)
            record.done(text, end_to_end=_describe(config, len(devices), terms, found))


def _describe(config: Config, devices: int, terms: Terms, found: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "mode": "end-to-end",
        "arch": config.model.arch,
        "precision": config.precision,
        "image_size": config.data.image_size,
        "batch_size_per_device": config.batch_size,
        "num_devices": devices,
        "backend": config.data.backend,
        "workers": config.data.workers,
        "steps": terms.steps,
        "rounds": terms.trials,
        "images_per_second": {"rounds": list(found["real"]), **stats.spread_of(found["real"])},
        "images_per_second_synthetic": {"rounds": list(found["synthetic"]), **stats.spread_of(found["synthetic"])},
        "ratio": stats.ratios(found["real"], found["synthetic"]),
        "waiting": stats.spread_of(found["waiting"]),
        "seconds": list(found["seconds"]),
    }
