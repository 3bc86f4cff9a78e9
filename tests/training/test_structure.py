"""The structure of the real ResNet-50 step, as it is lowered for a GPU that need not be there. Nothing is compiled.

What XLA makes of it for an H100 is counted by scripts/gpu_program.py, see docs/performance.md.
"""

import importlib.util
import math
import re
from collections import Counter
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from conftest import REPO
from helpers.jaxprs import equations, operations

from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices
from rn50_jax.inference.predict_step import predict_step
from rn50_jax.models.fold import fold, pack
from rn50_jax.training.build import build_state, compile_steps

BATCH, SIZE = 2, 224
LAYERS = 53  # convolutions, each with its BatchNorm
FORWARD = 2 * 4.089e9  # floating-point operations per image; docs/performance.md
TRAIN = 2 * (3 * 4.089e9 - 0.118e9)  # twice more for two gradients, but the image needs none


class Program(NamedTuple):
    """A step on one device."""

    jaxpr: Any
    text: str  # StableHLO for CUDA
    state: Any
    traced: Any


def arguments(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def images() -> dict[str, jax.ShapeDtypeStruct]:
    return {"image": jax.ShapeDtypeStruct((1, BATCH, SIZE, SIZE, 3), jnp.uint8)}


def make(mode: str, **model_keys: Any) -> Program:
    config, _ = configs.load(str(REPO / "configs/dgxa100_90e.py"))
    values = {"data.backend": "synthetic", "compute.parallel": "shard_map", "batch_size": BATCH, "precision": "bf16"}
    values |= {f"{'model' if key == 'arch' else 'compute'}.{key}": value for key, value in model_keys.items()}
    config = configs.override(config, [(key, str(value)) for key, value in values.items()])
    mesh = make_mesh(jax.devices()[:1])
    model = build_model(config, num_classes=1000, platform="gpu")
    state = arguments(build_state(config, model, abstract=True))
    if mode == "train":
        step: Any = compile_steps(config, model, make_plan(config, num_images=1_281_167, num_devices=1), mesh)[0]
        labels = {"label": jax.ShapeDtypeStruct((1, BATCH), jnp.int32)}
        labels |= {"weight": jax.ShapeDtypeStruct((1, BATCH), jnp.float32)}
    else:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        state = jax.eval_shape(lambda tree: pack(model, fold(model, tree)), variables)
        one_step = partial(predict_step, model=model, axis_name=AXIS)
        step, labels = map_over_devices(one_step, mesh, mode="shard_map", stacked=True), {}
    traced = step.trace(state, images() | labels)
    return Program(traced.jaxpr.jaxpr, traced.lower(lowering_platforms=("cuda",)).as_text(), state, traced)


@pytest.fixture(scope="module")
def train() -> Program:
    return make("train")


@pytest.fixture(scope="module")
def infer() -> Program:
    return make("infer")


def of_activations(equation: Any) -> bool:
    shapes = [x.aval.shape for x in (*equation.invars, *equation.outvars)]
    return any(len(shape) == 4 and shape[0] == BATCH for shape in shapes)


def test_floating_point_operations_per_image(train: Program, infer: Program) -> None:
    assert operations(train.jaxpr) / BATCH == pytest.approx(24.30e9, rel=0.01) == pytest.approx(TRAIN, rel=0.01)
    assert operations(infer.jaxpr) / BATCH == pytest.approx(8.18e9, rel=0.01) == pytest.approx(FORWARD, rel=0.01)


def test_xla_counts_as_many_operations(train: Program) -> None:
    # XLA leaves out what falls on padding and adds all that is elementwise.
    assert train.traced.lower().cost_analysis()["flops"] / BATCH == pytest.approx(TRAIN, rel=0.015)


@pytest.mark.slow
def test_the_plain_step_does_the_same_operations() -> None:
    # But for the stem's fourth channel, which only the fast one has.
    assert operations(make("train", impl="plain").jaxpr) / BATCH == pytest.approx(TRAIN, rel=1e-3)


def test_every_layer_is_one_convolution_in_bf16(train: Program, infer: Program) -> None:
    convolutions = [e for e in equations(train.jaxpr) if e.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == LAYERS + LAYERS + (LAYERS - 1)  # forward, kernels' gradients, inputs' but the image's
    assert {str(x.aval.dtype) for e in convolutions for x in (*e.invars, *e.outvars)} == {"bfloat16"}
    assert sum(e.primitive.name == "conv_general_dilated" for e in equations(infer.jaxpr)) == LAYERS


@pytest.mark.slow
def test_activations_are_never_transposed(train: Program, infer: Program) -> None:
    for program in (train, infer):
        moved = re.findall(r"stablehlo\.transpose .*?\(tensor<([\dx]+)x\w+>\)", program.text)
        assert all(math.prod(map(int, sizes.split("x"))) <= 3 * 3 * 512 * 512 for sizes in moved), moved
        convolutions = [e for e in equations(program.jaxpr) if e.primitive.name == "conv_general_dilated"]
        # Batch and channels of what is read, and of what is written: NHWC, or a gradient of kernels summed over images.
        axes = {
            (e.params["dimension_numbers"].lhs_spec[:2], e.params["dimension_numbers"].out_spec[:2])
            for e in convolutions
        }
        assert axes <= {((0, 3), (0, 3)), ((3, 0), (2, 3))}


def test_one_pass_of_sums_over_each_activation_forward_and_backward(train: Program) -> None:
    sums = Counter(
        e.primitive.name for e in equations(train.jaxpr) if e.primitive.name.startswith("reduce") and of_activations(e)
    )
    del sums["reduce_precision"]
    assert sums == {"reduce": 2 * LAYERS, "reduce_sum": 1}  # pairs of sums in BatchNorm; the mean before the classifier
    assert "select_and_scatter" not in train.text
    assert not any("scatter" in e.primitive.name and of_activations(e) for e in equations(train.jaxpr))


def test_folded_inference_has_no_batch_norm_and_no_work_on_kernels(infer: Program) -> None:
    names = Counter(e.primitive.name for e in equations(infer.jaxpr))
    assert names["rsqrt"] == 0
    casts = [e for e in equations(infer.jaxpr) if e.primitive.name == "convert_element_type"]
    assert not any(x.aval.ndim == 4 and x.aval.shape[-1] > 4 and not of_activations(e) for e in casts for x in e.invars)


def test_the_state_is_donated(train: Program) -> None:
    donated = re.findall(
        r"%arg\d+: tensor<[^>]*> \{[^}]*(?:jax\.buffer_donor = true|tf\.aliasing_output = \d+)", train.text
    )
    assert len(donated) == len(jax.tree.leaves(train.state))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_program", REPO / "scripts/gpu_program.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ACTIVATION = 2 * 7 * 7 * 512  # elements
HLO = """
%fused_sum (a: bf16[2,7,7,512]) -> f32[512] {
  %a = bf16[2,7,7,512]{3,2,1,0} parameter(0)
  ROOT %r = f32[512]{0} reduce(%a, %zero), dimensions={0,1,2}
}

ENTRY %main (x: bf16[2,7,7,512], k: bf16[512,3,3,512]) -> (f32[512], bf16[2,7,7,512]) {
  %x = bf16[2,7,7,512]{3,2,1,0} parameter(0)
  %k = bf16[512,3,3,512]{3,2,1,0} parameter(1)
  %conv = (bf16[2,7,7,512]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), custom_call_target="__cudnn$convForward"
  %y = bf16[2,7,7,512]{3,2,1,0} get-tuple-element(%conv), index=0
  %sum = f32[512]{0} fusion(%y), kind=kInput, calls=%fused_sum, metadata={op_name="jit(f)/network/norm/reduce"}
  %wide = f32[2,7,7,512]{3,2,1,0} fusion(%y, %y), kind=kLoop, calls=%o, metadata={op_name="jit(f)/network/norm/mul"}
  %copy.1 = f32[512]{0} copy(%sum)
  ROOT %t = (f32[512]{0}, bf16[2,7,7,512]{3,2,1,0}) tuple(%copy.1, %y)
}
"""


def test_kernels_are_counted_from_the_compiled_program() -> None:
    found = script().kernels(HLO, ACTIVATION, "train")
    array, kernel, vector = 2 * ACTIVATION, 2 * 9 * 512 * 512, 4 * 512
    assert [(k.name, k.group, k.bytes, k.float32) for k in found] == [
        ("conv", "convolution forward", 2 * array + kernel, False),
        ("sum", "sums for BatchNorm forward", array + vector, False),
        ("wide", "normalize and ReLU forward", 3 * array, True),
        ("copy.1", "copies and casts", 2 * vector, False),
    ]
    assert found[1].origin == "jit(f)/network/norm/reduce"
