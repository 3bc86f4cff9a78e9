"""Runs of one configuration with several seeds, and whether two such groups differ by more than chance.

What `twin.py` and `ablation.py` share.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import ttest_ind

REPO = Path(__file__).resolve().parent.parent


class Outcome(NamedTuple):
    """What a finished run came to.

    top1: validation accuracy after the last epoch, per cent. seconds: wall-clock. processor_seconds: of all threads,
    which depends less on what else the machine does.
    """

    top1: float
    seconds: float
    processor_seconds: float


class Difference(NamedTuple):
    """A difference of mean accuracies in points, its 95 % interval, and p of Welch's two-sided t-test."""

    points: float
    low: float
    high: float
    p: float


def outcome(command: Sequence[str], workdir: Path) -> Outcome:
    """Runs a command that trains in `workdir`, unless it has been run there, and returns what it came to.

    The command appends the validation of each epoch to `workdir/metrics.jsonl`, as `rn50_jax.train` does. A run that
    was interrupted is begun anew, or its times would be wrong: the command must be able to.

    Raises:
      SystemExit: the command failed, or another one has been run there; the message has been printed.
    """
    kept = workdir / "outcome.json"
    if not kept.exists():
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "output.txt").open("w", encoding="utf-8") as output:
            code = subprocess.run(command, env=_environment(), stdout=output, stderr=subprocess.STDOUT).returncode
        if code:
            end = (workdir / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            print(*end, f"exit code {code} of {' '.join(command)}", sep="\n", file=sys.stderr)
            sys.exit(code if code > 0 else 128 - code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found = Outcome(_last_top1(workdir / "metrics.jsonl"), time.perf_counter() - start, processor)
        unfinished = kept.with_suffix(".unfinished")  # a kill while it is written leaves none, not half of it
        unfinished.write_text(json.dumps(found._asdict() | {"command": command[1:]}), encoding="utf-8")
        unfinished.replace(kept)
    facts = json.loads(kept.read_text(encoding="utf-8"))
    if facts.pop("command") != command[1:]:  # but for the interpreter
        print(f"error: {workdir} has the outcome of another command; choose another folder", file=sys.stderr)
        sys.exit(2)
    return Outcome(**facts)


def train_command(config: str, workdir: Path, overrides: Sequence[str], seed: int) -> list[str]:
    """Returns the command that trains `config` once; it keeps no checkpoints."""
    options = [f"--config.seed={seed}", *overrides, "--config.run.save_checkpoints=false"]
    return [sys.executable, "-m", "rn50_jax.train", "--config", config, "--workdir", str(workdir), *options]


def group_text(outcomes: Sequence[Outcome]) -> str:
    """Returns the accuracies' mean and standard deviation over seeds (n - 1), in per cent."""
    values = [found.top1 for found in outcomes]
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def difference(outcomes: Sequence[Outcome], baseline: Sequence[Outcome]) -> Difference | None:
    """Returns how far the accuracies lie above those of `baseline`.

    None where no test can tell: of a single seed, or of two groups without any spread.
    """
    ours, others = ([found.top1 for found in group] for group in (outcomes, baseline))
    if min(len(ours), len(others)) < 2 or len({*ours}) == len({*others}) == 1:
        return None
    test = ttest_ind(ours, others, equal_var=False)
    interval = test.confidence_interval()
    return Difference(mean(ours) - mean(others), float(interval.low), float(interval.high), float(test.pvalue))


def difference_text(outcomes: Sequence[Outcome], baseline: Sequence[Outcome]) -> str:
    """Returns the `difference` as text; without interval and p where no test can tell."""
    found = difference(outcomes, baseline)
    if not found:
        return f"{mean(run.top1 for run in outcomes) - mean(run.top1 for run in baseline):+.2f}"
    return f"{found.points:+.2f} ({found.low:+.2f} to {found.high:+.2f}), p = {found.p:.2g}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table."""
    print(f"| {' | '.join(head)} |", "|---" * len(head) + "|", sep="\n")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def _environment() -> dict[str, str]:
    """With the package to be found from any folder, so that paths mean what they do where they are typed."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))}


def _last_top1(metrics: Path) -> float:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    # Of averaged weights, theirs.
    found = [line.get("val_ema.top1", line.get("val.top1")) for line in lines]
    if not (validated := [value for value in found if value is not None]):
        print(f"error: {metrics} has no validation, and that is what is compared", file=sys.stderr)
        sys.exit(2)
    return float(validated[-1])
