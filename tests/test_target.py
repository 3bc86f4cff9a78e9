"""A run that ends at its target accuracy, and goes on as if nothing had been when it is asked for more."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rn50_jax import train
from rn50_jax.checkpoint import Checkpoints

# All that other recipes bring along, to be found again after a restart: Adam's averages and count, and every draw.
RECIPE = (
    "--config.model.stages=(1, 1)",
    *tuple(
        f"--config.recipe.{setting}"
        for setting in (
            "optimizer=lamb",
            "clip_norm=1.0",
            "decay_mask=no_bn_bias",
            "loss=bce",
            "bce_threshold=0.2",
            "label_smoothing=0",
            "mixup=0.2",
            "cutmix=1.0",
            "random_erasing=0.25",
            "ema_decay=0.9",
            "lr=0.01",
        )
    ),
)


def latest(workdir: Path) -> dict:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.read_meta("latest")


def test_a_target_ends_the_run_and_another_one_prolongs_it_exactly(
    train_tiny: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = train_tiny(whole, *RECIPE)
    assert done.returncode == 0, done.stderr
    # Any accuracy will do: the run ends after the first of its two epochs, with a checkpoint whatever is kept.
    done = train_tiny(parts, *RECIPE, "--target_top1", "1", "--config.checkpoint.every_epochs=5")
    assert done.returncode == 0, done.stderr
    assert "epoch 1 reached the 1 % top-1 of run.target_top1" in done.stdout
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["46"]
    before = (parts / "metrics.jsonl").read_text()
    assert [json.loads(line)["epoch"] for line in before.splitlines() if "val.top1" in line] == [1]

    again = ["--config", str(parts / "config.json"), "--workdir", str(parts)]
    assert train.main(again) == 0
    assert "is finished: epoch 1 reached" in capsys.readouterr().out
    assert (parts / "metrics.jsonl").read_text() == before

    done = train_tiny(parts, *RECIPE)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 1, step 46" in done.stdout
    assert latest(parts)["arrays"] == latest(whole)["arrays"]  # to the very bits
    opt_state = [name for name in latest(whole)["arrays"] if name.startswith("opt_state")]
    assert any(name.endswith("count") for name in opt_state) and any(".mu." in name for name in opt_state)
