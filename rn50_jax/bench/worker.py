"""One trial of one program: `python -m rn50_jax.bench.worker SPEC.json RESULT.json`, started by `bench.trials`."""

import json
import os
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rn50_jax import cli
from rn50_jax.errors import UserError
from rn50_jax.io.files import write_whole

Keep = Callable[[dict[str, Any]], None]

_MODULES = dict.fromkeys(("torch", "torch-compile", "timm", "torch-loader"), "baselines.torch_step")
_MODULES |= {"flax-example": "baselines.flax_example", "ours": "baselines.rn50_jax_step", "loader": "input_pipeline"}


def main(argv: Sequence[str]) -> int:
    """Reads the spec, runs what its "kind" names, writes the result."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    answer = Path(argv[1])

    def keep(report: dict[str, Any]) -> None:
        write_whole(answer, json.dumps(report))

    keep(_run(spec, keep))
    return 0


def _end_with_the_parent() -> None:
    """Standard input is a pipe that the benchmark holds open, and that ends with it even if it is killed."""
    if stat.S_ISFIFO(os.fstat(0).st_mode) and not os.read(0, 1) and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def _run(spec: dict[str, Any], keep: Keep) -> dict[str, Any]:
    # Each program has libraries of its own, which the others' processes must not load.
    kind = spec["kind"]
    if kind not in _MODULES:
        raise UserError(f"no program of kind {kind!r}")
    run = import_module(f"rn50_jax.bench.{_MODULES[kind]}").run
    report: dict[str, Any] = run(spec, keep) if kind == "ours" else run(spec)
    return report


if __name__ == "__main__":
    cli.run(main)
