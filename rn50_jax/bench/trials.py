"""Programs in turns, each trial in a process of its own: A, B, C, A, B, C, ...

Whatever drifts (clocks, temperature, other users of the machine) then drifts for all of them, the spread over trials
shows how far single figures can be trusted, and no program holds memory while another is timed.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rn50_jax.bench.record import Record
from rn50_jax.bench.stops import Stops
from rn50_jax.errors import UserError

_ROOT = Path(__file__).resolve().parent.parent.parent

Found = dict[str, dict[str, Any]]


class Terms(NamedTuple):
    """The terms of every trial.

    command: the benchmark's own words. trials: of each program. timeout: seconds that one may take.
    """

    command: tuple[str, ...]
    device: str
    steps: int
    warmup: int
    trials: int
    timeout: float = 1800.0


def trial_names(case: str, programs: Sequence[str], trials: int) -> list[str]:
    """Returns the name of every trial of a case, in the order in which they are run, as a record's plan has them."""
    turns = itertools.product(range(1, trials + 1), programs)
    return [f"{case}, {program}, trial {number} of {trials}" for number, program in turns]


def run_trials(
    case: str,
    programs: dict[str, dict[str, Any]],
    record: Record,
    terms: Terms,
    *,
    parts: Callable[[Found], dict[str, Any]],
) -> Found:
    """Runs the programs in turns, as far as there is time.

    Args:
      case: what is compared.
      programs: by name, the spec that `bench.worker` takes. One that fails is not run any more.
      record: has the trials in its plan, see `trial_names`.
      parts: makes parts of the record's document of what was found; called after each trial.

    Returns:
      By name, "trials": list of what the worker reported, with "trial_seconds"; and if one failed, "error", why, and
      where there is more to say "error_detail" or "result".

    Raises:
      UserError: the first trial of the first program, which the others are compared with, failed.
    """
    found: Found = {name: {"trials": []} for name in programs}
    with record.stops.folder("rn50-jax-compiled-") as cache:
        turns = list(itertools.product(range(1, terms.trials + 1), programs))
        names = trial_names(case, list(programs), terms.trials)
        for (number, name), text in zip(turns, names, strict=True):
            if "error" in found[name] or not record.begins(text, case=case, program=name):
                continue
            record.tell(text)
            start = time.perf_counter()

            def keep(report: dict[str, Any], name: str = name, text: str = text, start: float = start) -> None:
                if "error" in report:
                    found[name] |= report
                else:
                    found[name]["trials"].append(report | {"trial_seconds": time.perf_counter() - start})
                record.done(text, **parts(found))

            spec = programs[name] | {"trial": number}
            report = run_trial(spec, cache, terms.timeout, record.stops, salvage=keep)
            first = name == next(iter(programs)) and not found[name]["trials"]
            if first and "error" in report and "result" not in report:
                raise UserError(report["error"])
            keep(report)
            if "error" in report:
                record.tell(f"{name}: {report['error']}")
                record.drop([text for (_, other), text in zip(turns, names, strict=True) if other == name])
    return found


def describe(found: Found) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yields the name, errors and seconds of each program that was run, as the document has them, and its reports."""
    for name, one in found.items():
        if one["trials"] or "error" in one:
            entry = {"name": name} | {key: one[key] for key in ("error", "error_detail") if key in one}
            if one["trials"]:
                entry["trial_seconds"] = [report["trial_seconds"] for report in one["trials"]]
            yield entry, one["trials"]


def run_trial(
    spec: dict[str, Any],
    cache: Path,
    timeout: float,
    stops: Stops,
    *,
    salvage: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Runs one trial in a process of its own and returns what it reports.

    Compiled programs stay in the folder `cache` for the later trials. A report made before it failed counts, with the
    failure as "cut_short".

    Args:
      salvage: given what it has reported so far if a signal ends the benchmark meanwhile.

    Returns:
      Its report; if it failed and reported nothing, "error", its last line, and "error_detail", the last twenty.
    """
    with stops.folder("rn50-jax-bench-") as folder:
        request, answer, errors = folder / "spec.json", folder / "result.json", folder / "stderr"
        request.write_text(json.dumps(spec), encoding="utf-8")
        command = worker_command(request, answer)
        env = trial_environment(os.environ, cache, one_device=bool(spec.get("one_device")))
        with errors.open("wb") as file:
            # A session of its own: signals of a terminal are ours to answer, and all of it can be ended together.
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )

        def stop() -> None:
            _end(process)
            if answer.is_file():
                salvage(json.loads(answer.read_text(encoding="utf-8")) | {"cut_short": "stopped"})

        problem = ""
        with process, stops.undoing(stop):
            try:
                if process.wait(timeout):
                    problem = f"ended with exit code {process.returncode}"
            except subprocess.TimeoutExpired:
                problem = f"not finished after {timeout:.0f} s"
            _end(process)
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if process.returncode > 0:
            problem = (lines or [problem])[-1].removeprefix("error: ")[:300]
        if answer.is_file():
            report: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return report | ({"cut_short": problem} if problem else {})
        detail = {"error_detail": "\n".join(lines[-20:])} if len(lines) > 1 else {}
        return {"error": problem or "it reported nothing"} | detail


def worker_command(request: Path, answer: Path) -> list[str]:
    """Returns the command that runs one trial, see `bench.worker`."""
    return [sys.executable, "-m", "rn50_jax.bench.worker", str(request), str(answer)]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and those that it started, some of which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)


def trial_environment(env: Mapping[str, str], cache: Path, *, one_device: bool) -> dict[str, str]:
    """Returns the environment of a trial.

    Args:
      env: of the benchmark. Compiled programs that it has elsewhere would make the first trial of one program
        start warm beside the others' cold ones: everybody's are in `cache`.
      one_device: only the first of the devices is to be seen.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), env.get("PYTHONPATH", "")]))
    # JAX would take most of the memory at once, which its own time does not depend on, but a reader of it does.
    found = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **env, "PYTHONPATH": path}
    folders = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
    found |= {name: str(cache / name.partition("_")[0].lower()) for name in folders}
    found |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if one_device:
        found["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        flags = env.get("XLA_FLAGS", "").split()
        found["XLA_FLAGS"] = " ".join(flag for flag in flags if "host_platform_device_count" not in flag)
    return found
