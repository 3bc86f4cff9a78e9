"""Optimisers, weight-decay masks and the learning rate against PyTorch, the papers' formulas and NVIDIA's numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.networks import make_torch
from torch_reference import decay_groups, learning_rate, torch_name

from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY
from rn50_jax.models.initial import variable_shapes
from rn50_jax.models.resnet import ResNet
from rn50_jax.training.optim import by_part, clipped, decay_mask, lamb, lars, sgd
from rn50_jax.training.schedule import make_schedule


@pytest.mark.parametrize(
    ("rule", "decayed"), [("no_bn", 53 + 2), ("no_bn_bias", 53 + 1), ("reference", 53 + 2 + 8), ("all", 161)]
)
@pytest.mark.parametrize("arch", ["resnet50", "resnet50d", "se-resnet50"])
def test_masks_are_those_of_the_reference(arch: str, rule: str, decayed: int) -> None:
    # 53 convolutions, the classifier's weight and bias, two vectors of each of four shortcut BatchNorms. The reference
    # prints 98 tensors without decay and 63 with it.
    variant = FAMILY[arch]
    model = ResNet(variant, 1000, PRECISIONS["fp32"])
    params = variable_shapes(model)["params"]
    ours = {torch_name(path) for path, value in flatten_dict(decay_mask(params, rule)).items() if value}
    net = make_torch(variant, 1000)
    wanted = {id(p) for group in decay_groups(net, rule, 1.0) if group["weight_decay"] for p in group["params"]}
    assert ours == {name for name, p in net.named_parameters() if id(p) in wanted}
    assert arch != "resnet50" or len(ours) == decayed


def test_no_bn_bias_decays_the_kernels_alone() -> None:
    model = ResNet(FAMILY["se-resnet50"], 10, PRECISIONS["fp32"], width=8)
    params = variable_shapes(model)["params"]
    mask, flat = flatten_dict(decay_mask(params, "no_bn_bias")), flatten_dict(params)
    assert {path: value for path, value in mask.items() if value} == {p: True for p, x in flat.items() if x.ndim > 1}
    assert sum(mask.values()) == 53 + 1 + 2 * 16


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torch(nesterov: bool) -> None:
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(5).astype(np.float32) for name in ("conv1", "bn1")}
    gradients = [{name: rng.standard_normal(5).astype(np.float32) for name in start} for _ in range(6)]
    rates = [0.1, 0.2, 0.05, 0.3, 0.1, 0.01]  # changes show that the rate lies outside the buffer

    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [{"params": [theirs["conv1"]], "weight_decay": 0.01}, {"params": [theirs["bn1"]], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.875, nesterov=nesterov)

    params = {"conv1": {"kernel": jnp.asarray(start["conv1"])}, "bn1": {"scale": jnp.asarray(start["bn1"])}}
    tx = sgd(momentum=0.875, weight_decay=0.01, nesterov=nesterov)
    state = tx.init(params)
    for gradient, rate in zip(gradients, rates, strict=True):
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        grads = {"conv1": {"kernel": gradient["conv1"]}, "bn1": {"scale": gradient["bn1"]}}
        updates, state = tx.update(grads, state, params, learning_rate=rate)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["conv1"]["kernel"], theirs["conv1"].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(params["bn1"]["scale"], theirs["bn1"].detach().numpy(), rtol=1e-5)


RATES = [0.1, 0.2, 0.05, 0.3, 0.1, 0.01]
SHAPES = {
    ("conv1", "kernel"): (3, 3, 2, 4),
    ("bn1", "scale"): (4,),
    ("layer1_0", "conv1", "kernel"): (1, 1, 4, 4),
    ("layer1_0", "downsample_1", "bias"): (4,),
    ("fc", "kernel"): (4, 3),
    ("fc", "bias"): (3,),
}


def make_tensors(seed: int, *, zeros: bool = False) -> dict[tuple[str, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {path: rng.standard_normal(shape) for path, shape in SHAPES.items()}
    if zeros:
        tensors["layer1_0", "conv1", "kernel"][:] = 0  # no norm to divide by
    return tensors


def train(tx: Any, rates: list[float]) -> tuple[dict[tuple[str, ...], np.ndarray], Any]:
    """Weights after some updates, and the optimizer's state."""
    params = unflatten_dict({path: jnp.asarray(w, jnp.float32) for path, w in make_tensors(0, zeros=True).items()})
    state = tx.init(params)
    for number, rate in enumerate(rates, 1):
        grads = unflatten_dict({path: jnp.asarray(g, jnp.float32) for path, g in make_tensors(number).items()})
        updates, state = tx.update(grads, state, params, learning_rate=jnp.float32(rate))
        params = optax.apply_updates(params, updates)
    return flatten_dict(params), state


