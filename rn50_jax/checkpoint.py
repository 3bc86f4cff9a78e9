"""Checkpoints: the state and what is needed to understand it. The only place that imports orbax."""

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any, TypeAlias

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from orbax.checkpoint import checkpoint_managers as policies

from rn50_jax.errors import UserError
from rn50_jax.state import TrainState

CheckpointManager: TypeAlias = ocp.CheckpointManager
FORMAT = 2


def open_manager(directory: Path, *, keep: int = 1, read_only: bool = False) -> CheckpointManager:
    """Opens the checkpoints of a run; use it in a `with`, whose end waits for saves that are still being written.

    Args:
      keep: newest checkpoints to keep; the best by `val.top1` or `val_ema.top1` is kept besides.
      read_only: for evaluation beside a training run: nothing is changed or cleaned up.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax tells every step of its work
    if not read_only and jax.process_index() == 0:
        # What a killed run left half-written. Not by orbax, whose background thread outlives a run that ends at once.
        for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    newest_and_best = policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep),
            policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        best_fn=_score,
        keep_checkpoints_without_metrics=False,
        preservation_policy=newest_and_best,
        read_only=read_only,
        create=not read_only,
    )
    return ocp.CheckpointManager(directory.resolve(), options=options)


def ema_is_better(metrics: dict[str, float]) -> bool:
    """Whether a checkpoint's averaged weights validated better than the live ones, or neither was validated."""
    return "val.top1" not in metrics or metrics["val_ema.top1"] >= metrics["val.top1"]


def _score(metrics: dict[str, float]) -> float:
    # NaN would win every comparison in orbax' ranking.
    top1 = [metrics.get(name, math.nan) for name in ("val.top1", "val_ema.top1")]
    return max((value for value in top1 if math.isfinite(value)), default=-1.0)


def save(manager: CheckpointManager, state: TrainState, meta: dict[str, Any], metrics: dict[str, float]) -> None:
    """Starts writing a checkpoint of step `meta["step"]`; returns as soon as the state has been copied to the host.

    Args:
      meta: JSON values to find again in `read_meta`: step, epoch, config, class_names.
      metrics: validation metrics; may be empty. the larger of `val.top1` and
        `val_ema.top1` decides which checkpoint is the best.
    """
    arrays = jax.device_get(flax.serialization.to_state_dict(state))
    metrics = {name: float(value) for name, value in metrics.items()}
    meta = meta | {"format": FORMAT, "metrics": metrics, "arrays": _describe(arrays)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
    manager.save(meta["step"], args=args, metrics=metrics or None)


def read_meta(manager: CheckpointManager, which: str) -> dict[str, Any]:
    """What was saved beside the state of checkpoint "latest", "best" or a step number.

    Raises:
      UserError: no such checkpoint, or one that this version cannot read.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"{manager.directory} has no checkpoint; train first, with the same --workdir")
    if which == "latest":
        step = steps[-1]
    elif which == "best":
        best = manager.best_step()
        if best is None:
            raise UserError(f"{manager.directory} has no validated checkpoint to call best; use --checkpoint latest")
        step = best
    elif which.isdecimal() and int(which) in steps:
        step = int(which)
    else:
        raise UserError(f"{manager.directory} has no checkpoint {which!r}; use best, latest or one of {steps}")
    try:
        meta: dict[str, Any] = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    except Exception as error:  # orbax raises many types, bare Exception among them
        raise UserError(f"{_place(manager, step)} cannot be read ({_first_line(error)}); {_OTHER}") from error
    if meta.get("format") != FORMAT:
        raise UserError(f"{_place(manager, step)} has format {meta.get('format')}, this version reads {FORMAT}")
    return meta


def restore(manager: CheckpointManager, meta: dict[str, Any], like: TrainState) -> TrainState:
    """The state of the checkpoint that `meta` was read from, verified array by array.

    Args:
      like: a state (or its `jax.eval_shape`) of the shapes and dtypes to expect.

    Returns:
      The state, as host arrays.

    Raises:
      UserError: the checkpoint is of another model, or is damaged.
    """
    place = _place(manager, meta["step"])
    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), flax.serialization.to_state_dict(like))
    saved, wanted = meta["arrays"], _describe(target)
    # orbax itself neither compares shapes of host arrays nor refuses to cast dtypes.
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name, [])[:2] != wanted.get(name, [])[:2]:
            raise UserError(
                f"{place} is of another model: {name} is {_form(saved.get(name))} there and "
                f"{_form(wanted.get(name))} here; give the config that it was trained with"
            )
    try:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        arrays = manager.restore(meta["step"], args=args)["state"]
    except Exception as error:
        raise UserError(f"{place} cannot be read ({_first_line(error)}); {_OTHER}") from error
    found = _describe(arrays)
    damaged = [name for name in saved if saved[name] != found[name]]
    if damaged:
        raise UserError(
            f"{place} is damaged: {len(damaged)} array(s) differ from what was saved ({damaged[0]}); {_OTHER}"
        )
    restored: TrainState = flax.serialization.from_state_dict(like, arrays)
    return restored


_OTHER = "remove that folder to fall back to an older checkpoint"


def _describe(arrays: Any) -> dict[str, list[Any]]:
    """{path: [dtype, shape, sha256 of the bytes]} of a tree of host arrays."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): [
            str(leaf.dtype),
            list(leaf.shape),
            hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest(),
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def _form(entry: list[Any] | None) -> str:
    return f"{entry[0]}{entry[1]}" if entry else "missing"


def _place(manager: CheckpointManager, step: int) -> str:
    return f"checkpoint {manager.directory / str(step)}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__
