"""One trial of one program: `python -m rn50_jax.bench.worker SPEC.json RESULT.json`, started by `bench.trials`."""

import json
import os
import signal
import stat
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rn50_jax import cli
from rn50_jax.io.files import write_whole

_MODULES = dict.fromkeys(("torch", "torch-compile", "timm", "torch-loader"), "baselines.torch_step")
_MODULES |= {"ours": "baselines.rn50_jax_step", "loader": "input_pipeline"}


def main(argv: Sequence[str]) -> int:
    """Reads the spec, runs what its "kind" names, writes the result."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    spec, answer = json.loads(Path(argv[0]).read_text(encoding="utf-8")), Path(argv[1])

    def keep(report: dict[str, Any]) -> None:
        write_whole(answer, json.dumps(report))

    # Each program has libraries of its own, which the others' processes must not load.
    run = import_module(f"rn50_jax.bench.{_MODULES[spec['kind']]}").run
    keep(run(spec, keep) if spec["kind"] == "ours" else run(spec))
    return 0


def _end_with_the_parent() -> None:
    """Standard input is a pipe that the benchmark holds open, and that ends with it even if it is killed."""
    if stat.S_ISFIFO(os.fstat(0).st_mode) and not os.read(0, 1) and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    cli.run(main)
