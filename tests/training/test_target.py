"""A run that ends at its target accuracy, and goes on as if nothing had been when it is asked for more."""

import json
from pathlib import Path

import pytest
from conftest import Run
from helpers.runs import read_meta

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


@pytest.mark.slow
def test_a_target_ends_the_run_and_another_one_prolongs_it_exactly(call_train: Run, call: Run, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = call_train(whole, *RECIPE)
    assert done.returncode == 0, done.stderr
    # Any accuracy will do: the run ends after the first of its two epochs, with a checkpoint whatever is kept.
    done = call_train(parts, *RECIPE, "--target_top1", "1", "--config.checkpoint.every_epochs=5")
    assert done.returncode == 0, done.stderr
    assert "epoch 1 reached the 1 % top-1 of run.target_top1" in done.stdout
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["46"]
    before = (parts / "metrics.jsonl").read_text()
    assert [json.loads(line)["epoch"] for line in before.splitlines() if "val.top1" in line] == [1]

    done = call("train", "--config", parts / "config.json", "--workdir", parts)
    assert done.returncode == 0 and "is finished: epoch 1 reached" in done.stdout
    assert (parts / "metrics.jsonl").read_text() == before

    done = call_train(parts, *RECIPE)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 1, step 46" in done.stdout
    assert read_meta(parts)["arrays"] == read_meta(whole)["arrays"]  # to the very bits
    opt_state = [name for name in read_meta(whole)["arrays"] if name.startswith("opt_state")]
    assert any(name.endswith("count") for name in opt_state) and any(".mu." in name for name in opt_state)
