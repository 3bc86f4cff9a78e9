import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from rn50_jax.models.resnet import FAMILY, ResNet
from rn50_jax.optim import cosine_schedule, decay_mask, sgd
from rn50_jax.precision import PRECISIONS


def test_mask_leaves_out_every_batch_norm_and_nothing_else() -> None:
    model = ResNet(FAMILY["resnet50"], 1000, PRECISIONS["fp32"])
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    decayed = [jax.tree_util.keystr(path, simple=True, separator=".") for path, value in mask if value]
    assert len(mask) == 161
    assert len(decayed) == 53 + 2  # the convolutions, and the classifier's weight and bias
    assert all(name.endswith(".kernel") or name == "fc.bias" for name in decayed)


def test_sgd_equals_torch() -> None:
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(5).astype(np.float32) for name in ("conv1", "bn1")}
    gradients = [{name: rng.standard_normal(5).astype(np.float32) for name in start} for _ in range(6)]
    rates = [0.1, 0.2, 0.05, 0.3, 0.1, 0.01]  # changes show that the rate lies outside the buffer

    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [{"params": [theirs["conv1"]], "weight_decay": 0.01}, {"params": [theirs["bn1"]], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.875)

    params = {"conv1": {"kernel": jnp.asarray(start["conv1"])}, "bn1": {"scale": jnp.asarray(start["bn1"])}}
    tx = sgd(momentum=0.875, weight_decay=0.01)
    state: optax.OptState = tx.init(params)
    for gradient, rate in zip(gradients, rates, strict=True):
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        grads = {"conv1": {"kernel": gradient["conv1"]}, "bn1": {"scale": gradient["bn1"]}}
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(lambda w, u, rate=rate: w - rate * u, params, updates)
    np.testing.assert_allclose(params["conv1"]["kernel"], theirs["conv1"].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(params["bn1"]["scale"], theirs["bn1"].detach().numpy(), rtol=1e-5)


def test_schedule_at_epoch_boundaries() -> None:
    # NVIDIA's values for 90 epochs, peak 2.048, 8 of warm-up; between the boundaries ours moves every step.
    steps = 625
    lr = cosine_schedule(peak=2.048, warmup_steps=8 * steps, total_steps=90 * steps)
    for epoch, wanted in {8: 2.048, 9: 2.04724857, 45: 1.18031287, 88: 0.00300462, 89: 0.00075143}.items():
        assert float(lr(epoch * steps)) == pytest.approx(wanted, rel=2e-4)
    for epoch, wanted in {0: 0.256, 1: 0.512, 7: 2.048}.items():
        assert float(lr((epoch + 1) * steps - 1)) == pytest.approx(wanted, rel=1e-6)
    assert float(lr(0)) == pytest.approx(2.048 / (8 * steps))
    last = 2.048 * (np.pi / 2 / (82 * steps)) ** 2
    assert float(lr(90 * steps - 1)) == pytest.approx(last, rel=0.01)
    assert float(lr(90 * steps)) < 1e-12


def test_schedule_without_warmup() -> None:
    lr = cosine_schedule(peak=1.0, warmup_steps=0, total_steps=4)
    np.testing.assert_allclose([lr(t) for t in range(4)], [1, 0.853553, 0.5, 0.146447], atol=1e-6)
