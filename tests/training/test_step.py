"""What the steps do with overflow, mixing, several devices and padding; their numbers are those of test_parity."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict
from helpers.parity import load
from helpers.tiny import (
    CLASSES,
    OPTIONS,
    STATIC,
    VARIANT,
    assert_same_bits,
    make_batch,
    make_model,
    make_state,
    make_step,
    place,
)
from torch_reference import ResNet as TorchResNet
from torch_reference import normalize

from rn50_jax.data.normalize import normalize as normalize_pixels
from rn50_jax.distributed import devices as parallel
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices
from rn50_jax.inference.predict_step import predict_step
from rn50_jax.training.optim import decay_mask
from rn50_jax.training.state import init_state, variables_of
from rn50_jax.training.step import train_step
from rn50_jax.training.validation import eval_step


@pytest.mark.parametrize("dynamic", [False, True])
def test_overflow_changes_nothing_but_the_scale(dynamic: bool) -> None:
    model = make_model("fp16")
    options = OPTIONS.replace(scaling=STATIC.replace(mode="dynamic" if dynamic else "static"), ema_decay=0.99)
    step, replicate = make_step(model, 2, options)
    before = jax.device_get(make_state(model, loss_scale=2.0**24, ema=True))
    state, metrics = step(replicate(before), place(make_batch(2, 4)))
    after = jax.device_get(state)
    assert_same_bits(before._replace(loss_scale=None), after._replace(loss_scale=None))
    assert float(after.loss_scale.value) == 2.0 ** (23 if dynamic else 24)
    assert [int(x) for x in after.loss_scale[1:]] == [0, 1, 1]
    assert np.isfinite(float(metrics["loss"]))
    assert int(metrics["skipped_steps"]) == int(metrics["skipped_in_a_row"]) == 1
    assert float(metrics["lr"]) == pytest.approx(0.1)


def test_any_optimizer_of_optax_can_train() -> None:
    model, adamw, mesh = make_model(), optax.adamw(0.01, weight_decay=0.1), make_mesh(jax.devices()[:1])
    rest = {"learning_rate": optax.constant_schedule(0.01), "axis_name": AXIS} | OPTIONS._asdict()
    step = map_over_devices(partial(train_step, model=model, optimizer=adamw, **rest), mesh, mode="pmap")
    before = jax.device_get(init_state(model, adamw, seed=0, loss_scale=1.0))
    after = jax.device_get(step(before, place(make_batch(1, 8)))[0])
    # Adam's first direction is the gradient's sign, and nothing where there is no gradient; weights shrink by 0.001.
    moved = jax.tree.map(lambda new, old: (old * 0.999 - new) / 0.01, after.params, before.params)
    size = np.abs(np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]))
    assert np.mean(np.abs(size - 1) < 1e-3) > 0.9 and size.max() < 1.001


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_that_is_not_finite_is_left_out_and_counted_in_any_precision(precision: str) -> None:
    model = make_model(precision)
    step, replicate = make_step(model, 2)
    state = replicate(make_state(model))
    good, bad = make_batch(2, 4), make_batch(2, 4)
    bad["image"] = np.where(np.arange(2)[:, None, None, None, None] == 1, np.float32(np.nan), bad["image"])
    in_a_row = []
    for batch in (good, bad, bad, good, bad):
        before = jax.device_get(state)
        state, metrics = step(state, place(batch | {"image": batch["image"].astype(np.float32)}))
        in_a_row.append(int(metrics["skipped_in_a_row"]))
        if batch is bad:  # one device alone saw it, and none moves
            assert_same_bits(before._replace(loss_scale=None), jax.device_get(state)._replace(loss_scale=None))
    assert in_a_row == [0, 1, 2, 0, 1]
    assert (int(state.step), int(metrics["skipped_steps"])) == (2, 3)


def test_moving_averages_follow_the_state() -> None:
    model = make_model()
    step, replicate = make_step(model, 2, OPTIONS.replace(ema_decay=0.25))
    state = replicate(make_state(model, ema=True))
    wanted = jax.device_get(state.ema)
    for number, decay in enumerate((0.1, 2 / 11, 0.25, 0.25)):  # (1 + t) / (10 + t), up to the limit
        state, _ = step(state, place(make_batch(2, 4, seed=number)))
        live = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        wanted = jax.tree.map(lambda a, x, d=decay: d * a + (1 - d) * x, wanted, live)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), jax.device_get(state.ema), wanted)


def test_gradients_may_travel_in_bfloat16() -> None:
    model, batch = make_model(), make_batch(1, 8)
    results = {}
    for dtype in ("fp32", "bf16"):
        step, replicate = make_step(model, 1, OPTIONS.replace(all_reduce=dtype), lr=1.0)
        state = replicate(make_state(model))
        text = step.lower(state, place(batch)).as_text()
        reduced = re.findall(r"all_reduce.*?\(tensor<[^>]*x(\w+)>\) ->", text, re.DOTALL)
        assert ("bf16" in reduced) == (dtype == "bf16")
        after, _ = step(state, place(batch))
        results[dtype] = jax.device_get(after.opt_state[1].trace)
    params = jax.device_get(make_state(model).params)
    decayed = jax.tree.map(lambda w, keep: 1e-3 * w * keep, params, decay_mask(params))
    wanted = jax.tree.map(
        lambda v, d: np.asarray(jnp.asarray(v - d).astype(jnp.bfloat16), np.float32) + d, results["fp32"], decayed
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=8e-3, atol=1e-7), results["bf16"], wanted)


@pytest.mark.slow
def test_loss_scale_does_not_change_the_gradients() -> None:
    results = []
    for scale in (1.0, 256.0):
        model = make_model("fp16")
        step, replicate = make_step(model, 1, OPTIONS.replace(scaling=STATIC))
        state, _ = step(replicate(make_state(model, loss_scale=scale)), place(make_batch(1, 8)))
        assert int(state.step) == 1
        results.append(flatten_dict(jax.device_get(state.params))[("fc", "kernel")])
    np.testing.assert_allclose(*results, atol=2e-4)


def test_dynamic_scale_grows_after_good_steps() -> None:
    model = make_model("fp16")
    options = OPTIONS.replace(scaling=STATIC.replace(mode="dynamic"))
    step, replicate = make_step(model, 1, options, lr=0.0)
    state = replicate(make_state(model, loss_scale=8.0))
    values = []
    for _ in range(4):
        state, _ = step(state, place(make_batch(1, 4)))
        values.append(float(state.loss_scale.value))
    assert values == [8.0, 16.0, 16.0, 32.0]


@pytest.mark.slow
def test_mixup_is_a_function_of_seed_and_step() -> None:
    model = make_model()
    first, replicate = make_step(model, 2, OPTIONS.replace(mixup=0.4, seed=0), lr=0.0)
    other, _ = make_step(model, 2, OPTIONS.replace(mixup=0.4, seed=1), lr=0.0)

    def losses(step: Callable[..., Any]) -> list[float]:
        state, result = replicate(make_state(model)), []
        for _ in range(2):
            state, metrics = step(state, place(make_batch(2, 4)))
            result.append(float(metrics["loss"]))
        return result

    # The weights stand still (learning rate 0): only the mixing can tell steps and seeds apart.
    assert losses(first) == losses(first)
    assert losses(first)[0] != losses(first)[1]
    assert losses(first)[0] != losses(other)[0]


@pytest.mark.slow
def test_each_device_draws_its_own_mixing() -> None:
    # All devices hold the same images, so they would find the loss of a single one if they mixed them alike.
    model, losses, batch = make_model(), [], make_batch(1, 4)
    for devices in (1, 2):
        step, replicate = make_step(model, devices, OPTIONS.replace(mixup=0.4))
        copies = {name: np.repeat(value, devices, axis=0) for name, value in batch.items()}
        _, metrics = step(replicate(make_state(model)), place(copies))
        losses.append(float(metrics["loss"]))
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_running_averages_are_those_of_all_devices_or_the_first() -> None:
    model, batch = make_model(), make_batch(2, 4)

    def averages(num_devices: int, rule: str, *batches: dict[str, np.ndarray]) -> list[Any]:
        step, replicate = make_step(model, num_devices, OPTIONS.replace(running_average=rule))
        states = [step(replicate(make_state(model)), place(part))[0] for part in batches]
        return [jax.device_get(state.batch_stats) for state in states]

    one, two = averages(1, "mean", *({name: value[[d]] for name, value in batch.items()} for d in range(2)))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, one, two)
    for rule, wanted in (("mean", mean), ("first", one)):
        (found,) = averages(2, rule, batch)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


def test_evaluation_counts_real_images_only() -> None:
    model = make_model()
    state = make_state(model)
    mesh = parallel.make_mesh(jax.devices()[:2])
    one_step = partial(eval_step, model=model, axis_name=parallel.AXIS, label_smoothing=0.1)
    step = parallel.map_over_devices(one_step, mesh, mode="pmap")
    batch = make_batch(2, 4)
    batch["weight"][1, 2:] = 0
    sums = step(parallel.replicate(variables_of(state)["val"], mesh), place(batch))

    net = TorchResNet(VARIANT.stages, VARIANT.bottleneck, CLASSES, width=8)
    load(net, state.params, state.batch_stats)
    with torch.no_grad():
        logits = net.eval()(normalize(batch["image"].reshape(8, 32, 32, 3)[:6]))
    labels = torch.from_numpy(batch["label"].reshape(8)[:6]).long()
    assert float(sums["images"]) == 6
    for name, smoothing in (("loss", 0.0), ("loss_smoothed", 0.1)):
        wanted = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum").item()
        assert float(sums[name]) == pytest.approx(wanted, rel=1e-4)
    assert float(sums["top1"]) == (logits.argmax(1) == labels).sum().item()
    assert float(sums["top5"]) == 6  # there are five classes


def test_padding_that_overflows_does_not_reach_the_sums() -> None:
    model = make_model()
    state = make_state(model)
    state.params["fc"]["kernel"] = state.params["fc"]["kernel"] * np.float32(1e38)
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = parallel.map_over_devices(partial(eval_step, model=model, axis_name=parallel.AXIS), mesh, mode="pmap")
    batch = make_batch(1, 2)
    batch["weight"][:] = 0
    sums = step(parallel.replicate(variables_of(state)["val"], mesh), place(batch))
    assert {name: float(value) for name, value in sums.items()} == {"loss": 0, "top1": 0, "top5": 0, "images": 0}


def test_predictions_stay_on_their_device() -> None:
    model = make_model()
    mesh = parallel.make_mesh(jax.devices()[:2])
    step = partial(predict_step, model=model, axis_name=parallel.AXIS)
    state = parallel.replicate(variables_of(make_state(model))["val"], mesh)
    batch = place(make_batch(2, 3))
    results = [
        parallel.map_over_devices(step, mesh, mode=mode, stacked=True)(state, batch) for mode in ("pmap", "shard_map")
    ]
    assert results[0].shape == (2, 3, CLASSES)
    np.testing.assert_allclose(np.sum(results[0], -1), 1, rtol=1e-5)
    assert_same_bits(*results)


def test_flip_test_time_augmentation_is_the_mean_of_both_views() -> None:
    model = make_model()
    state = make_state(model)
    variables = variables_of(state)["val"]
    batch = {name: x[0] for name, x in make_batch(1, 6).items()}
    flipped = batch | {"image": batch["image"][:, :, ::-1]}
    logits = [np.asarray(model.apply(variables, normalize_pixels(b["image"]), train=False)) for b in (batch, flipped)]
    mean = (logits[0] + logits[1]) / 2
    wanted = -np.sum(np.log(np.exp(mean) / np.exp(mean).sum(1, keepdims=True))[np.arange(6), batch["label"]])
    step = partial(eval_step, model=model, axis_name="one", flip_tta=True)
    sums = jax.vmap(step, in_axes=(None, 0), axis_name="one")(variables, {k: v[None] for k, v in batch.items()})
    np.testing.assert_allclose(sums["loss"], [wanted], rtol=1e-5)
    again = jax.vmap(step, in_axes=(None, 0), axis_name="one")(variables, {k: v[None] for k, v in flipped.items()})
    np.testing.assert_allclose(again["loss"], sums["loss"], rtol=1e-5)
