#!/usr/bin/env python3
"""Tries to lose a run: kills training at random instants, damages checkpoints at random places, and counts.

    python scripts/torture.py --kills 100 --damages 200 --deaths 5

Each kill is a SIGKILL (one in four a SIGTERM) somewhere in a small but real training, whose same command then goes on;
at the end its arrays must be those of a run that nothing disturbed. Each damage changes a checkpoint's files (a bit, a
block of zeros, a truncation, a missing file) before the run goes on; the result must be the same again. Each death is
that of one of two processes that train together, which raises, is killed or hangs; all must have ended within
`BOUND` seconds, with the shortest heartbeat. Prints one line of JSON. Minutes on a CPU; uses the built-in digits.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

SMALL = (
    "--config.model.arch=resnet18",
    "--config.model.width=8",
    "--config.model.stages=(1, 1)",
    "--config.recipe.ema_decay=0.9",
    "--config.recipe.mixup=0.2",
    "--config.precision=fp16",
    "--config.loss_scale.mode=dynamic",
    "--config.loss_scale.growth_interval=20",
    "--config.checkpoint.every_minutes=0.01",
    "--config.epochs=20",
)

BOUND = 15  # seconds from the failure of one process to the end of all; docs/reliability.md, R7
# A config that makes one process fail in its eighth step, and tells when.
DEATH = """
import os, signal, time
from pathlib import Path
from rn50_jax.config import loading
from rn50_jax.loggers.meters import Meters

def get_config():
    return loading.load({recipe!r})[0]

steps, add = 0, Meters.add

def add_and_fail(self, metrics):
    global steps
    add(self, metrics)
    steps += 1
    if steps == 8 and os.environ["JAX_PROCESS_ID"] == {where!r}:
        Path({failed!r}).write_text(str(time.time()))
        {what}

Meters.add = add_and_fail
"""
DEATHS = (
    ("raised", 0, "raise RuntimeError"),
    ("raised", 1, "raise RuntimeError"),
    ("killed", 1, "os.kill(os.getpid(), signal.SIGKILL)"),
    ("hung", 1, "time.sleep(1000)"),
)


def command(workdir: Path, options: list[str], recipe: Path = REPO / "configs/quickstart.py") -> list[str]:
    config = ["--config", str(recipe), *SMALL, *options]
    return [sys.executable, "-m", "rn50_jax.train", *config, "--workdir", str(workdir)]


def train(
    workdir: Path, options: list[str], seconds: float | None, number: int = signal.SIGKILL, *, running: bool = False
) -> tuple[int, str]:
    """Runs the command, to its end or to a signal after so many seconds; returns its exit code and errors.

    running: the seconds count from where it has reported steps of its own and written a checkpoint.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command(workdir, options), cwd=REPO, stdout=subprocess.DEVNULL, stderr=pipe, encoding="utf-8", errors="replace"
    )
    metrics, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    before = metrics.stat().st_size if metrics.exists() else 0
    try:
        while running and process.poll() is None:
            if metrics.exists() and metrics.stat().st_size > before and any(checkpoints.glob("[0-9]*")):
                break
            time.sleep(0.02)
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    return process.returncode, err


def result(workdir: Path) -> dict[str, object]:
    """Step and the hashes of all arrays of the newest checkpoint."""
    from rn50_jax.checkpoint.manager import Checkpoints

    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.read_meta("latest")
    return {"step": meta["step"], **meta["arrays"]}


