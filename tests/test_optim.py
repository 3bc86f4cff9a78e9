"""SGD, its weight-decay masks and the learning rate against PyTorch and NVIDIA's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torch_reference import ResNet as TorchResNet
from torch_reference import decay_groups, epoch_rate, torch_name

from rn50_jax.models.resnet import FAMILY, ResNet
from rn50_jax.optim import decay_mask, make_schedule, sgd
from rn50_jax.precision import PRECISIONS


@pytest.mark.parametrize(("rule", "decayed"), [("no_bn", 53 + 2), ("reference", 53 + 2 + 8), ("all", 161)])
@pytest.mark.parametrize("arch", ["resnet50", "se-resnet50"])
def test_masks_are_those_of_the_reference(arch: str, rule: str, decayed: int) -> None:
    # 53 convolutions, the classifier's weight and bias, two vectors of each of four shortcut BatchNorms. The reference
    # prints 98 tensors without decay and 63 with it.
    variant = FAMILY[arch]
    model = ResNet(variant, 1000, PRECISIONS["fp32"])
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    ours = {torch_name(path) for path, value in flatten_dict(decay_mask(params, rule)).items() if value}
    net = TorchResNet(variant.stages, variant.bottleneck, 1000, se_units=0 if variant.se else None)
    wanted = {id(p) for group in decay_groups(net, rule, 1.0) if group["weight_decay"] for p in group["params"]}
    assert ours == {name for name, p in net.named_parameters() if id(p) in wanted}
    assert len(ours) == decayed + (16 * 4 if variant.se else 0)


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
        params = jax.tree.map(jnp.subtract, params, updates)
    np.testing.assert_allclose(params["conv1"]["kernel"], theirs["conv1"].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(params["bn1"]["scale"], theirs["bn1"].detach().numpy(), rtol=1e-5)


# NVIDIA's rates: (schedule, epochs, peak, warm-up) and the rate of some epochs.
REFERENCE_RATES = {
    ("cosine", 90, 2.048, 8): {
        0: 0.256, 1: 0.512, 7: 2.048, 8: 2.048, 9: 2.04724857, 45: 1.18031287, 88: 0.00300462, 89: 0.00075143
    },
    ("cosine", 50, 2.048, 8): {9: 2.04513669, 25: 1.3258293, 49: 0.00286331},
    ("cosine", 250, 2.048, 8): {9: 2.04791372, 125: 1.07714951, 249: 8.628e-05},
    ("cosine", 90, 4.096, 16): {0: 0.256, 15: 4.096, 45: 2.7302703, 89: 0.00184532},
    ("linear", 90, 2.048, 8): {9: 2.02302439, 45: 1.12390244, 89: 0.02497561},
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
    everything = [epoch_rate(kind, epoch, peak=peak, warmup=warmup, epochs=epochs) for epoch in range(epochs)]
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
