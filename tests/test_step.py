"""The training step against PyTorch, and what it does with overflow, accumulation and padding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from tiny import (
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
from torch_resnet import ResNet as TorchResNet
from torch_resnet import to_torch, torch_name

from rn50_jax import parallel
from rn50_jax.augment import MEAN, STD
from rn50_jax.optim import decay_mask
from rn50_jax.step import eval_step, predict_step


def torch_twin(state: object) -> tuple[TorchResNet, torch.optim.SGD]:
    stages = (*VARIANT.stages, 0, 0)
    net = TorchResNet(stages, VARIANT.bottleneck, CLASSES, width=8)
    net.fc = torch.nn.Linear(64, CLASSES)
    arrays = flatten_dict(state.params) | flatten_dict(state.batch_stats)
    net.load_state_dict({torch_name(path): to_torch(value) for path, value in arrays.items()}, strict=False)
    decayed = {torch_name(path) for path, value in flatten_dict(decay_mask(state.params)).items() if value}
    groups = [
        {"params": [p for name, p in net.named_parameters() if name in decayed], "weight_decay": 1e-3},
        {"params": [p for name, p in net.named_parameters() if name not in decayed], "weight_decay": 0.0},
    ]
    return net.train(), torch.optim.SGD(groups, lr=0.1, momentum=0.875)


def torch_images(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(
        ((images - np.asarray(MEAN)) / np.asarray(STD)).astype(np.float32).transpose(0, 3, 1, 2).copy()
    )


@pytest.mark.parametrize(("num_devices", "accumulation"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_training_follows_torch(num_devices: int, accumulation: int) -> None:
    # Per-device BatchNorm and accumulation are the same sum over slices of four images, each normalised for itself.
    model = make_model()
    state = make_state(model)
    net, optimizer = torch_twin(state)
    step, replicate = make_step(model, num_devices, OPTIONS._replace(accumulation=accumulation))
    state = replicate(state)
    for number in range(3):
        batch = make_batch(num_devices, 4 * accumulation, seed=number)
        state, metrics = step(state, place(batch))
        optimizer.zero_grad()
        losses = []
        for images, labels in zip(batch["image"].reshape(-1, 4, 32, 32, 3), batch["label"].reshape(-1, 4), strict=True):
            loss = torch.nn.functional.cross_entropy(
                net(torch_images(images)), torch.from_numpy(labels).long(), label_smoothing=0.1
            )
            (loss / (num_devices * accumulation)).backward()
            losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + number)
        optimizer.step()
        assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=2e-4)
        assert float(metrics["lr"]) == pytest.approx(0.1 / (1 + number))
    assert int(state.step) == 3
    theirs = dict(net.named_parameters())
    for path, value in flatten_dict(state.params).items():
        wanted = theirs[torch_name(path)].detach()
        difference = torch.linalg.norm(to_torch(value) - wanted) / torch.linalg.norm(wanted)
        # Three steps amplify float32 rounding; a wrong recipe is off by per cents.
        assert float(difference) < 1e-3, path


@pytest.mark.parametrize("dynamic", [False, True])
def test_overflow_changes_nothing_but_the_scale(dynamic: bool) -> None:
    model = make_model("fp16")
    options = OPTIONS._replace(scaling=STATIC._replace(dynamic=dynamic))
    step, replicate = make_step(model, 2, options)
    before = jax.device_get(make_state(model, loss_scale=2.0**24))
    state, metrics = step(replicate(before), place(make_batch(2, 4)))
    after = jax.device_get(state)
    assert_same_bits(before._replace(loss_scale=None), after._replace(loss_scale=None))
    assert float(after.loss_scale.value) == 2.0 ** (23 if dynamic else 24)
    assert (int(after.loss_scale.skipped), int(after.loss_scale.good_steps)) == (1, 0)
    assert np.isfinite(float(metrics["loss"]))
    assert int(metrics["skipped_steps"]) == 1


def test_loss_scale_does_not_change_the_gradients() -> None:
    results = []
    for scale in (1.0, 256.0):
        model = make_model("fp16")
        step, replicate = make_step(model, 1, OPTIONS._replace(scaling=STATIC))
        state, _ = step(replicate(make_state(model, loss_scale=scale)), place(make_batch(1, 8)))
        assert int(state.step) == 1
        results.append(flatten_dict(jax.device_get(state.params))[("fc", "kernel")])
    np.testing.assert_allclose(*results, atol=2e-4)


def test_dynamic_scale_grows_after_good_steps() -> None:
    model = make_model("fp16")
    options = OPTIONS._replace(scaling=STATIC._replace(dynamic=True))
    step, replicate = make_step(model, 1, options, lr=0.0)
    state = replicate(make_state(model, loss_scale=8.0))
    values = []
    for _ in range(4):
        state, _ = step(state, place(make_batch(1, 4)))
        values.append(float(state.loss_scale.value))
    assert values == [8.0, 16.0, 16.0, 32.0]


def test_mixup_is_a_function_of_seed_and_step() -> None:
    model = make_model()
    first, replicate = make_step(model, 2, OPTIONS._replace(mixup=0.4, seed=0), lr=0.0)
    other, _ = make_step(model, 2, OPTIONS._replace(mixup=0.4, seed=1), lr=0.0)

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


def test_evaluation_counts_real_images_only() -> None:
    model = make_model()
    state = make_state(model)
    mesh = parallel.make_mesh(jax.devices()[:2])
    step = parallel.spread(partial(eval_step, model=model, axis_name=parallel.AXIS), mesh, mode="pmap")
    batch = make_batch(2, 4)
    batch["weight"][1, 2:] = 0
    sums = step(parallel.replicate(state, mesh), place(batch))

    net, _ = torch_twin(state)
    with torch.no_grad():
        logits = net.eval()(torch_images(batch["image"].reshape(8, 32, 32, 3)[:6]))
    labels = torch.from_numpy(batch["label"].reshape(8)[:6]).long()
    assert float(sums["images"]) == 6
    assert float(sums["loss"]) == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item() * 6, rel=1e-4)
    assert float(sums["top1"]) == (logits.argmax(1) == labels).sum().item()
    assert float(sums["top5"]) == 6  # there are five classes


def test_padding_that_overflows_does_not_reach_the_sums() -> None:
    model = make_model()
    state = make_state(model)
    state.params["fc"]["kernel"] = state.params["fc"]["kernel"] * np.float32(1e38)
    mesh = parallel.make_mesh(jax.devices()[:1])
    step = parallel.spread(partial(eval_step, model=model, axis_name=parallel.AXIS), mesh, mode="pmap")
    batch = make_batch(1, 2)
    batch["weight"][:] = 0
    sums = step(parallel.replicate(state, mesh), place(batch))
    assert {name: float(value) for name, value in sums.items()} == {"loss": 0, "top1": 0, "top5": 0, "images": 0}


def test_predictions_stay_on_their_device() -> None:
    model = make_model()
    mesh = parallel.make_mesh(jax.devices()[:2])
    step = partial(predict_step, model=model, axis_name=parallel.AXIS)
    state = parallel.replicate(make_state(model), mesh)
    batch = place(make_batch(2, 3))
    results = [parallel.spread(step, mesh, mode=mode, stacked=True)(state, batch) for mode in ("pmap", "shard_map")]
    assert results[0].shape == (2, 3, CLASSES)
    np.testing.assert_allclose(np.sum(results[0], -1), 1, rtol=1e-5)
    assert_same_bits(*results)
