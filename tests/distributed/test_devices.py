from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.tiny import OPTIONS, assert_same_bits, make_batch, make_model, make_state, make_step, place

from rn50_jax.distributed import devices
from rn50_jax.errors import UserError
from rn50_jax.models.norm import EPSILON, batch_norm, norm_sync


def train(mode: str, num_devices: int, bn_group: int, steps: int = 3) -> object:
    model = make_model(sync=norm_sync(devices.AXIS, num_devices, bn_group))
    options = OPTIONS.replace(mixup=0.2, accumulation=2, ema_decay=0.9)
    step, replicate = make_step(model, num_devices, options, mode=mode)
    state = replicate(make_state(model, ema=True))
    for number in range(steps):
        state, metrics = step(state, place(make_batch(num_devices, 4, seed=number)))
    return jax.device_get((state, metrics))


@pytest.mark.parametrize(("num_devices", "bn_group"), [(4, 1), (8, 2)])
def test_pmap_and_shard_map_give_the_same_bits(num_devices: int, bn_group: int) -> None:
    assert_same_bits(train("pmap", num_devices, bn_group), train("shard_map", num_devices, bn_group))


def split(batch: dict[str, np.ndarray], num_devices: int, accumulation: int) -> dict[str, np.ndarray]:
    """One device's batch [1, A * B, ...] over several, so that each forward pass sees the same images."""

    def spread_out(x: np.ndarray) -> np.ndarray:
        x = x.reshape(accumulation, num_devices, -1, *x.shape[2:])
        return x.swapaxes(0, 1).reshape(num_devices, -1, *x.shape[3:])

    return {name: spread_out(value) for name, value in batch.items()}


@pytest.mark.parametrize(("accumulation", "impl"), [(1, "plain"), (2, "xla")])
@pytest.mark.slow
def test_one_batch_or_its_parts_on_eight_devices_with_shared_statistics(accumulation: int, impl: str) -> None:
    with jax.enable_x64(True):
        results = []
        for num_devices in (1, 8):
            sync = norm_sync(devices.AXIS, num_devices, 0)
            model = make_model("fp32", sync)
            model = model.clone(compute=model.compute._replace(dtype=np.dtype(np.float64), impl=impl))
            step, replicate = make_step(model, num_devices, OPTIONS.replace(accumulation=accumulation))
            state = replicate(jax.tree.map(widen, make_state(model)))
            for number in range(3):
                batch = make_batch(1, 32, seed=number)
                state, metrics = step(state, place(split(batch, num_devices, accumulation)))
            results.append(jax.device_get((state, metrics["loss"])))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), *results)


def widen(x: jax.Array) -> jax.Array:
    return x.astype(np.float64) if x.dtype == np.float32 else x


