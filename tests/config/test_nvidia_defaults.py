"""configs/nvidia_defaults.py trains as NVIDIA's `main.py` does without flags: against plain PyTorch."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
import torch
from helpers.parity import Recipe, by_torch_name, distance, load, make_batches, normalize
from helpers.tiny import place
from torch_reference import ResNet as TorchResNet
from torch_reference import decay_groups, smoothed_loss

from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.distributed.devices import make_mesh, replicate
from rn50_jax.models.compute import Compute
from rn50_jax.training.build import build_schedule, build_state, compile_steps

FLOAT64 = Compute(np.dtype(np.float64), jax.lax.Precision.HIGHEST)
# Its "non standard configuration": -c fanin --label-smoothing 0.1
NON_STANDARD = [("model.init", "fanin"), ("recipe.label_smoothing", "0.1")]
TINY = [
    ("model.arch", "resnet18"),
    ("model.stages", "(2, 1)"),
    ("model.width", "8"),
    ("data.image_size", "32"),
    ("batch_size", "8"),
]
CLASSES, STEPS = 5, 3


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("flags", "smoothing"), [([], 0.0), (NON_STANDARD, 0.1)], ids=["no flags", "non standard"])
def test_three_steps_are_plain_pytorchs(flags: list[tuple[str, str]], smoothing: float) -> None:
    config, _ = configs.load("configs/nvidia_defaults.py")
    config = configs.override(config, [*flags, *TINY])
    plan = make_plan(config, num_images=1000, num_devices=1)
    model = build_model(config, num_classes=CLASSES, platform="cpu")
    state = build_state(config, model)
    net = TorchResNet((2, 1), False, CLASSES, width=8).double().train()
    load(net, state.params, state.batch_stats)
    state = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state)
    mesh = make_mesh(jax.devices()[:1])
    step, _ = compile_steps(config, model.clone(compute=FLOAT64), plan, mesh)
    state = replicate(state, mesh)

    # The flags' defaults, as its main.py has them.
    optimizer = torch.optim.SGD(decay_groups(net, "reference", 1e-4), lr=0.1, momentum=0.9)
    for batch in make_batches(Recipe(), image_size=32, classes=CLASSES, steps=STEPS):
        state, metrics = step(state, place(batch))
        optimizer.zero_grad()
        targets = torch.nn.functional.one_hot(torch.from_numpy(batch["label"][0]).long(), CLASSES).double()
        loss = smoothed_loss(net(normalize(batch["image"][0], torch.float64)), targets, smoothing)
        loss.backward()
        optimizer.step()
        assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-9)
        assert float(metrics["lr"]) == pytest.approx(0.1)
    wanted = dict(net.named_parameters())
    momentum = {name: optimizer.state[p]["momentum_buffer"] for name, p in wanted.items()}
    running = {name: value for name, value in net.named_buffers() if "running" in name}
    final = jax.device_get(state)
    (trace,) = [part.trace for part in jax.tree.leaves(final.opt_state, is_leaf=_has_trace) if _has_trace(part)]
    for tree, theirs in ((final.params, wanted), (trace, momentum), (final.batch_stats, running)):
        found, name = distance(by_torch_name(tree), {name: value.detach() for name, value in theirs.items()})
        assert found < 1e-9, name


def _has_trace(node: object) -> bool:
    return hasattr(node, "trace")


def test_the_rate_of_every_epoch_is_pytorchs() -> None:
    config, _ = configs.load("configs/nvidia_defaults.py")
    for devices in (1, 8):  # absolute, whatever the global batch
        plan = make_plan(config, num_images=1281167, num_devices=devices)
        assert (plan.peak_lr, plan.accumulation, plan.global_batch) == (0.1, 1, 256 * devices)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60, 80], gamma=0.1)
        rate, steps = build_schedule(config, plan), plan.steps_per_epoch
        for epoch in range(config.epochs):
            for step in (epoch * steps, (epoch + 1) * steps - 1):
                assert float(rate(step)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5)
            optimizer.step()
            theirs.step()


def test_the_rest_is_what_its_flags_default_to() -> None:
    config, _ = configs.load("configs/nvidia_defaults.py:fp16")
    assert (config.model.init, config.epochs, config.recipe.mixup, config.recipe.nesterov) == ("classic", 90, 0, False)
    assert (config.loss_scale.mode, config.loss_scale.init) == ("static", 1)
    assert (config.data.backend, config.data.transform, config.data.workers) == ("dali-cpu", "dali", 5)
    assert (config.log.print_every, config.log.dle_json) == (10, "experiment_raport.json")
    for key, value in (("recipe.decay_mask", "all"), ("data.transform", "torchvision")):  # --bn-weight-decay, pytorch
        configs.override(config, [(key, value)])
