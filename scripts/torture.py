#!/usr/bin/env python3
"""Tries to lose a run: kills training at random instants, damages checkpoints at random places, and counts.

    python scripts/torture.py --kills 100 --damages 200

Each kill is a SIGKILL (one in four a SIGTERM) somewhere in a small but real training, whose same command then goes on;
at the end its arrays must be those of a run that nothing disturbed. Each damage changes a checkpoint's files (a bit, a
block of zeros, a truncation, a missing file) before the run goes on; the result must be the same again. Prints one
line of JSON. Minutes on a CPU; uses the built-in digits.
"""

import argparse
import json
import os
import random
import shutil
import signal
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


def command(workdir: Path, data: Path) -> list[str]:
    config = ["--config", str(REPO / "configs/quickstart.py"), f"--config.data.dir={data}"]
    return [sys.executable, "-m", "rn50_jax.train", *config, *SMALL, "--workdir", str(workdir)]


def train(workdir: Path, data: Path, seconds: float | None, number: int = signal.SIGKILL) -> tuple[int, str]:
    """Runs the command, to its end or to a signal after so many seconds; returns its exit code and errors."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(workdir, data), cwd=REPO, stdout=subprocess.DEVNULL, stderr=pipe, text=True)
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    return process.returncode, err


def result(workdir: Path) -> dict[str, object]:
    """Step and the hashes of all arrays of the newest checkpoint."""
    from rn50_jax.checkpoint import Checkpoints

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


def kill_all_the_time(kills: int, data: Path, scratch: Path, whole: dict[str, object], rng: random.Random) -> dict:
    """Starts runs and kills them again and again, until they finish; the counts."""
    survived = done = runs = 0
    problems: list[str] = []
    while done < kills:
        runs += 1
        workdir = scratch / f"killed{runs}"
        while True:
            number = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
            code, err = train(workdir, data, rng.uniform(3.0, 9.0) if done < kills else None, number)
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

    from rn50_jax import config as configs
    from rn50_jax.build import build_model, build_state
    from rn50_jax.checkpoint import Checkpoints
    from rn50_jax.integrity import describe_arrays

    with Checkpoints(reference / "checkpoints", read_only=True) as checkpoints:
        wanted = {step: checkpoints.read_meta(str(step)) for step in checkpoints.steps()}
    newest = max(wanted)
    config = configs.from_tree(wanted[newest]["config"])
    model = build_model(config, num_classes=10, platform="cpu")
    like = build_state(config, model, abstract=True)
    counts = {"damages": count, "noticed": 0, "harmless": 0, "wrong": 0}
    problems = []
    for number in range(count):
        folder = scratch / "damaged"
        shutil.copytree(reference / "checkpoints", folder)
        what = damage(rng, folder / str(newest))
        errors, sys.stderr = sys.stderr, open(os.devnull, "w")  # noqa: SIM115, PTH123
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rn50-torture-") as folder:
        scratch = Path(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "compiled"))
        from rn50_jax.data.digits import write_digits

        write_digits(scratch / "digits")
        code, err = train(scratch / "whole", scratch / "digits", None)
        if code:
            print(err, file=sys.stderr)
            return 1
        whole = result(scratch / "whole")
        killed = kill_all_the_time(args.kills, scratch / "digits", scratch, whole, rng) if args.kills else {}
        damaged = damage_all_the_time(args.damages, scratch, scratch / "whole", rng) if args.damages else {}
    seconds = round(time.monotonic() - started)
    print(json.dumps({"killed": killed, "damaged": damaged, "seed": args.seed, "seconds": seconds}))
    return int(bool(killed.get("problems") or damaged.get("problems")))


if __name__ == "__main__":
    sys.exit(main())
