"""Numbers of the model against an independent PyTorch implementation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from helpers.networks import make_torch, random_variables, shapes_of
from helpers.parity import by_torch_name, load

from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.family import FAMILY, Variant
from rn50_jax.models.initial import INITS, initial_variables
from rn50_jax.models.resnet import ResNet
from rn50_jax.models.walk import walk

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50d": 25_576_264,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50-32x4d": 25_028_904,
    "resnext101-32x4d": 44_177_704,
    "se-resnet50": 28_088_024,
    "se-resnext101-32x4d": 48_955_416,
}


@pytest.mark.parametrize("arch", FAMILY)
def test_parameter_count(arch: str) -> None:
    model = ResNet(FAMILY[arch], 1000, PRECISIONS["fp32"])
    assert sum(x.size for x in jax.tree.leaves(shapes_of(model)["params"])) == PARAMETERS[arch]
    torch_parameters = make_torch(FAMILY[arch], 1000).parameters()
    assert sum(p.numel() for p in torch_parameters) == PARAMETERS[arch]


# ResNet-18 for CIFAR-10 as PyTorch users have it (kuangliu/pytorch-cifar); 56 px halved three times leave 7.
def test_small_stem_keeps_the_size() -> None:
    model = ResNet(FAMILY["resnet18"], 10, PRECISIONS["fp32"], small_stem=True)
    assert sum(x.size for x in jax.tree.leaves(shapes_of(model)["params"])) == 11_173_962
    sizes = [layer.pixels for layer in walk(model, 56).layers if isinstance(layer.module, ConvNorm)]
    assert (sizes[0], sizes[-1]) == (56 * 56, 7 * 7)


# NVIDIA's SE blocks have 16 hidden units in every stage, timm's a sixteenth of the channels.
def test_parameter_count_of_nvidias_se_model() -> None:
    model = ResNet(FAMILY["se-resnext101-32x4d"], 1000, PRECISIONS["fp32"], se_units=16)
    plain = PARAMETERS["resnext101-32x4d"]
    channels = [256] * 3 + [512] * 4 + [1024] * 23 + [2048] * 3
    se = sum(c * 16 + 16 + 16 * c + c for c in channels)
    assert sum(x.size for x in jax.tree.leaves(shapes_of(model)["params"])) == plain + se


@pytest.mark.parametrize(
    ("arch", "width", "size", "impl", "platform"),
    [
        ("resnet18", 16, (64, 64), "xla", "gpu"),
        ("resnet18", 16, (45, 75), "plain", "cpu"),
        ("resnet50", 8, (63, 63), "xla", "cpu"),
        ("resnet50d", 8, (45, 75), "xla", "cpu"),
        ("resnet50d", 8, (64, 64), "plain", "cpu"),
        ("resnext50-32x4d", 16, (64, 64), "plain", "cpu"),
        ("se-resnet50", 8, (64, 64), "xla", "cpu"),
    ],
)
def test_logits_and_statistics_equal_torch(
    arch: str, width: int, size: tuple[int, int], impl: str, platform: str
) -> None:
    model = ResNet(FAMILY[arch], 10, PRECISIONS["fp32"]._replace(impl=impl, platform=platform), width=width)
    variables = random_variables(model)
    other = make_torch(FAMILY[arch], 10, width=width)
    load(other, variables["params"], variables["batch_stats"])

    images = np.random.default_rng(1).standard_normal((4, *size, 3)).astype(np.float32)
    torch_images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        eval_logits = other.eval()(torch_images).numpy()
        train_logits = other.train()(torch_images).numpy()
    logits = jax.jit(partial(model.apply, train=False))(variables, images)
    # Where untrained logits reach thousands, float32 rounds the sums that make a small one by more than 2e-4.
    np.testing.assert_allclose(logits, eval_logits, rtol=2e-4, atol=max(2e-4, 1e-6 * np.abs(eval_logits).max()))
    logits, updated = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(logits, train_logits, rtol=2e-4, atol=2e-4)
    running = dict(other.named_buffers())
    for name, value in by_torch_name(updated["batch_stats"]).items():
        np.testing.assert_allclose(value, running[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_custom_stages_and_widths_equal_torch() -> None:
    variant = Variant((1, 2, 1), bottleneck=True)
    model = ResNet(variant, 3, PRECISIONS["fp32"], width=8, widths=(8, 12, 20))
    variables = random_variables(model)
    other = make_torch(variant, 3, width=8, widths=(8, 12, 20))
    load(other, variables["params"], variables["batch_stats"])
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = other.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(model.apply(variables, images, train=False), wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dtypes(precision: str) -> None:
    model = ResNet(FAMILY["resnet18"], 10, PRECISIONS[precision]._replace(platform="gpu"), width=8)
    variables = shapes_of(model)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    images = jnp.ones((2, 32, 32, 3))
    train = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, updated = jax.eval_shape(train, variables, images)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    program = str(jax.make_jaxpr(train)(variables, images))
    convolutions = [line for line in program.splitlines() if "= conv_general_dilated" in line]
    name = {"bf16": "bf16[", "fp16": "f16["}.get(precision, "f32[")
    assert len(convolutions) == 20
    assert all(f":{name}" in line for line in convolutions)


def test_names_of_initialisations() -> None:
    assert INITS == {"classic": "fan_out", "fanin": "fan_in", "grp-fanin": "fan_in", "grp-fanout": "fan_out"}


@pytest.mark.parametrize("fan", ["fan_in", "fan_out"])
def test_initial_weights(fan: str) -> None:
    model = ResNet(Variant((1, 1), True, groups=2, se=True), 1000, PRECISIONS["fp32"], fan=fan)
    params = initial_variables(model, 0)["params"]
    for name in ("conv2", "downsample_0"):
        kernel = params["layer2_0"][name]["kernel"]
        weight = torch.empty(tuple(kernel.shape[axis] for axis in (3, 2, 0, 1)))
        torch.nn.init.kaiming_normal_(weight, mode=fan, nonlinearity="relu")
        assert float(jnp.std(kernel)) == pytest.approx(weight.std().item(), rel=0.02)
        # A normal cut at two standard deviations, as some libraries draw it, would end far below four.
        assert float(jnp.max(jnp.abs(kernel))) > 3.8 * float(jnp.std(kernel))
    for layer, inputs in ((params["fc"], 512), (params["layer2_0"]["se"]["fc1"], 512)):
        assert float(jnp.max(jnp.abs(layer["kernel"]))) <= inputs**-0.5
        assert float(jnp.max(jnp.abs(layer["bias"]))) <= inputs**-0.5
        assert float(jnp.std(layer["kernel"])) == pytest.approx((inputs * 3) ** -0.5, rel=0.1)
    assert bool(jnp.all(params["layer1_0"]["bn3"]["scale"] == 1))


@pytest.mark.parametrize(("bottleneck", "last"), [(False, "bn2"), (True, "bn3")])
def test_zero_initialised_last_gamma(bottleneck: bool, last: str) -> None:
    model = ResNet(Variant((1, 1), bottleneck), 10, PRECISIONS["fp32"], width=8, zero_init_last_gamma=True)
    params = initial_variables(model, 0)["params"]
    scales = {path: value for path, value in flatten_dict(params).items() if path[-1] == "scale"}
    assert len(scales) > 5
    for path, value in scales.items():
        assert bool(jnp.all(value == (0 if path[-2] == last else 1))), path
