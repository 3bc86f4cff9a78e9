"""BatchNorm with sum and ReLU: one derivative against the plain composition; test_parallel has groups of devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, shard
from rn50_jax.models.norm import EPSILON, BatchNorm, NormSync, batch_norm_max_pool, norm_sync

KINDS = {"plain": (False, False), "relu": (False, True), "sum": (True, False), "sum-relu": (True, True)}


def apply(fused: bool, kind: str, dtype: Any, sync: NormSync | None = None, pool: str | None = None) -> Any:
    """(variables, x, residual, weight) to the result, the updated statistics and all gradients of a weighted sum."""
    with_residual, relu = KINDS[kind]
    module = BatchNorm(use_running_average=False, dtype=jnp.dtype(dtype), sync=sync, fused=fused)

    def loss(params: Any, x: jax.Array, residual: jax.Array, stats: Any, weight: jax.Array) -> tuple[jax.Array, Any]:
        y, updated = module.apply(
            {"params": params, "batch_stats": stats},
            x,
            residual if with_residual else None,
            relu=relu,
            pool=pool,
            mutable=["batch_stats"],
        )
        return jnp.sum(y.astype(weight.dtype) * weight), (y, updated)

    def run(stats: Any, params: Any, x: jax.Array, residual: jax.Array, weight: jax.Array) -> Any:
        gradients, (y, updated) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, x, residual, stats, weight)
        return {"y": y, "stats": updated, "gradients": gradients}

    return run


def inputs(dtype: Any, shape: tuple[int, ...] = (4, 6, 5, 7)) -> Any:
    rng = np.random.default_rng(0)
    wide = np.float64 if dtype == np.float64 else np.float32
    channels = shape[-1:]
    stats = {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 2, channels)}
    params = {"scale": rng.uniform(0.5, 2, channels), "bias": rng.normal(size=channels)}
    x, residual, weight = rng.normal(1, 3, shape), rng.normal(size=shape), rng.normal(size=shape)
    x, residual = (jnp.asarray(v, dtype) for v in (x, residual))
    return *jax.tree.map(lambda v: jnp.asarray(v, wide), (stats, params)), x, residual, jnp.asarray(weight, wide)


# In bf16 the plain composition rounds after normalizing, after the sum and in between; the fused one once.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6), ("bfloat16", 0.03)])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_equals_the_plain_composition(kind: str, dtype: str, tolerance: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        arguments = inputs(jnp.dtype(dtype))
        fused, plain = (jax.jit(apply(on, kind, dtype))(*arguments) for on in (True, False))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(fused), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype, path
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(), err_msg=str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_equal_torch(kind: str) -> None:
    with_residual, relu = KINDS[kind]
    with jax.enable_x64(True):
        arguments = inputs(np.float64)
        found = jax.device_get(jax.jit(apply(True, kind, np.float64))(*arguments))
    _, params, x, residual, weight = jax.device_get(arguments)
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


@pytest.mark.parametrize("group", [2, 4])
def test_fused_equals_plain_over_groups_of_devices(group: int) -> None:
    sync = norm_sync(AXIS, 4, group)
    results = []
    with jax.enable_x64(True):
        mesh = make_mesh(jax.devices()[:4])
        stats, params, *arrays = inputs(np.float64, (4, 2, 3, 3, 5))
        batch = dict(zip(("x", "residual", "weight"), (shard(np.asarray(v), mesh) for v in arrays), strict=True))
        for fused in (True, False):
            run = apply(fused, "sum-relu", np.float64, sync)

            def step(state: Any, batch: Any, run: Any = run) -> Any:
                return run(*state, batch["x"], batch["residual"], batch["weight"])

            compiled = map_over_devices(step, mesh, mode="shard_map", stacked=True)
            results.append(jax.device_get(compiled((stats, params), batch)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), *results)


# What the derivative keeps: x alone, or x and the result, in the compute type.
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept(kind: str) -> None:
    _, params, x, residual, _ = inputs(jnp.bfloat16)
    with_residual, relu = KINDS[kind]
    module = BatchNorm(use_running_average=False, dtype=jnp.dtype(jnp.bfloat16))

    def forward(params: Any, x: jax.Array, residual: jax.Array) -> Any:
        def call(params: Any, x: jax.Array, residual: jax.Array) -> jax.Array:
            stats = {"mean": jnp.zeros(7), "var": jnp.ones(7)}
            more = residual if with_residual else None
            variables = {"params": params, "batch_stats": stats}
            y, _ = module.apply(variables, x, more, relu=relu, mutable=["batch_stats"])
            return y

        return jax.vjp(call, params, x, residual)[1]

    kept = [v for v in jax.tree.leaves(jax.eval_shape(forward, params, x, residual)) if v.ndim == 4]
    assert [str(v.dtype) for v in kept] == ["bfloat16"] * (2 if with_residual else 1)


def test_not_a_number_is_not_hidden() -> None:
    stats, params, x, residual, weight = inputs(np.float32)
    result = apply(True, "sum-relu", np.float32)(stats, params, x.at[0, 0, 0, 2].set(jnp.nan), residual, weight)
    assert np.all(np.isnan(np.asarray(result["y"])[..., 2]))
    assert not np.any(np.isnan(np.asarray(result["y"])[..., [0, 1, 3, 4, 5, 6]]))


def pooled_inputs(dtype: Any, size: tuple[int, int], ties: bool) -> Any:
    """As `inputs`, with scales of both signs; with `ties`, whole numbers, of which many are the largest of a window."""
    stats, params, x, residual, _ = inputs(dtype, (3, *size, 6))
    params["scale"] = params["scale"] * jnp.asarray([1, -1, 1, -1, 1, 1], params["scale"].dtype)
    shape = (3, *((n + 1) // 2 for n in size), 6)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=shape), params["scale"].dtype)
    return stats, params, jnp.round(x) if ties else x, residual, weight


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 0.03)])
def test_pooling_in_one_with_batch_norm(dtype: str, tolerance: float, size: tuple[int, int], ties: bool) -> None:
    with jax.enable_x64(dtype == "float64"):
        arguments = pooled_inputs(jnp.dtype(dtype), size, ties)
        both = [jax.jit(apply(False, "relu", dtype, pool=name))(*arguments) for name in ("fused", "native")]
        if dtype == "bfloat16" and not ties:
            # Two values that the type cannot tell apart after normalizing: the plain one takes the first of them.
            both = [b | {"gradients": (b["gradients"][0], jnp.sum(b["gradients"][1]))} for b in both]
    fused, plain = both
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(fused), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype, path
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        limit = tolerance * max(np.abs(b).max(), 1)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=limit, err_msg=str(path))


def test_pooling_in_one_keeps_no_array_between() -> None:
    _, params, x, _, _ = inputs(jnp.bfloat16, (2, 8, 8, 7))

    def forward(params: Any, x: jax.Array) -> Any:
        def call(params: Any, x: jax.Array) -> jax.Array:
            return batch_norm_max_pool(x, params["scale"], params["bias"], jnp.dtype(jnp.bfloat16), None)[0]

        return jax.vjp(call, params, x)[1]

    kept = [(v.shape, str(v.dtype)) for v in jax.tree.leaves(jax.eval_shape(forward, params, x)) if v.ndim == 4]
    quarter = (2, 4, 4, 7)
    assert sorted(kept) == [(quarter, "bfloat16"), (quarter, "uint8"), (x.shape, "bfloat16")]


def test_pooling_in_one_over_groups_of_devices() -> None:
    sync = norm_sync(AXIS, 4, 2)
    results = []
    with jax.enable_x64(True):
        mesh = make_mesh(jax.devices()[:4])
        stats, params, x, _, _ = inputs(np.float64, (4, 2, 6, 6, 5))
        weight = np.random.default_rng(1).normal(size=(4, 2, 3, 3, 5))
        batch = {"x": shard(np.asarray(x), mesh), "weight": shard(weight, mesh)}
        for pool in ("fused", "native"):
            run = apply(True, "relu", np.float64, sync, pool)

            def step(state: Any, batch: Any, run: Any = run) -> Any:
                return run(*state, batch["x"], batch["x"], batch["weight"])

            compiled = map_over_devices(step, mesh, mode="shard_map", stacked=True)
            results.append(jax.device_get(compiled((stats, params), batch)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), *results)
