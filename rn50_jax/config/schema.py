"""What each key of a config may hold, and the presets that set several at once."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import PurePath
from typing import Any, NamedTuple

from rn50_jax.io.files import UNFINISHED
from rn50_jax.io.text import printable


class Rule(NamedTuple):
    """What a key may hold: a Python type, a test and its description for error messages."""

    kind: type
    valid: str
    test: Callable[[Any], bool]


def _choice(*options: str) -> Rule:
    return Rule(str, "one of " + ", ".join(repr(o) for o in options), lambda v: v in options)


def _integer(low: int, high: int = 2**31 - 1) -> Rule:
    return Rule(int, f"an integer >= {low} and at most {high}", lambda v: low <= v <= high)


def _number(valid: str, test: Callable[[float], bool]) -> Rule:
    return Rule(float, f"a number {valid}", test)


def _range(low: float, high: float) -> Rule:
    def test(pair: tuple[Any, ...]) -> bool:
        return len(pair) == 2 and all(map(_is_number, pair)) and low <= pair[0] <= pair[1] <= high

    return Rule(tuple, f"two numbers (smallest, largest) with {low:g} <= smallest <= largest <= {high:g}", test)


def _integers(example: str, *, most: int, high: int) -> Rule:
    valid = f"integers >= 1, such as {example}; at most {most}, and none above {high}"
    return Rule(tuple, valid, lambda v: len(v) <= most and _are(v, 1, high))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _are(values: tuple[Any, ...], low: int, high: int) -> bool:
    return all(_is_integer(value) and low <= value <= high for value in values)


def _is_color(values: tuple[Any, ...]) -> bool:
    return len(values) == 3 and all(_is_number(x) and x <= 1 for x in values)


def _is_image_sizes(pairs: tuple[Any, ...]) -> bool:
    if not all(isinstance(p, tuple) and len(p) == 2 and all(map(_is_integer, p)) for p in pairs):
        return False
    epochs = [epoch for epoch, _ in pairs]
    rising = all(a < b for a, b in pairwise(epochs))
    return not pairs or (epochs[0] == 0 and rising and all(32 <= size <= _PIXELS for _, size in pairs))


def _is_rate_scale(pair: Any) -> bool:
    named = isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)
    return named and _is_number(pair[1]) and 0 < pair[1] < float("inf")


def _text(valid: str, test: Callable[[str], bool] = lambda v: True) -> Rule:
    return Rule(str, valid, test)


def is_plain_name(name: str) -> bool:
    """Returns whether a file of a work folder may be called that: it is no path, and none of the run's own names."""
    plain = name not in ("", ".", "..") and "/" not in name and printable(name) == name
    return plain and not is_own_name(name)


def is_own_name(path: str) -> bool:
    """Returns whether a path, from a work folder on, is or leads into what a run keeps there under names of its own."""
    first = (*PurePath(os.path.normpath(path)).parts, "")[0]
    return first in _OWN or first.endswith((UNFINISHED, DAMAGED))


DAMAGED = ".damaged"  # what is unreadable in a log is moved to a file whose name ends so
_OWN = {"", "config.json", "run.json", "lock", "checkpoints", "quarantine.json", "quarantine.lock", "left_out.jsonl"}
_OWN |= {"console.log"}
_OWN |= {"tensorboard", "wandb", "wandb.json", "mlflow.json", "curves.png", "curves.svg", "report.html", "evaluation"}
_OWN |= {"val_images.tsv"}
_PIXELS = 2**14  # on a side of an image
# The names of models.resnet.FAMILY; importing that would load JAX in every process that reads a schema.
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_VARIANTS = ("resnext50-32x4d", "resnext101-32x4d", "se-resnet50", "se-resnext101-32x4d")

_BOOLEAN = Rule(bool, "True or False", lambda v: True)
_FRACTION = _number(">= 0 and < 1", lambda v: 0 <= v < 1)
_PROBABILITY = _number("from 0 to 1", lambda v: 0 <= v <= 1)
_POSITIVE = _number("> 0", lambda v: 0 < v < float("inf"))
_NOT_NEGATIVE = _number(">= 0", lambda v: 0 <= v < float("inf"))

