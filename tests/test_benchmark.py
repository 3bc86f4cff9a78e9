"""The benchmark command: what it reports, not how fast it is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, TINY, Run, assert_user_error
from helpers.runs import PATIENCE

from rn50_jax import benchmark
from rn50_jax.errors import UserError

CONFIG = ("--config", REPO / "configs/quickstart.py", *TINY, "--config.model.stages=(1, 1)", "--config.batch_size=4")


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_result(call: Run, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "result.json"
    options = ("--mode", mode, "--steps", 7, "--warmup", 2, "--json", path)
    done = call("benchmark", *CONFIG, *options, devices=2)
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text())
    result = document["results"][0]
    assert document | result == document  # of a single case, its keys stand at the top too
    assert (result["mode"], result["devices"], result["images_per_step"], result["steps"]) == (mode, "2 x CPU", 8, 7)
    assert (result["arch"], result["image_size"], result["precision"]) == ("resnet18", 32, "fp32")
    times = result["step_seconds"]
    assert set(times) == {"median", "mean", "min", "max", "p25", "p75", "p90", "p95", "p99"}
    assert times["min"] <= times["p25"] <= times["median"] <= times["p75"] <= times["p90"] <= times["p95"]
    assert times["p95"] <= times["p99"] <= times["max"]
    assert result["batch_norm"] == ("folded" if mode == "infer" else "computed")
    assert result["images_per_second"] == pytest.approx(8 / times["median"])
    assert result["first_call_seconds"] > result["compile_seconds"] > 0 and result["trace_seconds"] > 0
    assert result["peak_memory_source"] == "XLA's analysis of the program" and result["peak_memory_bytes"] > 0
    per_device = 4 * result["gflop_per_image"] / times["median"] / 1e3
    assert result["tflops"] == pytest.approx(per_device)
    ceiling = document["ceilings"]["fp32"]
    assert result["flops_of_ceiling"] == pytest.approx(per_device / ceiling["tflops"])
    assert result["bandwidth_of_ceiling"] == pytest.approx(result["gbytes_per_second"] / ceiling["gbytes_per_second"])
    assert "mfu" not in result  # no data sheet says what a CPU is capable of
    assert document["hardware"]["platform"] == "cpu" and document["versions"]["jax"]
    assert document["command"][:3] == ["python", "-m", "rn50_jax.benchmark"] and str(path) in document["command"]
    assert (document["complete"], document["not_run"]) == (True, [])
    assert result["seconds"] > result["start_seconds"] > result["first_call_seconds"]
    assert done.stdout.startswith("# Benchmark on CPU\n")
    assert "images per second at the median step" in done.stdout


@pytest.mark.slow
def test_sweep_over_devices_and_precisions(run: Run, tmp_path: Path) -> None:
    page, path = tmp_path / "result.md", tmp_path / "result.json"
    sweep = ("--batch_sizes", "4", "--precisions", "bf16,fp32", "--scaling", "strong")
    options = ("--mode", "infer", "--steps", 2, "--warmup", 0, "--markdown", page, "--json", path)
    done = run("benchmark", *CONFIG, *sweep, *options, devices=2)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())["results"]
    found = [(r["precision"], r["num_devices"], r["batch_size_per_device"], r["images_per_step"]) for r in results]
    assert found == [(p, n, 4 // n, 4) for p in ("bf16", "fp32") for n in (1, 2)]
    text = page.read_text()
    assert text.strip() == done.stdout.strip()
    assert "### Strong scaling" in text and "### Every case" in text and "## Ceilings, measured in this run" in text


@pytest.mark.slow
def test_end_to_end_and_its_share_of_waiting(run: Run, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ("--mode", "end-to-end", "--steps", 3, "--warmup", 1, "--rounds", 2, "--json", path)
    done = run("benchmark", *CONFIG, f"--config.data.dir={digits}", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())["end_to_end"]
    real, synthetic = (result[key]["rounds"] for key in ("images_per_second", "images_per_second_synthetic"))
    ratios = sorted(a / b for a, b in zip(real, synthetic, strict=True))
    assert (result["ratio"]["min"], result["ratio"]["max"]) == pytest.approx(ratios)
    assert 0 <= result["waiting"]["min"] <= result["waiting"]["max"] < 1
    assert (result["backend"], result["workers"]) == ("dali-cpu", 2)
    assert "real / synthetic" in done.stdout


@pytest.mark.slow
def test_input_beside_torchs_loader(run: Run, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ("--mode", "input", "--steps", 5, "--warmup", 1, "--rounds", 1, "--json", path)
    done = run("benchmark", *CONFIG, f"--config.data.dir={digits}", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())["input"]
    assert result["files"]["images"] == 1500
    ours, theirs = result["programs"]
    for entry in (ours, theirs):
        assert entry["images_per_second"]["median"] > 0 and entry["cpu_ms_per_image"]["median"] > 0
    ratio = ours["cpu_ms_per_image"]["median"] / theirs["cpu_ms_per_image"]["median"]
    assert theirs["ours_over_it_cpu_ms_per_image"]["median"] == pytest.approx(ratio)
    assert "Pillow, 2 processes" in theirs["about"] and "dali-cpu" in ours["about"]


def test_mistakes_are_told_in_one_line(call: Run) -> None:
    done = call("benchmark", "--config", REPO / "configs/quickstart.py", "--steps", 0)
    assert_user_error(done, "--steps and --rounds must be at least 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.batch_size=0"], "config.batch_size=0"),
        (["--batch_sizes", "4,x"], "--batch_sizes '4,x'"),
        (["--generated", "20"], "--generated is for --mode input"),
        (["--mode", "input", "--profile", "x"], "--profile is for --mode train"),
        (["--mode", "end-to-end", "--config.data.backend=synthetic"], "--mode end-to-end times real files"),
        (["--device", "gpu"], "--device gpu, but JAX found only a CPU"),
        (["--devices", "1", "--batch_sizes", "1,2", "--profile", "x"], "--profile takes one precision"),
        (["--compare", "torch", "--scaling", "weak"], "--compare times one device"),
        (["--budget", "0"], "--budget 0 must be"),
        (["--budget", "nan"], "--budget nan must be"),
        (["--json", "/proc/none.json"], "cannot write /proc/none.json"),
        (["--markdown", "/proc"], "cannot write /proc: Is a directory"),
        (["--json", "a", "--markdown", "x/../a"], "name the same file a"),
        (["--mode", "input", "--vary", "compute.impl=plain"], "--vary is for --mode train"),
        (["--compare", "torch", "--vary", "compute.impl=plain"], "--vary goes without --compare"),
        (["--precisions", "fp32,bf16", "--vary", "compute.impl=plain"], "--vary takes one precision"),
        (["--vary", "compute.impl"], "--vary 'compute.impl' must be KEY=VALUE"),
        (["--vary", "compute.imple=plain"], "config has no key 'compute.imple'; did you mean compute.impl"),
        (["--vary", "compute.impl=plane"], "config.compute.impl='plane' must be one of"),
        (["--vary", "compute.impl=xla"], "--vary 'compute.impl=xla' is what the config says already"),
        (["--vary", "compute.xla_flags=--xla_a=1"], "use --config.compute.xla_flags in a call of its own"),
        (["--vary", "data.workers=3"], "--vary data.workers: it changes nothing of a step on synthetic data"),
        (["--vary", "precision=fp16"], "use --precisions"),
    ],
)
def test_mistakes_are_found_before_anything_is_compiled(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark.main(["--config", str(REPO / "configs/quickstart.py"), *options])


def test_the_cpu_is_not_timed_as_a_gpu(process_env: dict[str, str], tmp_path: Path) -> None:
    # A machine with a driver's tool, and a JAX that ends on the CPU unasked.
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    env = process_env | {"PATH": str(tmp_path), "JAX_PLATFORMS": ""}
    command = [sys.executable, "-m", "rn50_jax.benchmark", *map(str, CONFIG), "--mode", "infer", "--steps", "1"]
    done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert_user_error(done, "fell back to the CPU", "nvidia-smi", "--device cpu")
