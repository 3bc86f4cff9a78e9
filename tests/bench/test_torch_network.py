"""PyTorch's network, made of the list of our layers, is the one that it stands for."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch
from conftest import REPO
from flax import linen as nn
from helpers.networks import make_torch, random_variables

from rn50_jax.bench.baselines import compare
from rn50_jax.bench.baselines.torch_network import make_network
from rn50_jax.config import loading as configs
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.models.family import FAMILY
from rn50_jax.models.layers import Linear, MeanPool
from rn50_jax.weights.torch_names import to_torch

CLASSES = 7
PUBLISHED = {"resnet18": 11_689_512, "resnet50": 25_557_032, "resnet50d": 25_576_264, "se-resnet50": 28_088_024}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_torchs_network_has_the_published_size(arch: str) -> None:
    with torch.device("meta"):
        net = make_network(compare.network(configs.override(Config(), [("model.arch", arch)])))
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED[arch]


def two_stages(arch: str) -> tuple[Config, torch.nn.Module]:
    values = {"model.arch": arch, "model.width": "32", "model.stages": "(1, 2)", "model.num_classes": str(CLASSES)}
    config = configs.override(Config(), [*values.items(), ("precision", "fp32")])
    # As the worker gets it.
    return config, make_network(json.loads(json.dumps(compare.network(config))))


def load(net: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """All of it, and nothing else: 1x1 convolutions of squeeze and excitation as the linear layers that they are."""
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.as_tensor(value).reshape(shapes[name]) for name, value in state.items()})


# 36 px: an image of 9 x 9 reaches the second stage, and windows of 2x2 hang over its edge.
IMAGES = np.random.default_rng(1).standard_normal((4, 36, 36, 3)).astype(np.float32)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50-32x4d", "se-resnet50", "resnet50d"])
def test_torchs_network_computes_what_ours_does_with_the_same_weights(arch: str) -> None:
    config, net = two_stages(arch)
    model: Any = build_model(config, num_classes=CLASSES, platform="cpu")
    variables = random_variables(model)

    @jax.jit
    def ours(variables: Any) -> Any:
        logits, changed = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
        return logits, changed["batch_stats"], model.apply(variables | changed, IMAGES, train=False)

    training, changed, evaluation = ours(variables)
    load(net, to_torch(variables["params"], variables["batch_stats"]))
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(net(images), training, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(net.eval()(images), evaluation, rtol=1e-4, atol=1e-4)
    for name, value in to_torch({}, changed).items():
        np.testing.assert_allclose(net.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50-32x4d", "se-resnet50"])
def test_torchs_network_computes_what_the_reference_does(arch: str) -> None:
    config, net = two_stages(arch)
    torch.manual_seed(0)
    reference = make_torch(FAMILY[arch]._replace(stages=config.model.stages), CLASSES, width=32)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    load(net, reference.state_dict())
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    torch.testing.assert_close(net(images), reference(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.eval()(images), reference.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_torch_compiles_the_network_in_one_piece() -> None:
    _, net = two_stages("se-resnet50")
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    compiled = torch.compile(net.eval(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images), rtol=0, atol=0)


class OwnNetwork(nn.Module):
    """Has something that is no layer of ours."""

    what: str
    num_classes: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, head: bool = True) -> jax.Array:
        x = MeanPool()(x)
        if self.what == "module":
            return nn.Dense(3)(x)
        return Linear(3, name="fc")(x * 2) if self.what == "operation" else Linear(3, name="fc")(x) * 2


@pytest.mark.parametrize(
    ("what", "told"),
    [("module", r"Dense\.0, a flax\..*\.Dense"), ("operation", "fc, a Linear"), ("end", "its result")],
)
def test_a_network_of_other_layers_has_no_torch_baseline(what: str, told: str) -> None:
    with pytest.raises(UserError, match=f"ConvNorm, Linear, .* nothing between: see {told}; compare without torch"):
        make_network(compare.layers_of(OwnNetwork(what)))


def test_the_network_is_described_without_a_device_and_built_without_jax() -> None:
    program = """if True:
        import json, sys
        from rn50_jax.bench.baselines import torch_step
        print("jax" in sys.modules)
        from jax._src import xla_bridge
        from rn50_jax.bench.baselines import compare
        from rn50_jax.config.schema import Config
        print(len(json.dumps(compare.network(Config()))) > 0, xla_bridge.backends_are_initialized())
        """
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
