"""The benchmark command: what it reports, not how fast it is."""

import json
from pathlib import Path

import pytest
from conftest import REPO, TINY, Run, assert_user_error


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_result(run: Run, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "result.json"
    config = ("--config", REPO / "configs/quickstart.py", *TINY, "--config.batch_size=4")
    options = ("--mode", mode, "--steps", 7, "--warmup", 2, "--json", path)
    done = run("benchmark", *config, *options, devices=2)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert (result["mode"], result["devices"], result["images_per_step"], result["steps"]) == (mode, "2 x cpu", 8, 7)
    assert (result["arch"], result["image_size"], result["precision"]) == ("resnet18", 32, "fp32")
    times = result["step_seconds"]
    assert set(times) == {"median", "mean", "min", "max", "p90", "p95", "p99"}
    assert times["min"] <= times["median"] <= times["p90"] <= times["p95"] <= times["p99"] <= times["max"]
    assert result["images_per_second"] == pytest.approx(8 / times["median"])
    assert result["first_call_seconds"] > times["median"]
    assert "images per second at the median step" in done.stdout


def test_mistakes_are_told_in_one_line(run: Run) -> None:
    config = ("--config", REPO / "configs/quickstart.py")
    assert_user_error(run("benchmark", *config, "--steps", 0), "--steps must be at least 1")
    assert_user_error(run("benchmark", *config, "--config.batch_size=0"), "config.batch_size=0")
