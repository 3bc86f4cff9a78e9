"""What a run that goes wrong tells its user."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import jax
from ml_collections import ConfigDict

from rn50_jax.config.derived import Plan
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.sampler import train_order
from rn50_jax.errors import RunStopped
from rn50_jax.io.files import to_json
from rn50_jax.io.lines import LineFile
from rn50_jax.io.messages import warn
from rn50_jax.training.context import Setup

LEFT_OUT = "left_out.jsonl"


def note_steps_left_out(setup: Setup, steps: Sequence[int]) -> None:
    """Writes the images of steps without finite gradients to `left_out.jsonl` in the work folder, a line a step.

    A line is {"step", "files"}; a step is counted from 1 as in the metrics. With a loss scale that is tried out,
    overflows are part of training; otherwise the user is told.
    """
    config, path = setup.config, setup.workdir / LEFT_OUT
    train, plan = setup.dataset.train, setup.plan
    lines = [{"step": step + 1, "files": files_of_step(train, plan, step, seed=config.seed)} for step in steps]
    try:
        with closing(LineFile(path)) as file:
            for line in lines:
                file.write(to_json(line))
    except OSError as error:
        warn(f"{path} cannot be written: {error.strerror}")
    if not (config.precision == "fp16" and config.loss_scale.mode == "dynamic"):
        which = ", ".join(str(step + 1) for step in steps[:5]) + (" ..." if len(steps) > 5 else "")
        warn(f"step {which}: the loss or a gradient was not finite, nothing was changed; images in {path}")


def files_of_step(images: ImageSet, plan: Plan, step: int, *, seed: int) -> list[str]:
    """Returns the images of the update with number `step` of the run (from 0), over all devices; none if synthetic."""
    if not images.files:
        return []
    epoch, step = divmod(step, plan.steps_per_epoch)
    shape = {"steps": plan.steps_per_epoch, "num_devices": plan.num_devices, "device_batch": plan.device_batch}
    order = train_order(len(images.files), **shape, seed=seed, epoch=epoch)
    return [images.files[index] for index in order[step].flat]


def stop_if_diverging(setup: Setup, step: int, summary: dict[str, float]) -> None:
    """Ends a run that only leaves out steps.

    Raises:
      RunStopped: after `run.max_skipped_steps` in a row.
    """
    config = setup.config
    skipped = int(summary["train.skipped_in_a_row"])
    if skipped < config.run.max_skipped_steps:
        return
    scale = f" and a loss scale of {summary['train.loss_scale']:g}" if "train.loss_scale" in summary else ""
    fix = "lower config.recipe.lr, warm up for longer"
    if config.precision == "fp16":
        fix += ", use config.loss_scale.mode='dynamic'" if config.loss_scale.mode == "static" else ", use bf16"
    raise RunStopped(
        f"by step {step}, the loss or a gradient was not finite in {skipped} steps in a row (run.max_skipped_steps="
        f"{config.run.max_skipped_steps}), at a learning rate of {summary['lr']:g}{scale}. These steps changed "
        f"nothing; to get beyond: {fix}, or look at the images in {setup.workdir / LEFT_OUT}"
    )


@contextmanager
def telling_of_memory(config: ConfigDict) -> Iterator[None]:
    """Turns a device's lack of memory into advice.

    Raises:
      RunStopped: naming the batch size and what takes less.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = (str(error).splitlines() or ["the host's"])[0][:200]
        raise RunStopped(
            f"out of memory with config.batch_size={config.batch_size} images of {config.data.image_size} px per "
            f"device in {config.precision} ({told}). Use a smaller config.batch_size, with "
            "config.recipe.optimizer_batch_size set to the global batch of now to keep the update; precision bf16; or, "
            "if other programs share the GPU, or DALI does, the environment variable XLA_PYTHON_CLIENT_MEM_FRACTION"
        ) from error
