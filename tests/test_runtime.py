"""What a process sets for itself before JAX touches a device."""

import json
import os
import pwd
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import REPO, TINY
from trees import make_config

from rn50_jax import runtime
from rn50_jax.bench.jpegs import generated_folder
from rn50_jax.data.dataset import open_dataset
from rn50_jax.errors import UserError


def test_runtime_is_prepared_for_dali_on_the_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    runtime.prepare_runtime("dali-cpu")
    assert os.environ["XLA_FLAGS"] == "--a=1"
    for _ in range(2):
        runtime.prepare_runtime("dali-gpu")
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_gpu_enable_command_buffer="


@pytest.mark.slow
def test_flags_for_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "--xla_gpu_enable_command_buffer=+CONVOLUTION --xla_gpu_autotune_level=2"
    monkeypatch.delenv("XLA_FLAGS")
    runtime.prepare_runtime("dali-gpu", ours)
    assert os.environ["XLA_FLAGS"] == ours  # said so, also for DALI
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    runtime.prepare_runtime("synthetic", ours)
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer=+CONVOLUTION"
    with pytest.raises(UserError, match=r"config.run.xla_flags='--xla_none=1' .*does not know: --xla_none=1;"):
        runtime.prepare_runtime("synthetic", "--xla_none=1")
    with pytest.raises(UserError, match="is not understood by XLA"):
        runtime.prepare_runtime("synthetic", "--xla_gpu_autotune_level=high")


def test_compiled_programs_are_kept_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    runtime.use_compile_cache("auto")
    folder = Path(kept["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path / "rn50-jax" and re.fullmatch(r"compiled-[0-9a-f]{12}", folder.name)
    runtime.use_compile_cache(str(tmp_path / "else/where"))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "else/where")
    kept.clear()
    runtime.use_compile_cache("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    runtime.use_compile_cache("auto")
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
    runtime.use_compile_cache("auto")
    assert "note: compiled programs are not kept: there is no home folder; set HOME" in capsys.readouterr().err
    (tmp_path / "file").touch()
    runtime.use_compile_cache(str(tmp_path / "file"))
    assert f"not kept: {tmp_path}/file cannot be written (File exists)" in capsys.readouterr().err
    assert kept == {}
    runtime.use_compile_cache(str(tmp_path / "new"))
    assert kept["jax_compilation_cache_dir"] == str(tmp_path / "new")
    with pytest.raises(UserError, match="there is no home folder"):
        generated_folder(2000)
    with pytest.raises(UserError, match=r"config\.data\.dir='~/x' is not a folder"):
        open_dataset(make_config(tmp_path, ("data.dir", "~/x"), ("data.backend", "dali-cpu")))


def test_programs_that_a_killed_process_left_half_written_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    program = zlib.compress(os.urandom(10_000))
    runtime.use_compile_cache(str(tmp_path / "none"))
    for _ in range(2):
        for name, data in {
            "whole": program,
            "torn": program[:5000],
            "empty": b"",
            "other": b"\x28\xb5\x2f\xfd",
        }.items():
            (tmp_path / f"jit_{name}-cache").write_bytes(data)
        runtime.use_compile_cache(str(tmp_path))
        assert {path.name for path in tmp_path.glob("jit_*")} == {"jit_whole-cache", "jit_other-cache"}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """As if a command ran where Linux gives huge pages on request; what it would be started anew with."""
    started: dict[str, str] = {}
    monkeypatch.setattr(os, "execve", lambda program, argv, environ: started.update(environ, argv=argv))
    monkeypatch.setattr(runtime, "_huge_pages_on_request", lambda: True)
    monkeypatch.setattr(sys, "argv", [str(REPO / "rn50_jax/train.py"), "--config", "x"])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("RN50_JAX_HUGE_PAGES", raising=False)
    return started


def test_huge_pages_on_a_cpu(on_cpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=4")
    runtime.use_huge_pages()
    assert on_cpu["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1"
    assert on_cpu["argv"] == [sys.executable, *sys.orig_argv[1:]]
    on_cpu.clear()
    monkeypatch.setenv("RN50_JAX_HUGE_PAGES", "asked")  # as in the second start
    runtime.use_huge_pages()
    assert not on_cpu


@pytest.mark.parametrize("why_not", ["gpu", "user", "kernel", "not ours"])
def test_no_second_start(on_cpu: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why_not: str) -> None:
    if why_not == "gpu":
        monkeypatch.delenv("JAX_PLATFORMS")
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
    elif why_not == "user":
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    elif why_not == "kernel":
        monkeypatch.setattr(runtime, "_huge_pages_on_request", lambda: False)
    else:
        monkeypatch.setattr(sys, "argv", ["-c"])
    runtime.use_huge_pages()
    assert not on_cpu


@pytest.mark.slow
def test_a_command_starts_anew_as_it_was_called(process_env: dict[str, str], tmp_path: Path) -> None:
    env = {name: value for name, value in process_env.items() if name != "RN50_JAX_HUGE_PAGES"}
    result = tmp_path / "a result.json"
    command = [sys.executable, "-m", "rn50_jax", "benchmark", "--config", "quickstart", *TINY]
    command += ["--mode", "train", "--steps", "2", "--warmup", "0", "--config.batch_size=2", "--json", str(result)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    environment = json.loads(result.read_text())["environment"]
    wanted = "glibc.malloc.hugetlb=1" if runtime._huge_pages_on_request() else None
    assert environment.get("GLIBC_TUNABLES") == wanted
