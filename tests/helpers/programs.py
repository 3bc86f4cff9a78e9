"""The compiled programs that one run of the tests hands on to the next, in the user's cache."""

import os
import shutil
import sys
import tempfile
import time
import zlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from rn50_jax.runtime.jax_setup import cpu_kind

DAYS = 14
BYTES = 1 << 29


def kept() -> Path:
    """Returns the folder of the programs for this CPU, JAX and Python."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return home / "rn50-jax" / f"tests-{cpu_kind()}-jaxlib{version('jaxlib')}-{python}"


def linked_programs() -> Path:
    """Returns a new folder, of this run alone, with links to the programs that are kept.

    JAX writes programs in place, and a process that a test kills may leave half of one.
    """
    folder = Path(tempfile.mkdtemp(prefix="rn50-jax-tests-"))
    for program in kept().glob("*-cache"):
        _hand_on(program, folder)
    return folder


def keep_programs(folder: Path) -> None:
    """Keeps the new programs of a run that are whole, removes old ones and the run's folder."""
    kept().mkdir(parents=True, exist_ok=True)
    for program in folder.glob("*-cache"):
        if not (kept() / program.name).exists() and _is_whole(program):
            _hand_on(program, kept())
    room = BYTES
    for program in sorted(kept().glob("*-cache"), key=lambda path: -path.stat().st_mtime):
        room -= program.stat().st_size
        if room < 0 or program.stat().st_mtime < time.time() - 86400 * DAYS:
            program.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _hand_on(program: Path, folder: Path) -> None:
    try:
        os.link(program, folder / program.name)
    except FileExistsError:
        pass
    except OSError:  # another file system
        with suppress(FileNotFoundError):  # just removed by another run
            shutil.copyfile(program, folder / program.name)


def _is_whole(program: Path) -> bool:
    try:
        zlib.decompress(program.read_bytes())
    except zlib.error:
        return False
    return True


# What `compare` drives, in the names of flax's examples/imagenet; a linear classifier of ours.
STANDIN = {
    "models.py": """
        from functools import partial
        from flax import linen as nn

        class ResNet(nn.Module):
            stage_sizes: list
            num_classes: int
            num_filters: int
            dtype: object

            @nn.compact
            def __call__(self, x, train=True):
                self.variable("batch_stats", "mean", lambda: x.mean())
                return nn.Dense(self.num_classes)(x.mean((1, 2)))

        ResNet18 = partial(ResNet, stage_sizes=[2, 2, 2, 2])
        """,
    "train.py": """
        import jax, jax.numpy as jnp
        import tensorflow as tf
        from clu import metric_writers
        from jax import lax
        import input_pipeline
        import models

        NUM_CLASSES = 1000

        def create_model(*, model_cls, half_precision, **kwargs):
            dtype = jnp.float16 if half_precision else jnp.float32
            return model_cls(num_classes=NUM_CLASSES, dtype=dtype)

        def create_learning_rate_fn(config, base, steps_per_epoch):
            return lambda step: base * config.momentum

        def create_train_state(rng, config, model, image_size, learning_rate_fn):
            variables = model.init(rng, jnp.ones((1, image_size, image_size, 3)))
            assert variables["params"]["Dense_0"]["kernel"].shape[1] == NUM_CLASSES
            return {"params": variables["params"], "batch_stats": variables["batch_stats"]}

        def train_step(state, batch, learning_rate_fn):
            logits = models.ResNet18(num_classes=NUM_CLASSES, num_filters=8, dtype=None).apply(state, batch["image"])
            return state, {"loss": lax.pmean(logits.mean() * learning_rate_fn(0), "batch")}
        """,
    "configs/default.py": """
        import ml_collections

        def get_config():
            return ml_collections.ConfigDict({"learning_rate": 0.1, "momentum": 0.9, "batch_size": 1})
        """,
}
