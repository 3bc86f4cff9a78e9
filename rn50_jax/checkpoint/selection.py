"""Which of several checkpoints or validations is the best."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Line = TypeVar("Line", bound=Mapping[str, Any])


def better_weights(metrics: Mapping[str, float | None]) -> str:
    """Returns which kind of weights validated better: "val" for the live ones, "val_ema" for the averaged ones.

    That is higher top-1, then lower loss, then the averaged ones, which also count where neither was validated.
    """
    return max(("val_ema", "val"), key=lambda prefix: _worth(metrics, prefix))


def score(metrics: Mapping[str, float | None]) -> float:
    """Returns top-1 of the better of a checkpoint's kinds of weights; -1 if it was not validated."""
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
