#!/usr/bin/env python3
"""Trains a configuration with plain PyTorch, on the CPU, on the batches that this project's loader makes.

    python scripts/torch_train.py --config configs/quickstart.py --workdir runs/torch

Network, initial values, optimizer, schedule and loss are those of `torch_reference.py`, which was written from the
documented recipe; only the config and the images come from `rn50_jax`. Writes metrics.jsonl as `rn50_jax.train` does.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402, after the path and what JAX reads
import numpy as np  # noqa: E402

from rn50_jax import cli  # noqa: E402
from rn50_jax.config import loading as configs  # noqa: E402
from rn50_jax.config.derived import Plan, make_plan  # noqa: E402
from rn50_jax.config.schema import Config  # noqa: E402
from rn50_jax.config.sections.model import ModelConfig  # noqa: E402
from rn50_jax.data.dataset import open_dataset  # noqa: E402
from rn50_jax.data.loader import eval_batches, train_batches  # noqa: E402
from rn50_jax.distributed.devices import make_mesh  # noqa: E402
from rn50_jax.errors import RunStopped, UserError  # noqa: E402
from rn50_jax.io.json_files import to_json  # noqa: E402
from rn50_jax.models.family import FAMILY  # noqa: E402

try:
    import torch
except ModuleNotFoundError:
    sys.exit(cli.tell(UserError("training beside PyTorch needs it, and it is not installed: pip install torch")))
from torch_reference import (  # noqa: E402, which needs torch
    ResNet,
    decay_groups,
    initialize,
    learning_rate,
    normalize,
    smoothed_loss,
)

# What is read here or by the loader, and sections that change no number of a run in float32 on one CPU device.
READ = {"seed", "epochs", "batch_size"}
READ |= {f"model.{name}" for name in ("arch", "stages", "width", "widths", "se_units", "small_stem", "num_classes")}
READ |= {"model.init", "model.zero_init_last_gamma"}
READ |= {f"recipe.{name}" for name in ("lr", "lr_batch_size", "schedule", "lr_update", "warmup_epochs", "end_lr")}
READ |= {f"recipe.{name}" for name in ("milestones", "milestone_factor", "poly_power", "momentum", "nesterov")}
READ |= {f"recipe.{name}" for name in ("weight_decay", "decay_mask", "label_smoothing", "mixup")}
READ |= {"recipe.exact_reference", "recipe.running_average", "recipe.bn_group"}
READ |= {f"run.{name}" for name in ("save_checkpoints", "max_skipped_steps", "hang_timeout", "heartbeat_timeout")}
SECTIONS = ("data", "loss_scale", "compute", "checkpoint", "log")
FANS = {"classic": "fan_out", "fanin": "fan_in", "grp-fanin": "fan_in", "grp-fanout": "fan_out"}

Batch = dict[str, np.ndarray]


def refuse_unread(config: Config) -> None:
    """Refuses what would be trained here otherwise than the config says.

    Raises:
      UserError: naming the first option that is neither read nor at its default, or precision float32.
    """
    able = Config().flat() | {"precision": "fp32"}
    for key, value in config.flat().items():
        read = key in READ or (key.partition(".")[0] in SECTIONS and key != "data.backend")
        if not read and value != able[key]:
            raise UserError(f"the PyTorch side cannot do config.{key}={value!r}; use --config.{key}={able[key]}")
    if config.model.is_own:
        raise UserError(f"the PyTorch side has no config.model.arch={config.model.arch!r}; name one of the family")


def build_net(model: ModelConfig, num_classes: int) -> ResNet:
    """Returns the config's network with initial values that torch's global generator draws."""
    variant = FAMILY[model.arch]
    net = ResNet(
        model.num_blocks,
        variant.bottleneck,
        num_classes,
        width=model.width,
        widths=model.widths,
        groups=variant.groups,
        inner=variant.inner,
        se_units=model.se_units if variant.se else None,
        deep_stem=variant.deep_stem,
        average_shortcut=variant.average_shortcut,
        small_stem=model.small_stem,
    )
    initialize(net, FANS[model.init], zero_init_last_gamma=model.zero_init_last_gamma)
    return net


def build_optimizer(config: Config, net: ResNet) -> torch.optim.SGD:
    """Returns SGD with the config's momentum and decay; each step sets its learning rate."""
    recipe = config.recipe
    groups = decay_groups(net, recipe.decay_mask, recipe.weight_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=recipe.nesterov)


def rate_at(config: Config, plan: Plan, step: int) -> float:
    """Returns the learning rate of a step (from 0) of the run."""
    recipe = config.recipe
    ticks = plan.steps_per_epoch if recipe.lr_update == "step" else 1  # an epoch
    return learning_rate(
        recipe.schedule,
        step if recipe.lr_update == "step" else step // plan.steps_per_epoch,
        peak=plan.peak_lr,
        warmup=recipe.warmup_epochs * ticks,
        total=config.epochs * ticks,
        end=recipe.end_lr,
        milestones=[milestone * ticks for milestone in recipe.milestones],
        factor=recipe.milestone_factor,
        power=recipe.poly_power,
    )


