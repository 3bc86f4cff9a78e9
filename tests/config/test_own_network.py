"""A network of the user's own, the one of docs/own-network.md, through the commands; and what is refused."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import REPO, Run, Shared, assert_user_error
from flax.traverse_util import flatten_dict

from rn50_jax.config import loading as configs
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import load_weights
from rn50_jax.models.fold import fold
from rn50_jax.models.initial import initial_variables
from rn50_jax.models.network import Network, split_frozen
from rn50_jax.training.build import build_state
from rn50_jax.training.pretrained import start_from
from rn50_jax.weights.files import WeightFile, read_weights, write_weights
from rn50_jax.weights.torch_names import to_common_form

CNN, _, OURS = re.findall(r"^```python.*?\n(.*?)^```$", (REPO / "docs/own-network.md").read_text(), re.M | re.S)
PARTS = CNN.replace(
    "    dtype: jnp.dtype\n",
    '    dtype: jnp.dtype\n    frozen: tuple[str, ...] = ()\n    parts = ("Conv_0", "Conv_1", "Conv_2", "Dense_0")\n'
    '    def part_of(self, module): return module.replace("BatchNorm", "Conv")\n',
)


@pytest.fixture(scope="session")
def own(digits: Path, run: Run, shared: Shared) -> tuple[Path, str]:
    """A run of the page's network, to be read, and what trained it."""

    def make(folder: Path) -> None:
        (folder / "cnn.py").write_text(CNN)
        done = run(*train(folder, digits), "--config.epochs=6")
        assert done.returncode == 0, done.stderr

    folder = shared("own-network", make)
    return folder / "run", f"--config.model.arch={folder}/cnn.py:make"


def train(folder: Path, digits: Path) -> list[object]:
    arch = f"--config.model.arch={folder}/cnn.py:make"
    options = [arch, f"--config.data.dir={digits}", "--config.model.init=fanin", "--config.recipe.warmup_epochs=0"]
    return ["train", "--config", REPO / "configs/quickstart.py", "--workdir", folder / "run", *options]


def model_of(text: str, folder: Path, *overrides: tuple[str, str], classes: int = 10) -> tuple[Network, Config]:
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(text)
    config = configs.override(Config(), [("model.arch", f"{folder}/net.py:make"), *overrides])
    return build_model(config, num_classes=classes, platform="cpu"), config


@pytest.mark.slow
def test_it_is_trained_resumed_evaluated_and_kept(
    own: tuple[Path, str], digits: Path, call: Run, tmp_path: Path
) -> None:
    run, arch = own
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["val.top1"] for line in lines if "val.top1" in line][-1] > 75
    refused = call("evaluate", "--workdir", run)
    assert_user_error(refused, "name it: --config.model.arch=")
    first = call("evaluate", "--workdir", run, arch)
    weights = tmp_path / "own.safetensors"
    assert call("convert", run, weights, arch).returncode == 0
    assert "params/Conv_0/kernel" in read_weights(weights).arrays
    assert_user_error(
        call("evaluate", "--weights", weights, f"--config.data.dir={digits}"), "name the code that makes it"
    )
    again = call("evaluate", "--weights", weights, arch, f"--config.data.dir={digits}")
    assert re.findall("validation .*? images", again.stdout) == re.findall("validation .*? images", first.stdout) != []
    predicted = call("predict", "--workdir", run, arch, "--json", next((digits / "val/3").iterdir()))
    assert predicted.returncode == 0 and json.loads(predicted.stdout)[0]["predictions"]


def test_saved_configs_do_not_run_code(own: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    run, _ = own
    for command in (
        ("train", "--config", run / "config.json", "--workdir", tmp_path / "new"),
        (
            "train",
            "--config",
            REPO / "configs/quickstart.py",
            "--workdir",
            tmp_path / "new",
            "--pretrained_weights",
            run,
        ),
        ("predict", "--workdir", run, "x.jpg"),
    ):
        assert_user_error(call(*command), "is code of a file; if you trust that file, name it")
    shown = call("config.__main__", run)  # which runs nothing
    assert shown.returncode == 0 and "cnn.py:make" in shown.stdout


def test_its_layers_of_ours_are_drawn_and_folded_as_ours(tmp_path: Path) -> None:
    model, _ = model_of(OURS, tmp_path, ("precision", "fp32"))
    variables = initial_variables(model, 3)
    kernel = variables["params"]["ConvNorm_1"]["kernel"]
    assert float(np.std(kernel)) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    wanted = model.apply(variables, images, train=False)
    folded = fold(model, variables)
    assert {path[-1] for path in flatten_dict(folded["params"])} == {"kernel", "bias"}
    np.testing.assert_allclose(model.apply(folded, images, train=False), wanted, rtol=1e-4, atol=1e-5)


def test_other_layers_draw_their_values_themselves(tmp_path: Path) -> None:
    model, _ = model_of(CNN, tmp_path)
    variables = initial_variables(model, 3)
    drawn = jax.jit(model.init, static_argnames="train")(jax.random.key(3), np.zeros((1, 32, 32, 3)), train=False)
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(drawn))


