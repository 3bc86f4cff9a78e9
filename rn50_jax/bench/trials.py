"""Programs in turns, each trial in a process of its own: A, B, C, A, B, C, ...

Whatever drifts (clocks, temperature, other users of the machine) then drifts for all of them, the spread over rounds
shows how far single figures can be trusted, and no program holds memory while another is timed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn50_jax.errors import UserError

_ROOT = Path(__file__).resolve().parent.parent.parent


def run_trials(
    programs: dict[str, dict[str, Any]], *, rounds: int, timeout: float, tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Runs every program `rounds` times.

    Args:
      programs: by name, the spec that `bench.worker` takes. One that fails is left out from then on.
      timeout: seconds after which a trial is ended and counts as failed.
      tell: called with a line of progress before each trial.

    Returns:
      By name, {"trials": list of what the worker reported}, or {"error": why there are none}.

    Raises:
      UserError: the first program, which the others are compared with, failed.
    """
    found: dict[str, dict[str, Any]] = {name: {"trials": []} for name in programs}
    with tempfile.TemporaryDirectory(prefix="rn50-jax-compiled-") as cache:
        for number in range(1, rounds + 1):
            for name, spec in programs.items():
                if "error" in found[name]:
                    continue
                tell(f"round {number} of {rounds}: {name}")
                try:
                    found[name]["trials"].append(run_trial(spec, cache, timeout=timeout))
                except UserError as error:
                    if name == next(iter(programs)):
                        raise
                    found[name] = {"error": str(error)}
    return found


def run_trial(spec: dict[str, Any], cache: str, *, timeout: float) -> dict[str, Any]:
    """What one worker process reports. Compiled programs are kept in the folder `cache` for the later rounds.

    Raises:
      UserError: it failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory(prefix="rn50-jax-bench-") as folder:
        request, answer = Path(folder) / "spec.json", Path(folder) / "result.json"
        request.write_text(json.dumps(spec), encoding="utf-8")
        command = [sys.executable, "-m", "rn50_jax.bench.worker", str(request), str(answer)]
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        # JAX would take most of the memory at once, which its own time does not depend on, but a reader of it does.
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_COMPILATION_CACHE_DIR": cache} | os.environ
        env |= {"PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(Path(cache) / "torch")}
        if spec.get("one_device"):
            env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            env["XLA_FLAGS"] = _without_fake_devices(env.get("XLA_FLAGS", ""))
        try:
            done = subprocess.run(
                command, env=env, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"not finished after {timeout:.0f} s") from None
        if done.returncode or not answer.is_file():
            lines = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
            raise UserError(lines[-1].removeprefix("error: ")[:300])
        report: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return report


def _without_fake_devices(flags: str) -> str:
    return " ".join(flag for flag in flags.split() if "host_platform_device_count" not in flag)