def train_step(net: ResNet, optimizer: torch.optim.SGD, config: Config, rate: float, batch: Batch) -> float:
    """Makes one update, in the dtype of the network; returns the loss.

    batch: {"image": uint8 [B, H, W, 3], "label": int32 [B], "weight": float32 [B]}, the latter 0 for an image that
    stands for one that cannot be decoded.
    """
    x = _pixels(net, config, batch)
    targets = torch.nn.functional.one_hot(torch.from_numpy(batch["label"]).long(), net.fc.out_features).to(x.dtype)
    if config.recipe.mixup:
        share = float(torch.distributions.Beta(config.recipe.mixup, config.recipe.mixup).sample())
        order = torch.randperm(len(x))
        x, targets = (share * values + (1 - share) * values[order] for values in (x, targets))
    counts = torch.from_numpy(batch["weight"] > 0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss = smoothed_loss(net(x)[counts], targets[counts], config.recipe.label_smoothing)
    loss.backward()
    optimizer.step()
    return loss.item()


def validate(net: ResNet, config: Config, batches: Iterable[Batch]) -> tuple[float, float]:
    """Returns top-1 accuracy in per cent and mean cross-entropy over all images of weight 1."""
    net.eval()
    images, hits, loss = 0, 0, 0.0
    with torch.inference_mode():
        for batch in batches:
            counts = torch.from_numpy(batch["weight"] > 0)
            labels = torch.from_numpy(batch["label"]).long()[counts]
            logits = net(_pixels(net, config, batch))[counts]
            images += len(labels)
            hits += int((logits.argmax(1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    net.train()
    return 100 * hits / images, loss / images


def train(config: Config, workdir: Path) -> None:
    """Trains from the beginning; writes `workdir/metrics.jsonl` anew.

    Raises:
      UserError: the data are missing or do not fit the config, or JAX has several devices, so that the batches of
        `rn50_jax.train` would be others.
      RunStopped: a loss is not finite.
    """
    devices = jax.devices()
    if len(devices) > 1:
        raise UserError(
            f"JAX has {len(devices)} devices, and the comparison is of one; take the others out of XLA_FLAGS"
        )
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    mesh, dataset = make_mesh(devices), open_dataset(config)
    plan = make_plan(config, num_images=len(dataset.train.labels), num_devices=1)
    torch.manual_seed(config.seed)
    net = build_net(config.model, len(dataset.class_names)).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config, net)
    found = train_batches(
        dataset.train,
        config.data,
        mesh,
        seed=config.seed,
        num_classes=len(dataset.class_names),
        epochs=config.epochs,
        steps_per_epoch=plan.steps_per_epoch,
        device_batch=plan.device_batch,
    )
    batches = to_numpy(part.batch for part in found)
    workdir.mkdir(parents=True, exist_ok=True)
    with closing(found), (workdir / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        for epoch in range(config.epochs):
            first = epoch * plan.steps_per_epoch
            for step in range(first, first + plan.steps_per_epoch):
                loss = train_step(net, optimizer, config, rate_at(config, plan, step), next(batches))
                if not np.isfinite(loss):
                    raise RunStopped(f"the loss of step {step + 1} is not finite; use a smaller --config.recipe.lr")
            val = eval_batches(dataset.val, config.data, mesh, device_batch=config.batch_size, epoch=epoch)
            top1, loss = validate(net, config, to_numpy(val))
            print(f"epoch {epoch + 1}/{config.epochs}: top-1 {top1:.2f} %, loss {loss:.4f}", flush=True)
            metrics.write(to_json({"epoch": epoch + 1, "val.top1": top1, "val.loss": loss}) + "\n")
            metrics.flush()


def to_numpy(batches: Iterable[dict[str, jax.Array]]) -> Iterator[Batch]:
    """Yields the batches of the loader's only device, as arrays of NumPy's own."""
    return ({name: np.array(value[0]) for name, value in batch.items()} for batch in batches)


def _pixels(net: ResNet, config: Config, batch: Batch) -> torch.Tensor:
    x = normalize(batch["image"], net.fc.weight.dtype, config.data.mean, config.data.std)
    return x.contiguous(memory_format=torch.channels_last)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.torch_train",
        description="Train a configuration with plain PyTorch on the CPU, on the batches of this project's loader.",
    )
    parser.prog = "python scripts/torch_train.py"
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="as of rn50_jax.train")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run, begun anew")
    args, overrides = configs.parse_args(parser, argv)
    config, _ = configs.load(args.config, overrides)
    refuse_unread(config)
    train(config, args.workdir)
    return 0


if __name__ == "__main__":
    cli.run(main)
