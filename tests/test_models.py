"""Numbers of the model against an independent PyTorch implementation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torch_resnet import ResNet as TorchResNet
from torch_resnet import to_torch, torch_name

from rn50_jax.models.conv import conv2d
from rn50_jax.models.resnet import FAMILY, ResNet, Variant
from rn50_jax.precision import PRECISIONS

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def shapes_of(model: ResNet, size: int = 32) -> dict:
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, size, size, 3)))


def random_variables(model: ResNet) -> dict:
    """Kernels of He's size; scales and statistics other than the initial ones, so that a mix-up would show."""
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.ndim == 1:
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return (rng.standard_normal(x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5).astype(np.float32)

    return jax.tree.map(draw, shapes_of(model))


@pytest.mark.parametrize("arch", FAMILY)
def test_parameter_count(arch: str) -> None:
    model = ResNet(FAMILY[arch], 1000, PRECISIONS["fp32"])
    assert sum(x.size for x in jax.tree.leaves(shapes_of(model)["params"])) == PARAMETERS[arch]
    torch_parameters = TorchResNet(*FAMILY[arch], num_classes=1000).parameters()
    assert sum(p.numel() for p in torch_parameters) == PARAMETERS[arch]


@pytest.mark.parametrize(
    ("arch", "width", "size", "lowering"),
    [("resnet18", 16, 64, "native"), ("resnet50", 8, 63, "matmul"), ("resnet50", 64, 64, "native")],
)
def test_logits_and_statistics_equal_torch(arch: str, width: int, size: int, lowering: str) -> None:
    model = ResNet(FAMILY[arch], 10, PRECISIONS["fp32"], width=width, lowering=lowering)
    variables = random_variables(model)
    arrays = {torch_name(k): to_torch(v) for group in variables.values() for k, v in flatten_dict(group).items()}
    other = TorchResNet(*FAMILY[arch], num_classes=10, width=width)
    missing, unexpected = other.load_state_dict(arrays, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)

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
    for path, value in flatten_dict(updated["batch_stats"]).items():
        if path[-1] == "mean":
            np.testing.assert_allclose(value, running[torch_name(path)].numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(1, 1, 8), (1, 2, 9), (3, 1, 7), (3, 2, 8), (3, 2, 1), (7, 2, 9)]
)
def test_matmul_lowering_equals_native(kernel: int, stride: int, size: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, size, size, 5)).astype(np.float32)
    k = rng.standard_normal((kernel, kernel, 5, 6)).astype(np.float32)

    def loss(x: jax.Array, k: jax.Array, lowering: str) -> jax.Array:
        return jnp.sum(conv2d(x, k, stride, lowering=lowering, precision=jax.lax.Precision.HIGHEST) ** 2)

    for argument in (0, 1):
        ours, theirs = (jax.grad(loss, argument)(x, k, lowering) for lowering in ("matmul", "native"))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    torch_out = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(k.transpose(3, 2, 0, 1).copy()),
        stride=stride,
        padding=kernel // 2,
    )
    for lowering in ("matmul", "native"):
        out = conv2d(x, k, stride, lowering=lowering, precision=jax.lax.Precision.HIGHEST)
        np.testing.assert_allclose(out, torch_out.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


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


def test_initial_weights() -> None:
    model = ResNet(Variant((1, 1), bottleneck=True), 1000, PRECISIONS["fp32"])
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"]
    for kernel in (params["layer2_0"]["conv2"]["kernel"], params["layer2_0"]["downsample_0"]["kernel"]):
        fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
        assert float(jnp.std(kernel)) == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)
        # A normal cut at two standard deviations, as some libraries draw it, would end far below four.
        assert float(jnp.max(jnp.abs(kernel))) > 4 * (2 / fan_in) ** 0.5
    for value in params["fc"].values():
        assert float(jnp.max(jnp.abs(value))) <= 512**-0.5
        assert float(jnp.std(value)) == pytest.approx((512 * 3) ** -0.5, rel=0.1)
    assert bool(jnp.all(params["layer1_0"]["bn3"]["scale"] == 1))


@pytest.mark.parametrize(("bottleneck", "last"), [(False, "bn2"), (True, "bn3")])
def test_zero_initialised_last_gamma(bottleneck: bool, last: str) -> None:
    model = ResNet(Variant((1, 1), bottleneck), 10, PRECISIONS["fp32"], width=8, zero_init_last_gamma=True)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"]
    scales = {path: value for path, value in flatten_dict(params).items() if path[-1] == "scale"}
    assert len(scales) > 5
    for path, value in scales.items():
        assert bool(jnp.all(value == (0 if path[-2] == last else 1))), path
