"""The headers of a checkpoint's arrays, looked at before orbax makes room for whatever they claim."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorstore
from typing_extensions import TypedDict

from rn50_jax.io.json_files import parse_json


class _Header(TypedDict):
    """Of an array in zarr's second format."""

    shape: list[int]
    chunks: list[int]
    dtype: str


def check_headers(state: Path, arrays: Mapping[str, Any]) -> None:
    """Refuses arrays of other sizes than they should have, for which memory may not suffice: that aborts the process.

    Args:
      state: folder of the state within a checkpoint.
      arrays: see `integrity.describe_arrays`.

    Raises:
      ValueError: naming the first such array; or the headers cannot be read.
    """
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}}).result()
    found = {name: store.read(f"{name}/.zarray") for name in arrays}
    for name, (_, shape, _) in arrays.items():
        text = found[name].result().value
        if not text:
            continue  # missing, or in another format: orbax will say so
        header = parse_json(text, _Header)
        small = all(0 < chunk <= max(size, 1) for chunk, size in zip(header["chunks"], shape, strict=False))
        if header["shape"] != shape or len(header["chunks"]) != len(shape) or not small or len(header["dtype"]) > 8:
            raise ValueError(f"{name} is stored in another shape")
