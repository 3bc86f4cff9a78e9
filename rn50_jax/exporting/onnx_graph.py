"""The family as ONNX graphs, written node by node."""

from typing import Any

import jax
import numpy as np

from rn50_jax.exporting.form import Exportable
from rn50_jax.io.json_files import to_json
from rn50_jax.io.text import in_utf8
from rn50_jax.models.norm import EPSILON
from rn50_jax.models.resnet import ResNet
from rn50_jax.weights.torch_names import Arrays, to_torch

OPSET = 17
# The oldest format of files with that opset, which more runtimes read than the newest.
_IR_VERSION = 8


class _Graph:
    """Nodes and weights as they are added; each node gives one tensor, named as the node."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its tensor."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, array: np.ndarray | None = None) -> str:
        """Adds a constant; without `array` the model's tensor of that name."""
        from onnx import numpy_helper

        array = self.arrays[name] if array is None else array
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def conv(self, x: str, name: str, norm: str, *, stride: int = 1, groups: int = 1) -> str:
        """Adds a convolution and the BatchNorm behind it; in a folded model the convolution has a bias instead."""
        bias = [self.weight(f"{name}.bias")] if f"{name}.bias" in self.arrays else []
        size = self.arrays[f"{name}.weight"].shape[-1]
        y = self.add(
            "Conv",
            name,
            x,
            self.weight(f"{name}.weight"),
            *bias,
            kernel_shape=[size, size],
            pads=4 * [(size - 1) // 2],
            strides=[stride, stride],
            group=groups,
        )
        if bias or not norm:
            return y
        leaves = [self.weight(f"{norm}.{leaf}") for leaf in ("weight", "bias", "running_mean", "running_var")]
        return self.add("BatchNormalization", norm, y, *leaves, epsilon=EPSILON)

    def relu(self, x: str) -> str:
        return self.add("Relu", f"{x}.relu", x)


def to_onnx(exportable: Exportable, facts: dict[str, Any]) -> bytes:
    """Returns the model as an ONNX file in float32, weights and facts inside, for any number of images.

    Args:
      facts: what the file is to say about itself, a property each; all but strings as JSON.
    """
    from onnx import TensorProto, checker, helper

    form, model = exportable.form, exportable.model
    variables = jax.tree.map(np.asarray, exportable.variables)
    graph = _Graph(to_torch(**variables))
    logits = _network(graph, _pixels(graph, exportable), model)
    if form.output == "probabilities":
        graph.add("Softmax", form.output, logits, axis=-1)
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
        x = graph.add("Sub", "image.centred", x, graph.weight("image.mean", mean))
        x = graph.add("Div", "image.normalised", x, graph.weight("image.std", std))
    return x


def _network(graph: _Graph, x: str, model: ResNet) -> str:
    x = graph.relu(graph.conv(x, "conv1", "bn1", stride=2))
    x = graph.add("MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, blocks in enumerate(model.variant.stages, 1):
        for index in range(blocks):
            x = _block(graph, x, f"layer{stage}.{index}", model, stride=2 if stage > 1 and index == 0 else 1)
    x = graph.add("Flatten", "pooled", graph.add("GlobalAveragePool", "avgpool", x))
    return graph.add("Gemm", "logits", x, graph.weight("fc.weight"), graph.weight("fc.bias"), transB=1)


def _block(graph: _Graph, x: str, name: str, model: ResNet, *, stride: int) -> str:
    variant = model.variant
    if variant.bottleneck:
        y = graph.relu(graph.conv(x, f"{name}.conv1", f"{name}.bn1"))
        y = graph.relu(graph.conv(y, f"{name}.conv2", f"{name}.bn2", stride=stride, groups=variant.groups))
        y = graph.conv(y, f"{name}.conv3", f"{name}.bn3")
    else:
        y = graph.relu(graph.conv(x, f"{name}.conv1", f"{name}.bn1", stride=stride, groups=variant.groups))
        y = graph.conv(y, f"{name}.conv2", f"{name}.bn2", groups=variant.groups)
    if variant.se:
        means = graph.add("GlobalAveragePool", f"{name}.se.means", y)
        hidden = graph.relu(graph.conv(means, f"{name}.se.fc1", ""))
        gate = graph.add("Sigmoid", f"{name}.se.gate", graph.conv(hidden, f"{name}.se.fc2", ""))
        y = graph.add("Mul", f"{name}.se", y, gate)
    if f"{name}.downsample.0.weight" in graph.arrays:
        x = graph.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
    return graph.relu(graph.add("Add", f"{name}.add", y, x))
