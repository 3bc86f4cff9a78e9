"""All logs of one real run that was killed and went on, and of one whose disk is full."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, TINY
from test_loggers import wandb_records
from test_mlperf import check
from test_reliability import wait_for_step
from test_train import read_lines

LOGS = ("--config.report.wandb=digits", "--config.report.mlflow=digits", "--config.report.mlperf_log=mlperf.log")


def start(env: dict[str, str], digits: Path, workdir: Path, *options: str, preface: str = "") -> subprocess.Popen[str]:
    program = f"{preface}\nfrom rn50_jax import errors, train\nerrors.run(train.main)"
    line = [sys.executable, "-c", program, "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    line += [f"--config.data.dir={digits}", *TINY, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=env, cwd=REPO, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def env(process_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    logs = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "MLFLOW_ALLOW_FILE_STORE": "true"}
    return process_env | logs | {"MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns"}


def test_every_log_survives_a_kill(
    env: dict[str, str], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir = tmp_path / "run"
    process = start(env, digits, workdir, *LOGS)
    wait_for_step(workdir, 60, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = (workdir / "metrics.jsonl").read_bytes()
    process = start(env, digits, workdir, *LOGS)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0 and err == "", err
    assert "logs       metrics.jsonl, tensorboard/, mlperf.log, wandb digits, mlflow digits" in out

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

    code, told = check(workdir / "mlperf.log")
    assert code == 0 and "WARNING" not in told, told

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.metrics["val/top1"] == validations[92]

    files = sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    known = json.loads((workdir / "wandb.json").read_text())
    assert files[0].name == f"run-{known['id']}.wandb" and known["project"] == "digits"
    kinds = [found.WhichOneof("record_type") for found in wandb_records(files[1])]
    assert kinds.count("history") >= 5 and kinds[-1] == "exit"


def test_a_full_disk_ends_the_logs_and_not_the_run(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    # No file may grow beyond 6 kB.
    preface = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    options = ("--config.epochs=1", "--config.run.save_checkpoints=false", "--config.report.print_every=2")
    options = (*options, "--config.report.mlperf_log=m.log", "--config.report.dle_json=dle.json")
    process = start(env, digits, tmp_path / "run", *options, "--config.run.compile_cache=", preface=preface)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "epoch 1/1  validation  top-1" in out and out.endswith("done\n")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == len(set(notes)) and "Traceback" not in err, err
    for name in ("run/metrics.jsonl", "the TensorBoard log", "run/dle.json"):
        assert sum(f"{name} cannot be written (File too large); the run goes on" in note for note in notes) == 1, err
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line)
