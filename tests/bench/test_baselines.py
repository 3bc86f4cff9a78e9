"""Baselines run in processes of their own; PyTorch's transform is what it stands for."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from helpers.programs import STANDIN
from PIL import Image

from rn50_jax.bench import input_pipeline, tables, trials
from rn50_jax.bench.baselines import compare, torch_step
from rn50_jax.bench.cases import Case, case_config
from rn50_jax.bench.record import Record
from rn50_jax.bench.trials import Terms
from rn50_jax.config import loading as configs
from rn50_jax.errors import UserError

CLASSES = 7


def small_config(*overrides: tuple[str, str]) -> Any:
    config, _ = configs.load(str(REPO / "configs/quickstart.py"))
    basics = [
        ("model.arch", "resnet18"),
        ("model.width", "8"),
        ("model.num_classes", str(CLASSES)),
        ("batch_size", "4"),
    ]
    return configs.override(config, [*basics, *overrides])


@pytest.fixture
def flax_example(tmp_path: Path) -> Path:
    for name, text in STANDIN.items():
        path = tmp_path / "imagenet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path / "imagenet"


def recorded(case: str, programs: list[str], trials_each: int) -> Record:
    record = Record(tell=print)
    record.plan(trials.trial_names(case, programs, trials_each), single=False)
    return record


@pytest.mark.slow
def test_baselines_run_beside_ours(flax_example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As it is beside the CPU build of PyTorch that is pinned here, for which there is no torchvision.
    (tmp_path / "timm.py").write_text("import torchvision_of_another_world")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # Programs that an earlier call has kept are of no use to a first trial.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    case = Case("train", "fp32", 4, 1)
    config = case_config(small_config(), case)
    named = compare.parse_baselines(f"torch,timm,flax-example={flax_example}")
    record = recorded(str(case), [compare.OURS, *named], 1)
    terms = Terms(("--mode", "train"), "cpu", steps=3, warmup=1, trials=1)
    trace = tmp_path / "trace"
    compare.compare(config, case, named, record, terms, trace=trace)
    (found,) = record.get("comparisons", [])
    ours, torchs, timms, flaxs = found["programs"]
    assert "timm cannot be imported" in timms["error"] and "pip install timm" in timms["error"]
    for entry in (ours, torchs, flaxs):
        speeds = entry["images_per_second"]
        assert len(speeds["rounds"]) == 1 and speeds["min"] <= speeds["median"] <= speeds["max"]
        assert (entry["platform"], entry["precision"], entry["start"]) == ("cpu", "fp32", "cold")
        assert entry["cpu_ms_per_image"]["min"] > 0
    for entry in (torchs, flaxs):
        by_trial = np.divide(ours["images_per_second"]["rounds"], entry["images_per_second"]["rounds"])
        assert entry["ours_over_it"]["median"] == pytest.approx(np.median(by_trial))
    assert f"torch {torch.__version__}" in torchs["about"]
    text = tables.baseline_table(found)
    assert text.count("\n| ") == 3 and "timm: not compared, timm cannot be imported" in text
    assert "| first step, s (cold) |" in text
    assert not (tmp_path / "kept").exists()
    # The first trial of ours is the case's result.
    (result,) = record.get("results", [])
    assert result["images_per_second"] == ours["images_per_second"]["rounds"][0]
    assert result["profile"]["dir"] == str(trace) and result["profile"]["groups"]
    ceiling = record.get("ceilings", {})["fp32"]
    assert result["flops_of_ceiling"] == pytest.approx(result["tflops"] / ceiling["tflops"])
    assert record.get("hardware", {})["platform"] == "cpu" and record.get("command", [])[-1] == "train"


def test_programs_are_run_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []

    def run_trial(spec: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        kinds.append(spec["kind"])
        if spec["kind"] == "b" or kinds == list("abcac"):
            return {"error": "broken"}
        return {"number": len(kinds), "trial": spec["trial"]}

    def run(kinds: str) -> trials.Found:
        programs = {k: {"kind": k} for k in kinds}
        terms = Terms((), "cpu", steps=1, warmup=0, trials=3)
        record = recorded("x", list(kinds), 3)
        found = trials.run_trials("x", programs, record, terms, parts=lambda found: {"last": str(found)})
        assert record.get("last", "") == str(found)
        return found

    monkeypatch.setattr(trials, "run_trial", run_trial)
    found = run("abc")
    # One that failed is not tried again; what it did before stays.
    assert kinds == ["a", "b", "c", "a", "c", "a"]
    reports = {
        name: [(report["number"], report["trial"]) for report in entry["trials"]] for name, entry in found.items()
    }
    assert reports == {"a": [(1, 1), (4, 2), (6, 3)], "b": [], "c": [(3, 1)]}
    assert {name: entry.get("error") for name, entry in found.items()} == {"a": None, "b": "broken", "c": "broken"}
    with pytest.raises(UserError, match="broken"):  # without the first there is nothing to compare with
        run("bc")


def test_every_first_trial_starts_cold(tmp_path: Path) -> None:
    kept = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
    mine = dict.fromkeys(kept, "/kept") | {"JAX_ENABLE_COMPILATION_CACHE": "false", "HOME": "/root"}
    flags = {"XLA_FLAGS": "--a --xla_force_host_platform_device_count=2", "CUDA_VISIBLE_DEVICES": "3,4"}
    env = trials.trial_environment(mine | flags | {"PYTHONPATH": "/x"}, tmp_path, one_device=True)
    folders = [Path(env[name]) for name in kept]
    assert len(set(folders)) == 4 and {folder.parent for folder in folders} == {tmp_path}
    assert (env["JAX_ENABLE_COMPILATION_CACHE"], env["HOME"]) == ("true", "/root")
    assert (env["XLA_FLAGS"], env["CUDA_VISIBLE_DEVICES"]) == ("--a", "3")
    assert env["PYTHONPATH"].split(":") == [str(REPO), "/x"]
    both = trials.trial_environment(flags, tmp_path, one_device=False)
    assert both["XLA_FLAGS"] == flags["XLA_FLAGS"] and both["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert both["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_how_programs_started_is_in_the_table() -> None:
    def start_of(*starts: str) -> str:
        report = {"device": "x", "precision": "bf16", "about": "", "peak_memory_bytes": 1, "start_seconds": 1.25}
        report |= {"images_per_step": 8, "step_seconds": {"median": 2.0}, "cpu_seconds_per_step": 1.0}
        report |= {"platform": "gpu", "trial_seconds": 2.0}
        names = (compare.OURS, "torch")
        found = {name: {"trials": [report | {"start": start}]} for name, start in zip(names, starts, strict=True)}
        return tables.baseline_table({"programs": compare.summarize(found)})

    assert "| first step, s (cold) |" in start_of("cold", "cold")
    mixed = start_of("warm", "cold")
    assert "| first step, s |" in mixed and "1.2 (warm)" in mixed and "1.2 (cold)" in mixed


def test_timm_is_used_as_its_users_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A stand-in: timm itself does not import beside this environment's PyTorch, see above.
    (tmp_path / "timm.py").write_text(
        "import torch\n__version__ = '0'\ndef create_model(name, num_classes):\n    assert name == 'resnet50'\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = small_config(("model.arch", "resnet50"), ("model.width", "64"))
    spec = {"kind": "timm", "mode": "infer", "steps": 3, "warmup": 1, "device": "cpu"}
    spec |= {"trial": 1, "config": config.to_dict(), "network": compare.network(config)}
    report = torch_step.run(spec)
    assert (report["images_per_step"], report["platform"]) == (4, "cpu")
    assert "timm 0" in report["about"]
    for changed in (small_config(), configs.override(config, [("model.small_stem", "true")])):
        spec["config"] = changed.to_dict()
        with pytest.raises(UserError, match="unchanged resnet50"):
            torch_step.run(spec)


def test_mistakes_in_the_list_of_baselines(tmp_path: Path) -> None:
    assert compare.parse_baselines("torch, timm") == {"torch": "", "timm": ""}
    for text, message in (
        ("torch,keras", "'keras' is none of torch, torch-compile, timm, flax-example"),
        ("flax-example", "write flax-example=DIR"),
        ("torch=x", "write torch"),
        (f"flax-example={tmp_path}", "no train.py"),
    ):
        with pytest.raises(UserError, match=message):
            compare.parse_baselines(text)


def test_ours_and_baselines_on_different_kinds_of_device_are_not_compared() -> None:
    report = {"device": "x", "precision": "bf16", "about": "", "peak_memory_bytes": 1, "start_seconds": 1.0}
    report |= {"images_per_step": 8, "step_seconds": {"median": 2.0}, "cpu_seconds_per_step": 1.0}
    report |= {"start": "cold", "trial_seconds": 2.0}
    on = {name: {"trials": [report | {"platform": where}]} for name, where in ((compare.OURS, "gpu"), ("torch", "cpu"))}
    _, theirs = compare.summarize(on)
    assert theirs["error"] == "it ran on a cpu, and ours did not" and "ours_over_it" not in theirs


def test_a_single_trial_has_no_range() -> None:
    def cells(*speeds: float) -> list[str]:
        spread = {"median": speeds[0], "min": min(speeds), "max": max(speeds)}
        result = {"precision": "bf16", "batch_size_per_device": 8, "waiting": {"median": 0.5, "min": 0.5, "max": 0.5}}
        result |= dict.fromkeys(("images_per_second", "images_per_second_synthetic", "ratio"), spread)
        return [cell.strip() for cell in tables.end_to_end_table(result).splitlines()[-1].strip("|").split("|")]

    assert cells(2) == ["bf16", "8", "2.0", "2.0", "2.000", "50.0%"]
    assert cells(2, 1, 3)[2:5] == ["2.0 (1.0-3.0)", "2.0 (1.0-3.0)", "2.000 (1.000-3.000)"]


def test_torchs_crops_are_uint8_of_the_image(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    path = tmp_path / "ramp.png"
    Image.fromarray(ramp).save(path)
    whole = {"image_size": 40, "crop_area": (1.0, 1.0), "crop_aspect": (2.0, 2.0), "flip": 0.0}
    (image, index) = torch_step.Crops([str(path)], whole)[0]
    assert (image.dtype, tuple(image.shape), index) == (torch.uint8, (40, 40, 3), 0)
    np.testing.assert_allclose(image[20, 1:-1, 0], np.arange(2, 200, 5)[1:-1], atol=1)
    flipped, _ = torch_step.Crops([str(path)], whole | {"flip": 1.0})[0]
    np.testing.assert_array_equal(flipped, image.flip(1))


def test_torchs_boxes_are_drawn_as_torchvision_does() -> None:
    # Small enough that none is rejected: the area is uniform, the aspect in its logarithm.
    data = {"crop_area": (0.08, 0.2), "crop_aspect": (3 / 4, 4 / 3)}
    boxes = np.array([torch_step._random_box(np.random.default_rng(i), 500, 375, data) for i in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = width * height / (500 * 375)
    np.testing.assert_allclose(np.percentile(share, [0, 25, 50, 75, 100]), np.linspace(0.08, 0.2, 5), atol=0.003)
    aspect = np.log(width / height) / np.log(4 / 3)
    np.testing.assert_allclose(np.percentile(aspect, [0, 25, 50, 75, 100]), np.linspace(-1, 1, 5), atol=0.06)
    # At last: every draw fails, and the middle is taken, as high and wide as the aspects allow.
    usual = {"crop_area": (1.0, 1.0), "crop_aspect": (3 / 4, 4 / 3)}
    assert torch_step._random_box(np.random.default_rng(0), 712, 89, usual) == (296, 0, 415, 89)
    assert torch_step._random_box(np.random.default_rng(0), 89, 712, usual) == (0, 296, 89, 415)
    whole = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
    assert torch_step._random_box(np.random.default_rng(0), 500, 375, whole) == (62, 0, 437, 375)
    large = torch_step._random_box(np.random.default_rng(0), 500, 375, data | {"crop_area": (0.9, 1.0)})
    assert 0 <= large[0] < large[2] <= 500 and 0 <= large[1] < large[3] <= 375


def test_loaders_are_summed_up() -> None:
    def found_in(*pairs: tuple[float, float]) -> dict[str, Any]:
        same = {"images": 100, "about": "x", "trial_seconds": 9.0}
        return {"trials": [same | {"seconds": s, "cpu_seconds": c} for s, c in pairs]}

    found = input_pipeline.summarize(
        {input_pipeline.OURS: found_in((1.0, 0.2), (2.0, 0.3)), input_pipeline.TORCH: found_in((2.0, 0.4), (2.0, 0.3))}
    )
    assert found[0]["images_per_second"] == {"rounds": [100, 50], "median": 75, "min": 50, "max": 100}
    assert found[0]["cpu_ms_per_image"]["rounds"] == pytest.approx([2, 3])
    assert found[1]["ours_over_it_images_per_second"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert found[1]["ours_over_it_cpu_ms_per_image"]["median"] == pytest.approx(0.75)
    failed = input_pipeline.summarize(
        {input_pipeline.OURS: found_in((1.0, 0.2)), input_pipeline.TORCH: {"trials": [], "error": "no torch"}}
    )
    text = tables.input_table({"programs": failed})
    assert "torch DataLoader: not compared, no torch" in text
