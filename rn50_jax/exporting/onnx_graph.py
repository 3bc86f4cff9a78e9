"""A network as an ONNX graph: its layers one by one, as the walk over it finds them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from rn50_jax.errors import UserError
from rn50_jax.exporting.form import Exportable
from rn50_jax.io.json_files import to_json
from rn50_jax.io.text import in_utf8
from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.layers import AddRelu, AveragePool, Gate, Linear, MeanPool
from rn50_jax.models.network import Network
from rn50_jax.models.norm import EPSILON
from rn50_jax.models.walk import IMAGES, Layer, Variables, walk
from rn50_jax.weights.torch_names import module_name, to_torch_layout, torch_name

OPSET = 17
# The oldest format of files with that opset, which more runtimes read than the newest.
_IR_VERSION = 8


class _Graph:
    """Nodes and weights as they are added; each node gives one tensor, named as the node."""

    def __init__(self, variables: Variables) -> None:
        self.arrays = {path: np.asarray(x) for tree in variables.values() for path, x in flatten_dict(tree).items()}
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its tensor."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds a constant."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, *path: str) -> str:
        """Adds a variable of the model, in torch's layout and under its name."""
        name = torch_name(path)
        return self.constant(name, to_torch_layout(name, self.arrays[path]))


def to_onnx(exportable: Exportable, facts: dict[str, Any]) -> bytes:
    """Returns the model as an ONNX file in float32, weights and facts inside, for any number of images.

    Args:
      facts: what the file is to say about itself, a property each; all but strings as JSON.
    """
    from onnx import TensorProto, checker, helper

    form, model = exportable.form, exportable.model
    graph = _Graph(exportable.variables)
    logits = _network(graph, _pixels(graph, exportable), model)
    if form.output == "probabilities":
        graph.add("Softmax", form.output, logits, axis=-1)
    else:
        graph.add("Identity", form.output, logits)  # the tensor before has the last layer's name
    kind = TensorProto.UINT8 if form.input == "uint8" else TensorProto.FLOAT
    shape = ["batch", *form.shape(exportable.image_size)]
    image = helper.make_tensor_value_info("image", kind, shape)
    output = helper.make_tensor_value_info(form.output, TensorProto.FLOAT, ["batch", model.num_classes])
    proto = helper.make_model(
        helper.make_graph(graph.nodes, exportable.arch, [image], [output], graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="rn50-jax",
    )
    helper.set_model_props(proto, {k: in_utf8(v) if isinstance(v, str) else to_json(v) for k, v in facts.items()})
    checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def _pixels(graph: _Graph, exportable: Exportable) -> str:
    """The input, as normalized float32 [N, 3, S, S]."""
    x = "image"
    if exportable.form.layout == "nhwc":
        x = graph.add("Transpose", "image.nchw", x, perm=[0, 3, 1, 2])
    if exportable.form.input == "uint8":
        x = graph.add("Cast", "image.float", x, to=1)
        mean, std = (np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in exportable.normalization)
        x = graph.add("Sub", "image.centred", x, graph.constant("image.mean", mean))
        x = graph.add("Div", "image.normalised", x, graph.constant("image.std", std))
    return x


def _network(graph: _Graph, image: str, model: Network) -> str:
    structure = walk(model)
    made = {IMAGES: image}
    for number, layer in enumerate(structure.layers):
        inputs = [made.get(source, "") for source in layer.inputs]
        if type(layer.module) not in _NODES or not all(inputs):
            raise UserError(_unknown(layer))
        made[number] = _NODES[type(layer.module)](graph, layer, *inputs)
    if structure.output not in made:
        raise UserError(_unknown(structure.layers[-1]))
    return made[structure.output]


def _unknown(layer: Layer) -> str:
    known = ", ".join(kind.__name__ for kind in _NODES)
    return (
        f"this network cannot be written as ONNX, which is made of its layers {known} and nothing between: see "
        f"{'/'.join(layer.path)}, a {type(layer.module).__name__}; export it as .stablehlo"
    )


def _conv_norm(graph: _Graph, layer: Layer, x: str, residual: str = "") -> str:
    module, name = layer.module, module_name(layer.path)
    assert isinstance(module, ConvNorm)
    folded = (*layer.path, "bias") in graph.arrays
    y = graph.add(
        "Conv",
        name,
        x,
        graph.weight(*layer.path, "kernel"),
        *([graph.weight(*layer.path, "bias")] if folded else []),
        kernel_shape=[module.size, module.size],
        pads=4 * [(module.size - 1) // 2],
        strides=[module.stride, module.stride],
        group=module.groups,
    )
    if not folded:
        leaves = [graph.weight(*layer.norm, leaf) for leaf in ("scale", "bias", "mean", "var")]
        y = graph.add("BatchNormalization", module_name(layer.norm), y, *leaves, epsilon=EPSILON)
    if residual:
        y = graph.add("Add", f"{name}.add", y, residual)
    if module.relu:
        y = graph.add("Relu", f"{y}.relu", y)
    if module.pool:
        y = graph.add("MaxPool", f"{name}.maxpool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return y


def _linear(graph: _Graph, layer: Layer, x: str) -> str:
    module, name = layer.module, module_name(layer.path)
    assert isinstance(module, Linear)
    kernel = graph.constant(f"{name}.weight", graph.arrays[*layer.path, "kernel"].T)
    y = graph.add("Gemm", name, x, kernel, graph.weight(*layer.path, "bias"), transB=1)
    return graph.add(module.activation.capitalize(), f"{name}.{module.activation}", y) if module.activation else y


def _mean_pool(graph: _Graph, layer: Layer, x: str) -> str:
    name = module_name(layer.path)
    return graph.add("Flatten", f"{name}.flatten", graph.add("GlobalAveragePool", name, x))


def _average_pool(graph: _Graph, layer: Layer, x: str) -> str:
    windows = {"kernel_shape": [2, 2], "strides": [2, 2]}
    return graph.add("AveragePool", module_name(layer.path), x, ceil_mode=1, count_include_pad=0, **windows)


def _gate(graph: _Graph, layer: Layer, x: str, gate: str) -> str:
    name = module_name(layer.path)
    axes = graph.constant(f"{name}.axes", np.array([2, 3]))
    return graph.add("Mul", name, x, graph.add("Unsqueeze", f"{name}.unsqueeze", gate, axes))


def _add_relu(graph: _Graph, layer: Layer, x: str, residual: str) -> str:
    name = module_name(layer.path)
    return graph.add("Relu", f"{name}.relu", graph.add("Add", name, x, residual))


_NODES: dict[type, Callable[..., str]] = {
    ConvNorm: _conv_norm,
    Linear: _linear,
    MeanPool: _mean_pool,
    AveragePool: _average_pool,
    Gate: _gate,
    AddRelu: _add_relu,
}
