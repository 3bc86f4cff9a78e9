"""The whole step with other optimizers, losses and augmentations; and the recipes that use them."""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from helpers.parity import load
from helpers.tiny import CLASSES, OPTIONS, StepOptions, assert_same_bits, make_batch, place
from torch_reference import ResNet as TorchResNet

from rn50_jax.distributed import devices as parallel
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import Variant
from rn50_jax.models.resnet import ResNet
from rn50_jax.training.augment import draw_boxes, draw_cutmix, draw_mixup
from rn50_jax.training.optim import clipped, lamb, lars
from rn50_jax.training.state import TrainState, init_state
from rn50_jax.training.step import mixup_key, train_step

SMALL = ResNet(Variant((1,), bottleneck=False), CLASSES, PRECISIONS["fp32"], width=8)
LAMB = clipped(lamb(beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.02), 1.0)
LARS = lars(momentum=0.9, weight_decay=1e-3, trust=0.02)
EVERYTHING = OPTIONS.replace(
    loss="bce", bce_threshold=0.2, label_smoothing=0.0, mixup=0.4, cutmix=1.0, random_erasing=0.5, ema_decay=0.9
)


def make_step(
    model: ResNet, optimizer: optax.GradientTransformation, options: StepOptions, devices: int, mode: str = "pmap"
) -> Any:
    mesh = parallel.make_mesh(jax.devices()[:devices])
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        learning_rate=lambda step: 0.1 / (1 + step),
        **options._asdict(),
        axis_name=parallel.AXIS,
    )
    return parallel.map_over_devices(step, mesh, mode=mode), partial(parallel.replicate, mesh=mesh)


def make_state(model: ResNet, optimizer: optax.GradientTransformation, ema: bool = True) -> TrainState:
    state: TrainState = jax.device_get(init_state(model, optimizer, seed=0, loss_scale=1.0, ema=ema))
    return state


@pytest.mark.parametrize("optimizer", [LAMB, LARS], ids=["lamb", "lars"])
def test_other_optimizers_in_all_parallel_modes_and_after_a_step_left_out(
    optimizer: optax.GradientTransformation,
) -> None:
    options = OPTIONS.replace(accumulation=2, ema_decay=0.9, loss="bce")
    start = make_state(SMALL, optimizer)
    good, bad = make_batch(2, 4), make_batch(2, 4)
    bad["image"] = np.where(np.arange(2)[:, None, None, None, None] == 1, np.float32(np.nan), bad["image"])
    ends = []
    for mode in ("pmap", "shard_map"):
        step, replicate = make_step(SMALL, optimizer, options, 2, mode)
        state = replicate(start)
        for batch in (good, bad, good):
            before = jax.device_get(state)
            state, metrics = step(state, place(batch | {"image": batch["image"].astype(np.float32)}))
            if batch is bad:  # nothing moves, Adam's count of its updates neither
                assert_same_bits(before._replace(loss_scale=None), jax.device_get(state)._replace(loss_scale=None))
        assert (int(state.step), int(metrics["skipped_steps"])) == (2, 1)
        ends.append(jax.device_get((state, metrics)))
    assert_same_bits(*ends)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, ends[0][0].params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_loss_of_erased_and_mixed_images_is_torchs() -> None:
    # The draws are functions of seed, step, device and pass; the rest is written anew in NumPy and PyTorch.
    options = EVERYTHING._replace(accumulation=2, seed=3)
    start = make_state(SMALL, LAMB)
    step, replicate = make_step(SMALL, LAMB, options, 2)
    batch = make_batch(2, 8)
    state, metrics = step(replicate(start._replace(step=np.int32(7))), place(batch))
    assert int(state.step) == 8
    losses = []
    for device in range(2):
        own = mixup_key(3, 7, device)
        mixing, erasing = (jax.random.split(key, 2) for key in (own, jax.random.fold_in(own, 2**31 - 1)))
        for number in range(2):
            part = slice(4 * number, 4 * number + 4)
            pixels = torch.from_numpy(batch["image"][device, part]).double()
            mean, std = (255 * torch.tensor(x) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
            x = ((pixels - mean) / std).float()
            boxes = np.stack(draw_boxes(erasing[number], 0.5, (4, 32, 32)), 1)
            for image, (top, left, height, width) in zip(x, boxes, strict=True):
                image[top : top + height, left : left + width] = 0
            t = torch.from_numpy(np.eye(CLASSES, dtype=np.float32)[batch["label"][device, part]])
            if float(jax.random.uniform(jax.random.fold_in(mixing[number], 3))) < 0.5:
                mask, share, order = map(np.array, draw_cutmix(jax.random.fold_in(mixing[number], 2), 1.0, (4, 32, 32)))
                x = torch.where(torch.from_numpy(mask) == 1, x, x[order])
            else:
                share, order = map(np.array, draw_mixup(mixing[number], 0.4, 4))
                x = float(share) * x + (1 - float(share)) * x[order]
            t = float(share) * t + (1 - float(share)) * t[order]
            net = TorchResNet((1,), False, CLASSES, width=8).train()
            load(net, start.params, start.batch_stats)
            logits = net(x.permute(0, 3, 1, 2).float())
            losses.append(torch.nn.BCEWithLogitsLoss()(logits, (t > 0.2).float()).item())
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


def test_each_device_erases_for_itself() -> None:
    options = OPTIONS.replace(random_erasing=1.0)
    losses, one = [], make_batch(1, 4)
    for devices in (1, 2):
        step, replicate = make_step(SMALL, LARS, options, devices)
        copies = {name: np.repeat(value, devices, axis=0) for name, value in one.items()}
        losses.append(float(step(replicate(make_state(SMALL, LARS, ema=False)), place(copies))[1]["loss"]))
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
