import jax
import numpy as np
import pytest
from tiny import OPTIONS, assert_same_bits, make_batch, make_model, make_state, make_step, place

from rn50_jax import parallel
from rn50_jax.errors import UserError


def train(mode: str, num_devices: int, steps: int = 3) -> object:
    model = make_model()
    step, replicate = make_step(model, num_devices, OPTIONS._replace(mixup=0.2), mode=mode)
    state = replicate(make_state(model))
    for number in range(steps):
        state, metrics = step(state, place(make_batch(num_devices, 4, seed=number)))
    return jax.device_get((state, metrics))


def test_pmap_and_shard_map_give_the_same_bits() -> None:
    assert_same_bits(train("pmap", 4), train("shard_map", 4))


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_a_step_compiles_once_and_reuses_the_state(mode: str) -> None:
    traces = 0

    def step(state: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        nonlocal traces
        traces += 1
        mean = jax.lax.pmean(batch["weight"].mean(), parallel.AXIS)
        return state + mean, mean

    mesh = parallel.make_mesh(jax.devices()[:4])
    compiled = parallel.spread(step, mesh, mode=mode, donate_state=True)
    state = parallel.replicate(np.zeros(1000, np.float32), mesh)
    for _ in range(3):
        before = state
        state, _ = compiled(state, place(make_batch(4, 2)))
        assert before.is_deleted()
    assert traces == 1
    assert float(state[0]) == 3


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_a_donated_state_shares_memory_with_nothing(num_devices: int) -> None:
    # An array that appears twice, or that the host still holds, must survive a step that writes over its state.
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    device, host = jax.numpy.zeros(64), np.zeros(64, np.float32)
    state = parallel.replicate({"a": device, "b": device, "c": host, "d": host}, mesh)
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
    mesh = parallel.make_mesh(jax.devices()[:3])
    rows = [np.full((2, 5), device, np.int32) for device in range(3)]
    array = parallel.shard(rows, mesh)
    assert array.shape == (3, 2, 5)
    assert [int(np.asarray(part.data).max()) for part in array.addressable_shards] == [0, 1, 2]
    assert [part.device for part in array.addressable_shards] == jax.devices()[:3]


def test_a_gpu_backend_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="needs a GPU, and JAX found only cpu; use dali-cpu"):
        parallel.find_devices(backend="dali-gpu", precision="fp32")


def test_runtime_is_prepared_for_dali_on_the_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    import os

    parallel.prepare_runtime("dali-cpu")
    assert os.environ["XLA_FLAGS"] == "--a=1"
    for _ in range(2):
        parallel.prepare_runtime("dali-gpu")
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_gpu_enable_command_buffer="
