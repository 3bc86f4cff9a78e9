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

from rn50_jax.models.conv import INITS, LOWERINGS, STEMS, conv2d
from rn50_jax.models.family import FAMILY, Variant
from rn50_jax.models.initial import initial_variables
from rn50_jax.models.norm import BatchNorm
from rn50_jax.models.precision import PRECISIONS
from rn50_jax.models.resnet import ResNet

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
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


# NVIDIA's SE blocks have 16 hidden units in every stage, timm's a sixteenth of the channels.
def test_parameter_count_of_nvidias_se_model() -> None:
    model = ResNet(FAMILY["se-resnext101-32x4d"], 1000, PRECISIONS["fp32"], se_units=16)
    plain = PARAMETERS["resnext101-32x4d"]
    channels = [256] * 3 + [512] * 4 + [1024] * 23 + [2048] * 3
    se = sum(c * 16 + 16 + 16 * c + c for c in channels)
    assert sum(x.size for x in jax.tree.leaves(shapes_of(model)["params"])) == plain + se


@pytest.mark.parametrize(
    ("arch", "width", "size", "lowering"),
    [
        ("resnet18", 16, 64, "native"),
        ("resnet50", 8, 63, "matmul"),
        ("resnext50-32x4d", 16, 64, "native"),
        ("se-resnet50", 8, 64, "matmul"),
    ],
)
def test_logits_and_statistics_equal_torch(arch: str, width: int, size: int, lowering: str) -> None:
    model = ResNet(FAMILY[arch], 10, PRECISIONS["fp32"], width=width, lowering=lowering)
    variables = random_variables(model)
    other = make_torch(FAMILY[arch], 10, width=width)
    load(other, variables["params"], variables["batch_stats"])

    images = np.random.default_rng(1).standard_normal((4, size, size, 3)).astype(np.float32)
    torch_images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        eval_logits = other.eval()(torch_images).numpy()
        train_logits = other.train()(torch_images).numpy()
    logits = jax.jit(partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(logits, eval_logits, rtol=2e-4, atol=2e-4)
    logits, updated = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(logits, train_logits, rtol=2e-4, atol=2e-4)
    running = dict(other.named_buffers())
    for name, value in by_torch_name(updated["batch_stats"]).items():
        np.testing.assert_allclose(value, running[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_custom_stages_and_widths_equal_torch() -> None:
    variant = Variant((1, 2, 1), bottleneck=True)
    model = ResNet(variant, 3, PRECISIONS["fp32"], width=8, widths=(8, 12, 20), lowering="native")
    variables = random_variables(model)
    other = make_torch(variant, 3, width=8, widths=(8, 12, 20))
    load(other, variables["params"], variables["batch_stats"])
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = other.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(model.apply(variables, images, train=False), wanted, rtol=2e-4, atol=2e-4)


def test_running_variance_is_unbiased() -> None:
    x = np.random.default_rng(0).normal(3, 2, (2, 1, 2, 5)).astype(np.float32)
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), x)
    assert all(np.all(variables["batch_stats"][name] == value) for name, value in (("mean", 0), ("var", 1)))
    y, updated = module.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * x.reshape(4, 5).var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(4, 5).std(0), 1, rtol=1e-4)  # normalized by the biased one
    _, updated = module.apply(variables, x[:1, :, :1], mutable=["batch_stats"])
    assert np.all(np.isfinite(updated["batch_stats"]["var"]))  # torch refuses a single value per channel


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "groups"),
    [(1, 1, 8, 1), (1, 2, 9, 1), (3, 1, 7, 1), (3, 2, 8, 1), (3, 2, 1, 1), (7, 2, 9, 1), (3, 1, 7, 3), (3, 2, 8, 3)],
)
def test_lowerings_equal_native_and_torch(kernel: int, stride: int, size: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, size, size, 9)).astype(np.float32)
    k = rng.standard_normal((kernel, kernel, 9 // groups, 6)).astype(np.float32)
    conv = partial(conv2d, stride=stride, groups=groups, precision=jax.lax.Precision.HIGHEST)

    def loss(x: jax.Array, k: jax.Array, lowering: str) -> jax.Array:
        return jnp.sum(conv(x, k, lowering=lowering) ** 2)

    for argument in (0, 1):
        native, *others = (jax.grad(loss, argument)(x, k, lowering) for lowering in LOWERINGS)
        for other in others:
            np.testing.assert_allclose(other, native, rtol=1e-4, atol=1e-3)
    torch_out = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(k.transpose(3, 2, 0, 1).copy()),
        stride=stride,
        padding=kernel // 2,
        groups=groups,
    )
    for lowering in LOWERINGS:
        out = conv(x, k, lowering=lowering)
        np.testing.assert_allclose(out, torch_out.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [32, 33, (40, 31), 224])
@pytest.mark.parametrize("stem", STEMS)
def test_stems_equal_torch(stem: str, size: int | tuple[int, int]) -> None:
    shape = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, *shape, 3)).astype(np.float32)
    k = rng.standard_normal((7, 7, 3, 8)).astype(np.float32) / 7
    weight = rng.standard_normal((1, *((n + 1) // 2 for n in shape), 8)).astype(np.float32)
    conv = partial(conv2d, stride=2, lowering=stem, precision=jax.lax.Precision.HIGHEST)
    out, back = jax.vjp(conv, x, k)
    dx, dk = back(weight)
    leaves = [torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)]
    leaves += [torch.tensor(k.transpose(3, 2, 0, 1).copy(), requires_grad=True)]
    wanted = torch.nn.functional.conv2d(*leaves, stride=2, padding=3)
    wanted.backward(torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(out, wanted.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    for found, leaf, axes in ((dx, leaves[0], (0, 2, 3, 1)), (dk, leaves[1], (2, 3, 1, 0))):
        assert leaf.grad is not None
        np.testing.assert_allclose(found, leaf.grad.numpy().transpose(axes), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (5, 2), (7, 1)])
def test_space_to_depth_of_other_kernels(size: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((2, 9, 8, 3)), rng.standard_normal((size, size, 3, 4))
    with jax.enable_x64(True):
        conv = partial(conv2d, x, k, stride, precision=jax.lax.Precision.HIGHEST)
        np.testing.assert_allclose(conv(lowering="space_to_depth"), conv(lowering="native"), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"stem": "padded"},
        {"stem": "space_to_depth"},
        {"lowering": "dot1x1"},
        {"max_pool": "native"},
        {"max_pool": "indexed"},
    ],
    ids=str,
)
def test_the_model_has_the_same_parameters_and_logits_however_it_is_computed(kwargs: dict[str, str]) -> None:
    model = ResNet(Variant((1, 2), True), 5, PRECISIONS["fp32"], width=8)
    other = model.clone(**kwargs)
    assert shapes_of(model) == shapes_of(other)
    variables = random_variables(model)
    images = np.random.default_rng(1).standard_normal((2, 33, 33, 3)).astype(np.float32)
    for train in (False, True):
        logits = [m.apply(variables, images, train=train, mutable=["batch_stats"])[0] for m in (model, other)]
        np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dtypes(precision: str) -> None:
    model = ResNet(FAMILY["resnet18"], 10, PRECISIONS[precision], width=8)
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
