"""The numbers that follow from a config, the training set and the devices."""

from typing import NamedTuple

from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.io.text import counted


class Plan(NamedTuple):
    """Batches, steps and the learning rate of a run."""

    num_devices: int
    accumulation: int  # forward passes per update
    device_batch: int  # images per device and update
    global_batch: int  # images per update
    steps_per_epoch: int
    total_steps: int
    peak_lr: float


def make_plan(config: Config, *, num_images: int, num_devices: int) -> Plan:
    """Derives batch, steps and learning rate; refuses combinations that cannot work.

    An epoch has floor(images / global batch) updates, and at most `run.prof`; what remains differs from epoch to epoch.
    """
    forward_batch = config.batch_size * num_devices
    target = config.recipe.optimizer_batch_size or forward_batch
    if num_images < max(target, forward_batch):
        largest = num_images // num_devices
        if not largest:
            fix = f"use at most {counted(num_images, 'device')}"
        elif num_images >= forward_batch:
            fix = f"use --config.recipe.optimizer_batch_size={forward_batch}, or 0 for no accumulation"
        else:
            fix = f"use --config.batch_size={largest} or less"
            fix += " and --config.recipe.optimizer_batch_size=0" if config.recipe.optimizer_batch_size else ""
        too_many = max(target, forward_batch)
        raise UserError(f"{counted(num_images, 'training image')} cannot fill one global batch of {too_many}; {fix}")
    if target % forward_batch:
        below = target // forward_batch * forward_batch
        options = f"{below} or {below + forward_batch}" if below else f"{forward_batch}"
        raise UserError(
            f"config.recipe.optimizer_batch_size={target} is not a multiple of batch_size {config.batch_size} x "
            f"{counted(num_devices, 'device')} = {forward_batch}; use {options}, or 0 for no accumulation"
        )
    group = config.recipe.bn_group
    if group and num_devices % group:
        raise UserError(
            f"config.recipe.bn_group={group} does not divide {counted(num_devices, 'device')}; use 1 or 0 (all)"
        )
    steps_per_epoch = min(num_images // target, config.run.prof or num_images)
    if steps_per_epoch * config.epochs >= 2**31:
        raise UserError(
            f"config.epochs={config.epochs} of {counted(steps_per_epoch, 'step')} are more than the 2**31 "
            "steps that are counted; use fewer epochs"
        )
    scale = target / config.recipe.lr_batch_size if config.recipe.lr_batch_size else 1.0
    return Plan(
        num_devices=num_devices,
        accumulation=target // forward_batch,
        device_batch=target // num_devices,
        global_batch=target,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * config.epochs,
        peak_lr=config.recipe.lr * scale,
    )
