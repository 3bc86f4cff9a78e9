"""The walk over a network: its layers and how they are connected are the papers', its shapes those of Flax."""

import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from helpers.networks import random_variables, shapes_of

from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.family import FAMILY
from rn50_jax.models.fold import fold
from rn50_jax.models.initial import initial_variables
from rn50_jax.models.layers import Linear, MeanPool
from rn50_jax.models.resnet import ResNet
from rn50_jax.models.walk import IMAGES, UNKNOWN, walk

FP32 = PRECISIONS["fp32"]


def sources(model: Any) -> dict[str, tuple[str, ...]]:
    """The layers by their paths, and what each is called with."""
    structure = walk(model)
    names = ["/".join(layer.path) for layer in structure.layers]
    assert len(set(names)) == len(names)
    told = {IMAGES: "images", UNKNOWN: "?"} | dict(enumerate(names))
    return {name: tuple(told[i] for i in layer.inputs) for name, layer in zip(names, structure.layers, strict=True)}


def test_resnet50_is_the_papers() -> None:
    structure = walk(ResNet(FAMILY["resnet50"], 1000, FP32))
    assert Counter(type(layer.module) for layer in structure.layers) == {ConvNorm: 53, MeanPool: 1, Linear: 1}
    wanted, last = {"conv1": ("images",)}, "conv1"
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in (f"layer{stage}_{index}" for index in range(blocks)):
            wanted |= {f"{block}/conv1": (last,), f"{block}/conv2": (f"{block}/conv1",)}
            if block.endswith("_0"):
                wanted[f"{block}/downsample_0"] = (last,)
                last = f"{block}/downsample_0"
            wanted[f"{block}/conv3"] = (f"{block}/conv2", last)
            last = f"{block}/conv3"
    wanted |= {"MeanPool_0": (last,), "fc": ("MeanPool_0",)}
    assert sources(ResNet(FAMILY["resnet50"], 1000, FP32)) == wanted
    assert structure.layers[structure.output].path == ("fc",)
    # Table 1 of arXiv:1512.03385 has the sizes of the stages, at 224 px.
    pixels = {"/".join(layer.path): layer.pixels for layer in structure.layers}
    assert [math.isqrt(pixels[f"layer{stage}_1/conv3"]) for stage in (1, 2, 3, 4)] == [56, 28, 14, 7]
    assert (math.isqrt(pixels["conv1"]), pixels["fc"]) == (112, 1)
    assert math.isqrt(pixels["layer2_0/conv1"]) == 56  # v1.5 strides in the 3x3 convolution


def test_gates_and_averages_are_connected() -> None:
    variant = FAMILY["se-resnet50"]._replace(stages=(1, 1), deep_stem=True, average_shortcut=True)
    found = sources(ResNet(variant, 10, FP32))
    assert [found[f"conv1_{number}"] for number in (0, 3, 6)] == [("images",), ("conv1_0",), ("conv1_3",)]
    block, last = "layer2_0", "layer1_0/AddRelu_0"
    assert {name: inputs for name, inputs in found.items() if name.startswith(block)} == {
        f"{block}/AveragePool_0": (last,),
        f"{block}/downsample_1": (f"{block}/AveragePool_0",),
        f"{block}/conv1": (last,),
        f"{block}/conv2": (f"{block}/conv1",),
        f"{block}/conv3": (f"{block}/conv2",),
        f"{block}/se/MeanPool_0": (f"{block}/conv3",),
        f"{block}/se/fc1": (f"{block}/se/MeanPool_0",),
        f"{block}/se/fc2": (f"{block}/se/fc1",),
        f"{block}/se/Gate_0": (f"{block}/conv3", f"{block}/se/fc2"),
        f"{block}/AddRelu_0": (f"{block}/se/Gate_0", f"{block}/downsample_1"),
    }
    assert not any(name.startswith("layer1_0/AveragePool") for name in found)  # it does not halve the image


@pytest.mark.parametrize("arch", FAMILY)
def test_shapes_and_kernels_are_those_of_flax(arch: str) -> None:
    model = ResNet(FAMILY[arch], 10, FP32, width=32)
    structure, wanted = walk(model, 64), flatten_dict(shapes_of(model))
    assert {path: (x.shape, x.dtype) for path, x in structure.shapes.items()} == {
        path: (x.shape, x.dtype) for path, x in wanted.items()
    }
    for layer in structure.layers:
        if layer.kernel:
            assert layer.kernel == wanted["params", *layer.path, "kernel"].shape
        if isinstance(layer.module, ConvNorm):
            assert wanted["params", *layer.norm, "scale"].shape == layer.kernel[-1:]
    assert walk(model.clone(), 64) is structure  # it is remembered


class Own(nn.Module):
    """With layers of other libraries, and arithmetic between them; `scales` cannot be hashed."""

    num_classes: int
    scales: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, head: bool = True) -> jax.Array:
        x = ConvNorm(4, 3, 2, train=train, name="first")(x)
        x = nn.gelu(x) if self.scales is None else x * jnp.asarray(self.scales)
        x = ConvNorm(4, 1, train=train, name="second")(x)
        x = nn.LayerNorm(name="layer_norm")(x)
        x = nn.Conv(6, (3, 3), name="conv")(x)
        x = Linear(self.num_classes, name="fc")(MeanPool(name="mean")(x))
        return jnp.tanh(x)


@pytest.mark.parametrize("scales", [None, np.arange(1.0, 5)], ids=["hashable", "unhashable"])
def test_what_is_not_known_is_told(scales: Any) -> None:
    model = Own(5, scales)
    assert sources(model) == {
        "first": ("images",),
        "second": ("?",),
        "conv": ("?",),
        "mean": ("conv",),
        "fc": ("mean",),
    }
    structure = walk(model)
    assert structure.output == UNKNOWN
    conv = next(layer for layer in structure.layers if layer.path == ("conv",))
    assert (conv.kernel, conv.pixels, conv.products) == ((3, 3, 4, 6), 112 * 112, 112 * 112 * 3 * 3 * 4 * 6)
    # What derives from it works: values of both kinds of layers, and folding of those that can be folded.
    start = initial_variables(model, 0)
    assert start["params"]["layer_norm"].keys() == {"scale", "bias"}
    assert np.std(start["params"]["first"]["kernel"]) == pytest.approx((2 / 27) ** 0.5, rel=0.2)
    variables = random_variables(model)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    wanted, found = (model.apply(v, images, train=False) for v in (variables, fold(model, variables)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