def assert_close(ours: dict[tuple[str, ...], np.ndarray], wanted: dict[tuple[str, ...], np.ndarray]) -> None:
    for path, value in wanted.items():
        np.testing.assert_allclose(ours[path], value, rtol=2e-5, atol=1e-6, err_msg=str(path))


def test_lars_is_the_papers() -> None:
    # Algorithm 1 of arXiv:1708.03888, in float64; for vectors plain momentum without decay.
    wd, momentum, trust = 0.05, 0.9, 0.02
    weights = make_tensors(0, zeros=True)
    velocity = {path: np.zeros_like(w) for path, w in weights.items()}
    for number, rate in enumerate(RATES, 1):
        for path, g in make_tensors(number).items():
            w, local, decay = weights[path], 1.0, wd if path[-1] == "kernel" else 0.0
            if path[-1] == "kernel" and np.any(w):
                local = trust * np.linalg.norm(w.ravel()) / (np.linalg.norm(g.ravel()) + wd * np.linalg.norm(w.ravel()))
            velocity[path] = momentum * velocity[path] + rate * local * (g + decay * w)
            weights[path] = w - velocity[path]
    ours, _ = train(lars(momentum=momentum, weight_decay=wd, trust=trust), RATES)
    assert_close(ours, weights)


def test_lamb_is_the_papers() -> None:
    # Algorithm 2 of arXiv:1904.00962 with phi(z) = z, in float64; for vectors Adam without decay.
    wd, beta1, beta2, eps = 0.05, 0.8, 0.95, 1e-3
    weights = make_tensors(0, zeros=True)
    m, v = ({path: np.zeros_like(w) for path, w in weights.items()} for _ in range(2))
    for number, rate in enumerate(RATES, 1):
        for path, g in make_tensors(number).items():
            m[path] = beta1 * m[path] + (1 - beta1) * g
            v[path] = beta2 * v[path] + (1 - beta2) * g**2
            r = m[path] / (1 - beta1**number) / (np.sqrt(v[path] / (1 - beta2**number)) + eps)
            w, ratio = weights[path], 1.0
            if path[-1] == "kernel":
                r = r + wd * w
                ratio = np.linalg.norm(w.ravel()) / np.linalg.norm(r.ravel()) if np.any(w) else 1.0
            weights[path] = w - rate * ratio * r
    ours, state = train(lamb(beta1=beta1, beta2=beta2, eps=eps, weight_decay=wd), RATES)
    assert_close(ours, weights)
    assert [int(x) for x in jax.tree.leaves(state) if x.ndim == 0] == [len(RATES)]  # Adam's count of its averages


@pytest.mark.parametrize("tx", [sgd(momentum=0.9, weight_decay=0.1), lars(momentum=0.9, weight_decay=0.1, trust=0.1)])
def test_gradients_are_clipped_by_their_common_norm(tx: Any) -> None:
    grads = {path: g.astype(np.float32) for path, g in make_tensors(1).items()}
    norm = float(np.sqrt(sum(np.sum(g**2) for g in grads.values())))
    params = unflatten_dict({path: jnp.ones(shape) for path, shape in SHAPES.items()})

    def update(tx: Any, factor: float) -> dict[tuple[str, ...], np.ndarray]:
        scaled = unflatten_dict({path: g * factor for path, g in grads.items()})
        return flatten_dict(tx.update(scaled, tx.init(params), params, learning_rate=0.5)[0])

    assert_close(update(clipped(tx, norm / 2), 1.0), update(tx, 0.5))
    assert_close(update(clipped(tx, norm * 1.01), 1.0), update(tx, 1.0))


@pytest.mark.parametrize(
    "tx",
    [
        sgd(momentum=0.9, weight_decay=0.1, nesterov=True),
        lars(momentum=0.9, weight_decay=0.1, trust=0.1),
        lamb(beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.1),
    ],
)
def test_a_part_with_a_factor_is_trained_as_with_that_rate(tx: Any) -> None:
    factors = {"stem": 0.1, "layer1": 0.5, "fc": 1.0}
    parts = {"conv1": "stem", "bn1": "stem", "layer1_0": "layer1", "fc": "fc"}
    ours, _ = train(by_part(tx, factors, lambda module: parts[module]), [0.4, 0.2])
    for module, part in parts.items():
        # All three treat each tensor by itself: a part goes as if everything was trained at its rate.
        alone, _ = train(tx, [rate * factors[part] for rate in (0.4, 0.2)])
        for path in (path for path in SHAPES if path[0] == module):
            np.testing.assert_allclose(ours[path], alone[path], rtol=1e-5, atol=1e-7)


