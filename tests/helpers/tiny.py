"""A network of two blocks, and its step over fake devices."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.loading import eval_data, open_data, train_data
from helpers.trees import make_config

from rn50_jax.config.derived import make_plan
from rn50_jax.config.sections.recipe import LossScaleConfig, RecipeConfig
from rn50_jax.data.batch import Position
from rn50_jax.data.normalize import IMAGENET, Normalization
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, replicate, shard
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import Variant
from rn50_jax.models.norm import NormSync
from rn50_jax.models.resnet import ResNet
from rn50_jax.training.optim import sgd
from rn50_jax.training.state import TrainState, init_state
from rn50_jax.training.step import train_step

VARIANT = Variant((1, 1), bottleneck=True)
CLASSES = 5


class StepOptions(NamedTuple):
    """What `train_step` takes besides the network, its optimizer and the rate."""

    recipe: RecipeConfig = RecipeConfig()
    scaling: LossScaleConfig | None = None
    normalization: Normalization = IMAGENET
    accumulation: int = 1
    all_reduce: str = "fp32"
    seed: int = 0

    def replace(self, **values: Any) -> "StepOptions":
        """Of these or of the recipe."""
        own = {name: value for name, value in values.items() if name in self._fields}
        recipe = {name: value for name, value in values.items() if name not in own}
        return self._replace(recipe=self.recipe.replace(**recipe), **own)


OPTIONS = StepOptions()
STATIC = LossScaleConfig(mode="static", growth_interval=2)


def make_model(precision: str = "fp32", sync: NormSync | None = None) -> ResNet:
    return ResNet(VARIANT, CLASSES, PRECISIONS[precision]._replace(platform="gpu", sync=sync), width=8)


def make_optimizer() -> optax.GradientTransformation:
    return sgd(momentum=0.875, weight_decay=1e-3)


def make_state(model: ResNet, loss_scale: float = 1.0, ema: bool = False) -> TrainState:
    # Copies: a step that donates its state would write into the arrays that are kept.
    return jax.tree.map(jnp.array, _initial_state(model, loss_scale, ema))


@lru_cache
def _initial_state(model: ResNet, loss_scale: float, ema: bool) -> TrainState:
    return jax.device_get(init_state(model, make_optimizer(), seed=0, loss_scale=loss_scale, ema=ema))


def make_batch(num_devices: int, device_batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (num_devices, device_batch)
    return {
        "image": rng.integers(0, 256, (*shape, 32, 32, 3), np.uint8),
        "label": rng.integers(0, CLASSES, shape, np.int32),
        "weight": np.ones(shape, np.float32),
    }


@lru_cache
def make_step(
    model: ResNet, num_devices: int, options: StepOptions = OPTIONS, mode: str = "pmap", lr: float = 0.1
) -> Any:
    """The compiled training step and the function that places a state for it."""
    mesh = make_mesh(jax.devices()[:num_devices])
    step = partial(
        train_step,
        model=model,
        optimizer=make_optimizer(),
        learning_rate=lambda step: lr / (1 + step),
        **options._asdict(),
        axis_name=AXIS,
    )
    return map_over_devices(step, mesh, mode=mode, donate_state=True), partial(replicate, mesh=mesh)


def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    mesh = make_mesh(jax.devices()[: len(batch["label"])])
    return {name: shard(value, mesh) for name, value in batch.items()}


def assert_same_bits(a: Any, b: Any) -> None:
    """Both trees hold the same arrays, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def bits(root: Path, *overrides: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    """The batches of training and evaluation on two devices."""
    config = make_config(root, ("batch_size", "150"), ("data.flip", "0.5"), *overrides)
    dataset = open_data(config)
    mesh = make_mesh(jax.devices()[:2])
    plan = make_plan(config, num_images=1500, num_devices=2)
    batches = [b.batch for b in train_data(config, dataset.train, plan, mesh, Position(0, 0))]
    batches += eval_data(config, dataset.val, mesh)
    return [(np.asarray(b["image"]).tobytes(), np.asarray(b["label"]).tobytes()) for b in batches]
