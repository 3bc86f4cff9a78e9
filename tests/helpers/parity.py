"""One training, twice: by this project's compiled step and by the plain-PyTorch reference, from the same weights."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from helpers.networks import make_torch
from helpers.tiny import OPTIONS, place
from torch_reference import ResNet as TorchResNet
from torch_reference import decay_groups, learning_rate, normalize, smoothed_loss, to_torch, torch_name

from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, replicate
from rn50_jax.models.resnet import ResNet
from rn50_jax.training.augment import draw_mixup
from rn50_jax.training.optim import sgd
from rn50_jax.training.schedule import make_schedule
from rn50_jax.training.state import TrainState, abstract_state
from rn50_jax.training.step import mixup_key, train_step


class Recipe(NamedTuple):
    """What a comparison trains with; the schedule is the reference's, constant within epochs of two steps."""

    smoothing: float = 0.0
    mixup: float = 0.0
    accumulation: int = 1
    devices: int = 1
    device_batch: int = 8
    nesterov: bool = False
    mask: str = "no_bn"
    schedule: str = "cosine"
    peak: float = 0.01
    momentum: float = 0.875
    weight_decay: float = 1e-3
    epochs: int = 25
    warmup: int = 3
    steps_per_epoch: int = 2


class Snapshot(NamedTuple):
    """After a step: its loss, and tensors by torch's names."""

    loss: float
    params: dict[str, torch.Tensor]
    momentum: dict[str, torch.Tensor]
    running: dict[str, torch.Tensor]


