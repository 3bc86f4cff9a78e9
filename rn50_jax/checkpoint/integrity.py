"""What makes a checkpoint trustworthy: hashes of its arrays, a seal on its description, and its worth.

orbax' files hold no checksums of their data: a changed bit would go unnoticed.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rn50_jax.errors import RunStopped


def not_finite(arrays: Any) -> str | None:
    """The name of the first array of a tree that holds a number that is not finite; None if there is none."""
    floating = ((name, x) for name, x in _named(arrays) if jax.numpy.issubdtype(x.dtype, np.floating))
    return next((name for name, x in floating if not np.isfinite(x).all()), None)


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
        name: [str(leaf.dtype), list(leaf.shape), hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()]
        for name, leaf in _named(arrays)
    }


def describe_shapes(arrays: Any) -> dict[str, list[Any]]:
    """{path: [dtype, shape]} of a tree of arrays, or of what only tells of arrays."""
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in _named(arrays)}


def _named(arrays: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def describe_entry(entry: list[Any] | None) -> str:
    """For example "float32[64]"."""
    return f"{entry[0]}{entry[1]}" if entry else "missing"