# NVIDIA's rates: (schedule, epochs, peak, warm-up) and the rate of some epochs.
REFERENCE_RATES = {
    ("cosine", 90, 2.048, 8): {
        0: 0.256, 1: 0.512, 7: 2.048, 8: 2.048, 9: 2.04724857, 45: 1.18031287, 88: 0.00300462, 89: 0.00075143
    },
    ("cosine", 50, 2.048, 8): {9: 2.04513669, 25: 1.3258293, 49: 0.00286331},
    ("cosine", 250, 2.048, 8): {9: 2.04791372, 125: 1.07714951, 249: 8.628e-05},
    ("cosine", 90, 4.096, 16): {0: 0.256, 15: 4.096, 45: 2.7302703, 89: 0.00184532},
    ("linear", 90, 2.048, 8): {9: 2.02302439, 45: 1.12390244, 89: 0.02497561},
    ("cosine", 3, 2.048, 8): {0: 0.256, 2: 0.768},  # within its warm-up
    ("linear", 1, 2.048, 8): {0: 0.256},
    ("step", 8, 0.1, 8): {0: 0.0125, 7: 0.1},
    ("step", 90, 0.1, 0): {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 80: 0.0001},
}  # fmt: skip
STEPS = 625


@pytest.mark.parametrize(("setting", "rates"), REFERENCE_RATES.items(), ids=str)
def test_rate_of_each_epoch_is_the_references(setting: tuple, rates: dict[int, float]) -> None:
    kind, epochs, peak, warmup = setting
    shape = {"peak": peak, "warmup_epochs": warmup, "epochs": epochs, "steps_per_epoch": STEPS}
    lr = make_schedule(kind, **shape, lr_update="epoch")
    for epoch, wanted in rates.items():
        first, last = float(lr(epoch * STEPS)), float(lr((epoch + 1) * STEPS - 1))
        assert first == last == pytest.approx(wanted, rel=1e-4)  # 1e-4: the smallest are given to four digits
    everything = [learning_rate(kind, epoch, peak=peak, warmup=warmup, total=epochs) for epoch in range(epochs)]
    ours = jax.vmap(lr)(jnp.arange(epochs) * STEPS)
    np.testing.assert_allclose(ours, everything, rtol=1e-5, atol=1e-7)

    # The default moves every step: at the start of an epoch it is where the reference is after the warm-up, within
    # the warm-up it ends an epoch there.
    lr = make_schedule(kind, **shape)
    for epoch, wanted in rates.items():
        step = (epoch + 1) * STEPS - 1 if epoch < warmup else epoch * STEPS
        assert float(lr(step)) == pytest.approx(wanted, rel=1e-4)


def test_first_and_last_rates_of_the_default() -> None:
    lr = make_schedule("cosine", peak=2.048, warmup_epochs=8, epochs=90, steps_per_epoch=STEPS)
    assert float(lr(0)) == pytest.approx(2.048 / (8 * STEPS))
    last = 2.048 * (np.pi / 2 / (82 * STEPS)) ** 2
    assert float(lr(90 * STEPS - 1)) == pytest.approx(last, rel=0.01)
    assert float(lr(90 * STEPS)) < 1e-12


def test_schedule_without_warmup() -> None:
    lr = make_schedule("cosine", peak=1.0, warmup_epochs=0, epochs=2, steps_per_epoch=2)
    np.testing.assert_allclose([lr(t) for t in range(4)], [1, 0.853553, 0.5, 0.146447], atol=1e-6)


def test_end_of_the_cosine_and_other_milestones() -> None:
    lr = make_schedule("cosine", peak=1.0, warmup_epochs=0, epochs=2, steps_per_epoch=2, end_lr=0.2)
    np.testing.assert_allclose(
        [lr(t) for t in range(4)], [1, 0.2 + 0.8 * 0.853553, 0.6, 0.2 + 0.8 * 0.146447], rtol=1e-5
    )
    options = {"milestones": (1, 3), "milestone_factor": 0.5}
    lr = make_schedule("step", peak=1.0, warmup_epochs=0, epochs=4, steps_per_epoch=2, **options)
    np.testing.assert_allclose([lr(t) for t in range(8)], [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_poly_schedule_is_mlperfs() -> None:
    # v2.0, DGX A100: 10.5 after two epochs of warm-up, power 2 down to 1e-4 at the end of epoch 37.
    steps = 392  # of 3,264 images
    options = {"peak": 10.5, "warmup_epochs": 2, "epochs": 37, "steps_per_epoch": steps, "end_lr": 1e-4}
    lr = make_schedule("poly", **options)
    assert float(lr(steps - 1)) == pytest.approx(10.5 / 2)
    for epoch in (2, 10, 20, 36):
        wanted = 1e-4 + (10.5 - 1e-4) * (1 - (epoch - 2) / 35) ** 2
        assert float(lr(epoch * steps)) == pytest.approx(wanted, rel=1e-5)
    assert float(lr(37 * steps)) == pytest.approx(1e-4)
    linear = make_schedule("poly", **options | {"end_lr": 0.0}, poly_power=1.0)
    assert float(linear(20 * steps)) == pytest.approx(float(make_schedule("linear", **options)(20 * steps)), rel=1e-5)
