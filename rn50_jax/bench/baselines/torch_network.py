"""The network as PyTorch's users write it, made of the list of its layers; nothing of JAX is loaded for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import fx, nn

from rn50_jax.errors import UserError

_IMAGES, _UNKNOWN = -1, -2  # as in models.walk
# In place: what an activation follows is read by nothing else, neither forward nor backward.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "sigmoid": nn.Sigmoid}

Layer = dict[str, Any]
Value = Any  # `fx.Proxy`, whose operators mypy does not know


def make_network(net: dict[str, Any]) -> nn.Module:
    """Returns the network for images [B, 3, H, W], its parameters under torchvision's names, or timm's.

    The list leaves no trace in what runs: `code` of the result is straight-line code that calls modules and adds, as
    one writes it by hand. The linear layers of squeeze and excitation are `nn.Linear`, as NVIDIA's; timm's are 1x1
    convolutions.

    Args:
      net: see `compare.network`.

    Raises:
      UserError: it is not made of the layers known here alone.
    """
    strange = [
        f"{layer['name']}, a {layer['kind']}"
        for layer in net["layers"]
        if layer["kind"] not in _LAYERS or _UNKNOWN in layer["inputs"]
    ]
    strange += ["its result"] if net["output"] == _UNKNOWN else []
    if strange:
        raise UserError(
            f"this network cannot be written for torch, which is made of its layers {', '.join(_LAYERS)} and nothing "
            f"between: see {strange[0]}; compare without torch and torch-compile"
        )
    program = _Program()
    made = {_IMAGES: fx.Proxy(program.graph.placeholder("images"))}
    for number, layer in enumerate(net["layers"]):
        made[number] = _LAYERS[layer["kind"]](program, layer, *(made[source] for source in layer["inputs"]))
    program.graph.output(made[net["output"]].node)
    return fx.GraphModule(program.modules, program.graph, "Network")


class _Program:
    """A forward pass in the making, and its modules by name.

    A layer's further modules have its name and an underscore, which no name of a layer has.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}

    def call(self, name: str, module: nn.Module, x: Value) -> Value:
        self.modules[name] = module
        return fx.Proxy(self.graph.call_module(name, (x.node,)))

    def activate(self, name: str, kind: str, x: Value) -> Value:
        return self.call(f"{name}_{kind}", _ACTIVATIONS[kind](), x)


def _conv_norm(program: _Program, layer: Layer, x: Value, residual: Value | None = None) -> Value:
    name, features, size = layer["name"], layer["features"], layer["size"]
    shape = (layer["in_channels"], features, size, layer["stride"], (size - 1) // 2)
    y = program.call(name, nn.Conv2d(*shape, groups=layer["groups"], bias=False), x)
    y = program.call(layer["norm"], nn.BatchNorm2d(features), y)
    y = y if residual is None else y + residual
    y = program.activate(name, "relu", y) if layer["relu"] else y
    return program.call(f"{name}_maxpool", nn.MaxPool2d(3, 2, 1), y) if layer["pool"] else y


def _linear(program: _Program, layer: Layer, x: Value) -> Value:
    name, activation = layer["name"], layer["activation"]
    y = program.call(name, nn.Linear(layer["in_channels"], layer["features"]), x)
    return program.activate(name, activation, y) if activation else y


def _mean_pool(program: _Program, layer: Layer, x: Value) -> Value:
    return program.call(
        f"{layer['name']}_flatten", nn.Flatten(), program.call(layer["name"], nn.AdaptiveAvgPool2d(1), x)
    )


def _average_pool(program: _Program, layer: Layer, x: Value) -> Value:
    return program.call(layer["name"], nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), x)


def _gate(program: _Program, layer: Layer, x: Value, gate: Value) -> Value:
    return x * gate.unsqueeze(2).unsqueeze(3)


def _add_relu(program: _Program, layer: Layer, x: Value, residual: Value) -> Value:
    return program.activate(layer["name"], "relu", x + residual)


_LAYERS: dict[str, Callable[..., Value]] = {
    "ConvNorm": _conv_norm,
    "Linear": _linear,
    "MeanPool": _mean_pool,
    "AveragePool": _average_pool,
    "Gate": _gate,
    "AddRelu": _add_relu,
}
