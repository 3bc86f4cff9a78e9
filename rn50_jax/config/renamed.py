"""Options of earlier versions: what they are called now, or why they are gone."""

from typing import Any, NamedTuple

MOVED = {
    "all_reduce": "compute.all_reduce",
    "parallel": "compute.parallel",
    "model.fold_batch_norm": "compute.fold_batch_norm",
    "run.compile_cache": "compute.compile_cache",
    "run.xla_flags": "compute.xla_flags",
    "data.max_bad_files": "data.max_bad_images",
    **{f"tune.{name}": f"finetune.{name}" for name in ("freeze", "lr_decay", "lr_scales", "new_head")},
    **{f"report.{name}": f"log.{name}" for name in ("print_every", "tensorboard", "wandb", "mlflow", "dle_json")},
}


class Removed(NamedTuple):
    """usual: the value that stands for how it is now. now: a sentence that says so."""

    usual: Any
    now: str


_LOWERINGS = {"conv_lowering": "auto", "stem": "auto", "max_pool": "fused", "fused_norm": True}
_IMPL = "compute.impl says how convolution and BatchNorm are written, xla (fast) or plain"

REMOVED = {
    **{
        f"{section}.{name}": Removed(usual, _IMPL)
        for section in ("compute", "model")
        for name, usual in _LOWERINGS.items()
    },
    "data.on_bad_file": Removed("substitute", "--config.data.max_bad_images=0 ends a run at the first bad image"),
    "data.prefetch": Removed(2, "two batches are always ready on the device"),
    "recipe.mixup_draw": Removed("device", "each device draws its own mixing"),
    "recipe.cutmix_share": Removed(0.5, "mixup and CutMix, where both are on, are equally likely"),
    "loss_scale.growth": Removed(2.0, "the scale always doubles"),
    "loss_scale.backoff": Removed(0.5, "the scale is always halved"),
    "loss_scale.floor": Removed(1.0, "the scale never falls below 1"),
    "report.file": Removed("metrics.jsonl", "the metrics are always in metrics.jsonl"),
}


def explain(key: str) -> str:
    """Says what became of an option, also by its name without the section; "" if there never was one."""
    if key in MOVED:
        return f"it is {MOVED[key]} now"
    if key in REMOVED:
        return f"it is gone: {REMOVED[key].now}"
    if gone := next((old for old in REMOVED if old.rpartition(".")[2] == key), ""):
        return f"{gone} is gone: {REMOVED[gone].now}"
    return {"tune": "it is finetune now", "report": "it is log now"}.get(key, "")
