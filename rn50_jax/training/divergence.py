"""Warnings and ends of runs that go wrong: skipped steps, devices that differ, too little memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import jax

from rn50_jax.config.derived import Plan
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.sampler import train_order
from rn50_jax.errors import RunStopped
from rn50_jax.io.json_files import to_json
from rn50_jax.io.lines import Appended
from rn50_jax.io.messages import warn

SKIPPED = "left_out.jsonl"


def files_of_step(images: ImageSet, plan: Plan, step: int, *, seed: int) -> list[str]:
    """Returns the images of the update with number `step` of the run (from 0), over all devices; none if synthetic."""
    if not images.files:
        return []
    epoch, step = divmod(step, plan.steps_per_epoch)
    shape = {"steps": plan.steps_per_epoch, "num_devices": plan.num_devices, "device_batch": plan.device_batch}
    order = train_order(len(images.files), **shape, seed=seed, epoch=epoch)
    return [images.files[index] for index in order[step].flat]


def note_skipped_steps(workdir: Path, files: Mapping[int, Sequence[str]], scaling: str | None) -> None:
    """Appends the images of skipped steps to a file in the work folder, {"step", "files"} a line.

    The user is told, unless overflows are part of training: where a loss scale is tried out.

    Args:
      files: the images by number of the step, counted from 1 as in the metrics.
      scaling: of float16, "static" or "dynamic"; None without a loss scale.
    """
    path = workdir / SKIPPED
    try:
        with closing(Appended(path, lines=True)) as file:
            for step, names in files.items():
                file.write_line(to_json({"step": step, "files": list(names)}))
    except OSError as error:
        warn(f"{path} cannot be written: {error.strerror}")
    if scaling != "dynamic":
        which = ", ".join(map(str, list(files)[:5])) + (" ..." if len(files) > 5 else "")
        warn(f"step {which}: the loss or a gradient was not finite, nothing was changed; images in {path}")


def stop_if_diverging(
    workdir: Path, step: int, summary: Mapping[str, float], *, limit: int, scaling: str | None
) -> None:
    """Ends a run that only skips steps.

    Args:
      summary: of `Meters.summary`.
      limit: `run.max_skipped_steps`.
      scaling: as in `note_skipped_steps`.

    Raises:
      RunStopped: so many steps in a row were skipped.
    """
    skipped = int(summary["train.skipped_in_a_row"])
    if skipped < limit:
        return
    scale = f" and a loss scale of {summary['train.loss_scale']:g}" if "train.loss_scale" in summary else ""
    fix = "lower config.recipe.lr, warm up for longer"
    if scaling:
        fix += ", use config.loss_scale.mode='dynamic'" if scaling == "static" else ", use bf16"
    raise RunStopped(
        f"by step {step}, the loss or a gradient was not finite in {skipped} steps in a row (run.max_skipped_steps="
        f"{limit}), at a learning rate of {summary['lr']:g}{scale}. These steps changed "
        f"nothing; to get beyond: {fix}, or look at the images in {workdir / SKIPPED}"
    )


def stop_if_devices_differ(difference: str | None, step: int) -> None:
    """Ends a run whose devices no longer have the same state, so that one of them computes wrongly.

    Args:
      difference: of `devices.find_divergence`.

    Raises:
      RunStopped: there is one.
    """
    if difference:
        raise RunStopped(
            f"the devices diverged by step {step}: {difference}; a device or its memory may be faulty; run the same "
            "command again to go on from the last checkpoint"
        )


@contextmanager
def explaining_memory(batch_size: int, image_size: int, precision: str) -> Iterator[None]:
    """Turns a device's lack of memory into advice.

    Args:
      batch_size: images per device; image_size: pixels; precision: of the config.

    Raises:
      RunStopped: naming the batch size and what takes less.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cause = (str(error).splitlines() or ["the host's"])[0][:200]
        raise RunStopped(
            f"out of memory with config.batch_size={batch_size} images of {image_size} px per "
            f"device in {precision} ({cause}). Use a smaller config.batch_size, with "
            "config.recipe.optimizer_batch_size set to the global batch of now to keep the update; precision bf16; or, "
            "if other programs share the GPU, or DALI does, the environment variable XLA_PYTHON_CLIENT_MEM_FRACTION"
        ) from error