RULES: dict[str, Rule] = {
    "seed": _integer(0, 2**63 - 1),
    "epochs": _integer(1, 10**6),
    "batch_size": _integer(1, 2**20),
    "precision": _choice("fp32", "tf32", "bf16", "fp16"),
    "all_reduce": _choice("fp32", "bf16", "ordered"),
    "parallel": _choice("pmap", "shard_map"),
    "model.arch": _choice(*_RESNETS, *_VARIANTS),
    "model.stages": _integers("(3, 4, 6, 3), or () for those of model.arch", most=8, high=1000),
    "model.width": _integer(8, 2**14),
    "model.widths": _integers("(64, 128, 256, 512), or () to follow model.width", most=8, high=2**14),
    "model.se_units": _integer(0, 2**14),
    "model.num_classes": _integer(0, 10**6),
    "model.init": _choice("classic", "fanin", "grp-fanin", "grp-fanout"),
    "model.zero_init_last_gamma": _BOOLEAN,
    "model.pretrained_weights": _text("a weight file, the folder of a run, or empty"),
    "model.conv_lowering": _choice("auto", "native", "matmul", "dot1x1"),
    "model.stem": _choice("auto", "conv", "padded", "space_to_depth"),
    "model.max_pool": _choice("fused", "indexed", "native"),
    "model.fused_norm": _BOOLEAN,
    "model.fold_batch_norm": _choice("auto", "on", "off"),
    "data.dir": _text("a folder", lambda v: v != ""),
    "data.train_list": _text("a file, or empty"),
    "data.val_list": _text("a file, or empty"),
    "data.val_share": _FRACTION,
    "data.builtin": _choice("", "digits"),
    "data.backend": _choice("dali-cpu", "dali-gpu", "synthetic"),
    "data.image_size": _integer(32, _PIXELS),
    "data.image_sizes": Rule(
        tuple,
        "pairs (first epoch, pixels) such as ((0, 128), (30, 176)), epochs rising from 0 and pixels >= 32, or ()",
        _is_image_sizes,
    ),
    "data.resize": Rule(int, f"0 or an integer from 32 to {_PIXELS}", lambda v: v == 0 or 32 <= v <= _PIXELS),
    "data.crop_area": _range(1e-4, 1),
    "data.crop_aspect": _range(0.1, 10),
    "data.transform": _choice("torchvision", "dali"),
    "data.exif_rotation": _BOOLEAN,
    "data.background": Rule(
        tuple, "three integers from 0 to 255 (red, green, blue), or ()", lambda v: len(v) in (0, 3) and _are(v, 0, 255)
    ),
    "data.mean": Rule(tuple, "three numbers from 0 to 1 (red, green, blue)", lambda v: _is_color(v) and min(v) >= 0),
    "data.std": Rule(tuple, "three numbers > 0 and at most 1", lambda v: _is_color(v) and min(v) > 0),
    "data.flip": _number("from 0 to 1", lambda v: 0 <= v <= 1),
    "data.augment": _choice("none", "randaugment", "autoaugment", "trivialaugment"),
    "data.randaugment": Rule(
        tuple,
        "two integers, operations from 1 to 100 and magnitude from 0 to 30",
        lambda v: len(v) == 2 and all(map(_is_integer, v)) and 1 <= v[0] <= 100 and 0 <= v[1] <= 30,
    ),
    "data.on_bad_file": _choice("substitute", "error"),
    "data.max_bad_files": _integer(0),
    "data.workers": _integer(1, 1024),
    "data.hw_decoder_load": _number("from 0 to 1", lambda v: 0 <= v <= 1),
    "data.prefetch": _integer(1, 1024),
    "data.synthetic_images": Rule(
        tuple, "two integers from 1 to 100,000,000", lambda v: len(v) == 2 and _are(v, 1, 10**8)
    ),
    "recipe.lr": _number("> 0", lambda v: 0 < v < float("inf")),
    "recipe.lr_batch_size": _integer(0),
    "recipe.schedule": _choice("cosine", "linear", "step", "poly"),
    "recipe.lr_update": _choice("step", "epoch"),
    "recipe.warmup_epochs": _integer(0, 10**6),
    "recipe.end_lr": _number(">= 0", lambda v: 0 <= v < float("inf")),
    "recipe.milestones": _integers("(30, 60, 80)", most=1000, high=10**6),
    "recipe.milestone_factor": _number("> 0 and at most 1", lambda v: 0 < v <= 1),
    "recipe.poly_power": _POSITIVE,
    "recipe.optimizer": _choice("sgd", "lars", "lamb"),
    "recipe.momentum": _FRACTION,
    "recipe.nesterov": _BOOLEAN,
    "recipe.lars_trust": _POSITIVE,
    "recipe.beta1": _FRACTION,
    "recipe.beta2": _FRACTION,
    "recipe.eps": _POSITIVE,
    "recipe.clip_norm": _NOT_NEGATIVE,
    "recipe.weight_decay": _number(">= 0", lambda v: 0 <= v < float("inf")),
    "recipe.decay_mask": _choice("no_bn", "no_bn_bias", "reference", "all"),
    "recipe.loss": _choice("cross_entropy", "bce"),
    "recipe.bce_threshold": _FRACTION,
    "recipe.label_smoothing": _FRACTION,
    "recipe.mixup": _number(">= 0", lambda v: 0 <= v < float("inf")),
    "recipe.cutmix": _NOT_NEGATIVE,
    "recipe.cutmix_share": _PROBABILITY,
    "recipe.random_erasing": _PROBABILITY,
    "recipe.mixup_draw": _choice("device", "global"),
    "recipe.optimizer_batch_size": _integer(0),
    "recipe.running_average": _choice("mean", "first"),
    "recipe.bn_group": _integer(0),
    "recipe.ema_decay": _FRACTION,
    "recipe.exact_reference": _BOOLEAN,
    "tune.freeze": Rule(tuple, "names of parts, such as ('stem', 'layer1')", lambda v: all(type(n) is str for n in v)),
    "tune.lr_decay": _number("> 0 and at most 1", lambda v: 0 < v <= 1),
    "tune.lr_scales": Rule(
        tuple, "pairs of a part and a factor > 0, such as (('layer4', 0.1),)", lambda v: all(map(_is_rate_scale, v))
    ),
    "tune.new_head": _BOOLEAN,
    "loss_scale.mode": _choice("static", "dynamic"),
    "loss_scale.init": _number("from 1 to 2**24", lambda v: 1 <= v <= 2**24),
    "loss_scale.growth_interval": _integer(1),
    "loss_scale.growth": _number("> 1", lambda v: 1 < v < float("inf")),
    "loss_scale.backoff": _number("between 0 and 1", lambda v: 0 < v < 1),
    "loss_scale.floor": _number("> 0", lambda v: 0 < v < float("inf")),
    "checkpoint.every_epochs": _integer(1),
    "checkpoint.every_minutes": _number(">= 0", lambda v: 0 <= v < float("inf")),
    "checkpoint.keep": _integer(1),
    "checkpoint.gather": _BOOLEAN,
    "report.print_every": _integer(1),
    "report.file": _text("a plain file name, and none of the run's own files", is_plain_name),
    "report.tensorboard": _BOOLEAN,
    "report.wandb": _text("a project, or empty"),
    "report.mlflow": _text("an experiment, or empty"),
    "report.dle_json": _text(
        "a file that is none of the run's own, or empty", lambda v: printable(v) == v and not (v and is_own_name(v))
    ),
    "run.resume": _text("a training checkpoint of NVIDIA's code, or empty"),
    "run.prof": _integer(0),
    "run.training_only": _BOOLEAN,
    "run.target_top1": _number("from 0 to 100", lambda v: 0 <= v <= 100),
    "run.evaluate": _BOOLEAN,
    "run.save_checkpoints": _BOOLEAN,
    "run.max_skipped_steps": _integer(1),
    "run.compile_cache": _text("a folder, auto or empty"),
    "run.xla_flags": _text(
        "flags such as --xla_name=value with blanks between, or empty",
        lambda v: all(flag.startswith("--xla_") for flag in v.split()),
    ),
    "run.hang_timeout": _integer(1),
    "run.heartbeat_timeout": _integer(10),
}

# What `recipe.exact_reference=True` stands for: each departure of the reference's code from its own documentation, or
# from what we think right, that changes numbers and has a key. docs/recipe.md tells them one by one.
EXACT_REFERENCE: dict[str, Any] = {
    "recipe.lr_update": "epoch",
    "recipe.decay_mask": "reference",
    "recipe.running_average": "first",
    "recipe.mixup_draw": "device",
    "data.transform": "dali",
    "model.se_units": 16,
}


MOST_CLASSES = 1_000_000  # a label beyond is a mistake, for which no names are made
