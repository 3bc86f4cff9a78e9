"""What a process sets for itself before JAX touches a device."""

import asyncio
import gc
import os
import pwd
import re
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import pytest
from helpers.loading import open_data
from helpers.trees import make_config
from jaxlib import xla_client

from rn50_jax.bench import input_pipeline
from rn50_jax.bench.jpegs import generated_folder
from rn50_jax.checkpoint.orbax_noise import without_noise
from rn50_jax.distributed import devices as parallel
from rn50_jax.errors import UserError
from rn50_jax.runtime import jax_setup, run_folder


def test_runtime_is_prepared_for_dali_on_the_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"XLA_FLAGS": "--a=1"})
    jax_setup.prepare_runtime("dali-cpu")
    assert os.environ["XLA_FLAGS"] == "--a=1"
    for _ in range(2):
        jax_setup.prepare_runtime("dali-gpu")
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_gpu_enable_command_buffer="


@pytest.mark.parametrize(
    ("backend", "given", "share"),
    [
        ("dali-gpu", {}, "0.6"),
        ("dali-cpu", {}, None),
        ("synthetic", {}, None),
        ("dali-gpu", {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}, "0.9"),
        ("dali-gpu", {"XLA_CLIENT_MEM_FRACTION": "0.9"}, None),
        ("dali-gpu", {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, None),
        ("dali-gpu", {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, "0.6"),
        ("dali-gpu", {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, None),
    ],
)
def test_jax_leaves_memory_to_dali(
    backend: str, given: dict[str, str], share: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {name: value for name, value in os.environ.items() if "CLIENT" not in name}
    monkeypatch.setattr(os, "environ", bare | given)
    jax_setup.prepare_runtime(backend)
    assert os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") == share
    if share and not given:  # JAX itself understands it
        assert xla_client.generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.6


def test_the_share_beside_dali_is_said_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {name: value for name, value in os.environ.items() if "CLIENT" not in name}
    monkeypatch.setattr(os, "environ", environ)
    gpu = SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="NVIDIA H200", process_index=0)
    monkeypatch.setattr(jax, "devices", lambda: [gpu, gpu])
    jax_setup.prepare_runtime("dali-gpu")
    parallel.find_devices(backend="dali-gpu", precision="bf16")
    told = capsys.readouterr().err
    assert told.startswith("note: JAX takes 0.6 of the GPU's memory") and told.count("\n") == 1
    parallel.find_devices(backend="synthetic", precision="bf16")
    environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.9"
    parallel.find_devices(backend="dali-gpu", precision="bf16")
    assert capsys.readouterr().err == ""
    assert jax_setup.share_beside_dali("dali-gpu", "cpu") is None


def test_the_process_that_times_the_feed_leaves_memory_to_dali(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {name: value for name, value in os.environ.items() if "CLIENT" not in name}
    monkeypatch.setattr(os, "environ", environ)

    def find(wanted: str) -> list[jax.Device]:
        raise UserError(f"looked for {wanted}, {os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION']}")

    monkeypatch.setattr(input_pipeline, "find_local_devices", find)
    config = make_config(tmp_path, ("data.backend", "dali-gpu")).to_dict()
    with pytest.raises(UserError, match=r"looked for gpu, 0\.6"):
        input_pipeline.run({"config": config, "device": "gpu"})


@pytest.mark.slow
def test_flags_for_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "--xla_gpu_enable_command_buffer=+CONVOLUTION --xla_gpu_autotune_level=2"
    monkeypatch.setattr(os, "environ", {name: v for name, v in os.environ.items() if name != "XLA_FLAGS"})
    jax_setup.prepare_runtime("dali-gpu", ours)
    assert os.environ["XLA_FLAGS"] == ours  # said so, also for DALI
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    jax_setup.prepare_runtime("synthetic", ours)
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer=+CONVOLUTION"
    with pytest.raises(UserError, match=r"config.compute.xla_flags='--xla_none=1' .*does not know: --xla_none=1;"):
        jax_setup.prepare_runtime("synthetic", "--xla_none=1")
    with pytest.raises(UserError, match="is not understood by XLA"):
        jax_setup.prepare_runtime("synthetic", "--xla_gpu_autotune_level=high")


def test_compiled_programs_are_kept_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    jax_setup.use_compile_cache("auto")
    folder = Path(kept["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path / "rn50-jax" and re.fullmatch(r"compiled-[0-9a-f]{12}", folder.name)
    jax_setup.use_compile_cache(str(tmp_path / "else/where"))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "else/where")
    kept.clear()
    jax_setup.use_compile_cache("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    jax_setup.use_compile_cache("auto")
    assert kept == {}


def test_no_home_and_no_room_for_programs_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    kept: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    jax_setup.use_compile_cache("auto")
    assert "note: compiled programs are not kept: there is no home folder; set HOME" in capsys.readouterr().err
    (tmp_path / "file").touch()
    jax_setup.use_compile_cache(str(tmp_path / "file"))
    assert f"not kept: {tmp_path}/file cannot be written (File exists)" in capsys.readouterr().err
    assert kept == {}
    jax_setup.use_compile_cache(str(tmp_path / "new"))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "new")
    with pytest.raises(UserError, match="there is no home folder"):
        generated_folder(2000)
    with pytest.raises(UserError, match=r"config\.data\.dir='~/x' is not a folder"):
        open_data(make_config(tmp_path, ("data.dir", "~/x"), ("data.backend", "dali-cpu")))


def test_programs_that_a_killed_process_left_half_written_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    program = zlib.compress(os.urandom(10_000))
    jax_setup.use_compile_cache(str(tmp_path / "none"))
    for _ in range(2):
        for name, data in {
            "whole": program,
            "torn": program[:5000],
            "empty": b"",
            "other": b"\x28\xb5\x2f\xfd",
        }.items():
            (tmp_path / f"jit_{name}-cache").write_bytes(data)
        jax_setup.use_compile_cache(str(tmp_path))
        assert {path.name for path in tmp_path.glob("jit_*")} == {"jit_whole-cache", "jit_other-cache"}


def make_machine(root: Path, *, device: bool = False, driver: bool = False) -> Path:
    """What Linux shows of a GPU: its device file, and the driver's folder of GPUs."""
    (root / "dev").mkdir(parents=True)
    (root / "proc/driver/nvidia/gpus").mkdir(parents=True)
    if device:
        (root / "dev/nvidia0").touch()
    if driver:
        (root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir()
    return root


def test_a_gpu_is_found_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert jax_setup.nvidia_hardware(tmp_path / "none") == []
    assert jax_setup.nvidia_hardware(make_machine(tmp_path / "a")) == []
    assert jax_setup.nvidia_hardware(make_machine(tmp_path / "b", device=True)) == ["/dev/nvidia0"]
    assert jax_setup.nvidia_hardware(make_machine(tmp_path / "c", driver=True)) == ["/proc/driver/nvidia/gpus"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    assert jax_setup.nvidia_hardware(tmp_path / "a") == ["nvidia-smi"]


def test_a_gpu_that_is_not_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(jax_setup, "cuda_plugins", lambda: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpu, none = make_machine(tmp_path / "gpu", device=True), make_machine(tmp_path / "none")
    told = jax_setup.unused_gpu("cpu", root=gpu)
    assert told and told.startswith("this machine has an NVIDIA GPU (/dev/nvidia0), but everything runs on the CPU")
    for part in (
        "scripts/setup.sh requirements-cuda13.txt",
        "requirements-cuda12.txt",
        "'jax[cuda13]'",
        "JAX_PLATFORMS",
    ):
        assert part in told
    assert jax_setup.unused_gpu("gpu", root=gpu) is None
    assert jax_setup.unused_gpu("cpu", root=none) is None
    assert jax_setup.unused_gpu("cpu", "cpu", root=gpu) is None
    for hidden in ("", "-1", " "):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert jax_setup.unused_gpu("cpu", root=gpu) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert jax_setup.unused_gpu("cpu", root=gpu) == told
    monkeypatch.setattr(jax_setup, "cuda_plugins", lambda: ["jax_cuda13_plugin"])
    told = jax_setup.unused_gpu("cpu", root=gpu)
    assert told and "jax_cuda13_plugin is installed, but JAX cannot use the GPU; check nvidia-smi" in told


def test_commands_warn_of_a_gpu_that_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax_setup, "nvidia_hardware", lambda root: ["/dev/nvidia0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    parallel.find_devices(backend="synthetic", precision="fp32")
    assert capfd.readouterr().err == ""  # the tests' JAX_PLATFORMS=cpu asks for the CPU
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "unused_gpu", lambda platform, platforms: jax_setup.unused_gpu(platform, ""))
        parallel.find_devices(backend="synthetic", precision="fp32")
    assert capfd.readouterr().err.startswith("note: this machine has an NVIDIA GPU (/dev/nvidia0), but")


def test_jax_that_cannot_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Unknown backend: 'cuda'\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=r"^JAX cannot start: Unknown backend: 'cuda'; for GPUs: bash scripts/setup.sh"):
        parallel.find_devices(backend="synthetic", precision="fp32")


def test_devices_are_counted_by_kind() -> None:
    class Device(NamedTuple):
        platform: str
        device_kind: str

    def describe(*devices: Device) -> str:
        return run_folder.describe_devices(cast(Any, devices))

    a, b = Device("gpu", "NVIDIA A100"), Device("gpu", "NVIDIA H100")
    assert describe(a) == "1 x NVIDIA A100" and describe(a, a) == "2 x NVIDIA A100"
    assert describe(a, b, a) == "2 x NVIDIA A100, 1 x NVIDIA H100"
    assert describe(Device("cpu", "cpu")) == "1 x CPU"


def test_an_error_that_a_run_reports_itself_is_not_logged_by_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    with without_noise():
        pass
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    future.set_exception(ValueError("OUT_OF_RANGE: a full disk"))
    del future
    gc.collect()
    loop.close()
    assert not caplog.records
