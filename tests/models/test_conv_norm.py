"""The seam: each of `IMPLS` computes the same numbers, PyTorch's; a module of one's own uses it as the family does."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.jaxprs import equations
from helpers.networks import random_variables

from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, shard
from rn50_jax.models.compute import PRECISIONS, Compute
from rn50_jax.models.conv_norm import IMPLS, ConvNorm, conv_norm
from rn50_jax.models.family import FAMILY, Variant
from rn50_jax.models.fold import fold, pack
from rn50_jax.models.initial import initial_variables
from rn50_jax.models.norm import EPSILON, norm_sync
from rn50_jax.models.resnet import ResNet
from rn50_jax.models.walk import walk

FLOAT32 = PRECISIONS["fp32"]
FLOAT64 = Compute(jnp.dtype(jnp.float64), jax.lax.Precision.HIGHEST)
WAYS = {
    f"{impl} on {platform}": FLOAT64._replace(impl=impl, platform=platform)
    for impl in IMPLS
    for platform in ("cpu", "gpu")
}
SHORT = {variant._replace(stages=(2, 1)): arch for arch, variant in reversed(FAMILY.items())}


class Case(NamedTuple):
    """One call. statistics: "batch", "running" or "folded"."""

    size: int
    stride: int = 1
    groups: int = 1
    relu: bool = False
    pool: bool = False
    residual: bool = False
    statistics: str = "batch"


CASES = {
    "stem": Case(7, 2, relu=True, pool=True),
    "stem, running": Case(7, 2, relu=True, pool=True, statistics="running"),
    "stem, folded": Case(7, 2, relu=True, pool=True, statistics="folded"),
    "grouped": Case(3, 2, groups=3, relu=True),
    "last": Case(1, relu=True, residual=True),
    "last, running": Case(1, relu=True, residual=True, statistics="running"),
    "last, folded": Case(3, relu=True, residual=True, statistics="folded"),
    "shortcut": Case(1, 2),
    "all at once": Case(3, relu=True, pool=True, residual=True),
    "pooled alone": Case(3, pool=True),
    "1x1, pooled": Case(1, relu=True, pool=True),
}


def in_torch(case: Case, values: dict[str, np.ndarray], weight: np.ndarray) -> dict[str, np.ndarray]:
    """The result and the gradients of its sum times `weight`, in our layout; the statistics that were used."""
    leaf = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    x, kernel = leaf["x"].permute(0, 3, 1, 2), leaf["kernel"].permute(3, 2, 0, 1)
    bias = leaf["bias"] if case.statistics == "folded" else None
    y = torch.nn.functional.conv2d(x, kernel, bias, case.stride, case.size // 2, groups=case.groups)
    found: dict[str, torch.Tensor] = {}
    if case.statistics == "batch":
        found = {"mean": y.mean((0, 2, 3)), "var": y.var((0, 2, 3), correction=0)}
        y = torch.nn.functional.batch_norm(y, None, None, leaf["scale"], leaf["bias"], True, eps=EPSILON)
    elif case.statistics == "running":
        found = {name: leaf.pop(name).detach() for name in ("mean", "var")}  # which are constants to torch
        y = torch.nn.functional.batch_norm(y, *found.values(), leaf["scale"], leaf["bias"], False, eps=EPSILON)
    y = y + leaf["residual"].permute(0, 3, 1, 2) if case.residual else y
    y = torch.relu(y) if case.relu else y
    y = torch.nn.functional.max_pool2d(y, 3, 2, padding=1) if case.pool else y
    y = y.permute(0, 2, 3, 1)
    (y * torch.from_numpy(weight)).sum().backward()
    found |= {"y": y} | {f"gradient of {name}": x.grad for name, x in leaf.items() if x.grad is not None}
    return {name: value.detach().numpy() for name, value in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_implementation_equals_torch(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(0)
    out = -(-9 // case.stride)
    shapes = {"x": (2, 9, 9, 6), "kernel": (case.size, case.size, 6 // case.groups, 9), "scale": (9,), "bias": (9,)}
    shapes |= {"residual": (2, out, out, 9)} if case.residual else {}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    values |= {"mean": rng.standard_normal(9), "var": rng.uniform(0.5, 2, 9)} if case.statistics == "running" else {}
    last = -(-out // 2) if case.pool else out
    weight = rng.standard_normal((2, last, last, 9))
    wanted = in_torch(case, values, weight)

    def loss(values: dict[str, jax.Array], compute: Compute) -> tuple[jax.Array, Any]:
        running = (values["mean"], values["var"]) if case.statistics == "running" else None
        scale = None if case.statistics == "folded" else values["scale"]
        options = {"stride": case.stride, "groups": case.groups, "relu": case.relu, "pool": case.pool}
        tensors = (values["x"], values["kernel"], scale, values["bias"], values.get("residual"), running)
        y, used = conv_norm(*tensors, **options, compute=compute)
        return jnp.sum(y * weight), (y, used)

    with jax.enable_x64(True):
        for way, compute in WAYS.items():
            gradients, (y, used) = jax.jit(partial(jax.grad(loss, has_aux=True), compute=compute))(values)
            found = {"y": y} | dict(zip(("mean", "var"), used or (), strict=bool(used)))
            found |= {f"gradient of {name}": value for name, value in gradients.items()}
            for key, value in wanted.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-11, err_msg=f"{way}: {key}")


@pytest.mark.parametrize("statistics", ["batch", "running", "folded"])
@pytest.mark.parametrize("impl", IMPLS)
def test_the_result_is_in_the_compute_type_and_statistics_in_float32(impl: str, statistics: str) -> None:
    x, ones = jnp.ones((2, 4, 4, 3)), jnp.ones(5)
    scale, running = None if statistics == "folded" else ones, (ones, ones) if statistics == "running" else None
    for precision, size in itertools.product(PRECISIONS, (1, 3)):
        compute = PRECISIONS[precision]._replace(impl=impl)
        y, used = conv_norm(x, jnp.ones((size, size, 3, 5)), scale, ones, None, running, pool=True, compute=compute)
        assert (y.dtype, y.shape) == (compute.dtype, (2, 2, 2, 5))
        assert [v.dtype for v in used or ()] == ([] if statistics == "folded" else [jnp.float32] * 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_devices_share_their_statistics(impl: str) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 3, 4, 4, 6)).astype(np.float32), jnp.asarray(rng.standard_normal((1, 1, 6, 5)))
    compute = FLOAT32._replace(impl=impl, sync=norm_sync(AXIS, 2, 0))
    mesh = make_mesh(jax.devices()[:2])

    def step(kernel: jax.Array, x: jax.Array) -> Any:
        return conv_norm(x, kernel, jnp.ones(5), jnp.zeros(5), compute=compute)

    y, used = jax.device_get(map_over_devices(step, mesh, mode="shard_map", stacked=True)(kernel, shard(x, mesh)))
    wanted, both = conv_norm(x.reshape(6, 4, 4, 6), kernel, jnp.ones(5), jnp.zeros(5), compute=FLOAT32)
    np.testing.assert_allclose(y.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)
    assert both is not None
    for value, other in zip(used, both, strict=True):
        np.testing.assert_allclose(value, np.stack([other, other]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_gradient_flows_through_the_statistics(impl: str) -> None:
    def loss(kernel: jax.Array) -> jax.Array:
        x = jnp.arange(32.0).reshape(1, 4, 4, 2)
        _, statistics = conv_norm(x, kernel, jnp.ones(3), jnp.zeros(3), compute=FLOAT32._replace(impl=impl))
        assert statistics is not None
        return jnp.sum(statistics[0]) + jnp.sum(statistics[1])

    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones((1, 1, 2, 3))), 0)


def everything(model: ResNet) -> Any:
    """(variables, images, weight) to logits and statistics in training, evaluation and folded, and to all gradients."""

    def loss(params: Any, images: jax.Array, stats: Any, weight: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        logits, updated = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return jnp.sum(logits * weight), (logits, updated)

    def run(variables: Any, images: jax.Array, weight: jax.Array) -> Any:
        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        arguments = (variables["params"], images, variables["batch_stats"], weight)
        results = {name: gradient(*arguments, name == "train") for name in ("train", "eval")}
        return results | {"folded": model.apply(fold(model, variables), images, train=False)}

    return jax.jit(run)


def assert_the_same_network(variant: Variant) -> None:
    """Compares the implementations by the relative norm of the difference, tensor by tensor, in float64."""
    width = 16 if variant.groups > 1 else 8
    rng, results = np.random.default_rng(0), []

    def draw(path: Any, x: np.ndarray) -> np.ndarray:
        *_, module, leaf = (key.key for key in path)
        if leaf == "scale" and module == ("bn3" if variant.bottleneck else "bn2"):
            return x * np.float64(0.2)  # many layers: keep the numbers of one size, as in a trained network
        # Both signs: were all of the stem's pooled maxima positive, the next BatchNorms would take its bias away.
        return x.astype(np.float64) - (1 if leaf in ("bias", "mean") else 0)

    images, weight = rng.standard_normal((4, 64, 64, 3)), rng.standard_normal((4, 5))
    with jax.enable_x64(True):
        for impl in IMPLS:
            model = ResNet(variant, 5, FLOAT64._replace(impl=impl), width=width)
            variables = jax.tree_util.tree_map_with_path(draw, random_variables(model))
            results.append(jax.device_get(everything(model)(variables, images, weight)))
    first, *others = (jax.tree_util.tree_leaves_with_path(result) for result in results)
    assert others
    for other in others:
        for (path, a), (_, b) in zip(first, other, strict=True):
            assert a.dtype == b.dtype == np.float64
            assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b), jax.tree_util.keystr(path)
    assert np.mean([np.any(value) for _, value in first]) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("variant", SHORT, ids=SHORT.values())
def test_implementations_agree_in_each_kind_of_network(variant: Variant) -> None:
    assert_the_same_network(variant)


@pytest.mark.nightly
@pytest.mark.parametrize("arch", FAMILY)
def test_implementations_agree_in_the_whole_family(arch: str) -> None:
    assert_the_same_network(FAMILY[arch])


class Own(nn.Module):
    """A network of somebody's own: two convolutions, of which one names its BatchNorm."""

    num_classes: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, head: bool = True) -> jax.Array:
        x = ConvNorm(4, 3, 2, relu=True, train=train, compute=self.compute, name="first")(x)
        x = ConvNorm(self.num_classes, 1, train=train, compute=self.compute, name="second", norm="bn")(x)
        return x.mean((1, 2))


