"""The public Flax ImageNet example beside us, from the user's own checkout; nothing of it is part of this project.

Its own model, state, learning rate and `train_step` under its own `pmap` are used as its `train_and_evaluate` does;
only the input is replaced by one ready batch, in the type that its input pipeline makes.
"""

import contextlib
import importlib.util
import sys
import time
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rn50_jax.bench import timing
from rn50_jax.bench.cpu_time import time_steps
from rn50_jax.bench.device import describe_hardware, find_local_devices
from rn50_jax.config.loading import from_saved
from rn50_jax.distributed.devices import make_mesh, map_over_devices
from rn50_jax.errors import UserError
from rn50_jax.io.text import first_line

# Its train.py imports these for logging and input alone; the step needs none of them.
_UNUSED = ("clu", "tensorflow", "tensorflow_datasets", "input_pipeline")


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs one trial, see `bench.trials`.

    Raises:
      UserError: inference was asked for, or the checkout is not one that this fits.
    """
    if spec["mode"] != "train":
        raise UserError("the Flax example is compared in training only")
    devices = find_local_devices(spec["device"])
    folder, precision = Path(spec["folder"]), spec["config"]["precision"]
    start = time.perf_counter()
    if precision == "fp32":
        jax.config.update("jax_default_matmul_precision", "highest")
    try:
        with _importing_from(folder):
            train, models = _load("train", folder), _load("models", folder)
            config = _load("configs.default", folder).get_config()
        step, state, dtype = _its_step(spec, train, models, config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{folder} is no checkout of flax's examples/imagenet that fits this comparison, or wants another package: "
            f"{first_line(error, kind=True)}"
        ) from error
    batch = _batch(spec, dtype)

    def one_step() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    run = partial(timing.time_queued, one_step)
    timed = time_steps(run, steps=spec["steps"], warmup=spec["warmup"] or 1, began=start)
    stats = devices[0].memory_stats() or {}
    return timed | {
        "platform": devices[0].platform,
        "device": describe_hardware(devices)["device"],
        "precision": "fp16" if dtype == jnp.float16 else precision,
        "images_per_step": spec["config"]["batch_size"],
        "start": "cold" if spec["trial"] == 1 else "warm",
        "peak_memory_bytes": stats.get("peak_bytes_in_use"),
        "about": f"its own train_step and models.py, jax {jax.__version__}",
    }


def _its_step(spec: dict[str, Any], train: Any, models: Any, config: Any) -> tuple[Any, Any, Any]:
    """Its compiled step, its first state, and the type of its images."""
    ours = from_saved(spec["config"], source="the trial").config
    # Its half precision is float16 with a dynamic loss scale on GPUs: what it has for both bf16 and fp16.
    config.half_precision = spec["config"]["precision"] in ("bf16", "fp16")
    config.batch_size = spec["config"]["batch_size"]
    train.NUM_CLASSES = spec["network"]["classes"]
    name = {"resnet18": "ResNet18", "resnet34": "ResNet34", "resnet50": "ResNet50", "resnet101": "ResNet101"}
    arch, stages, width = ours.model.arch, ours.model.num_blocks, ours.model.width
    unlike = ours.model.stage_widths != tuple(width * 2**i for i in range(len(stages))) or ours.model.small_stem
    if arch not in name or unlike:
        raise UserError(f"the Flax example has no network like {arch} with these widths and this stem")
    cls = partial(getattr(models, name[arch]), stage_sizes=list(stages), num_filters=width)
    model = train.create_model(model_cls=cls, half_precision=config.half_precision)
    rate = train.create_learning_rate_fn(config, config.learning_rate * config.batch_size / 256.0, 5004)
    state = train.create_train_state(jax.random.key(0), config, model, ours.data.image_size, rate)
    # The pmap of its train_and_evaluate: axis "batch", one state for all, nothing donated.
    one_step = partial(train.train_step, learning_rate_fn=rate)
    return map_over_devices(one_step, make_mesh(jax.local_devices()[:1]), mode="pmap"), state, model.dtype


def _batch(spec: dict[str, Any], dtype: Any) -> dict[str, jax.Array]:
    size, count = spec["config"]["data"]["image_size"], spec["config"]["batch_size"]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, count, size, size, 3), np.float32)
    labels = rng.integers(0, spec["network"]["classes"], (1, count), np.int32)
    return {"image": jnp.asarray(images, dtype), "label": jnp.asarray(labels)}


def _load(name: str, folder: Path) -> Any:
    path = folder / (name.replace(".", "/") + ".py")
    found = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or found is None or found.loader is None:
        raise UserError(f"{folder} has no {path.relative_to(folder)}; it is no checkout of flax's examples/imagenet")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


class _Unused(types.ModuleType):
    """Stands for a module that is imported but whose parts the step never calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused(f"{self.__name__}.{name}")


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Lets the example import its own modules; what it has for input and logging, installed or not, is not loaded."""
    importlib.import_module("flax.training.checkpoints")  # looks for TensorFlow, and must not find what stands for it
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    for name in _UNUSED:
        sys.modules[name] = _Unused(name)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in (*_UNUSED, "train", "models", "configs"):
                del sys.modules[name]
