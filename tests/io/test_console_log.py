"""All logs of one real run that was killed and went on, and of one whose disk is full."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO, TINY, Run
from helpers.logs import logged, read_dle, wandb_records
from helpers.runs import PATIENCE, read_lines, wait_for_step

LOGS = ("--config.log.wandb=digits", "--config.log.mlflow=digits", "--config.log.dle_json=dle.json")


# However busy the machine is, no log is given up for being slow.
PATIENT = f"""
from rn50_jax.loggers.base import Background
Background.__init__.__kwdefaults__.update(opening={PATIENCE}, patience={PATIENCE})
"""


def start(
    env: dict[str, str], digits: Path, workdir: Path, *options: str, preface: str = PATIENT
) -> subprocess.Popen[str]:
    program = f"{preface}\nfrom rn50_jax import cli, train\ncli.run(train.main)"
    line = [sys.executable, "-c", program, "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    line += [f"--config.data.dir={digits}", *TINY, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=env, cwd=REPO, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def env(process_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return process_env | {"MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns"}


def wait_for_the_end_of_wandb(pid: int) -> None:
    """Waits until the service of Weights & Biases has noticed that this process is dead: it holds the run's name."""

    def is_service(command: Path) -> bool:
        try:
            words = command.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            return False
        return b"wandb-core" in words[0] and str(pid).encode() in words

    deadline = time.monotonic() + PATIENCE
    while any(map(is_service, Path("/proc").glob("[0-9]*/cmdline"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_every_log_survives_a_kill(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir = tmp_path / "run"
    # Epochs enough that it is killed before it ends.
    options = (*LOGS, "--config.recipe.exact_reference=true", "--config.epochs=6")
    process = start(env, digits, workdir, *options)
    wait_for_step(workdir, 60, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for_the_end_of_wandb(process.pid)
    before = (workdir / "metrics.jsonl").read_bytes()
    with (workdir / "dle.json").open("a") as file:
        file.write('DLLL {"timestamp": "17')  # half a line
    process = start(env, digits, workdir, *options)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and err == "", err
    assert "logs       metrics.jsonl, tensorboard/, dle.json, wandb digits, mlflow digits" in out

    assert (workdir / "metrics.jsonl").read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    lines = read_lines(workdir)
    repeated = [line["step"] for line in lines if "train.loss" in line]
    assert len(repeated) > len(set(repeated))  # steps were done again
    wanted = {line["step"]: line["train.loss"] for line in lines if "train.loss" in line}
    validations = {line["step"]: line["val.top1"] for line in lines if "val.top1" in line}

    events = EventAccumulator(str(workdir / "tensorboard"), {"scalars": 0})
    events.Reload()
    assert [(p.step, p.value) for p in events.Scalars("train/loss")] == [
        (step, pytest.approx(wanted[step])) for step in sorted(wanted)
    ]
    assert [(p.step, p.value) for p in events.Scalars("val/top1")] == [
        (step, pytest.approx(value)) for step, value in sorted(validations.items())
    ]

    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert {metric.step: metric.value for metric in history} == validations and 276 in validations

    files = sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    known = json.loads((workdir / "wandb.json").read_text())
    assert files[0].name == f"run-{known['id']}.wandb" and known["project"] == "digits"
    kinds = [found.WhichOneof("record_type") for found in wandb_records(files[1])]
    assert kinds.count("history") >= 5 and kinds[-1] == "exit"

    told = read_dle(workdir / "dle.json")
    parameters = [line["data"] for line in told if line.get("step") == "PARAMETER"]
    assert len(parameters) == 2
    assert (parameters[0]["arch"], parameters[0]["lr"], parameters[0]["epochs"]) == ("resnet18", 0.2, 6)
    epochs = {line["step"][0]: line["data"] for line in logged(told, 1)}
    assert epochs.keys() == set(range(6))
    ours = [line for line in lines if "val.top1" in line]
    for line in ours:
        found = epochs[line["epoch"] - 1]
        assert (found["val.top1"], found["val.loss"]) == (line["val.top1"], line["val.loss_smoothed"])
        assert found["val.compute_latency_at99"] > 0
    (whole,) = logged(told, 0)
    assert whole["data"]["val.top1"] == max(line["val.top1"] for line in ours)
    # With the reference's quirks the rate stays within an epoch.
    rates = {(line["step"][0], round(line["data"]["lr"], 6)) for line in logged(told, 2)}
    assert len(rates) == 6 and {(0, 0.2), (1, 0.2)} <= rates


@pytest.mark.slow
def test_a_full_disk_ends_the_logs_and_not_the_run(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    # No file may grow beyond 6 kB.
    preface = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    options = ("--config.epochs=1", "--config.run.save_checkpoints=false", "--config.log.print_every=2")
    options = (*options, "--config.log.dle_json=dle.json")
    # Half a program or half a module's bytecode must not be kept for others.
    env |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    process = start(env, digits, tmp_path / "run", *options, preface=preface)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "epoch 1/1  validation  top-1" in out and out.endswith("done\n")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == len(set(notes)) and "Traceback" not in err, err
    for name in ("run/metrics.jsonl", "the TensorBoard log", "run/dle.json"):
        assert sum(f"{name} cannot be written (File too large); the run goes on" in note for note in notes) == 1, err
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_without_tensorboard_and_matplotlib_training_goes_on(
    call_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "rn50_jax.analysis.curves", raising=False)
    for package in ("tensorboard", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    done = call_train(tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "note: no log for TensorBoard is written, as it is not installed: pip install tensorboard",
        f"note: {tmp_path}/w/curves.png is not drawn, as matplotlib is not installed: pip install matplotlib",
    ]
    assert done.stdout.endswith("done\n") and "curves.png" not in done.stdout
    assert not (tmp_path / "w/tensorboard").exists() and (tmp_path / "w/metrics.jsonl").is_file()
