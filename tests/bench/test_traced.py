"""The profile of a case without command buffers, and whose count of memory is taken."""

from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import REPO

from rn50_jax.bench import cases, profile
from rn50_jax.bench.profile import has_command_buffers
from rn50_jax.bench.report import as_markdown
from rn50_jax.config import loading as configs

SMALL = (("model.arch", "resnet18"), ("model.width", "8"), ("model.stages", "(1,)"), ("model.num_classes", "5"))


@pytest.mark.parametrize(
    ("platform", "flags", "has"),
    [
        ("gpu", "", True),
        ("cpu", "", False),
        ("gpu", "--xla_gpu_enable_command_buffer=", False),
        ("gpu", "--xla_a=1 --xla_gpu_enable_command_buffer=FUSION", True),
        ("gpu", "--xla_gpu_enable_command_buffer=FUSION --xla_gpu_enable_command_buffer=", False),
    ],
)
def test_who_has_command_buffers(platform: str, flags: str, has: bool) -> None:
    assert has_command_buffers(platform, flags) == has


def make_case(mode: str, parallel: str) -> tuple[Any, cases.Case]:
    config, _ = configs.load(str(REPO / "configs/quickstart.py"))
    case = cases.Case(mode, "fp32", 2, devices=1)
    return cases.case_config(configs.override(config, [*SMALL, ("compute.parallel", parallel)]), case), case


@pytest.mark.parametrize(
    ("mode", "parallel"),
    [
        pytest.param("train", "pmap", marks=pytest.mark.slow),
        pytest.param("train", "shard_map", marks=pytest.mark.slow),
        ("infer", "pmap"),
    ],
)
def test_the_same_program_is_traced_without_command_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, parallel: str
) -> None:
    compiled: list[Any] = []
    stages = jax.stages.Lowered
    original = stages.compile

    def compile_(self: Any, compiler_options: Any = None, **kwargs: Any) -> Any:
        compiled.append(compiler_options)
        return original(self, compiler_options, **kwargs)

    monkeypatch.setattr(stages, "compile", compile_)
    config, case = make_case(mode, parallel)
    seen: list[dict[str, Any]] = []
    options: dict[str, Any] = {"steps": 3, "warmup": 0, "trace": tmp_path, "timed": seen.append}
    monkeypatch.setattr(profile, "has_command_buffers", lambda *_: True)
    result = cases.measure(config, case, **options)
    assert compiled == [None, {"xla_gpu_enable_command_buffer": ""}]
    found = result["command_buffers"]
    assert found["images_per_second"] == result["images_per_second"]
    assert found["ratio"] == pytest.approx(found["images_per_second"] / found["images_per_second_without"])
    assert result["profile"]["steps"] == 3 and result["profile"]["groups"]
    # What was timed is there before it is traced.
    (before,) = seen
    assert before["images_per_second"] == result["images_per_second"] and before["seconds"] < result["seconds"]
    assert not before.keys() & {"profile", "command_buffers"} and result.keys() > before.keys()


def test_a_cpu_has_none(tmp_path: Path) -> None:
    config, case = make_case("infer", "pmap")
    result = cases.measure(config, case, steps=2, warmup=0, trace=tmp_path)
    assert "profile" in result and "command_buffers" not in result


def test_what_cannot_be_traced_is_timed(tmp_path: Path) -> None:
    config, case = make_case("infer", "pmap")
    (tmp_path / "file").touch()
    result = cases.measure(config, case, steps=2, warmup=0, trace=tmp_path / "file")
    assert result["images_per_second"] > 0 and "cannot write a trace" in result["profile_error"]


def test_without_them_it_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "has_command_buffers", lambda *_: True)
    monkeypatch.setattr(profile, "_COMMAND_BUFFERS", "xla_gpu_no_such_flag")
    config, case = make_case("infer", "pmap")
    result = cases.measure(config, case, steps=2, warmup=0, trace=tmp_path)
    assert "xla_gpu_no_such_flag" in result["command_buffers"]["error"] and result["profile"]["groups"]
    header = {"command": [], "date": "", "environment": {}, "versions": {}}
    hardware = {"platform": "gpu", "device": "x", "devices": 1, "processor": "x", "cores": 2}
    text = as_markdown(header | {"hardware": hardware, "results": [result]})
    assert "Traced with command buffers: XLA does not compile without them" in text
    result["command_buffers"] = {"images_per_second": 300.0, "images_per_second_without": 250.0, "ratio": 1.2}
    text = as_markdown(header | {"hardware": hardware, "results": [result]})
    assert "Traced without command buffers: 250.0 img/s; with them, as timed, 300.0 img/s, 1.200 times" in text


@pytest.mark.parametrize(
    ("mode", "platform", "before", "after", "found"),
    [
        ("train", "gpu", 10, 50, (50, "device")),
        ("train", "gpu", 50, 50, (30, "XLA's analysis of the program")),  # an earlier case's peak
        ("train", "cpu", 0, 0, (30, "XLA's analysis of the program")),
        ("infer", "cpu", 10, 50, (50, "device")),
        ("infer", "gpu", 10, 50, (30, "XLA's analysis of the program")),  # mostly what was tried out at compiling
    ],
)
def test_whose_count_of_memory_is_taken(mode: str, platform: str, before: int, after: int, found: Any) -> None:
    memory = cases.peak_memory(mode, platform, before, after, 30)
    assert (memory["peak_memory_bytes"], memory["peak_memory_source"]) == found
    assert memory["program_memory_bytes"] == 30
