"""MLPerf's log, judged by its own compliance checker."""

import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import make_config

from configs import mlperf_lars
from rn50_jax import config as configs
from rn50_jax.data.folder import Dataset, ImageSet
from rn50_jax.errors import UserError
from rn50_jax.loggers import Record
from rn50_jax.mlperf import MlperfLog, MlperfRun, mlperf_run
from rn50_jax.plan import Plan, make_plan

PLAN = Plan(8, 1, 256, 2048, steps_per_epoch=10, total_steps=30, peak_lr=2.048)
STARTED = time.time() - 60
# What the closed division wants of SGD.
CLOSED = (("recipe.end_lr", "0.0001"), ("recipe.weight_decay", "0.00005"), ("report.mlperf_division", "closed"))


def make_run(*overrides: tuple[str, str]) -> MlperfRun:
    config = make_config("data", ("batch_size", "256"), ("epochs", "3"), ("recipe.warmup_epochs", "1"), *overrides)
    images = ImageSet(("a",) * 5, np.zeros(5, np.int32))
    return mlperf_run(config, PLAN, Dataset(images, images, ("ant",)), "8 x GPU", started=STARTED)


def write_epoch(log: MlperfLog, epoch: int, top1: float) -> None:
    step = 10 * (epoch + 1)
    log.write(Record("train", 0.0, step - 5, epoch, epoch + 0.5, {"train.loss": 1.0}))
    log.write(Record("train", 0.0, step, epoch, epoch + 1.0, {"train.loss": 1.0}))
    log.write(Record("epoch", 0.0, step, epoch, epoch + 1.0, {"val.top1": top1}))


def finish(log: MlperfLog, epoch: int) -> None:
    log.write(Record("end", 0.0, 10 * (epoch + 1), epoch, epoch + 1.0, {}, finished=True))


def check(path: Path) -> tuple[int, str]:
    """Exit code and complaints of the public checker."""
    command = [sys.executable, "-W", "ignore", "-m", "mlperf_logging.compliance_checker", "--ruleset", "4.0.0"]
    done = subprocess.run([*command, path], cwd=path.parent, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in path.read_text().splitlines()]


def test_a_run_passes_the_open_division_also_when_it_was_resumed(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    with closing(MlperfLog(path, make_run(), first_epoch=0)) as log:
        write_epoch(log, 0, 20.0)
        log.write(Record("train", 0.0, 15, 1, 1.5, {"train.loss": 1.0}))
    with path.open("a") as file:
        file.write(':::MLLOG {"names')  # a kill
    with closing(MlperfLog(path, make_run(), first_epoch=1)) as log:
        write_epoch(log, 1, 76.5)
        write_epoch(log, 2, 75.0)
        finish(log, 2)
    code, told = check(path)
    assert code == 0 and "SUCCESS" in told and "WARNING" not in told, told
    lines = read(path)
    keys = [line["key"] for line in lines]
    assert keys[0] == "init_start" and lines[0]["time_ms"] == int(1000 * STARTED)
    start = keys.index("run_start")
    assert [key for key in keys[start:] if key != "run_resumed"] == [
        "run_start",
        *("epoch_start", "epoch_stop", "eval_start", "eval_accuracy", "eval_stop") * 3,
        "run_stop",
    ]
    values = {line["key"]: line["value"] for line in lines[:start]}
    assert (values["global_batch_size"], values["model_bn_span"], values["opt_name"]) == (2048, 256, "sgd")
    assert (values["sgd_opt_base_learning_rate"], values["sgd_opt_learning_rate_decay_steps"]) == (2.048, 20)
    accuracies = [(line["metadata"]["epoch_num"], line["value"]) for line in lines if line["key"] == "eval_accuracy"]
    assert accuracies == [(1, 0.2), (2, 0.765), (3, 0.75)]
    assert lines[-1]["metadata"]["status"] == "success"  # 75.9 % was reached


def test_the_closed_division_wants_its_own_recipe(tmp_path: Path) -> None:
    for name, overrides, top1 in (("sgd", CLOSED, 76.0), ("slow", CLOSED, 75.0), ("nvidia", CLOSED[2:], 76.0)):
        with closing(MlperfLog(tmp_path / name, make_run(*overrides), first_epoch=0)) as log:
            for epoch in range(3):
                write_epoch(log, epoch, top1)
            finish(log, 2)
    assert check(tmp_path / "sgd")[0] == 0, check(tmp_path / "sgd")
    code, told = check(tmp_path / "slow")
    assert code == 1 and "Failed checks for eval_accuracy" in told
    assert read(tmp_path / "slow")[-1]["metadata"]["status"] == "aborted"
    code, told = check(tmp_path / "nvidia")
    assert code == 1
    assert "CHECK for 'sgd_opt_end_learning_rate' failed" in told
    assert "CHECK for 'sgd_opt_weight_decay' failed" in told
    assert told.count("failed test") == 2


@pytest.mark.parametrize("variant", mlperf_lars.VARIANTS)
def test_the_recipe_for_lars_passes_the_closed_division_and_ends_at_the_target(tmp_path: Path, variant: str) -> None:
    config = configs.override(mlperf_lars.get_config(variant), [("report.mlperf_division", "closed")])
    images = ImageSet((), np.zeros(1_281_167, np.int32))
    num_devices = config.recipe.optimizer_batch_size // config.batch_size
    plan = make_plan(config, num_images=1_281_167, num_devices=num_devices)
    run = mlperf_run(config, plan, Dataset(images, images, ("a",)), "512 x GPU", STARTED)
    assert run.settings["lars_opt_base_learning_rate"] == plan.peak_lr == config.recipe.lr
    run = run._replace(steps_per_epoch=10)
    with closing(MlperfLog(tmp_path / "lars", run, first_epoch=0)) as log:
        write_epoch(log, 0, 70.0)
        write_epoch(log, 1, 76.0)
        finish(log, 1)
    code, told = check(tmp_path / "lars")
    assert code == 0 and "closed_resnet_lars" in told, told
    assert [line["key"] for line in read(tmp_path / "lars")].count("epoch_start") == 2  # none after the target


def test_lamb_has_its_own_names() -> None:
    settings = make_run(("recipe.optimizer", "lamb"), ("recipe.weight_decay", "0.02")).settings
    assert (settings["opt_name"], settings["opt_lamb_weight_decay_rate"], settings["opt_lamb_beta_2"]) == (
        "lamb",
        0.02,
        0.999,
    )


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("notes\n")
    with pytest.raises(UserError, match=r"report.mlperf_log: .*x holds something else; choose another file"):
        MlperfLog(tmp_path / "x", make_run(), first_epoch=0)
    with pytest.raises(UserError, match=r"report.mlperf_log: cannot write .*No such file"):
        MlperfLog(tmp_path / "none/x", make_run(), first_epoch=0)
