"""Configs: every key is documented, checked and read; bad ones are refused with the key and its valid values."""

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import REPO

from configs import default
from rn50_jax import config as configs
from rn50_jax.errors import UserError
from rn50_jax.plan import Plan, make_plan
from rn50_jax.rules import RULES


def test_default_is_valid() -> None:
    configs.validate(default.get_config())


def test_every_key_has_a_rule_and_a_comment() -> None:
    keys = configs.flatten(default.get_config())
    assert set(keys) == set(RULES)
    lines = (REPO / "configs/default.py").read_text().splitlines()
    documented = {line.split(" = ")[0].strip().removeprefix("config.") for line in lines if "  # " in line}
    assert set(keys) - documented == set()


def test_every_key_is_read_somewhere() -> None:
    read = set()
    for path in (REPO / "rn50_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(re.sub(r"^(run\.)?config\.", "", ast.unparse(node)))
    assert set(RULES) - read == set()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("epochs", "30", 30),
        ("recipe.lr", "1", 1.0),
        ("recipe.weight_decay", "3e-5", 3e-5),
        ("run.training_only", "true", True),
        ("data.crop_area", "(0.25, 1)", (0.25, 1)),
        ("data.crop_area", "[0.25, 1.0]", (0.25, 1.0)),
        ("data.dir", "/a=b c", "/a=b c"),
    ],
)
def test_override(key: str, text: str, value: object) -> None:
    before = default.get_config()
    config = configs.override(before, [(key, text)])
    configs.validate(config)
    assert configs.flatten(config)[key] == value
    assert configs.flatten(before)[key] != value


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("batchsize", "3", "did you mean batch_size"),
        ("lr", "3", "did you mean recipe.lr"),
        ("recipe", "3", "did you mean recipe.lr, "),
        ("frobnicate", "3", "configs/default.py"),
        ("epochs", "1.5", "config.epochs=1.5 must be an integer >= 1"),
        ("epochs", "many", "must be an integer >= 1"),
        ("epochs", "0", "must be an integer >= 1"),
        ("run.training_only", "maybe", "must be True or False"),
        ("precision", "int8", "one of 'fp32', 'tf32', 'bf16', 'fp16'"),
        ("model.arch", "resnet49", "'resnet50'"),
        ("data.crop_area", "0.5", "two numbers"),
        ("data.crop_area", "(0.9, 0.1)", "smallest <= largest"),
        ("data.crop_area", "('a', 'b')", "two numbers"),
        ("recipe.lr", "nan", "must be a number > 0"),
        ("recipe.momentum", "1", "must be a number >= 0 and < 1"),
        ("recipe.warmup_epochs", "91", "at most config.epochs=90"),
        ("data.resize", "200", "at least config.data.image_size=224"),
        ("report.file", "../x", "plain file name"),
    ],
)
def test_bad_override_names_the_key(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        configs.validate(configs.override(default.get_config(), [(key, text)]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_excluding_modes_are_refused() -> None:
    both = [("run.training_only", "true"), ("run.evaluate", "true")]
    with pytest.raises(UserError, match="exclude each other"):
        configs.validate(configs.override(default.get_config(), both))


HEAD = (
    "from configs import default\nVARIANTS = ('a', 'b')\ndef get_config(variant='a'):\n    c = default.get_config()\n"
)


@pytest.mark.parametrize(
    ("body", "variant", "message"),
    [
        (HEAD + "    return c\n", ":c", "no variant 'c'; its variants: a, b"),
        (HEAD + "    c.recipe.learning_rate = 1\n    return c\n", "", "learning_rate"),
        (HEAD + "    c.epochs = 'x'\n    return c\n", "", "cannot be used"),
        (HEAD + "    return 3\n", "", "must return an ml_collections ConfigDict"),
        ("def get_config(:\n", "", "SyntaxError"),
        ("x = 1\n", "", "get_config"),
    ],
)
def test_bad_config_file(tmp_path: Path, body: str, variant: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(body)
    with pytest.raises(UserError) as error:
        configs.load(f"{path}{variant}")
    assert message in str(error.value)
    assert "mine.py" in str(error.value)


def test_missing_config_file() -> None:
    with pytest.raises(UserError, match=r"'configs/none.py' does not exist"):
        configs.load("configs/none.py")


def test_config_of_an_earlier_run_is_read_without_executing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(default.get_config()))
    config, name = configs.load(str(path))
    configs.validate(config)
    assert name == "config"
    assert configs.flatten(config) == configs.flatten(default.get_config())


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_json_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a config"):
        configs.load(str(path))


def test_json_config_with_a_missing_key(tmp_path: Path) -> None:
    tree = json.loads(configs.to_json(default.get_config()))
    del tree["recipe"]["lr"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"lacks the key 'recipe.lr'"):
        configs.validate(configs.load(str(path))[0])


# NVIDIA's shipped training scripts: global batch, passes per update, peak learning rate, warm-up, mixup.
REFERENCE = {
    "dgx1_50e:fp16": (8, 2048, 1, 2.048, 8, 50, 0.0),
    "dgx1_90e:fp16": (8, 2048, 1, 2.048, 8, 90, 0.0),
    "dgx1_250e:fp16": (8, 2048, 1, 2.048, 8, 250, 0.2),
    "dgx1_90e:fp32": (8, 2048, 2, 2.048, 8, 90, 0.0),
    "dgx1_250e:fp32": (8, 2048, 2, 2.048, 8, 250, 0.2),
    "dgx2_50e:fp16": (16, 4096, 1, 4.096, 16, 50, 0.0),
    "dgx2_90e:fp16": (16, 4096, 1, 4.096, 16, 90, 0.0),
    "dgx2_250e:fp32": (16, 4096, 2, 4.096, 16, 250, 0.2),
    "dgxa100_90e:bf16": (8, 2048, 1, 2.048, 8, 90, 0.0),
    "dgxa100_90e:tf32": (8, 2048, 1, 2.048, 8, 90, 0.0),
    "dgxa100_250e:fp16": (8, 2048, 1, 2.048, 8, 250, 0.2),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_configs(name: str) -> None:
    devices, global_batch, passes, peak, warmup, epochs, mixup = REFERENCE[name]
    stem, _, variant = name.partition(":")
    config, run_name = configs.load(f"configs/{stem}.py:{variant}")
    configs.validate(config)
    plan = make_plan(config, num_images=1281167, num_devices=devices)
    assert run_name == f"{stem}-{variant}"
    assert (plan.global_batch, plan.accumulation, config.recipe.warmup_epochs) == (global_batch, passes, warmup)
    assert plan.peak_lr == pytest.approx(peak)
    assert plan.steps_per_epoch == 1281167 // global_batch
    assert (config.epochs, config.recipe.mixup, config.precision) == (epochs, mixup, variant)
    assert config.recipe.weight_decay == 3.0517578125e-05
    assert (config.recipe.momentum, config.recipe.label_smoothing) == (0.875, 0.1)
    assert (config.loss_scale.mode, config.loss_scale.init) == ("static", 128)
    assert config.data.backend == ("dali-gpu" if stem.startswith("dgx2") else "dali-cpu")


def test_all_shipped_configs_load_in_every_variant() -> None:
    stems = {path.stem for path in (REPO / "configs").glob("*.py")}
    machines = {"dgx1_50e", "dgx1_90e", "dgx1_250e", "dgx2_50e", "dgx2_90e", "dgx2_250e", "dgxa100_90e", "dgxa100_250e"}
    assert stems == machines | {"default", "quickstart"}
    for stem in stems:
        config, _ = configs.load(str(REPO / f"configs/{stem}.py"))
        configs.validate(config)
    with pytest.raises(UserError, match="its variants: fp16, fp32"):
        configs.load("configs/dgx1_90e.py:tf32")


def test_first_variant_is_the_default() -> None:
    assert configs.load("configs/dgx1_90e.py")[0].precision == "fp16"
    assert configs.load("configs/dgxa100_250e.py")[0].precision == "bf16"


def test_plan_accumulates_on_fewer_devices() -> None:
    config = configs.override(default.get_config(), [("batch_size", "128"), ("recipe.optimizer_batch_size", "2048")])
    plan = make_plan(config, num_images=10_000, num_devices=4)
    assert plan == Plan(4, 4, 512, 2048, 4, 360, 0.256 * 8)


@pytest.mark.parametrize(
    ("overrides", "num_images", "num_devices", "message"),
    [
        ([("recipe.optimizer_batch_size", "1000")], 10**6, 3, "use 768 or 1536"),
        ([("recipe.optimizer_batch_size", "100")], 10**6, 1, "use 256"),
        ([], 100, 1, "--config.batch_size=100"),
        ([], 100, 8, "--config.batch_size=12"),
        ([], 3, 8, "at most 3 device"),
        ([("recipe.optimizer_batch_size", "512")], 300, 1, "optimizer_batch_size=256, or 0"),
    ],
)
def test_impossible_plans(overrides: list[tuple[str, str]], num_images: int, num_devices: int, message: str) -> None:
    config = configs.override(default.get_config(), overrides)
    with pytest.raises(UserError, match=re.escape(message)):
        make_plan(config, num_images=num_images, num_devices=num_devices)


def test_absolute_learning_rate() -> None:
    config = configs.override(default.get_config(), [("recipe.lr_batch_size", "0"), ("recipe.lr", "0.1")])
    assert make_plan(config, num_images=10**6, num_devices=8).peak_lr == 0.1
