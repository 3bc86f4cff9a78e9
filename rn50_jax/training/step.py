"""The compiled work on one device: pure functions of (state, batch) inside a mapped axis.

A batch is {"image": uint8 [B, H, W, 3], "label": int32 [B], "weight": float32 [B]}, weight 0 marking padding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rn50_jax.config.sections.recipe import LossScaleConfig, RecipeConfig
from rn50_jax.data.batch import Batch
from rn50_jax.data.normalize import Normalization, normalize
from rn50_jax.models.network import Network, split_frozen
from rn50_jax.training.augment import draw_boxes, draw_mixing, erase, mix
from rn50_jax.training.loss_scale import all_finite, update_loss_scale
from rn50_jax.training.losses import binary_cross_entropy, cross_entropy, top_k_hits
from rn50_jax.training.optim import moving_average
from rn50_jax.training.schedule import Schedule
from rn50_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def mixup_key(seed: int, step: jax.Array | int, device: jax.Array | int) -> jax.Array:
    """Returns the key of one device's mixing in one step, split further between accumulated passes."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), device)


def _keys(seed: int, step: jax.Array, device: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For mixing and for erasing, which each device draws for itself."""
    mixing = mixup_key(seed, step, device)
    # A child of the key that no number of accumulated passes reaches.
    return mixing, jax.random.fold_in(mixing, 2**31 - 1)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Network,
    optimizer: optax.GradientTransformation,
    learning_rate: Schedule,
    recipe: RecipeConfig,
    scaling: LossScaleConfig | None,
    normalization: Normalization,
    accumulation: int,
    all_reduce: str,
    seed: int,
    axis_name: str,
) -> tuple[TrainState, Metrics]:
    """Makes one update from `accumulation` forward and backward passes over equal slices of the batch.

    Gradients, and BatchNorm's running averages unless the recipe says otherwise, are averaged over the devices of
    `axis_name`; batch statistics stay per pass and per device, or per group of them if the model has one. The model's
    frozen parts have no gradients and do not change. A step whose loss or a gradient is not finite leaves the whole
    state as it was, only the loss scale and the counts of `LossScale` move.

    Args:
      recipe: loss, mixing and averages; the rate and the optimizer are given as functions.
      scaling: None unless gradients need a loss scale (float16).
      normalization: of pixels.
      all_reduce: how gradients are averaged over the devices: "fp32"; "bf16", rounded, at half the traffic; "ordered",
        in the order of the devices, at D times the traffic, for the same bits on any division of the devices into
        processes.
      seed: of mixing and erasing.

    Returns:
      The new state and {"loss", "top1", "lr", "loss_scale"}: float32 [], {"skipped_steps", "skipped_in_a_row"}:
      int32 [], the same on every device. The loss is the objective (smoothed, unscaled); top1 a share of 1 (under
      mixup: of the first image's label); loss_scale the one that the step used.
    """
    device = lax.axis_index(axis_name)
    keys = _keys(seed, state.step, device)
    grads, batch_stats, metrics = _accumulate(
        state, batch, keys, model, recipe, normalization, accumulation, scaled=scaling is not None
    )
    grads = _mean(grads, all_reduce, axis_name)
    exact = "ordered" if all_reduce == "ordered" else "fp32"
    metrics = _mean(metrics, exact, axis_name)
    moving, still = split_frozen(batch_stats, model)  # a mean over devices might round what stays the same
    if recipe.running_average == "mean":
        moving = _mean(moving, exact, axis_name)
    else:
        moving = lax.psum(jax.tree.map(lambda x: jnp.where(device == 0, x, 0), moving), axis_name)
    batch_stats = moving | still

    lr = learning_rate(state.step)
    tx = optax.with_extra_args_support(optimizer)  # optax's own ignore the rate: theirs is a schedule or a number

    def update(state: TrainState) -> TrainState:
        trained, frozen = split_frozen(state.params, model)
        updates, opt_state = tx.update(grads, state.opt_state, trained, learning_rate=lr)
        params = optax.apply_updates(trained, updates) | frozen
        ema = state.ema
        if recipe.ema_decay:
            live = {"params": params, "batch_stats": batch_stats}
            ema = moving_average(ema, live, decay=recipe.ema_decay, updates=state.step)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.loss_scale)

    finite = all_finite((grads, metrics["loss"]))
    new_state = _update_if(finite, update, state)
    loss_scale = update_loss_scale(state.loss_scale, finite, scaling)
    metrics |= {
        "lr": lr,
        "loss_scale": state.loss_scale.value,
        "skipped_steps": loss_scale.skipped,
        "skipped_in_a_row": loss_scale.skipped_in_a_row,
    }
    return new_state._replace(loss_scale=loss_scale), metrics


def _update_if(finite: jax.Array, update: Callable[[TrainState], TrainState], state: TrainState) -> TrainState:
    """XLA on CPU updates in place in a branch, and copies momentum to select; a GPU would have to wait for the host."""

    def branch(finite: jax.Array, state: TrainState) -> TrainState:
        return lax.cond(finite, update, lambda state: state, state)

    def select(finite: jax.Array, state: TrainState) -> TrainState:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(state), state)

    new_state: TrainState = lax.platform_dependent(finite, state, cpu=branch, default=select)
    return new_state


def _mean(tree: Any, all_reduce: str, axis_name: str) -> Any:
    """Mean over devices, see `train_step`."""
    if lax.axis_size(axis_name) == 1 and all_reduce != "bf16":
        return tree  # XLA on CPU would copy it
    if all_reduce == "fp32":
        return lax.pmean(tree, axis_name)
    devices = lax.axis_size(axis_name)
    if all_reduce == "ordered":
        return jax.tree.map(lambda x: x / devices, _ordered_sum(tree, axis_name))
    rounded = lax.psum(jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree), axis_name)
    return jax.tree.map(lambda r, x: r.astype(x.dtype) / devices, rounded, tree)


def _ordered_sum(tree: Any, axis_name: str) -> Any:
    # An all-reduce adds in an order of its own, which differs between machines, and with it the last bit.
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), lax.all_gather(tree, axis_name))


def _accumulate(
    state: TrainState,
    batch: Batch,
    keys: tuple[jax.Array, jax.Array],
    model: Network,
    recipe: RecipeConfig,
    normalization: Normalization,
    accumulation: int,
    *,
    scaled: bool,
) -> tuple[Any, Any, Metrics]:
    """Mean gradients and metrics over the slices of the batch, BatchNorm's running averages after the last."""
    scale = state.loss_scale.value if scaled else None
    trained, frozen = split_frozen(state.params, model)

    def one_pass(batch_stats: Any, part: Batch, keys: tuple[jax.Array, jax.Array]) -> tuple[Any, Any, Metrics]:
        images, targets = _augment(part, keys, model, recipe, normalization)

        def loss_fn(trained: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            variables = {"params": trained | frozen, "batch_stats": batch_stats}
            with jax.named_scope("network"):  # for bench/groups.py
                logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            loss = _weighted_mean(_objective(logits, targets, recipe), part["weight"])
            top1, _ = top_k_hits(logits, part["label"], 1)
            metrics = {"loss": loss, "top1": _weighted_mean(top1, part["weight"])}
            return loss if scale is None else loss * scale, (updated.get("batch_stats", {}), metrics)

        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(trained)
        return grads, batch_stats, metrics

    if accumulation == 1:
        grads, batch_stats, metrics = one_pass(state.batch_stats, batch, keys)
    else:
        parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)
        mixing_keys, erasing_keys = (jax.random.split(key, accumulation) for key in keys)

        def body(carry: tuple[Any, Any, Metrics], xs: tuple[Batch, tuple[jax.Array, jax.Array]]) -> tuple[Any, None]:
            grads, batch_stats, metrics = one_pass(carry[1], *xs)
            return (_add(carry[0], grads), batch_stats, _add(carry[2], metrics)), None

        zeros = jax.tree.map(jnp.zeros_like, trained)
        no_metrics = {"loss": jnp.zeros(()), "top1": jnp.zeros(())}
        (grads, batch_stats, metrics), _ = lax.scan(
            body, (zeros, state.batch_stats, no_metrics), (parts, (mixing_keys, erasing_keys))
        )
        metrics = jax.tree.map(lambda x: x / accumulation, metrics)
    divisor = accumulation * (1.0 if scale is None else scale)
    if accumulation > 1 or scale is not None:
        grads = jax.tree.map(lambda g: g / divisor, grads)
    return grads, batch_stats, metrics


def _weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of [B] values with weights 0 or 1: images that stand in for bad ones do not count."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)


@jax.named_scope("augment")
def _augment(
    part: Batch, keys: tuple[jax.Array, jax.Array], model: Network, recipe: RecipeConfig, normalization: Normalization
) -> tuple[jax.Array, jax.Array]:
    """The images as the model is to see them, and their targets: class indices, or probabilities if mixed."""
    mixing_key, erasing_key = keys
    images, targets = normalize(part["image"], normalization), part["label"]
    if recipe.random_erasing > 0:
        images = erase(images, draw_boxes(erasing_key, recipe.random_erasing, images.shape[:3]))
    if recipe.mixup > 0 or recipe.cutmix > 0:
        drawn = draw_mixing(mixing_key, images.shape[:3], mixup=recipe.mixup, cutmix=recipe.cutmix)
        images, targets = mix(images, jax.nn.one_hot(targets, model.num_classes), drawn)
    return images, targets


def _objective(logits: jax.Array, targets: jax.Array, recipe: RecipeConfig) -> jax.Array:
    if recipe.loss == "bce":
        return binary_cross_entropy(logits, targets, recipe.label_smoothing, recipe.bce_threshold)
    return cross_entropy(logits, targets, recipe.label_smoothing)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
