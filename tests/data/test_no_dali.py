"""DALI missing or broken: one line that says why and what to do, and commands that need none go on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO, Run, assert_user_error, tiny_args
from helpers.runs import PATIENCE
from helpers.trees import write_image

import rn50_jax.data
from rn50_jax.config.sections.data import DataConfig
from rn50_jax.data import dali
from rn50_jax.data.dali_errors import need_dali, no_dali
from rn50_jax.errors import UserError
from rn50_jax.runtime.machine import dali_version

MISSING = "DALI, which decodes the images, is not installed: pip install nvidia-dali-cuda130 (nvidia-dali-cuda120"
LIBRARY = "libcuda.so.1: cannot open shared object file: No such file or directory"


def forget(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Lets a module of DALI's be missing, also for those of ours that have been imported with it."""
    for name in ("dali", "dali_decoders", "device_batches"):
        monkeypatch.delitem(sys.modules, f"rn50_jax.data.{name}", raising=False)
        monkeypatch.delattr(rn50_jax.data, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def commands(trained: tuple[Path, str], digits: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    model = ("--workdir", trained[0])
    timed = (*tiny_args(digits), "--steps", 1, "--warmup", 0)
    return {
        "train": ("train", *tiny_args(digits), "--workdir", tmp_path / "new"),
        "validate": ("train", *tiny_args(digits), *model, "--config.run.evaluate=True"),
        "evaluate": ("evaluate", *model),
        "predict": ("predict", *model, digits / "val/0"),
        "features": ("features", *model, digits / "val", "--out", tmp_path / "f.npz"),
        "check_data": ("check_data", digits, "--mode", "full"),
        "export": ("export", *model, "--out", tmp_path / "x.onnx", "--quantise", "--calibration", digits / "val"),
        "input": ("benchmark", *timed, "--mode", "input"),
        "end-to-end": ("benchmark", *timed, "--mode", "end-to-end"),
    }


@pytest.mark.parametrize(
    ("name", "otherwise"),
    [
        ("train", ", or use config.data.backend=synthetic"),
        ("validate", ""),
        ("evaluate", ""),
        ("predict", ", or use --resize pillow"),
        ("features", ""),
        ("check_data", ", or use --mode quick"),
        ("export", ""),
        ("input", ", or use --mode train or infer, which need no files"),
        ("end-to-end", ", or use --mode train or infer, which need no files"),
    ],
)
def test_what_to_do_without_dali(
    name: str,
    otherwise: str,
    commands: dict[str, tuple[Any, ...]],
    call: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget(monkeypatch, "nvidia.dali")
    done = call(*commands[name])
    assert_user_error(done, MISSING)
    assert done.stderr.endswith(f"for CUDA 12){otherwise}\n") and done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_what_needs_no_dali(
    trained: tuple[Path, str], digits: Path, call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch, "nvidia.dali")
    image = sorted((digits / "val/3").iterdir())[0]
    model = ("--workdir", trained[0])
    for command in (
        ("predict", *model, "--resize", "pillow", image),
        ("export", *model, "--out", tmp_path / "x.stablehlo"),
        ("pack", digits, tmp_path / "packed"),
    ):
        done = call(*command)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["evaluate", "predict", "features"])
def test_a_broken_dali_is_named(
    name: str, commands: dict[str, tuple[Any, ...]], call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch, "nvidia.dali.plugin.jax")
    assert_user_error(call(*commands[name]), "cannot be loaded: ModuleNotFoundError: ", "plugin.jax", "install it anew")


def test_errors_of_an_import_in_words() -> None:
    told = str(no_dali(ImportError(f"{LIBRARY}\nmore")))
    assert told.startswith(f"DALI, which decodes the images, cannot be loaded: ImportError: {LIBRARY} more; mend that")
    assert "GLIBC_2.34' not found" in str(no_dali(OSError("libdali.so: version `GLIBC_2.34' not found")))
    for name in ("nvidia", "nvidia.dali"):
        assert str(no_dali(ModuleNotFoundError(f"No module named {name!r}", name=name))).startswith(MISSING)
    told = str(no_dali(ModuleNotFoundError("No module named 'packaging'", name="packaging")))
    assert "ModuleNotFoundError: No module named 'packaging'; mend" in told


@pytest.mark.parametrize("left", ["nothing", "nvidia", "nvidia/cudnn", "nvidia/dali"])
def test_other_packages_of_nvidia_are_not_dali(left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / left).mkdir(parents=True)  # what pip leaves behind, or the CUDA libraries' folder
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="is not installed"):
        need_dali()


def shim(folder: Path, text: str) -> Path:
    """A folder whose `nvidia.dali` is this text, beside the true packages of NVIDIA's."""
    (folder / "nvidia/dali").mkdir(parents=True)
    (folder / "nvidia/__init__.py").write_text("__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n")
    (folder / "nvidia/dali/__init__.py").write_text(text)
    return folder


def in_a_process(env: dict[str, str], *command: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", f"rn50_jax.{command[0]}", *map(str, command[1:])]
    return subprocess.run(words, env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_a_process_without_dali(
    commands: dict[str, tuple[object, ...]], tmp_path: Path, process_env: dict[str, str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['nvidia.dali'] = None\n")
    env = process_env | {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    assert_user_error(in_a_process(env, *commands["train"]), MISSING, "config.data.backend=synthetic")


@pytest.mark.slow
def test_a_worker_with_a_broken_dali_tells_its_parent(
    commands: dict[str, tuple[object, ...]], tmp_path: Path, process_env: dict[str, str]
) -> None:
    env = process_env | {"PYTHONPATH": f"{shim(tmp_path / 'broken', f'raise ImportError({LIBRARY!r})')}:{REPO}"}
    assert_user_error(in_a_process(env, *commands["check_data"]), LIBRARY)
    done = in_a_process(env, *commands["input"])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: DALI, which decodes the images, cannot be loaded: ImportError: {LIBRARY}" in done.stderr


def test_images_reach_jax_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "x.png", (1, 2, 3))
    images = dali.ImageSet((str(tmp_path / "x.png"),), np.zeros(1, np.int32))
    options: dict[str, Any] = {
        "batch_size": 2,
        "num_threads": 1,
        "device_id": None,
    }
    data = DataConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0, image_size=32)
    made = [
        dali.train_pipeline(images, np.zeros(2, np.int64), data, image_size=32, **options),
        dali.eval_pipeline(images, np.zeros(2, np.int64), data, **options),
    ]
    for pipeline in made:
        assert pipeline.exec_dynamic  # by default
        assert len(list(dali.deliver(pipeline, remember=False))) == 1
    monkeypatch.setattr(type(pipeline), "exec_dynamic", False)
    with pytest.raises(UserError, match=rf"^DALI {dali_version()} lacks the dynamic executor.*nvidia-dali-cuda130"):
        next(dali.deliver(pipeline, remember=False))
