"""The promises of docs/reliability.md, with real processes, signals and faults."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import QUICK_COMPILE, REPO, TINY, Run, Shared, assert_user_error
from helpers.runs import PATIENCE, SMALL, final_arrays, read_lines, read_meta, wait_for_step, wait_until
from helpers.tiny import OPTIONS, STATIC, make_batch, make_model, make_state, make_step, place
from PIL import Image

from rn50_jax.training.state import TrainState

# Everything that a state can hold: loss scale, averages, mixing; and a save at every opportunity.
FULL = (
    *SMALL,
    "--config.precision=fp16",
    "--config.loss_scale.mode=dynamic",
    "--config.loss_scale.growth_interval=20",
    "--config.recipe.mixup=0.2",
    "--config.epochs=3",
)
OFTEN = "--config.checkpoint.every_minutes=0.001"

# Where the tests run as a shell's background job, interrupts are ignored, and children inherit that.
NOTICE_INTERRUPTS = "import os, resource, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
EXECUTE = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


@pytest.fixture
def popen(process_env: dict[str, str], digits: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the training command, with FULL settings, in a process of its own."""

    def start(workdir: Path, *args: str, config: Path = REPO / "configs/quickstart.py", before: str = "") -> Any:
        line = [
            sys.executable,
            "-c",
            NOTICE_INTERRUPTS + before + EXECUTE,
            "-m",
            "rn50_jax.train",
            "--config",
            str(config),
        ]
        line += [f"--config.data.dir={digits}", *TINY, *FULL, *args, "--workdir", str(workdir)]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, env=process_env, cwd=REPO, stdout=pipe, stderr=pipe, text=True)

    return start


@pytest.fixture(scope="session")
def whole(train_tiny: Run, shared: Shared) -> dict[str, Any]:
    """Arrays of the final checkpoint of a run that nothing disturbed."""

    def make(folder: Path) -> None:
        done = train_tiny(folder / "run", *FULL)
        assert done.returncode == 0, done.stderr

    return final_arrays(shared("whole", make) / "run")


def saved_steps(workdir: Path) -> list[str]:
    return [path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]