@pytest.mark.parametrize("group", [1, 2, 4])
def test_batch_norm_of_each_device_or_group_by_hand(group: int) -> None:
    # A loss with a different weight for each pixel; NumPy has the value, torch the gradients.
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 2, 2, 5)) * 3 + 1
    weight, scale, bias = rng.standard_normal(x.shape), rng.uniform(0.5, 2, 5), rng.standard_normal(5)

    def device(parameters: Any, batch: Any) -> Any:
        def loss(x: jax.Array, parameters: Any) -> tuple[jax.Array, Any]:
            sync = norm_sync(devices.AXIS, 4, group)
            y, mean, var = batch_norm(x, *parameters, None, np.dtype(np.float64), sync, False)
            return jnp.sum(y * batch["weight"]), (y, mean, var)

        (dx, dp), aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(batch["x"], parameters)
        return aux, dx, jax.lax.psum(dp, devices.AXIS)

    with jax.enable_x64(True):
        mesh = devices.make_mesh(jax.devices()[:4])
        compiled = devices.map_over_devices(device, mesh, mode="pmap", stacked=True)
        batch = {"x": devices.shard(x, mesh), "weight": devices.shard(weight, mesh)}
        (y, mean, var), dx, dp = jax.device_get(compiled((scale, bias), batch))

    parts = x.reshape(4 // group, group * 3, 2, 2, 5)
    means, variances = (f(parts, axis=(1, 2, 3)) for f in (np.mean, np.var))
    np.testing.assert_allclose(mean, means.repeat(group, 0), rtol=1e-12)
    np.testing.assert_allclose(var, variances.repeat(group, 0), rtol=1e-11)
    leaves = [torch.from_numpy(v).requires_grad_() for v in (x, scale, bias)]
    pixels = leaves[0].reshape(4 // group, -1, 5)
    normalized = [torch.nn.functional.batch_norm(part, None, None, *leaves[1:], True, eps=EPSILON) for part in pixels]
    wanted = torch.stack(normalized).reshape(x.shape)
    (wanted * torch.from_numpy(weight)).sum().backward()
    np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-10, atol=1e-12)
    for found, leaf in zip((dx, dp[0][0], dp[1][0]), leaves, strict=True):
        np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_the_training_step_compiles_once_and_copies_no_state(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    step, replicate = make_step.__wrapped__(model, 4, OPTIONS.replace(ema_decay=0.9), mode=mode)
    state, batch = replicate(make_state(model, ema=True)), place(make_batch(4, 2))
    memory = step.lower(state, batch).compile().memory_analysis()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == state_bytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 5000  # the metrics
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for _ in range(3):
            state, _ = step(state, batch)
    assert sum(record.getMessage().startswith("Compiling") for record in caplog.records) <= 1


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_devices_that_differ_are_found(mode: str) -> None:
    mesh = devices.make_mesh(jax.devices()[:4])
    state = devices.replicate(make_state(make_model()), mesh)
    check = devices.find_divergence(mesh, mode=mode)
    assert check(state) is None

    def change(x: jax.Array, index: tuple[int, ...]) -> jax.Array:
        parts = [np.array(part.data) for part in x.addressable_shards]
        bits = parts[2].view(np.uint32)
        bits[index] ^= 1  # the smallest possible difference
        placed = [jax.device_put(part, device) for part, device in zip(parts, mesh.devices.flat, strict=True)]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)

    kernel = state.params["fc"]["kernel"]
    state.params["fc"]["kernel"] = change(kernel, (3, 1))
    found = check(state)
    assert found is not None and found.startswith("device 2 (process 0) with other values than device 0 in 1 of ")
    assert "['fc']['kernel'] the first" in found
    # Two values that change places leave a plain sum as it was.
    state.params["fc"]["kernel"] = kernel
    parts = [np.array(part.data) for part in kernel.addressable_shards]
    parts[1][[0, 1]] = parts[1][[1, 0]]
    placed = [jax.device_put(part, device) for part, device in zip(parts, mesh.devices.flat, strict=True)]
    state.params["fc"]["kernel"] = jax.make_array_from_single_device_arrays(kernel.shape, kernel.sharding, placed)
    assert "device 1 (process 0)" in (check(state) or "")


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_a_step_compiles_once_and_reuses_the_state(mode: str) -> None:
    traces = 0

    def step(state: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        nonlocal traces
        traces += 1
        mean = jax.lax.pmean(batch["weight"].mean(), devices.AXIS)
        return state + mean, mean

    mesh = devices.make_mesh(jax.devices()[:4])
    compiled = devices.map_over_devices(step, mesh, mode=mode, donate_state=True)
    state = devices.replicate(np.zeros(1000, np.float32), mesh)
    for _ in range(3):
        before = state
        state, _ = compiled(state, place(make_batch(4, 2)))
        assert before.is_deleted()
    assert traces == 1
    assert float(state[0]) == 3


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_a_donated_state_shares_memory_with_nothing(num_devices: int) -> None:
    # An array that appears twice, or that the host still holds, must survive a step that writes over its state.
    mesh = devices.make_mesh(jax.devices()[:num_devices])
    device, host = jax.numpy.zeros(64), np.zeros(64, np.float32)
    state = devices.replicate({"a": device, "b": device, "c": host, "d": host}, mesh)
    buffers = [part.data.unsafe_buffer_pointer() for leaf in state.values() for part in leaf.addressable_shards]
    assert len(set(buffers)) == 4 * num_devices
    assert not {device.unsafe_buffer_pointer(), host.ctypes.data} & set(buffers)


def test_results_are_the_same_on_every_device() -> None:
    model = make_model()
    step, replicate = make_step(model, 4)
    state, _ = step(replicate(make_state(model)), place(make_batch(4, 4)))
    for leaf in jax.tree.leaves(state):
        copies = {np.asarray(part.data).tobytes() for part in leaf.addressable_shards}
        assert len(leaf.addressable_shards) == 4 and len(copies) == 1


def test_batches_are_placed_without_mixing_devices() -> None:
    mesh = devices.make_mesh(jax.devices()[:3])
    rows = [np.full((2, 5), device, np.int32) for device in range(3)]
    array = devices.shard(rows, mesh)
    assert array.shape == (3, 2, 5)
    assert [int(np.asarray(part.data).max()) for part in array.addressable_shards] == [0, 1, 2]
    assert [part.device for part in array.addressable_shards] == jax.devices()[:3]


def test_a_gpu_backend_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="needs a GPU, and JAX found only cpu; use dali-cpu"):
        devices.find_devices(backend="dali-gpu", precision="fp32")
