"""Many measurements in a few numbers; without JAX, which PyTorch's processes must not load."""

from collections.abc import Sequence

import numpy as np

PERCENTILES = (25, 75, 90, 95, 99)


def summarize(seconds: Sequence[float]) -> dict[str, float]:
    """Returns median, mean, extremes, quartiles (p25, p75) and p90, p95 and p99, linearly interpolated."""
    return {
        "median": float(np.median(seconds)),
        "mean": float(np.mean(seconds)),
        "min": float(np.min(seconds)),
        "max": float(np.max(seconds)),
        **{f"p{q}": float(np.percentile(seconds, q)) for q in PERCENTILES},
    }


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Returns median and extremes over the trials."""
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Returns ours over theirs, trial by trial: median and extremes of as many as both have finished."""
    return spread_of([a / b for a, b in zip(ours, theirs, strict=False)])
