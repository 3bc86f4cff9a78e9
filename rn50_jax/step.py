"""The compiled work on one device: pure functions of (state, batch) inside a mapped axis.

A batch is {"image": uint8 [B, H, W, 3], "label": int32 [B], "weight": float32 [B]}, weight 0 marking padding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rn50_jax.augment import draw_mixup, mixup, normalise
from rn50_jax.losses import cross_entropy, top_k_hits
from rn50_jax.models.resnet import ResNet
from rn50_jax.optim import Schedule
from rn50_jax.precision import Scaling, all_finite, update_loss_scale
from rn50_jax.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainOptions(NamedTuple):
    """What of the recipe acts inside the step.

    mixup_draw: "device", each device and pass draws its own mixing, or "global", all devices the same.
    running_average: "mean" averages BatchNorm's running statistics over the devices, "first" keeps device 0's.
    scaling: None unless gradients need a loss scale (float16).
    """

    label_smoothing: float
    mixup: float
    mixup_draw: str
    running_average: str
    accumulation: int
    scaling: Scaling | None
    seed: int


def mixup_key(seed: int, step: jax.Array | int, device: jax.Array | int) -> jax.Array:
    """The key of one device's mixing in one step, split further between accumulated passes."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), device)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ResNet,
    optimizer: optax.GradientTransformation,
    learning_rate: Schedule,
    options: TrainOptions,
    axis_name: str,
) -> tuple[TrainState, Metrics]:
    """One update from `options.accumulation` forward and backward passes over equal slices of the batch.

    Gradients, and BatchNorm's running averages unless `options` says otherwise, are averaged over the devices of
    `axis_name`; batch statistics stay per device and pass, as in the reference. With `options.scaling`, a step with
    a gradient that is not finite leaves the whole state as it was, only the loss scale moves.

    Returns:
      The new state and {"loss", "top1", "lr"}: float32 [], the same on every device; with scaling also "loss_scale"
      and "skipped_steps". The loss is the objective (smoothed, unscaled); top1 a share of 1 (under mixup: of the first
      image's label).
    """
    device = lax.axis_index(axis_name)
    key = mixup_key(options.seed, state.step, device if options.mixup_draw == "device" else 0)
    grads, batch_stats, metrics = _accumulate(state, batch, key, model, options)
    grads, metrics = lax.pmean((grads, metrics), axis_name)
    if options.running_average == "mean":
        batch_stats = lax.pmean(batch_stats, axis_name)
    else:
        batch_stats = lax.psum(jax.tree.map(lambda x: jnp.where(device == 0, x, 0), batch_stats), axis_name)

    lr = learning_rate(state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda w, u: w - lr * u, state.params, updates)
    new_state = TrainState(state.step + 1, params, batch_stats, opt_state, state.loss_scale)
    metrics["lr"] = lr
    if options.scaling is not None:
        finite = all_finite(grads)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        loss_scale = update_loss_scale(state.loss_scale, finite, options.scaling)
        new_state = new_state._replace(loss_scale=loss_scale)
        metrics |= {"loss_scale": state.loss_scale.value, "skipped_steps": loss_scale.skipped}
    return new_state, metrics


def _accumulate(
    state: TrainState, batch: Batch, key: jax.Array, model: ResNet, options: TrainOptions
) -> tuple[Any, Any, Metrics]:
    """Mean gradients and metrics over the slices of the batch, BatchNorm's running averages after the last."""
    scale = state.loss_scale.value if options.scaling is not None else None

    def one_pass(batch_stats: Any, part: Batch, key: jax.Array) -> tuple[Any, Any, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            images, targets = normalise(part["image"]), part["label"]
            if options.mixup > 0:
                one_hot = jax.nn.one_hot(targets, model.num_classes)
                images, targets = mixup(images, one_hot, *draw_mixup(key, options.mixup, images.shape[0]))
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
            )
            loss = jnp.mean(cross_entropy(logits, targets, options.label_smoothing))
            top1, _ = top_k_hits(logits, part["label"], 1)
            metrics = {"loss": loss, "top1": jnp.mean(top1.astype(jnp.float32))}
            return loss if scale is None else loss * scale, (updated["batch_stats"], metrics)

        grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        return grads, batch_stats, metrics

    if options.accumulation == 1:
        grads, batch_stats, metrics = one_pass(state.batch_stats, batch, key)
    else:
        parts = jax.tree.map(lambda x: x.reshape(options.accumulation, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, options.accumulation)

        def body(carry: tuple[Any, Any, Metrics], xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            grads, batch_stats, metrics = one_pass(carry[1], *xs)
            return (_add(carry[0], grads), batch_stats, _add(carry[2], metrics)), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        no_metrics = {"loss": jnp.zeros(()), "top1": jnp.zeros(())}
        (grads, batch_stats, metrics), _ = lax.scan(body, (zeros, state.batch_stats, no_metrics), (parts, keys))
        metrics = jax.tree.map(lambda x: x / options.accumulation, metrics)
    divisor = options.accumulation * (1.0 if scale is None else scale)
    if options.accumulation > 1 or scale is not None:
        grads = jax.tree.map(lambda g: g / divisor, grads)
    return grads, batch_stats, metrics


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def eval_step(
    state: TrainState, batch: Batch, *, model: ResNet, axis_name: str, label_smoothing: float = 0.0
) -> Metrics:
    """Sums over the real images of all devices' batches, with the running BatchNorm statistics.

    Returns:
      {"loss", "top1", "top5", "images"}: float32 [], weighted sums; loss is plain cross-entropy. With
      `label_smoothing` also "loss_smoothed".
    """
    logits = _logits(state, batch["image"], model)
    top1, top5 = top_k_hits(logits, batch["label"], 5)
    weight = batch["weight"]

    def loss(smoothing: float) -> jax.Array:
        # A padded image may give any loss, infinities included: select, do not multiply.
        return jnp.sum(jnp.where(weight > 0, cross_entropy(logits, batch["label"], smoothing), 0.0))

    sums = {
        "loss": loss(0.0),
        "top1": jnp.sum(weight * top1),
        "top5": jnp.sum(weight * top5),
        "images": jnp.sum(weight),
    }
    if label_smoothing:
        sums["loss_smoothed"] = loss(label_smoothing)
    return lax.psum(sums, axis_name)


def predict_step(state: TrainState, batch: Batch, *, model: ResNet, axis_name: str) -> jax.Array:
    """Class probabilities, float32 [B, K]."""
    del axis_name  # every device answers for its own images
    return jax.nn.softmax(_logits(state, batch["image"], model))


def _logits(state: TrainState, images: jax.Array, model: ResNet) -> jax.Array:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits: jax.Array = model.apply(variables, normalise(images), train=False)
    return logits
