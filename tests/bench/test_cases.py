"""What the benchmark counts, draws and writes; nothing here depends on how fast anything is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.bench import small_config
from helpers.jaxprs import operations
from PIL import Image

from rn50_jax.bench import cases, device, jpegs, stats, sweep, tables, timing
from rn50_jax.bench.compiled import Program, make_program
from rn50_jax.bench.cpu_time import tree_seconds
from rn50_jax.bench.flops import count_flops
from rn50_jax.bench.record import Record
from rn50_jax.bench.report import as_json, as_markdown
from rn50_jax.bench.roofline import Ceiling, measure_ceiling
from rn50_jax.config import loading as configs
from rn50_jax.errors import UserError
from rn50_jax.models.compute import PRECISIONS, Compute
from rn50_jax.models.family import FAMILY
from rn50_jax.models.initial import variable_shapes
from rn50_jax.models.resnet import ResNet
from rn50_jax.runtime import jax_setup


def make_network(arch: str, compute: Compute = PRECISIONS["fp32"], **kwargs: Any) -> ResNet:
    return ResNet(FAMILY[arch], 1000, compute, **kwargs)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_flops_are_the_published_ones(platform: str) -> None:
    model = make_network("resnet50", PRECISIONS["bf16"]._replace(platform=platform))
    infer, train = (count_flops(model, 224, mode) for mode in ("infer", "train"))
    assert infer / 2e9 == pytest.approx(4.089, abs=5e-4)  # multiplications, as torchvision and timm list them
    assert train / 1e9 == pytest.approx(24.30, abs=5e-3)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50d", "resnext50-32x4d", "se-resnet50"])
def test_flops_are_those_of_the_traced_program(arch: str) -> None:
    model = make_network(arch, PRECISIONS["fp32"]._replace(impl="plain"), width=32)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = variable_shapes(model)
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image)
    assert count_flops(model, 64, "infer") == operations(traced.jaxpr)


def test_percentiles_are_numpys() -> None:
    seconds = np.random.default_rng(0).lognormal(size=237)
    found = stats.summarize(list(seconds))
    assert found["median"] == np.percentile(seconds, 50)
    assert [found[f"p{q}"] for q in (25, 75, 90, 95, 99)] == [np.percentile(seconds, q) for q in (25, 75, 90, 95, 99)]
    assert (found["mean"], found["min"], found["max"]) == (seconds.mean(), seconds.min(), seconds.max())
    assert stats.ratios([2.0, 3.0, 8.0], [1.0, 3.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 4.0}


def test_every_step_is_timed_and_all_are_waited_for() -> None:
    calls = []

    def call() -> jax.Array:
        calls.append(len(calls))
        return jnp.zeros(())

    for timer in (timing.time_queued, timing.time_single):
        calls.clear()
        seconds = timer(call, 5)
        assert (len(seconds), len(calls)) == (5, 5)
        assert min(seconds) >= 0


def test_compilation_is_described() -> None:
    x = jnp.ones((256, 256), jnp.float32)
    compilation = timing.compile_program(jax.jit(lambda x: x @ x + 1), x)
    assert compilation.trace_seconds > 0 and compilation.compile_seconds > 0
    assert compilation.memory_bytes >= 2 * x.nbytes  # argument and result
    assert compilation.bytes_accessed >= 2 * x.nbytes
    assert "dot" in compilation.compiled.as_text()
    again = compilation.lowered.compile(compiler_options={"xla_gpu_enable_command_buffer": ""})
    np.testing.assert_array_equal(again(x), compilation.compiled(x))


def test_ceiling_of_tiny_sizes() -> None:
    ceiling = measure_ceiling(jax.devices()[0], "bf16", sides=(16, 32), nbytes=2**14, repeats=2)
    assert ceiling.tflops > 0 and ceiling.gbytes_per_second > 0


def test_usage_is_arithmetic() -> None:
    result = {"step_seconds": {"median": 0.05}, "images_per_step": 512, "num_devices": 2, "precision": "bf16"}
    ceiling = Ceiling(tflops=800.0, gbytes_per_second=3000.0)
    used = cases.usage(result, 24.3e9, 80e9, ceiling, "NVIDIA H100 80GB HBM3")
    assert used["tflops"] == pytest.approx(256 * 24.3e9 / 0.05 / 1e12)  # of one device
    assert used["gbytes_per_second"] == pytest.approx(1600)
    assert used["megabytes_per_image"] == pytest.approx(312.5)
    assert used["flops_of_ceiling"] == pytest.approx(used["tflops"] / 800)
    assert used["bandwidth_of_ceiling"] == pytest.approx(1600 / 3000)
    assert used["mfu"] == pytest.approx(used["tflops"] / 989.4)
    assert "mfu" not in cases.usage(result, 24.3e9, 80e9, ceiling, "cpu")


def test_known_cards() -> None:
    assert device.sheet_tflops("NVIDIA A100-SXM4-80GB", "tf32") == 156.0
    assert device.sheet_tflops("NVIDIA A100-SXM4-40GB", "fp16") == 312.0
    assert device.sheet_tflops("NVIDIA H100 PCIe", "bf16") == 756.0
    assert device.sheet_tflops("Tesla V100-SXM2-16GB", "fp32") == 15.7
    assert device.sheet_tflops("NVIDIA GeForce RTX 4090", "bf16") is None


def test_a_fallback_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi" not in jax_setup.nvidia_hardware()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert device.find_local_devices("auto")[0].platform == "cpu"  # JAX_PLATFORMS=cpu asks for it
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(UserError, match=r"fell back to the CPU .*nvidia-smi.*--device cpu"):
        device.find_local_devices("auto")
    assert device.find_local_devices("cpu")[0].platform == "cpu"
    with pytest.raises(UserError, match="--device gpu, but JAX found only a CPU"):
        device.find_local_devices("gpu")


def test_cases_of_a_sweep() -> None:
    make = sweep.make_cases
    plain = make("infer", ["bf16", "fp32"], [8, 1], available=2, scaling=None)
    assert plain == [cases.Case("infer", p, b, 2) for p in ("bf16", "fp32") for b in (1, 8)]
    both = make("train", ["fp32"], [12], available=6, scaling="both")
    assert [(p.devices, p.batch_size, p.global_batch) for p in both[:4]] == [(n, 12, 0) for n in (1, 2, 4, 6)]
    assert [(p.devices, p.batch_size, p.global_batch) for p in both[4:]] == [(n, 12 // n, 12) for n in (1, 2, 4, 6)]
    with pytest.raises(UserError, match="8 cannot be shared by 6 devices"):
        make("train", ["fp32"], [8], available=6, scaling="strong")
    for text in ("", "1,,2", "0", "1.5", "a"):
        with pytest.raises(UserError, match="--batch_sizes"):
            sweep.parse_batch_sizes(text)
    with pytest.raises(UserError, match="'int8' is none of fp32, tf32, bf16, fp16"):
        sweep.parse_names("--precisions", "bf16,int8", PRECISIONS)


def test_what_is_named_twice_is_measured_once() -> None:
    assert sweep.parse_batch_sizes("8,1,8,8") == [8, 1]
    assert sweep.parse_names("--precisions", "bf16,fp32, bf16", PRECISIONS) == ["bf16", "fp32"]
    texts = ["config.compute.impl=plain", "compute.fold_batch_norm=off", " compute.impl=plain"]
    assert sweep.parse_variants(small_config(), texts) == ["compute.impl=plain", "compute.fold_batch_norm=off"]


def test_lack_of_memory_is_told_and_the_sweep_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(config: Any, *args: Any) -> Program:
        if config.batch_size == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9999 bytes")
        return make_program(config, *args)

    monkeypatch.setattr(cases, "make_program", limited)
    todo = [cases.Case("infer", "fp32", batch, 1) for batch in (1, 2, 4)]
    told: list[str] = []
    precisions: list[str] = []

    def measure_ceiling(device: jax.Device, precision: str) -> Ceiling:
        precisions.append(precision)
        return Ceiling(1.0, 1.0)

    monkeypatch.setattr(sweep, "measure_ceiling", measure_ceiling)
    record = Record(tell=told.append)
    record.plan([str(case) for case in todo], single=False)
    with_configs = sweep.make_sweep(small_config(), todo)
    sweep.run_sweep(with_configs, jax.devices()[:1], record, steps=2, warmup=0, trace=None)
    results = record.get("results", [])
    assert precisions == ["fp32"] and record.get("ceilings", {}) == {"fp32": Ceiling(1.0, 1.0)._asdict()}
    assert [r.get("error") for r in results] == [None, "out of memory", None]
    assert "smaller config.batch_size" in results[1]["error_detail"]
    rows = tables.latency_table(results).splitlines()
    assert len(rows) == 5 and "out of memory" in rows[3] and "img/s" in rows[4]
    assert "out of memory" in tables.detail_table(results)
    assert "out of memory" in told


def result(precision: str, devices: int, batch: int, speed: float) -> dict[str, Any]:
    seconds = stats.summarize([batch * devices / speed])
    return {
        "mode": "train",
        "precision": precision,
        "num_devices": devices,
        "batch_size_per_device": batch,
        "images_per_second": speed,
        "images_per_second_mean": speed,
        "step_seconds": seconds,
    }


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if not set(line) <= set("|- ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_of_the_reference() -> None:
    rows = [result("fp32", 1, 128, 380.44), result("fp32", 8, 128, 2945.37)]
    rows += [result("fp16", 1, 128, 893.09), result("fp16", 8, 128, 6888.75)]
    header, one, eight = cells(tables.train_table(rows))
    assert header == ["devices", "batch size per device", "fp32, img/s", "fp16, img/s", "speed-up of fp16 over fp32"]
    # NVIDIA's published DGX-1 table: 2.35x, 2.34x, and 7.74x and 7.71x on 8 GPUs.
    assert one == ["1", "128", "380.4", "893.1", "2.35x"]
    assert eight == ["8", "128", "2,945.4", "6,888.8", "2.34x"]
    scaling = cells(tables.scaling_table(rows))
    assert [row[4:] for row in scaling[1:]] == [
        ["1.00x", "100%"],
        ["7.74x", "97%"],
        ["1.00x", "100%"],
        ["7.71x", "96%"],
    ]
    latency = cells(
        tables.latency_table([result("fp32", 1, 1, 136.82) | {"step_seconds": stats.summarize([0.0073] * 3)}])
    )
    assert latency[1] == ["1", "136.82 img/s", "7.30 ms", "7.30 ms", "7.30 ms", "7.30 ms", "7.30 ms"]


def test_document_of_a_cpu_says_so() -> None:
    document = {
        "command": ["python", "x"],
        "date": "2026-11-25",
        "hardware": {"platform": "cpu", "device": "CPU (x)", "devices": 1, "processor": "x", "cores": 2},
        "environment": {},
        "versions": {"jax": "0"},
    }
    assert as_markdown(document).startswith("# Benchmark on CPU\n")
    assert "say nothing about the speed on a GPU" in as_markdown(document)
    gpu = document | {"hardware": document["hardware"] | {"platform": "gpu", "device": "NVIDIA H100"}}
    assert as_markdown(gpu).startswith("# Benchmark on 1 x NVIDIA H100\n")
    assert "say nothing" not in as_markdown(gpu)
    assert as_json(document | {"results": [{"mode": "train"}]}, single=True)["mode"] == "train"
    assert "mode" not in as_json(document | {"results": [{"mode": "train"}]}, single=False)
    assert as_json(document, single=True) == document
    json.dumps(document)


def test_generated_images_have_imagenets_mean_size(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.jpg" for seed in range(40)]
    for seed, path in enumerate(paths):
        jpegs.write_jpeg(path, seed)
    sizes = [path.stat().st_size for path in paths]
    assert np.mean(sizes) == pytest.approx(110e3, rel=0.05) and 55e3 < min(sizes) < 70e3 < 140e3 < max(sizes) < 160e3
    with Image.open(paths[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (500, 375))
    jpegs.write_jpeg(tmp_path / "again.jpg", 3)
    assert (tmp_path / "again.jpg").read_bytes() == paths[3].read_bytes() != paths[4].read_bytes()


def test_generated_folder_is_made_once(tmp_path: Path) -> None:
    folder = jpegs.generated_folder(12, cache=tmp_path)
    files = sorted(folder.rglob("*.jpg"))
    assert len([f for f in files if f.parts[-3] == "train"]) == 12
    assert {f.parent.name for f in files} == {f"class{i}" for i in range(10)}
    before = [f.stat().st_mtime_ns for f in files]
    assert jpegs.generated_folder(12, cache=tmp_path) == folder
    assert [f.stat().st_mtime_ns for f in files] == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    with pytest.raises(UserError, match="at least 10 images"):
        jpegs.generated_folder(9, cache=tmp_path)
    with pytest.raises(UserError, match="cannot write the generated images"):
        jpegs.generated_folder(10, cache=files[0])


def test_processor_time_of_children_counts() -> None:
    code = "import time, sys\nwhile time.process_time() < 0.5: pass\nprint(flush=True); sys.stdin.read()"
    before = tree_seconds()
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=os.environ)
    assert child.stdout is not None
    child.stdout.readline()
    alive = tree_seconds() - before
    child.communicate()
    waited_for = tree_seconds() - before
    assert 0.45 <= alive <= waited_for + 0.02  # a tick is 10 ms


@pytest.mark.parametrize("fold", ["auto", "off"])
def test_inference_computes_batch_norm_only_unless_folded(fold: str) -> None:
    config = configs.override(small_config(), [("compute.fold_batch_norm", fold)])
    program = make_program(config, "infer", jax.devices()[:1])
    # 2 blocks of ResNet-18, the stem and one shortcut: 6 BatchNorms, each with an inverse root.
    assert (program.compilation.compiled.as_text().count(" rsqrt(") > 0) == (fold == "off")
