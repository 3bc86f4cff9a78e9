"""Networks of PyTorch, timm and ours, with the same random values."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_reference import ResNet as TorchResNet

from rn50_jax.models.family import Variant
from rn50_jax.models.network import Network


def make_torch(variant: Variant, num_classes: int, se_units: int = 0, **kwargs: Any) -> TorchResNet:
    same = {name: getattr(variant, name) for name in ("groups", "inner", "deep_stem", "average_shortcut")}
    se = se_units if variant.se else None
    return TorchResNet(variant.stages, variant.bottleneck, num_classes, **same, se_units=se, **kwargs)


def shapes_of(model: Network, size: int = 32) -> dict:
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, size, size, 3)))


def random_variables(model: Network) -> dict:
    """Kernels of He's size; scales and statistics other than the initial ones, so that a mix-up would show."""
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.ndim == 1:
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return (rng.standard_normal(x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5).astype(np.float32)

    return jax.tree.map(draw, shapes_of(model))


def make_net(stages: tuple[int, ...] = (1, 1, 1, 1), classes: int = 7, **kwargs: object) -> TorchResNet:
    """A network whose statistics and scales are not the initial ones."""
    torch.manual_seed(0)
    net = TorchResNet(stages, True, classes, **{"width": 8, **kwargs})
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()