def make_twins(
    model: ResNet, recipe: Recipe, *, dtype: type = np.float32, last_gamma: float = 1.0, seed: int = 0
) -> tuple[TrainState, TorchResNet]:
    """A state of `dtype` with weights drawn here, and a torch network with the same.

    Args:
      last_gamma: size of the scales of each block's last BatchNorm.
    """
    rng = np.random.default_rng(seed)
    last = "bn3" if model.variant.bottleneck else "bn2"

    def draw(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        if x.dtype != np.float32 or names[0] in ("opt_state", "loss_scale"):
            value = np.ones(x.shape) if names[-1] == "value" else np.zeros(x.shape)
            return value.astype(dtype if x.dtype == np.float32 else x.dtype)
        if names[-1] == "scale":
            value = rng.uniform(0.5, 1.5, x.shape) * (last_gamma if names[-2] == last else 1.0)
        elif names[-1] == "var":
            value = rng.uniform(0.5, 1.5, x.shape)
        elif x.ndim == 1:
            value = rng.normal(0, 0.1, x.shape)
        else:
            value = rng.standard_normal(x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5
        return value.astype(np.float32).astype(dtype)

    state = jax.tree_util.tree_map_with_path(draw, abstract_state(model, _optimizer(recipe), loss_scale=1.0))
    shape = {name: getattr(model, name) for name in ("width", "widths", "se_units", "small_stem")}
    net = make_torch(model.variant, model.num_classes, **shape)
    load(net, state.params, state.batch_stats)
    return state, net


def load(net: TorchResNet, params: Any, batch_stats: Any) -> None:
    missing, unexpected = net.load_state_dict(by_torch_name(params) | by_torch_name(batch_stats), strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)


def by_torch_name(tree: Any) -> dict[str, torch.Tensor]:
    names = {torch_name(path): value for path, value in flatten_dict(tree).items()}
    return {name: to_torch(name, value) for name, value in names.items()}


def make_batches(recipe: Recipe, *, image_size: int, classes: int, steps: int) -> list[dict]:
    """Noisy images of a few patterns, one for each class: something to learn, so that training calms down."""
    rng = np.random.default_rng(1)
    shape = (recipe.devices, recipe.accumulation * recipe.device_batch)
    patterns = rng.integers(40, 216, (classes, 8, 8, 3)).repeat(image_size // 8, 1).repeat(image_size // 8, 2)
    batches = []
    for _ in range(steps):
        labels = rng.integers(0, classes, shape, np.int32)
        images = patterns[labels] + rng.normal(0, 25, (*shape, image_size, image_size, 3))
        images = np.clip(images, 0, 255).astype(np.uint8)
        batches.append({"image": images, "label": labels, "weight": np.ones(shape, np.float32)})
    return batches


def compile_step(model: ResNet, recipe: Recipe) -> Callable[[TrainState, dict], tuple[TrainState, Snapshot]]:
    """The project's training step over `recipe.devices` fake devices."""
    step = partial(
        train_step,
        model=model,
        optimizer=_optimizer(recipe),
        learning_rate=make_schedule(
            recipe.schedule,
            peak=recipe.peak,
            warmup_epochs=recipe.warmup,
            epochs=recipe.epochs,
            steps_per_epoch=recipe.steps_per_epoch,
            lr_update="epoch",
        ),
        **OPTIONS.replace(
            label_smoothing=recipe.smoothing, mixup=recipe.mixup, accumulation=recipe.accumulation
        )._asdict(),
        axis_name=AXIS,
    )
    mesh = make_mesh(jax.devices()[: recipe.devices])
    compiled = map_over_devices(step, mesh, mode="pmap")

    def run(state: TrainState, batch: dict) -> tuple[TrainState, Snapshot]:
        state, metrics = compiled(replicate(state, mesh) if int(state.step) == 0 else state, place(batch))
        trees = jax.device_get((state.params, state.opt_state[1].trace, state.batch_stats))
        return state, Snapshot(float(metrics["loss"]), *map(by_torch_name, trees))

    return run


def train_jax(model: ResNet, state: TrainState, recipe: Recipe, batches: list[dict]) -> Iterator[Snapshot]:
    step = compile_step(model, recipe)
    for batch in batches:
        state, snapshot = step(state, batch)
        yield snapshot


def train_torch(
    net: TorchResNet, recipe: Recipe, batches: list[dict], dtype: torch.dtype = torch.float32
) -> Iterator[Snapshot]:
    net = net.to(dtype).train()
    groups = decay_groups(net, recipe.mask, recipe.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=recipe.momentum, nesterov=recipe.nesterov)
    passes = recipe.devices * recipe.accumulation
    for number, batch in enumerate(batches):
        rate = learning_rate(
            recipe.schedule,
            number // recipe.steps_per_epoch,
            peak=recipe.peak,
            warmup=recipe.warmup,
            total=recipe.epochs,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        losses, running = [], []
        start = {name: value.clone() for name, value in net.named_buffers()}
        for device in range(recipe.devices):
            net.load_state_dict(start, strict=False)  # each device goes on from the shared running averages
            draws = _draws(recipe, number, device)
            images = np.split(batch["image"][device], recipe.accumulation)
            labels = np.split(batch["label"][device], recipe.accumulation)
            for pixels, label, draw in zip(images, labels, draws, strict=True):
                x = normalize(pixels, dtype)
                t = torch.nn.functional.one_hot(torch.from_numpy(label).long(), net.fc.out_features).to(dtype)
                if draw is not None:
                    c, order = draw
                    x, t = c * x + (1 - c) * x[order], c * t + (1 - c) * t[order]
                loss = smoothed_loss(net(x), t, recipe.smoothing)
                (loss / passes).backward()
                losses.append(loss.item())
            running.append({name: value.clone() for name, value in net.named_buffers()})
        optimizer.step()
        mean = {name: sum(r[name] for r in running) / len(running) for name in start if "running" in name}
        net.load_state_dict(mean, strict=False)
        parameters = dict(net.named_parameters())
        yield Snapshot(
            float(np.mean(losses)),
            {name: p.detach().clone() for name, p in parameters.items()},
            {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in parameters.items()},
            mean,
        )


def _optimizer(recipe: Recipe) -> Any:
    return sgd(momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov, mask=recipe.mask)


def _draws(recipe: Recipe, step: int, device: int) -> list[tuple[float, torch.Tensor] | None]:
    """The mixing that the compiled step draws, to be injected into torch; None without mixup."""
    if recipe.mixup == 0:
        return [None] * recipe.accumulation
    key = mixup_key(OPTIONS.seed, step, device)
    keys = [key] if recipe.accumulation == 1 else jax.random.split(key, recipe.accumulation)
    draws = [draw_mixup(k, recipe.mixup, recipe.device_batch) for k in keys]
    return [(float(c), torch.from_numpy(np.array(order))) for c, order in draws]


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative distance (Euclidean norm) of any tensor, and its name."""
    assert ours.keys() == theirs.keys()
    return max((relative(ours[name], wanted), name) for name, wanted in theirs.items())


def total_distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The relative distance of all tensors taken as one vector."""
    assert ours.keys() == theirs.keys()
    return relative(*(torch.cat([tensors[name].double().flatten() for name in theirs]) for tensors in (ours, theirs)))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    theirs = theirs.double()
    return float(torch.linalg.norm(ours.double() - theirs) / torch.linalg.norm(theirs).clamp_min(1e-9))
