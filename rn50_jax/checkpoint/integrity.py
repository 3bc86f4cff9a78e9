"""What makes a checkpoint trustworthy: hashes of its arrays, a seal on its description, and its worth.

orbax' files hold no checksums of their data: a changed bit would go unnoticed.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def not_finite(arrays: Any) -> str | None:
    """Returns the name of the first array of a tree that holds a number that is not finite; None if there is none."""
    floating = ((name, x) for name, x in _named(arrays) if jax.numpy.issubdtype(x.dtype, np.floating))
    return next((name for name, x in floating if not np.isfinite(x).all()), None)


def seal(meta: dict[str, Any]) -> str:
    """Returns a hash of JSON values, the same before and after they were written and read."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def describe_arrays(arrays: Any) -> dict[str, list[Any]]:
    """Returns {path: [dtype, shape, sha256 of the bytes]} of a tree of host arrays."""
    return {
        name: [str(leaf.dtype), list(leaf.shape), hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()]
        for name, leaf in _named(arrays)
    }


def describe_shapes(arrays: Any) -> dict[str, list[Any]]:
    """Returns {path: [dtype, shape]} of a tree of arrays, or of what only tells of arrays."""
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in _named(arrays)}


def _named(arrays: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def describe_entry(entry: list[Any] | None) -> str:
    """Returns dtype and shape, for example "float32[64]"."""
    return f"{entry[0]}{entry[1]}" if entry else "missing"