def torch_own() -> torch.nn.Sequential:
    convs = (torch.nn.Conv2d(3, 4, 3, 2, padding=1, bias=False), torch.nn.Conv2d(4, 5, 1, bias=False))
    norms = (torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(5))
    return torch.nn.Sequential(convs[0], norms[0], torch.nn.ReLU(), convs[1], norms[1]).double()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_module_of_ones_own(impl: str) -> None:
    model = Own(5, FLOAT32)
    variables = initial_variables(model, 0)
    leaves = flatten_dict(variables)
    places = {"first": "first/norm", "second": "bn"}
    wanted = {f"params/{conv}/kernel" for conv in places}
    wanted |= {f"params/{norm}/{leaf}" for norm in places.values() for leaf in ("scale", "bias")}
    wanted |= {f"batch_stats/{norm}/{leaf}" for norm in places.values() for leaf in ("mean", "var")}
    assert {"/".join(path) for path in leaves} == wanted
    assert ["/".join(layer.norm) for layer in walk(model).layers] == list(places.values())
    model = Own(5, FLOAT64._replace(impl=impl))

    net, state = torch_own(), {}
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    rng = np.random.default_rng(0)
    for (collection, *path), value in leaves.items():
        ours = "/".join(path[:-1])
        number = {"first": 0, "first/norm": 1, "second": 3, "bn": 4}[ours]
        if value.ndim == 4:
            state[f"{number}.weight"] = torch.from_numpy(value.transpose(3, 2, 0, 1).copy())
        else:
            leaves[collection, *path] = rng.uniform(0.5, 1.5, value.shape)
            state[f"{number}.{names[path[-1]]}"] = torch.from_numpy(leaves[collection, *path])
    net.load_state_dict(state, strict=False)
    images = rng.standard_normal((2, 7, 7, 3))
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with jax.enable_x64(True), torch.no_grad():
        tree = jax.tree.map(lambda value: np.asarray(value, np.float64), unflatten_dict(leaves))
        evaluated = net.eval()(x).mean((2, 3)).numpy()
        for form in (tree, fold(model, tree), pack(model, fold(model, tree))):
            np.testing.assert_allclose(model.apply(form, images, train=False), evaluated, rtol=1e-10, atol=1e-12)
        trained, updated = model.apply(tree, images, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(trained, net.train()(x).mean((2, 3)).numpy(), rtol=1e-10, atol=1e-12)
    running = {name: buffer.numpy() for name, buffer in net.named_buffers()}
    for norm, number in (("first/norm", 1), ("bn", 4)):
        for leaf in ("mean", "var"):
            value = flatten_dict(updated["batch_stats"], sep="/")[f"{norm}/{leaf}"]
            np.testing.assert_allclose(value, running[f"{number}.{names[leaf]}"], rtol=1e-12)


def test_a_single_value_per_channel_leaves_the_running_variance_finite() -> None:
    module = ConvNorm(3, 1, train=True)  # torch refuses
    variables = module.init(jax.random.key(0), jnp.ones((1, 1, 1, 2)))
    _, updated = module.apply(variables, jnp.ones((1, 1, 1, 2)), mutable=["batch_stats"])
    np.testing.assert_allclose(updated["batch_stats"]["norm"]["var"], 0.9, rtol=1e-6)


def test_nothing_is_convolved_or_normalized_beside_the_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[bool, bool]] = []

    def nothing(*tensors: Any, **options: Any) -> Any:
        _, _, scale, _, _, running = tensors
        calls.append((scale is None, running is None))
        shapes = jax.eval_shape(partial(IMPLS["plain"], **options), *tensors)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    monkeypatch.setitem(IMPLS, "mine", nothing)
    variant = FAMILY["se-resnext101-32x4d"]._replace(stages=(1, 1), deep_stem=True, average_shortcut=True)
    model = ResNet(variant, 5, FLOAT32._replace(impl="mine"), width=32)
    variables = random_variables(model)
    count = len([layer for layer in walk(model).layers if isinstance(layer.module, ConvNorm)])
    ways = [(True, variables, (False, True)), (False, variables, (False, False))]
    ways.append((False, fold(model, variables), (True, True)))
    for train, form, call in ways:
        calls.clear()
        apply = partial(model.apply, train=train, mutable=["batch_stats"])
        program = jax.make_jaxpr(apply)(form, jnp.ones((2, 32, 32, 3)))
        assert calls == [call] * count == [call] * (3 + 2 * 4)
        names = [equation.primitive.name for equation in equations(program.jaxpr)]
        assert names.count("dot_general") == 1 + 2 * 2  # the classifier, and two linear layers in each block
        assert not {"conv_general_dilated", "rsqrt"} & set(names)