def test_its_parts_are_frozen_and_replaced(tmp_path: Path) -> None:
    frozen = ("finetune.freeze", "('Conv_0', 'Conv_1')")
    model, config = model_of(PARTS, tmp_path / "ten", frozen)
    state = build_state(config, model)
    assert sorted(split_frozen(state.params, model)[1]) == ["BatchNorm_0", "BatchNorm_1", "Conv_0", "Conv_1"]
    assert "Conv_0" not in str(jax.tree_util.tree_flatten_with_path(state.opt_state)[0])
    other, _ = model_of(PARTS, tmp_path / "seven", classes=7)
    arrays = to_common_form(other, initial_variables(other, 1))
    started, message = start_from(state, arrays, model, "x", new_head=False)
    assert message.endswith("its classifier is replaced by a new one of 10")
    np.testing.assert_array_equal(started.params["Conv_2"]["kernel"], arrays["params/Conv_2/kernel"])
    np.testing.assert_array_equal(started.params["Dense_0"]["kernel"], state.params["Dense_0"]["kernel"])


SCANNED = """
from flax import linen as nn
from rn50_jax.models.conv_norm import ConvNorm

class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return ConvNorm(3, 1)(x), None

class Net(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x, *, train, head=True):
        axes = {"params": 0, "batch_stats": 0}
        x, _ = nn.scan(Block, axes, split_rngs={"params": True}, length=2)()(x, None)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

def make(n, c):
    return Net(n)
"""


def before_the_head(line: str) -> str:
    return CNN.replace("        return", f"        {line}\n        return")


BAD = {
    "no file": (None, "there is no file"),
    "no function": ("x = 1", "has no function make; it has none"),
    "broken": ("def make(n, c:", "cannot be used: SyntaxError"),
    "a class": ("make = str", "make is a class; name a function of"),
    "ends": ("import sys\nsys.exit(5)", "cannot be used: SystemExit: 5"),
    "flattens": (CNN.replace("jnp.mean(x, (1, 2), dtype=jnp.float32)", "x.reshape(len(x), -1)"), "depends on the size"),
    "integers": (before_the_head('self.param("n", nn.initializers.zeros, (), jnp.int32)'), "params/n is int32"),
    "scanned": (SCANNED, "stands in an nn.scan"),
    "raises": ("def make(n, c): raise KeyError('a')", r"make\(num_classes, compute\) raises KeyError: 'a'"),
    "no module": ("def make(n, c): return 3", "returns no flax.linen.Module, but int"),
    "other classes": (CNN.replace("CNN(num_classes,", "CNN(3,"), "needs the field num_classes, here 10"),
    "half": (CNN.replace("nn.Dense(self.num_classes)", "nn.Dense(self.num_classes, dtype=jnp.float16)"), "float16"),
    "no head": (
        CNN.replace(", head=True", "").replace(" if head else x", ""),
        r"cannot be called as \(x, \*, train, head=True\) on 64 px.*TypeError",
    ),
    "dropout": (before_the_head("x = nn.Dropout(0.5, deterministic=not train)(x)"), "draws random numbers"),
    "other variables": (before_the_head('self.variable("cache", "x", jnp.zeros, ())'), "has variables in 'cache'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_trained_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    if text is not None:
        (tmp_path / "net.py").write_text(text)
    config = configs.override(Config(), [("model.arch", f"{tmp_path}/net.py:make"), ("data.image_size", "64")])
    with pytest.raises(UserError, match=message) as error:
        build_model(config, num_classes=10, platform="cpu")
    assert "\n" not in str(error.value)


def test_options_of_parts_need_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tell their parts"):
        model_of(CNN, tmp_path, ("finetune.lr_decay", "0.5"))
    with pytest.raises(UserError, match=r"names 'fc'; the parts of .* are Conv_0, Conv_1, Conv_2, Dense_0"):
        model_of(PARTS, tmp_path / "parts", ("finetune.freeze", "('fc',)"))
    with pytest.raises(UserError, match="leaves nothing to train"):
        model_of(PARTS, tmp_path / "parts", ("finetune.freeze", "('Conv_0', 'Conv_1', 'Conv_2', 'Dense_0')"))
    with pytest.raises(UserError, match="'Dense_0' is not in both"):
        model_of(PARTS.replace('"Dense_0")', '"Head")'), tmp_path / "other")


def test_a_weight_file_without_class_names_needs_their_number(own: tuple[Path, str], tmp_path: Path) -> None:
    model, _ = model_of(CNN, tmp_path)
    write_weights(tmp_path / "x.npz", WeightFile(to_common_form(model, initial_variables(model, 0)), {}))
    arch = ("model.arch", f"{tmp_path}/net.py:make")
    with pytest.raises(UserError, match="does not say how many classes it has"):
        load_weights(tmp_path / "x.npz", [arch])
    with pytest.raises(UserError, match="must be an integer"):
        load_weights(tmp_path / "x.npz", [arch, ("model.num_classes", "ten")])
    assert load_weights(tmp_path / "x.npz", [arch, ("model.num_classes", "10")]).model.num_classes == 10
