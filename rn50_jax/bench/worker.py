"""One trial to one program: `python -m rn50_jax.bench.worker SPEC.json RESULT.json`, started by `bench.trials`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rn50_jax import errors
from rn50_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Reads the spec, runs what its "kind" names, writes the result."""
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    Path(argv[1]).write_text(json.dumps(_run(spec)), encoding="utf-8")
    return 0


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    # Each program has libraries of its own, which the others' processes must not load.
    kind = spec["kind"]
    if kind == "ours":
        from rn50_jax.bench import ours

        return ours.run(spec)
    if kind == "feed":
        from rn50_jax.bench import feed

        return feed.run(spec)
    if kind == "flax-example":
        from rn50_jax.bench import flax_peer

        return flax_peer.run(spec)
    if kind in ("torch", "torch-compile", "timm", "torch-loader"):
        from rn50_jax.bench import torch_peer

        return torch_peer.run(spec)
    raise UserError(f"no program of kind {kind!r}")


if __name__ == "__main__":
    errors.run(main)