def damage(rng: random.Random, checkpoint: Path) -> str:
    """Spoils one file of a checkpoint; returns what was done."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
    if rng.random() < 0.5:  # most bytes are in few files
        files = sorted(files, key=lambda path: path.stat().st_size)[-3:]
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    how = rng.choice(("bit", "bit", "zeros", "truncated", "missing"))
    at = rng.randrange(len(data))
    if how == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "zeros":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    elif how == "truncated":
        del data[at:]
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{how} in {file.relative_to(checkpoint)}"


def kill_all_the_time(
    kills: int, options: list[str], scratch: Path, whole: dict[str, object], rng: random.Random, *, running: bool
) -> dict:
    """Starts runs and kills them again and again, until they finish; the counts."""
    shortest, longest = (0.0, 1.0) if running else (3.0, 9.0)
    survived = done = runs = 0
    problems: list[str] = []
    while done < kills:
        runs += 1
        workdir = scratch / f"killed{runs}"
        while True:
            number = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
            seconds = rng.uniform(shortest, longest) if done < kills else None
            code, err = train(workdir, options, seconds, number, running=running and seconds is not None)
            if code == 0:
                break
            done += 1
            if code in (-signal.SIGKILL, -signal.SIGTERM, 143):
                survived += 1
            else:
                problems.append(f"exit code {code}: {err.strip()[-300:]}")
                break
        if code == 0 and result(workdir) != whole:
            problems.append(f"run {runs} ended in another state")
        shutil.rmtree(workdir)
    return {"kills": done, "survived": survived, "runs": runs, "problems": problems}


def damage_all_the_time(count: int, scratch: Path, reference: Path, rng: random.Random) -> dict:
    """Damages the newest of a finished run's checkpoints in many ways; the counts of what reading it gives."""
    import flax.serialization

    from rn50_jax.checkpoint.integrity import describe_arrays
    from rn50_jax.checkpoint.manager import Checkpoints
    from rn50_jax.config.loading import from_saved
    from rn50_jax.config.model import build_model
    from rn50_jax.training.build import build_state

    with Checkpoints(reference / "checkpoints", read_only=True) as checkpoints:
        wanted = {step: checkpoints.read_meta(str(step)) for step in checkpoints.steps()}
    newest = max(wanted)
    config = from_saved(wanted[newest]["config"], source="the checkpoint").config
    model = build_model(config, num_classes=10, platform="cpu")
    like = build_state(config, model, abstract=True)
    counts = {"damages": count, "noticed": 0, "harmless": 0, "wrong": 0}
    problems = []
    for number in range(count):
        folder = scratch / "damaged"
        shutil.copytree(reference / "checkpoints", folder)
        what = damage(rng, folder / str(newest))
        errors, sys.stderr = sys.stderr, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        try:
            with Checkpoints(folder) as checkpoints:
                found = checkpoints.restore_newest(like, lambda meta: None)
            assert found is not None
            state, meta = found
            arrays = describe_arrays(flax.serialization.to_state_dict(state))
            if arrays != wanted[meta["step"]]["arrays"]:
                counts["wrong"] += 1
                problems.append(what)
            else:
                counts["harmless" if meta["step"] == newest else "noticed"] += 1
        except Exception as error:
            counts["wrong"] += 1
            problems.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            sys.stderr = errors
        shutil.rmtree(folder)
        if (number + 1) % 20 == 0:
            print(counts, file=sys.stderr, flush=True)
    return counts | {"problems": problems}


def die_all_the_time(rounds: int, options: list[str], scratch: Path) -> dict:
    """Lets one of two processes fail in every way; the longest seconds, over the rounds, until both had ended."""
    longest: dict[str, float] = {}
    problems = []
    for number in range(rounds):
        for how, where, what in DEATHS:
            folder = scratch / f"death{number}-{how}{where}"
            folder.mkdir()
            recipe, failed = folder / "config.py", folder / "failed"
            text = DEATH.format(
                recipe=str(REPO / "configs/quickstart.py"), where=str(where), failed=str(failed), what=what
            )
            recipe.write_text(text)
            with socket.create_server(("127.0.0.1", 0)) as server:
                meeting = f"127.0.0.1:{server.getsockname()[1]}"
            limits = ("--config.run.heartbeat_timeout=10", "--config.run.hang_timeout=6")
            processes = []
            for place in range(2):
                env = {"JAX_COORDINATOR_ADDRESS": meeting, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(place)}
                env = os.environ | env | {"JAX_PLATFORMS": "cpu"}
                line, null = [*command(folder / "run", options, recipe), *limits], subprocess.DEVNULL
                processes.append(subprocess.Popen(line, env=env, cwd=REPO, stdout=null, stderr=null))
            codes = [process.wait(timeout=600) for process in processes]
            ended = time.time()
            if not failed.exists() or 0 in codes:
                problems.append(f"{how} {where}: exit codes {codes}, failed as planned: {failed.exists()}")
                continue
            seconds = round(ended - float(failed.read_text()), 1)
            longest[how] = max(longest.get(how, 0.0), seconds)
            if seconds > BOUND:
                problems.append(f"{how} {where}: ended after {seconds} s")
    return {"deaths": rounds * len(DEATHS), "longest": longest, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--deaths", type=int, default=5, help="rounds in which one of two processes fails in every way")
    parser.add_argument("--running", action="store_true", help="kill within a second of a run's first own steps only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the counts, and on what they were found")
    parser.add_argument("options", nargs="*", metavar="-- --config.key=value", help="for the training that is killed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rn50-torture-") as folder:
        scratch = Path(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "compiled"))
        from rn50_jax.data.prepare.digits import write_digits

        write_digits(scratch / "digits")
        options = [f"--config.data.dir={scratch / 'digits'}", *args.options]
        code, err = train(scratch / "whole", options, None)
        if code:
            print(err, file=sys.stderr)
            return 1
        whole = result(scratch / "whole")
        facts = json.loads((scratch / "whole/run.json").read_text(encoding="utf-8"))
        kill = (args.kills, options, scratch, whole, rng)
        killed = kill_all_the_time(*kill, running=args.running) if args.kills else {}
        damaged = damage_all_the_time(args.damages, scratch, scratch / "whole", rng) if args.damages else {}
        died = die_all_the_time(args.deaths, options, scratch) if args.deaths else {}
    seconds = round(time.monotonic() - started)
    counts = {"killed": killed, "damaged": damaged, "died": died, "seed": args.seed, "seconds": seconds}
    if args.json:
        args.json.write_text(json.dumps(counts | {"run": facts}), encoding="utf-8")
    print(json.dumps(counts))
    return int(any(part.get("problems") for part in (killed, damaged, died)))


if __name__ == "__main__":
    sys.exit(main())