@pytest.mark.slow
def test_killed_at_any_instant_a_run_goes_on_to_the_same_bits(
    popen: Callable[..., Any], whole: dict[str, Any], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    # Within an epoch, around its end and its save, and while the next one runs.
    for step, seconds in ((10, 0.0), (40, 0.05), (60, 0.1), (75, 0.02)):
        metrics = workdir / "metrics.jsonl"
        behind = len(metrics.read_text()) if metrics.exists() else 0
        process = popen(workdir, OFTEN)
        wait_for_step(workdir, step, process, behind=behind)
        time.sleep(seconds)
        process.kill()
        _, err = process.communicate()
        assert err == "" or (err.startswith("note: ") and "no checkpoints: training starts anew at step 0" in err)
    process = popen(workdir, OFTEN)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and re.search(r"resuming after epoch [12], step \d+\n", out), (out, err)
    assert final_arrays(workdir) == whole
    assert read_meta(workdir)["goodput"]["lost"] > 0
    assert re.search(r"time +\d+ s in all: startup \d+%, compile \d+%, train \d+%, .*lost \d+%", out)
    last = read_lines(workdir)[-1]
    assert last["step"] == 138 and last["goodput.train"] > 0 and last["goodput.lost"] > 0


INJECTED = """
import os, signal, time
import jax, jax.numpy as jnp
import __main__ as train
from rn50_jax.config import loading as config

def get_config():
    loaded, _ = config.load({quickstart!r})
    return loaded

{what}
"""


def inject(tmp_path: Path, what: str) -> Path:
    config = tmp_path / "config.py"
    config.write_text(INJECTED.format(quickstart=str(REPO / "configs/quickstart.py"), what=what))
    return config


SIGNAL_DURING_VALIDATION = """
batches = train.eval_batches
def eval_batches(*args, **kwargs):
    for number, batch in enumerate(batches(*args, **kwargs)):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
train.eval_batches = eval_batches
"""


@pytest.mark.slow
def test_a_signal_saves_and_ends_wherever_it_comes(
    popen: Callable[..., Any], whole: dict[str, Any], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"

    def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
        """Waits for the end by a signal; returns the step that was saved."""
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number, err
        first, second = err.strip().splitlines()
        assert first == "finishing the step and saving; a second signal ends at once"
        told = "everything is saved, and the same command goes on from there"
        found = re.fullmatch(rf"ended by {number.name} after step (\d+); {told}", second)
        assert found, second
        step = int(found[1])
        assert read_meta(workdir)["step"] == step
        return step

    process = popen(workdir)
    wait_until((workdir / "run.json").exists, process)  # it listens to signals, and is about to compile
    process.send_signal(signal.SIGINT)
    behind = end(process, signal.SIGINT)
    assert behind < 46

    process = popen(workdir)
    assert f"step {behind}\n" in resumed(process)
    wait_for_step(workdir, behind + 10, process)
    process.send_signal(signal.SIGUSR1)  # saves and goes on
    wait_until(lambda: any(int(name) > behind and int(name) % 46 for name in saved_steps(workdir)), process)
    wait_for_step(workdir, 50, process)
    process.send_signal(signal.SIGTERM)
    assert 50 <= end(process, signal.SIGTERM) < 138

    process = popen(workdir, config=inject(tmp_path, SIGNAL_DURING_VALIDATION))
    step = end(process, signal.SIGTERM)
    epoch = step // 46
    assert step % 46 == 0 and (read_meta(workdir)["epoch"], read_meta(workdir)["metrics"]) == (epoch - 1, {})

    process = popen(workdir)  # validates first, and saves that step again
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert re.search(rf"resuming after epoch {epoch - 1}, step {step}\nepoch +{epoch}/3  validation", out)
    assert final_arrays(workdir) == whole
    assert [line["step"] for line in read_lines(workdir) if "val.top1" in line] == [46, 92, 138]


def resumed(process: subprocess.Popen[str]) -> str:
    """The line with which a process says where it goes on."""
    assert process.stdout
    return next((line for line in process.stdout if line.startswith("resuming ")), "")


@pytest.mark.slow
def test_a_second_signal_ends_at_once(popen: Callable[..., Any], tmp_path: Path) -> None:
    hang = "train.Checkpoints.save = lambda *_: time.sleep(1e6)"
    process = popen(tmp_path / "other", config=inject(tmp_path, hang))
    wait_for_step(tmp_path / "other", 10, process)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("finishing the step and saving")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "second signal: ending at once, without saving"


@pytest.mark.slow
def test_several_processes_save_the_same_step(process_env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, str(REPO / "scripts/launch.py"), "--processes", "2", "--"]
    line = [*launcher, sys.executable, "-m", "rn50_jax.train", "--config", str(REPO / "configs/quickstart.py")]
    line += [f"--config.data.dir={digits}", *TINY, *FULL, "--config.epochs=9", "--workdir", str(tmp_path / "run")]
    line += ["--config.batch_size=8"]  # an epoch of 93 steps, in the middle of which the signal is sure to come
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, env=process_env, cwd=REPO, stdout=pipe, stderr=pipe, text=True)
    wait_for_step(tmp_path / "run", 10, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    steps = set(re.findall(r"ended by SIGTERM after step (\d+); everything is saved", err))
    assert steps == {str(read_meta(tmp_path / "run")["step"])}
    assert len(read_meta(tmp_path / "run")["position"]["pipelines"]) == 2
    # Their division into processes may change within an epoch, not their number.
    one = [*line[len(launcher) :], "--config.epochs=2"]
    env = process_env | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=3 {QUICK_COMPILE}"}
    refused = subprocess.run(one, env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert_user_error(refused, "in the middle of epoch 1", "the number of", "set it back until the epoch has ended")
    env = process_env | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {QUICK_COMPILE}"}
    done = subprocess.run(one, env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "resuming after epoch 0" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_and_is_told(
    popen: Callable[..., Any], whole: dict[str, Any], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    process = popen(workdir, "--config.epochs=1", "--config.recipe.warmup_epochs=1")
    assert process.communicate(timeout=PATIENCE) and process.returncode == 0
    before = final_arrays(workdir)
    # No file may grow beyond 12 kB: what a full disk does to the arrays, and not to the metrics.
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)); "
    # Half a program or half a module's bytecode must not be kept for others.
    limit += "os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'; sys.dont_write_bytecode = True; "
    process = popen(workdir, before=limit)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, err
    assert f"checkpoint {workdir / 'checkpoints'}" in err and "could not be written" in err
    assert "the newest complete one is of step 46; trying again" in err and "Make room" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert final_arrays(workdir) == before
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["46"]


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_locked_out(
    popen: Callable[..., Any], train_tiny: Run, tmp_path: Path
) -> None:
    process = popen(tmp_path / "run", "--config.epochs=90")
    wait_for_step(tmp_path / "run", 10, process)
    refused = train_tiny(tmp_path / "run", *FULL)
    assert_user_error(refused, "another run is writing to", f"process {process.pid} on ", "another --workdir")
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_out_of_memory_names_what_takes_less(popen: Callable[..., Any], tmp_path: Path) -> None:
    what = """
def compile_steps(*args):
    return jax.jit(lambda state, batch: (state, {'loss': jnp.zeros(1 << 46)})), None
train.compile_steps = compile_steps
"""
    process = popen(tmp_path / "run", config=inject(tmp_path, what))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, err
    (line,) = err.strip().splitlines()
    assert "out of memory with config.batch_size=32 images of 32 px per device in fp16" in line
    assert "smaller config.batch_size" in line and "XLA_PYTHON_CLIENT_MEM_FRACTION" in line


@pytest.mark.slow
def test_images_of_steps_left_out_are_named(train_tiny: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--config.recipe.lr=1e30", "--config.run.max_skipped_steps=3", "--config.recipe.warmup_epochs=0")
    done = train_tiny(tmp_path / "run", *options)
    assert done.returncode == 3, (done.stdout, done.stderr)
    note, error = done.stderr.strip().splitlines()
    assert note.startswith("note: step 2, 3, 4, 5, 6 ...: the loss or a gradient was not finite, nothing was changed")
    assert re.match(r"error: by step 10, the loss or a gradient was not finite in 9 steps in a row", error)
    assert "e+29. These steps changed nothing" in error and "lower config.recipe.lr" in error
    (written,) = read_lines(tmp_path / "run")
    assert written["train.skipped_in_a_row"] == written["train.skipped_steps"] == 9
    lines = [json.loads(line) for line in (tmp_path / "run/left_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 11))
    assert all(len(line["files"]) == 32 and Path(line["files"][0]).is_file() for line in lines)


def test_an_image_of_absurd_size_is_refused(trained: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    assert bomb.stat().st_size < 100_000
    done = call("predict", "--workdir", trained[0], bomb, "--json")
    assert done.returncode == 1
    (answer,) = json.loads(done.stdout)
    told = "more than 200,000,000 pixels, 40,000 on a side or 600 MB, or 3,000 times as long as wide; make it smaller"
    assert answer["error"] == f"too large (20000 x 20000): {told}"


GROUPS = ("step", "params", "batch_stats", "opt_state", "ema", "loss_scale")


@pytest.mark.slow
def test_no_part_of_the_state_can_be_left_out_of_a_checkpoint() -> None:
    # Five steps, a new process, five more: the same as ten. And different if any one thing is not carried over.
    model = make_model("fp16")
    scaling = STATIC.replace(mode="dynamic", growth_interval=4)
    options = OPTIONS.replace(scaling=scaling, ema_decay=0.9, mixup=0.2)
    step, replicate = make_step(model, 2, options, lr=0.02)
    fresh = jax.device_get(make_state(model, loss_scale=2.0**22, ema=True))

    def train(state: TrainState, numbers: range) -> TrainState:
        placed = replicate(state)
        for number in numbers:
            placed, _ = step(placed, place(make_batch(2, 4, seed=number)))
        return jax.device_get(placed)

    def groups(state: TrainState) -> dict[str, bytes]:
        return {
            name: b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(getattr(state, name))) for name in GROUPS
        }

    middle, end = train(fresh, range(5)), train(fresh, range(10))
    assert int(end.loss_scale.skipped) > 0 and int(end.step) > 3
    wanted = groups(end)
    assert groups(train(middle, range(5, 10))) == wanted
    changed = {}
    for name in GROUPS:
        without = middle._replace(**{name: getattr(fresh, name)})
        found = groups(train(without, range(5, 10)))
        changed[name] = {group for group in GROUPS if found[group] != wanted[group]}
    changed["position"] = {g for g, bits in groups(train(middle, range(4, 9))).items() if bits != wanted[g]}
    assert all(changed.values()), changed
    # Not even a look at losses or parameters would find these two: only their own bits tell.
    assert changed["batch_stats"] <= {"batch_stats", "ema"} and changed["ema"] == {"ema"}
