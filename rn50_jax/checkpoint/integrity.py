"""What makes a checkpoint trustworthy: hashes of its arrays, a seal on its description, and its worth.

orbax' files hold no checksums of their data: a changed bit would go unnoticed.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rn50_jax.errors import RunStopped

Line = TypeVar("Line", bound=Mapping[str, Any])


def better_weights(metrics: Mapping[str, float | None]) -> str:
    """Returns which kind of weights validated better: "val" for the live ones, "val_ema" for the averaged ones.

    That is higher top-1, then lower loss, then the averaged ones, which also count where neither was validated.
    """
    return max(("val_ema", "val"), key=lambda prefix: _worth(metrics, prefix))


def ema_is_better(metrics: Mapping[str, float | None]) -> bool:
    """Whether a checkpoint's averaged weights validated better than the live ones, or neither was validated."""
    return better_weights(metrics) == "val_ema"


def score(metrics: Mapping[str, float | None]) -> float:
    """Top-1 of the better of a checkpoint's kinds of weights; -1 if it was not validated."""
    return _worth(metrics, better_weights(metrics))[0]


def rank(metrics: Mapping[str, float | None], epoch: int) -> tuple[float, float, int]:
    """Returns what orders validations everywhere, the best having the largest.

    Higher top-1 is better, then lower loss, then the earlier epoch, each of the better kind of weights.

    Args:
      metrics: of one validation, as in a checkpoint or a line of the metrics file.
      epoch: in which it was made.
    """
    return (*_worth(metrics, better_weights(metrics)), -epoch)


def best_validation(lines: Sequence[Line]) -> Line:
    """Returns the best by `rank` of lines that hold a validation and its "epoch"; there must be one."""
    return max(lines, key=lambda line: rank(line, line["epoch"]))


def _worth(metrics: Mapping[str, float | None], prefix: str) -> tuple[float, float]:
    """Top-1 and the negative loss; -1 and minus infinity for what is missing or not finite."""
    top1, loss = (metrics.get(f"{prefix}.{name}") for name in ("top1", "loss"))
    return (
        top1 if top1 is not None and math.isfinite(top1) else -1.0,
        -loss if loss is not None and math.isfinite(loss) else -math.inf,
    )


def not_finite(arrays: Any) -> str | None:
    """The name of the first array of a tree that holds a number that is not finite; None if there is none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if jax.numpy.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None


def check_finite(arrays: Any, step: int) -> None:
    """Refuses to save a state that training could not go on from.

    Raises:
      RunStopped: naming the first array that is not finite.
    """
    if name := not_finite(arrays):
        raise RunStopped(
            f"the state of step {step} is not finite ({name}) and is not saved; the checkpoint before it is whole, "
            "and the same command goes on from there, with a lower config.recipe.lr if need be"
        )


def seal(meta: dict[str, Any]) -> str:
    """A hash of JSON values, the same before and after they were written and read."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def describe_arrays(arrays: Any) -> dict[str, list[Any]]:
    """{path: [dtype, shape, sha256 of the bytes]} of a tree of host arrays."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): [
            str(leaf.dtype),
            list(leaf.shape),
            hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest(),
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def describe_shapes(arrays: Any) -> dict[str, list[Any]]:
    """{path: [dtype, shape]} of a tree of arrays, or of what only tells of arrays."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): [str(leaf.dtype), list(leaf.shape)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def describe_entry(entry: list[Any] | None) -> str:
    """For example "float32[64]"."""
    return f"{entry[0]}{entry[1]}" if entry else "missing"
