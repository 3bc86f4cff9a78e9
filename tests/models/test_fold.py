"""BatchNorm folded into the convolutions: the same classifier."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.networks import random_variables

from rn50_jax.config import loading as configs
from rn50_jax.config.schema import Config
from rn50_jax.inference.trained_model import TrainedModel, load_for_inference
from rn50_jax.models.compute import PRECISIONS, Compute
from rn50_jax.models.family import FAMILY, Variant
from rn50_jax.models.fold import fold, inference_form, pack
from rn50_jax.models.resnet import ResNet

FLOAT64 = Compute(np.dtype(np.float64), jax.lax.Precision.HIGHEST)
SHORT = {
    "bottleneck": Variant((2, 1), True),
    "basic": Variant((1, 2), False),
    "grouped-se": Variant((1, 1), True, groups=4, inner=2, se=True),
    "se": Variant((2, 1), True, se=True),
}


def logits(model: ResNet, variables: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, images))


def images_of(dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 32, 32, 3)).astype(dtype)


# Relative to the largest logit. In bf16 either way rounds differently, and by up to 2**-8 at each of a dozen layers.
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("fp32", 1e-5), ("bf16", 0.05)])
@pytest.mark.parametrize("variant", SHORT)
def test_folded_model_gives_the_same_logits(variant: str, precision: str, tolerance: float) -> None:
    dtype = np.float64 if precision == "float64" else np.float32
    with jax.enable_x64(dtype is np.float64):
        model = ResNet(SHORT[variant], 5, FLOAT64 if dtype is np.float64 else PRECISIONS[precision], width=8)
        variables = jax.tree.map(lambda x: x.astype(dtype), random_variables(model))
        wanted = logits(model, variables, images_of(dtype))
        found = logits(model, fold(model, variables), images_of(dtype))
    assert found.dtype == wanted.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert 0 < np.max(np.abs(found - wanted)) < tolerance * np.max(np.abs(wanted))


def test_folded_resnet50() -> None:
    model = ResNet(FAMILY["resnet50"], 10, PRECISIONS["fp32"], width=16)
    variables = random_variables(model)
    for path, x in flatten_dict(variables["params"]).items():
        if path[-2:] == ("bn3", "scale"):
            x *= 0.2  # many layers: keep the numbers of one size, as in a trained network
    wanted = logits(model, variables, images_of())
    np.testing.assert_allclose(logits(model, fold(model, variables), images_of()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", FAMILY)
def test_folding_leaves_kernels_and_biases_and_nothing_of_batch_norm(arch: str) -> None:
    model = ResNet(FAMILY[arch], 10, PRECISIONS["bf16"], width=32)
    variables = random_variables(model)
    folded = fold(model, variables)
    assert folded["batch_stats"] == {}
    before, after = (flatten_dict(tree["params"]) for tree in (variables, folded))
    kernels = {path: x for path, x in before.items() if path[-1] == "kernel"}
    assert after.keys() == {*kernels, *((*path[:-1], "bias") for path in kernels)}
    for path, kernel in kernels.items():
        assert (after[path].shape, after[path].dtype) == (kernel.shape, np.float32)
        assert (after[*path[:-1], "bias"].shape, after[*path[:-1], "bias"].dtype) == (kernel.shape[-1:], np.float32)
    program = jax.make_jaxpr(partial(model.apply, train=False))(folded, images_of())
    assert "rsqrt" not in str(program)


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packed_model_gives_the_same_bits(precision: str, platform: str) -> None:
    model = ResNet(SHORT["grouped-se"], 5, PRECISIONS[precision]._replace(platform=platform), width=8)
    variables = fold(model, random_variables(model))
    packed = pack(model, variables)
    block = packed["params"]["layer1_0"]
    kernel = block["conv2"]["packed"]
    assert (kernel.shape, kernel.dtype) == ((16, 3, 3, 4), PRECISIONS[precision].dtype)
    assert block["conv2"].keys() == {"packed", "bias"} and block["conv2"]["bias"].dtype == kernel.dtype
    assert block["se"]["fc1"]["kernel"].dtype == np.float32
    wanted = logits(model, variables, images_of())
    np.testing.assert_array_equal(logits(model, packed, images_of()), wanted)


def test_fold_is_pure_and_can_be_traced() -> None:
    model = ResNet(SHORT["se"], 5, PRECISIONS["fp32"], width=8)
    variables = random_variables(model)
    before = jax.tree.map(np.copy, variables)
    folded = fold(model, variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(folded))
    traced = jax.jit(partial(fold, model))(variables)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), traced, folded)
    assert jnp.shape(folded["params"]["layer1_0"]["conv2"]["bias"]) == (8,)


def test_the_form_for_a_gpu_is_packed() -> None:
    model = ResNet(SHORT["basic"], 5, PRECISIONS["bf16"], width=8)
    variables = random_variables(model)
    form = inference_form(model, variables, "on", platform="gpu")
    assert form["params"]["conv1"]["packed"].shape == (8, 7, 7, 3)
    form = inference_form(model, variables, "on", platform="cpu")
    assert form["params"]["conv1"]["kernel"].shape == (7, 7, 3, 8) and "bias" in form["params"]["conv1"]
    assert inference_form(model, variables, "off", platform="gpu") is variables


@pytest.mark.parametrize(
    ("setting", "exact", "folded"),
    [("auto", False, True), ("auto", True, False), ("on", True, True), ("off", False, False)],
)
def test_when_a_stored_model_is_folded(setting: str, exact: bool, folded: bool) -> None:
    config = configs.override(Config(), [("compute.fold_batch_norm", setting)])
    model = ResNet(SHORT["basic"], 5, PRECISIONS["fp32"], width=8)
    stored = TrainedModel("", config, (), {}, jax.devices(), model, partial(random_variables, model))
    loaded_model, variables = load_for_inference(stored, exact=exact)
    assert loaded_model is model
    assert ("bn1" not in variables["params"]) == folded
