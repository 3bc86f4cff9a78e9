"""The profile of a timed program, on GPUs without command buffers, and what these are worth."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rn50_jax.bench.compiled import Program
from rn50_jax.bench.profile import profile
from rn50_jax.io.text import first_line

_OPTION = "xla_gpu_enable_command_buffer"
_TIMED = 20  # steps at most that are timed without command buffers


def has_command_buffers(platform: str, xla_flags: str) -> bool:
    """Returns whether XLA records kernels in command buffers (CUDA graphs), in which a profiler cannot name them.

    Args:
      platform: of the devices. xla_flags: as in the environment; the last of the same name counts.
    """
    given = [flag.partition("=")[2] for flag in xla_flags.split() if flag.partition("=")[0] == f"--{_OPTION}"]
    return platform == "gpu" and (not given or given[-1] != "")


def trace(
    program: Program,
    folder: Path,
    *,
    steps: int,
    mode: str,
    images_per_second: float,
    copy_gbytes_per_second: float | None,
    command_buffers: bool,
) -> dict[str, Any]:
    """Traces at most ten steps of a program that has been timed.

    Args:
      steps: that were timed. mode: "train" or "infer".
      images_per_second: what was timed. copy_gbytes_per_second: see `profile.profile`.
      command_buffers: the program has them: it is compiled once more, without.

    Returns:
      "profile", see there; and where there were command buffers "command_buffers": images_per_second with and
      images_per_second_without, each at the median step, and "ratio", with over without; or "error", if XLA does not
      compile without, and the program was traced as it is.

    Raises:
      UserError: the folder cannot be written.
    """
    run, compiled = program.run, program.compiled
    found: dict[str, Any] = {}
    if command_buffers:
        try:
            run, compiled = program.again({_OPTION: ""})
            run(2)
            without = program.images / float(np.median(run(min(steps, _TIMED))))
            ratio = images_per_second / without
            speeds = {"images_per_second": images_per_second, "images_per_second_without": without, "ratio": ratio}
            found["command_buffers"] = speeds
        except jax.errors.JaxRuntimeError as error:
            run, compiled = program.run, program.compiled
            found["command_buffers"] = {"error": first_line(error)}
    options: dict[str, Any] = {"steps": min(steps, 10), "mode": mode}
    options["copy_gbytes_per_second"] = copy_gbytes_per_second
    return found | {"profile": profile(run, compiled.as_text(), folder, **options)}


def xla_flags() -> str:
    """Returns what the environment says, where `runtime.prepare_runtime` puts the config's flags too."""
    return os.environ.get("XLA_FLAGS", "")
