"""BatchNorm with sum, ReLU and pooling: derivatives that are written out, against torch and against JAX's own."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, shard
from rn50_jax.models.compute import Compute
from rn50_jax.models.conv_norm import conv_norm
from rn50_jax.models.norm import EPSILON, NormSync, batch_norm, batch_norm_max_pool, norm_sync

KINDS = {"plain": (False, False), "relu": (False, True), "sum": (True, False), "sum-relu": (True, True)}


def apply(impl: str, kind: str, dtype: Any, sync: NormSync | None = None, pool: bool = False) -> Any:
    """(parameters, x, residual, weight) to the result, the statistics and all gradients of a weighted sum.

    The convolution before it changes nothing: its kernel is the identity.
    """
    with_residual, relu = KINDS[kind]
    compute = Compute(jnp.dtype(dtype), jax.lax.Precision.HIGHEST, impl=impl, sync=sync)

    def loss(params: Any, x: jax.Array, residual: jax.Array, weight: jax.Array) -> tuple[jax.Array, Any]:
        kernel = jnp.eye(x.shape[-1], dtype=params["scale"].dtype)[None, None]
        more = residual if with_residual else None
        scale, bias = params["scale"], params["bias"]
        y, statistics = conv_norm(x, kernel, scale, bias, more, relu=relu, pool=pool, compute=compute)
        return jnp.sum(y.astype(weight.dtype) * weight), (y, statistics)

    def run(params: Any, x: jax.Array, residual: jax.Array, weight: jax.Array) -> Any:
        gradients, (y, statistics) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, x, residual, weight)
        return {"y": y, "statistics": statistics, "gradients": gradients}

    return run


def inputs(dtype: Any, shape: tuple[int, ...] = (4, 6, 5, 7)) -> Any:
    rng = np.random.default_rng(0)
    wide = np.float64 if dtype == np.float64 else np.float32
    channels = shape[-1:]
    params = {"scale": rng.uniform(0.5, 2, channels), "bias": rng.normal(size=channels)}
    x, residual, weight = rng.normal(1, 3, shape), rng.normal(size=shape), rng.normal(size=shape)
    x, residual = (jnp.asarray(v, dtype) for v in (x, residual))
    return jax.tree.map(lambda v: jnp.asarray(v, wide), params), x, residual, jnp.asarray(weight, wide)


def assert_close(found: Any, wanted: Any, tolerance: float, least: float = 0.0) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype, path
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        limit = tolerance * max(np.abs(b).max(), least)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=limit, err_msg=str(path))


# In bf16 the plain composition rounds after normalizing, after the sum and in between; the written-out one once.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6), ("bfloat16", 0.03)])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_plain_composition(kind: str, dtype: str, tolerance: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        arguments = inputs(jnp.dtype(dtype))
        ours, plain = (jax.jit(apply(impl, kind, dtype))(*arguments) for impl in ("xla", "plain"))
    assert_close(ours, plain, tolerance)


@pytest.mark.parametrize("impl", ["xla", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_equal_torch(kind: str, impl: str) -> None:
    with_residual, relu = KINDS[kind]
    with jax.enable_x64(True):
        arguments = inputs(np.float64)
        found = jax.device_get(jax.jit(apply(impl, kind, np.float64))(*arguments))
    params, x, residual, weight = jax.device_get(arguments)
    names = {"scale": params["scale"], "bias": params["bias"], "x": x, "residual": residual}
    leaf = {name: torch.tensor(value, requires_grad=True) for name, value in names.items()}
    pixels = leaf["x"].reshape(-1, x.shape[-1])
    y = torch.nn.functional.batch_norm(pixels, None, None, leaf["scale"], leaf["bias"], True, eps=EPSILON)
    y = y.reshape(x.shape) + (leaf["residual"] if with_residual else 0)
    y = torch.relu(y) if relu else y
    (y * torch.from_numpy(np.array(weight))).sum().backward()
    np.testing.assert_allclose(found["y"], y.detach().numpy(), rtol=1e-11, atol=1e-12)
    gradients = {**found["gradients"][0], "x": found["gradients"][1], "residual": found["gradients"][2]}
    for name, value in gradients.items():
        grad = leaf[name].grad
        wanted = np.zeros_like(value) if grad is None else grad.numpy()
        np.testing.assert_allclose(value, wanted, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(("group", "kind", "pool"), [(2, "sum-relu", False), (4, "sum-relu", False), (2, "relu", True)])
def test_it_equals_the_plain_composition_over_groups_of_devices(group: int, kind: str, pool: bool) -> None:
    sync = norm_sync(AXIS, 4, group)
    results = []
    with jax.enable_x64(True):
        mesh = make_mesh(jax.devices()[:4])
        params, x, residual, weight = inputs(np.float64, (4, 2, 6, 6, 5))
        arrays = {"x": x, "residual": residual, "weight": weight[:, :, ::2, ::2] if pool else weight}
        batch = {name: shard(np.asarray(value), mesh) for name, value in arrays.items()}
        for impl in ("xla", "plain"):
            run = apply(impl, kind, np.float64, sync, pool)

            def step(params: Any, batch: Any, run: Any = run) -> Any:
                return run(params, batch["x"], batch["residual"], batch["weight"])

            compiled = map_over_devices(step, mesh, mode="shard_map", stacked=True)
            results.append(jax.device_get(compiled(params, batch)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), *results)


# What the derivative keeps: x alone, or x and the result, in the compute type.
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept(kind: str) -> None:
    params, x, residual, _ = inputs(jnp.bfloat16)
    with_residual, relu = KINDS[kind]

    def forward(params: Any, x: jax.Array, residual: jax.Array) -> Any:
        def call(params: Any, x: jax.Array, residual: jax.Array) -> jax.Array:
            more = residual if with_residual else None
            return batch_norm(x, params["scale"], params["bias"], more, jnp.dtype(jnp.bfloat16), None, relu)[0]

        return jax.vjp(call, params, x, residual)[1]

    kept = [v for v in jax.tree.leaves(jax.eval_shape(forward, params, x, residual)) if v.ndim == 4]
    assert [str(v.dtype) for v in kept] == ["bfloat16"] * (2 if with_residual else 1)


def test_not_a_number_is_not_hidden() -> None:
    params, x, residual, _ = inputs(np.float32)
    x = x.at[0, 0, 0, 2].set(jnp.nan)
    y, _, _ = batch_norm(x, params["scale"], params["bias"], residual, jnp.dtype(jnp.float32), None, True)
    assert np.all(np.isnan(np.asarray(y)[..., 2]))
    assert not np.any(np.isnan(np.asarray(y)[..., [0, 1, 3, 4, 5, 6]]))


def pooled_inputs(dtype: Any, size: tuple[int, int], ties: bool) -> Any:
    """As `inputs`, with scales of both signs; with `ties`, whole numbers, of which many are the largest of a window."""
    params, x, residual, _ = inputs(dtype, (3, *size, 6))
    params["scale"] = params["scale"] * jnp.asarray([1, -1, 1, -1, 1, 1], params["scale"].dtype)
    shape = (3, *((n + 1) // 2 for n in size), 6)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=shape), params["scale"].dtype)
    return params, jnp.round(x) if ties else x, residual, weight


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 0.03)])
def test_pooling_in_one_with_batch_norm(dtype: str, tolerance: float, size: tuple[int, int], ties: bool) -> None:
    with jax.enable_x64(dtype == "float64"):
        arguments = pooled_inputs(jnp.dtype(dtype), size, ties)
        both = [jax.jit(apply(impl, "relu", dtype, pool=True))(*arguments) for impl in ("xla", "plain")]
    if dtype == "bfloat16" and not ties:
        # Of two values that the type cannot tell apart after normalizing, the plain one takes the first.
        ours, plain = (np.asarray(b["gradients"][1], np.float32) for b in both)
        assert np.mean(np.abs(ours - plain) > tolerance * np.abs(plain).max()) < 0.01
        both = [b | {"gradients": b["gradients"][0]} for b in both]
    assert_close(*both, tolerance, least=1.0)


def test_pooling_in_one_keeps_no_array_between() -> None:
    params, x, _, _ = inputs(jnp.bfloat16, (2, 8, 8, 7))

    def forward(params: Any, x: jax.Array) -> Any:
        def call(params: Any, x: jax.Array) -> jax.Array:
            return batch_norm_max_pool(x, params["scale"], params["bias"], jnp.dtype(jnp.bfloat16), None)[0]

        return jax.vjp(call, params, x)[1]

    kept = [(v.shape, str(v.dtype)) for v in jax.tree.leaves(jax.eval_shape(forward, params, x)) if v.ndim == 4]
    quarter = (2, 4, 4, 7)
    assert sorted(kept) == [(quarter, "bfloat16"), (quarter, "uint8"), (x.shape, "bfloat16")]
