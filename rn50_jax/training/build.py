"""From config to model, optimizer and state."""

from collections.abc import Callable
from functools import partial
from typing import Any

import optax
from jax.sharding import Mesh

from rn50_jax.config.derived import Plan
from rn50_jax.config.schema import Config
from rn50_jax.data.batch import Batch
from rn50_jax.data.normalize import pixel_normalization
from rn50_jax.distributed.devices import AXIS, map_over_devices
from rn50_jax.models.network import Network, part_of, parts_of
from rn50_jax.training.optim import by_part, clipped, lamb, lars, rate_factors, sgd
from rn50_jax.training.schedule import Schedule, make_schedule
from rn50_jax.training.state import TrainState, abstract_state, init_state
from rn50_jax.training.step import Metrics, train_step
from rn50_jax.training.validation import EvalStep, eval_step

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def build_optimizer(config: Config, model: Network) -> optax.GradientTransformation:
    """Returns the config's optimizer, which takes the learning rate from the step."""
    recipe = config.recipe
    shared: dict[str, Any] = {"weight_decay": recipe.weight_decay, "mask": recipe.decay_mask}
    if recipe.optimizer == "lamb":
        optimizer = lamb(beta1=recipe.beta1, beta2=recipe.beta2, eps=recipe.eps, **shared)
    elif recipe.optimizer == "lars":
        optimizer = lars(momentum=recipe.momentum, nesterov=recipe.nesterov, trust=recipe.lars_trust, **shared)
    elif recipe.optimizer == "sgd":
        optimizer = sgd(momentum=recipe.momentum, nesterov=recipe.nesterov, **shared)
    else:
        raise ValueError(f"recipe.optimizer={recipe.optimizer!r} has no optimizer")
    if recipe.clip_norm > 0:
        optimizer = clipped(optimizer, recipe.clip_norm)
    if config.finetune.lr_decay != 1 or config.finetune.lr_scales:
        factors = rate_factors(parts_of(model), decay=config.finetune.lr_decay, scales=config.finetune.lr_scales)
        optimizer = by_part(optimizer, factors, partial(part_of, model))
    return optimizer


def build_schedule(config: Config, plan: Plan) -> Schedule:
    """Returns the config's learning rate as a function of the updates done."""
    return make_schedule(
        config.recipe.schedule,
        peak=plan.peak_lr,
        warmup_epochs=config.recipe.warmup_epochs,
        epochs=config.epochs,
        steps_per_epoch=plan.steps_per_epoch,
        lr_update=config.recipe.lr_update,
        end_lr=config.recipe.end_lr,
        milestones=config.recipe.milestones,
        milestone_factor=config.recipe.milestone_factor,
        poly_power=config.recipe.poly_power,
    )


def build_state(config: Config, model: Network, *, abstract: bool = False) -> Any:
    """Makes a fresh state; with `abstract`, only its shapes and dtypes, at no cost."""
    optimizer, ema = build_optimizer(config, model), config.recipe.ema_decay > 0
    loss_scale = config.loss_scale.init if config.precision == "fp16" else 1.0
    if abstract:
        return abstract_state(model, optimizer, loss_scale=loss_scale, ema=ema)
    return init_state(model, optimizer, seed=config.seed, loss_scale=loss_scale, ema=ema)


def make_eval_step(config: Config, model: Network, *, flip_tta: bool = False, top: int = 0) -> EvalStep:
    """Returns the evaluation step of one device, the same in training and afterwards; for options see `eval_step`."""
    return partial(
        eval_step,
        model=model,
        axis_name=AXIS,
        label_smoothing=config.recipe.label_smoothing,
        flip_tta=flip_tta,
        normalization=pixel_normalization(config.data.mean, config.data.std),
        top=top,
    )


def compile_steps(config: Config, model: Network, plan: Plan, mesh: Mesh) -> tuple[TrainStep, EvalStep]:
    """Returns the training and the evaluation step over all devices; each compiles at its first call."""
    one_train_step = partial(
        train_step,
        model=model,
        optimizer=build_optimizer(config, model),
        learning_rate=build_schedule(config, plan),
        recipe=config.recipe,
        scaling=config.loss_scale if config.precision == "fp16" else None,
        normalization=pixel_normalization(config.data.mean, config.data.std),
        accumulation=plan.accumulation,
        all_reduce=config.compute.all_reduce,
        seed=config.seed,
        axis_name=AXIS,
    )
    return (
        map_over_devices(one_train_step, mesh, mode=config.compute.parallel, donate_state=True),
        map_over_devices(make_eval_step(config, model), mesh, mode=config.compute.parallel),
    )
