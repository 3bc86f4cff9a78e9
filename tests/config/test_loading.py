"""Configs: every key is documented, checked and read; bad ones are refused with the key and its valid values."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import REPO

from rn50_jax.config import loading as configs
from rn50_jax.config import renamed
from rn50_jax.config.derived import Plan, make_plan
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config, options
from rn50_jax.errors import UserError
from rn50_jax.io import json_files
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.resnet import ResNet
from rn50_jax.training.build import build_schedule


def test_the_default_recipe_is_the_schema() -> None:
    config, name = configs.load("configs/default.py")
    assert (config, name) == (Config(), "default")


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
    before = Config()
    config = configs.override(before, [(key, text)])
    assert config.flat()[key] == value
    assert before.flat()[key] != value


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("batchsize", "3", "did you mean batch_size"),
        ("lr", "3", "did you mean recipe.lr"),
        ("recipe", "3", "did you mean recipe.lr, "),
        ("frobnicate", "3", "--help_config lists the keys"),
        ("tune.freeze", "3", "config has no key 'tune.freeze'; it is finetune.freeze now"),
        ("on_bad_file", "3", "config has no key 'on_bad_file'; data.on_bad_file is gone: --config.data.max_bad_"),
        ("report", "3", "config has no key 'report'; it is log now"),
        ("data.prefetch", "3", "config has no key 'data.prefetch'; it is gone: two batches are always ready"),
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
        ("recipe.warmup_epochs", "-1", "must be an integer >= 0"),
        ("data.resize", "200", "at least config.data.image_size=224"),
    ],
)
def test_bad_override_names_the_key(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        configs.override(Config(), [(key, text)])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_excluding_modes_are_refused() -> None:
    both = [("run.training_only", "true"), ("run.evaluate", "true")]
    with pytest.raises(UserError, match="exclude each other"):
        configs.override(Config(), both)


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


def test_a_recipe_may_return_what_it_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from rn50_jax.config import loading\ndef get_config():\n"
        "    config, _ = loading.load('quickstart')\n    return config.replace(epochs=3)\n"
    )
    config, _ = configs.load(str(path), [("seed", "5")])
    assert config == configs.load("quickstart")[0].replace(epochs=3, seed=5)


def test_missing_config_file() -> None:
    with pytest.raises(UserError, match=r"'configs/none.py' does not exist"):
        configs.load("configs/none.py")


def test_config_of_an_earlier_run_is_read_without_executing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json_files.to_json(Config().to_dict()))
    config, name = configs.load(str(path))
    assert name == "config"
    assert config.flat() == Config().flat()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not a config"),
        (b"[1]", "valid dictionary"),
        (b"null", "valid dictionary"),
        (b"", "is not a config"),
        (b'{"a": 1}\0', "is not a config"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a whole number of 5000 digits"),
        (b'{"seed": 18446744073709551616}', "more than 64 bits"),
        (b'{"recipe": {"lr": NaN}}', "NaN is no JSON"),
        (b'{"recipe": {"lr": 1e400}}', "too large a number"),
        (b'{"a.b": 1}', "config has no key 'a.b'"),
        (b'{"a": {"b.c": 1}}', "config has no key 'a.b.c'"),
        (b'{"__class__": 1}', "__class__"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_broken_json_config(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        configs.load(str(path))
    told = str(error.value)
    assert told.startswith(f"{path} is not a config") and message in told and "\n" not in told and len(told) < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 5}, "config has no key 'model'|config lacks the section 'model'"),
        ({"model": {"width": {"a": 1}}}, "model.width"),
        ({"model": None}, "config has no key 'model'|config lacks the section 'model'"),
        ({"epochs": {"a": 1}}, "epochs"),
        ({"epochs": [1]}, "config.epochs=.* must be an integer >= 1"),
        ({"seed": 2**63}, "config.seed=9223372036854775808 must be an integer >= 0"),
        ({"seed": 10**5000}, "config.seed=a number of thousands of digits must be an integer >= 0"),
        ({"recipe": {"lr": 10**400}}, r"config.recipe.lr=10000.*\.\.\. must be a number > 0"),
        ({"data": {"dir": "a\0b"}}, "config.data.dir=.* must be a folder"),
        ({"data": {"dir": "\ud800"}}, "config.data.dir=.* must be a folder"),
        ({"finetune": {"freeze": ["stem", 5]}}, "config.finetune.freeze=.* must be names of parts"),
        ({"model": {"stages": [2**31]}}, "config.model.stages=.* must be integers >= 1"),
        ({"model": {"stages": [1] * 1000}}, "config.model.stages=.* at most 8"),
        ({"data": {"crop_area": [True, 1]}}, "config.data.crop_area=.* must be two numbers"),
        ({"data": {"image_sizes": [[0, 2**20]]}}, "config.data.image_sizes="),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "-".join(value),
)
def test_values_of_the_wrong_kind_are_one_line(change: dict[str, Any], message: str) -> None:
    tree = Config().to_dict()
    for key, value in change.items():
        tree[key] = tree[key] | value if isinstance(value, dict) and isinstance(tree[key], dict) else value
    with pytest.raises(UserError, match=message) as error:
        configs.from_saved(tree, source="it")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("key", [key for key, option in options().items() if option.kind in (int, float, tuple)])
@pytest.mark.parametrize("text", ["9" * 23, "9" * 5000, "(" * 5000, "[" * 50_000, "-" * 50_000 + "1", "((((1,),),),)"])
def test_absurd_numbers_are_refused_in_one_line(key: str, text: str) -> None:
    if options()[key].kind is float and text == "9" * 23:
        text = "1e400"
    with pytest.raises(UserError, match=rf"config\.{key}=.* must be ") as error:
        configs.override(Config(), [(key, text)])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


OWN_NAMES = ("config.json", "lock", "checkpoints", "quarantine.json", "left_out.jsonl", "tensorboard", "wandb.json")


@pytest.mark.parametrize("name", [*OWN_NAMES, "a\nb", "metrics.jsonl", "x.unfinished", "metrics.jsonl.damaged"])
def test_reports_do_not_overwrite_what_else_a_run_has(name: str) -> None:
    for path in (".", "x/..", name, f"./{name}", f"{name}/x", f"x/../{name}"):
        with pytest.raises(UserError, match=r"log\.dle_json=.* must be a file that is none of the run's"):
            configs.override(Config(), [("log.dle_json", path)])


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "b/" * 3000])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        configs.load(name)


def test_folders_of_names_that_are_not_utf8() -> None:
    assert configs.override(Config(), [("data.dir", "/data/\udcff")]).data.dir == "/data/\udcff"


@pytest.mark.parametrize("depth", [0, 20_000])
def test_lists_without_end_are_refused(tmp_path: Path, depth: int) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from configs import default\n\ndef get_config():\n    config, inner = default.get_config(), []\n"
        f"    inner.append(inner)\n    for _ in range({depth}):\n        inner = [inner]\n"
        "    config.unlock()\n    config.model.stages = inner\n    return config\n"
    )
    with pytest.raises(UserError, match=r"^config\.model\.stages=.{,99} must be integers >= 1"):
        configs.load(str(recipe))


def write_json(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(json_files.to_json(tree))
    return str(path)


def test_json_config_of_a_run_that_lacked_an_option(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = Config(epochs=3).to_dict()
    del tree["recipe"]["lr"]
    path = write_json(tmp_path / "config.json", tree)
    assert configs.load(path)[0] == Config(epochs=3)
    assert capfd.readouterr().err == f"note: {path} does not say recipe.lr: the defaults are used\n"


def test_json_config_of_an_earlier_version(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = Config().to_dict()
    del tree["finetune"], tree["data"]["max_bad_images"]
    tree["tune"] = {"freeze": ["stem"], "lr_decay": 1.0, "lr_scales": [], "new_head": False}
    tree["data"] |= {"on_bad_file": "error", "max_bad_files": 7, "prefetch": 2}
    tree["loss_scale"]["growth"] = 3.0
    path = write_json(tmp_path / "config.json", tree)
    config, _ = configs.load(path)
    assert config == Config().replace(
        finetune=Config().finetune.replace(freeze=("stem",)), data=Config().data.replace(max_bad_images=0)
    )
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"note: {path} is of an earlier version: ")
    assert "config.tune.freeze is config.finetune.freeze now" in told
    assert "config.loss_scale.growth=3.0 is gone: the scale always doubles" in told
    assert "lr_decay" not in told and "prefetch" not in told  # which were as they are


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ("c.tune.freeze = ('stem',)", "tune: it is finetune now"),
        ("c.report.print_every = 3", "report: it is log now"),
        ("c.model.stem = 'conv'", "stem: it is gone: compute.impl says how convolution and BatchNorm are written"),
        ("c.data.prefetch = 3", "prefetch: it is gone: two batches are always ready on the device"),
    ],
)
def test_recipes_of_an_earlier_version_are_told_the_new_name(tmp_path: Path, body: str, hint: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + f"    {body}\n    return c\n")
    with pytest.raises(UserError, match=re.escape(hint)):
        configs.load(str(path))


def test_an_unknown_option_of_a_later_version_is_refused() -> None:
    with pytest.raises(UserError, match=r"^it is not a config of this version: config has no key 'recipe.magic'"):
        configs.from_saved(Config().to_dict() | {"recipe": {"magic": 1}}, source="it")


def test_what_was_renamed_is_what_there_is() -> None:
    assert set(renamed.MOVED.values()) <= options().keys()
    assert not (renamed.MOVED.keys() | renamed.REMOVED.keys()) & options().keys()


class Shipped(NamedTuple):
    """One of NVIDIA's training scripts: what it passes, and the rates that follow at some epochs (from 0)."""

    machine: int  # GPUs
    batch: int  # per GPU
    global_batch: int
    passes: int
    peak: float
    warmup: int
    epochs: int
    mixup: float
    backend: str
    rates: dict[int, float]


RATES = {
    (8, 50): {0: 0.256, 1: 0.512, 7: 2.048, 8: 2.048, 9: 2.04513669, 25: 1.3258293, 49: 0.00286331},
    (8, 90): {0: 0.256, 7: 2.048, 8: 2.048, 9: 2.04724857, 45: 1.18031287, 88: 0.00300462, 89: 0.00075143},
    (8, 250): {0: 0.256, 9: 2.04791372, 125: 1.07714951, 249: 8.628e-05},
    (16, 90): {0: 0.256, 15: 4.096, 45: 2.7302703, 89: 0.00184532},
    (16, 50): {0: 0.256, 15: 4.096, 16: 4.096},
    (16, 250): {0: 0.256, 15: 4.096, 16: 4.096},
}


def shipped(gpus: int, epochs: int, *, batch: int = 256, backend: str = "dali-cpu") -> Shipped:
    """The scripts follow one rule: a batch of 256 for each GPU, a thousandth of it as rate, mixup in long runs."""
    total = 256 * gpus
    mixup = 0.2 if epochs == 250 else 0.0
    rates = RATES[gpus, epochs]
    return Shipped(gpus, batch, total, total // (batch * gpus), total / 1000, gpus, epochs, mixup, backend, rates)


REFERENCE = {
    **{f"dgx1_{epochs}e:fp16": shipped(8, epochs) for epochs in (50, 90, 250)},
    **{f"dgx1_{epochs}e:fp32": shipped(8, epochs, batch=128) for epochs in (50, 90, 250)},
    **{f"dgx2_{epochs}e:fp16": shipped(16, epochs, backend="dali-gpu") for epochs in (50, 90, 250)},
    **{f"dgx2_{epochs}e:fp32": shipped(16, epochs, batch=128, backend="dali-gpu") for epochs in (50, 90, 250)},
    **{f"dgxa100_{e}e:{p}": shipped(8, e) for e in (90, 250) for p in ("bf16", "fp16", "tf32", "fp32")},
}


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_configs(name: str) -> None:
    wanted = REFERENCE[name]
    stem, _, variant = name.partition(":")
    plain, run_name = configs.load(f"configs/{stem}.py:{variant}")
    exact = configs.override(plain, [("recipe.exact_reference", "true")])
    assert run_name == f"{stem}-{variant}"
    for config in (plain, exact):
        plan = make_plan(config, num_images=1281167, num_devices=wanted.machine)
        assert (plan.global_batch, plan.accumulation) == (wanted.global_batch, wanted.passes)
        assert plan.peak_lr == pytest.approx(wanted.peak)
        assert plan.steps_per_epoch == 1281167 // wanted.global_batch
        on_one = make_plan(config, num_images=1281167, num_devices=1)
        if not stem.startswith("dgxa100"):  # accumulates up to the batch that the published rate is for
            assert (on_one.global_batch, on_one.peak_lr) == (plan.global_batch, plan.peak_lr)
        assert config.log.dle_json == "raport.json"
        recipe = config.recipe
        assert (config.batch_size, config.epochs, config.precision) == (wanted.batch, wanted.epochs, variant)
        assert (recipe.schedule, recipe.warmup_epochs, recipe.mixup) == ("cosine", wanted.warmup, wanted.mixup)
        assert recipe.weight_decay == 3.0517578125e-05
        assert (recipe.momentum, recipe.nesterov, recipe.label_smoothing) == (0.875, False, 0.1)
        assert (config.loss_scale.mode, config.loss_scale.init) == ("static", 128)
        assert (config.model.arch, config.model.init, config.model.zero_init_last_gamma) == ("resnet50", "fanin", False)
        assert config.data.backend == wanted.backend
        assert (config.data.image_size, config.data.resize, config.data.flip) == (224, 0, 0.5)
        assert (config.data.crop_area, config.data.crop_aspect) == ((0.08, 1.0), (3 / 4, 4 / 3))
        rate, steps = build_schedule(config, plan), plan.steps_per_epoch
        for epoch, lr in wanted.rates.items():
            # The default reaches the reference's rate at the end of a warm-up epoch, later at the beginning.
            step = (epoch + 1) * steps - 1 if epoch < wanted.warmup else epoch * steps
            assert float(rate(step)) == pytest.approx(lr, rel=1e-4)
            if config is exact:
                assert float(rate(epoch * steps)) == float(rate((epoch + 1) * steps - 1))


def test_exact_reference_switches_every_quirk() -> None:
    config = configs.override(Config(), [("recipe.exact_reference", "true")])
    before = Config().flat()
    changed = {key: value for key, value in config.flat().items() if before[key] != value}
    assert changed == {
        "recipe.exact_reference": True,
        "recipe.lr_update": "epoch",
        "recipe.decay_mask": "reference",
        "recipe.running_average": "first",
        "data.transform": "dali",
        "model.se_units": 16,
    }
    contradicting = [("recipe.lr_update", "step"), ("recipe.exact_reference", "true")]
    with pytest.raises(UserError, match=r"exact_reference=True stands for config.recipe.lr_update='epoch', which is"):
        configs.override(Config(), contradicting)
    # Read back from a run's JSON it stays what it was, and switching it off leaves the keys alone.
    again = configs.from_saved(json.loads(json_files.to_json(config.to_dict())), source="it").config
    assert configs.override(again, []).flat() == config.flat()
    off = configs.override(again, [("recipe.exact_reference", "false"), ("recipe.lr_update", "step")])
    assert (off.recipe.lr_update, off.recipe.decay_mask) == ("step", "reference")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("model.widths", "(64, 128)")], "has 2 stages, but config.model.stages=(3, 4, 6, 3)"),
        ([("model.stages", "(1, 1)"), ("model.widths", "(8, 0)")], "integers >= 1, such as"),
        ([("model.arch", "resnext50-32x4d"), ("model.width", "8")], "a multiple of 16, and config.model.width"),
        ([("recipe.milestones", "30")], "must be integers >= 1, such as (30, 60, 80)"),
        ([("recipe.schedule", "exponential")], "one of 'cosine', 'linear', 'step'"),
        (
            [("log.dle_json", "metrics.jsonl")],
            "config.log.dle_json='metrics.jsonl' must be a file that is none of the run's own",
        ),
    ],
)
def test_impossible_models_and_recipes(overrides: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        configs.override(Config(), overrides)


def test_config_builds_the_model_it_describes() -> None:
    overrides = [("model.stages", "(1, 2)"), ("model.widths", "(8, 24)"), ("model.width", "16")]
    overrides += [
        ("model.arch", "se-resnet50"),
        ("model.se_units", "4"),
        ("model.init", "classic"),
        ("precision", "fp32"),
        ("compute.impl", "plain"),
    ]
    config = configs.override(Config(), overrides)
    model = build_model(config, num_classes=3, platform="gpu")
    assert isinstance(model, ResNet)
    assert model.variant.stages == (1, 2) and model.variant.se
    assert (model.width, model.widths, model.se_units, model.fan) == (16, (8, 24), 4, "fan_out")
    assert model.compute == PRECISIONS["fp32"]._replace(platform="gpu", impl="plain")


# Recipes from elsewhere.
TARGETS = {"mlperf_lars", "progressive_16e", "progressive_32e", "progressive_88e", "a3_100e"}


def test_targets_from_elsewhere_are_called_so() -> None:
    for stem in TARGETS:
        text = (REPO / f"configs/{stem}.py").read_text()
        assert "Target, not measured here" in text, stem
        assert f"configs/{stem}.py" in (REPO / "docs/recipe.md").read_text()


@pytest.mark.parametrize(("epochs", "ramp"), [(16, (11, 13)), (32, (23, 27)), (88, (65, 76))])
def test_images_grow_as_in_ffcv(epochs: int, ramp: tuple[int, int]) -> None:
    config, _ = configs.load(f"configs/progressive_{epochs}e.py")
    for epoch in range(epochs):
        wanted = round(np.interp(epoch, ramp, (160, 192)) / 32) * 32
        assert [size for start, size in config.data.image_sizes if start <= epoch][-1] == wanted
    plan = make_plan(config, num_images=1281167, num_devices=8)
    rate, steps = build_schedule(config, plan), plan.steps_per_epoch
    assert (plan.global_batch, config.data.image_size) == (4096, 224)
    for epoch in range(2, epochs):  # the peak after two epochs, then a straight line
        assert float(rate(epoch * steps)) == pytest.approx(np.interp(epoch, [2, epochs], [1.7, 0]), rel=1e-4)


def test_a3_is_that_of_the_paper() -> None:
    config, _ = configs.load("configs/a3_100e.py")
    plan = make_plan(config, num_images=1281167, num_devices=4)
    assert (config.epochs, plan.global_batch, plan.accumulation, plan.peak_lr) == (100, 2048, 2, 8e-3)
    recipe, data = config.recipe, config.data
    assert (recipe.optimizer, recipe.weight_decay, recipe.warmup_epochs, recipe.schedule) == ("lamb", 0.02, 5, "cosine")
    assert (recipe.loss, recipe.label_smoothing, recipe.mixup, recipe.cutmix) == ("bce", 0.0, 0.1, 1.0)
    assert (data.image_sizes, data.image_size, data.image_size / data.resize) == (
        ((0, 160),),
        224,
        pytest.approx(0.95, abs=0.005),
    )


@pytest.mark.parametrize(
    ("variant", "gpus", "batch", "epochs", "rates"),
    [
        ("3k", 8, 3264, 37, {0: 0.013393, 1: 10.5, 19: 10.5 * (18 / 35) ** 2}),
        ("33k", 64, 33280, 58, {0: 0.034868, 15: 21.2, 37: 21.2 * 0.5**2}),
    ],
)
def test_lars_recipes_are_those_of_mlperf(
    variant: str, gpus: int, batch: int, epochs: int, rates: dict[int, float]
) -> None:
    config, _ = configs.load(f"configs/mlperf_lars.py:{variant}")
    plan = make_plan(config, num_images=1281167, num_devices=gpus)
    assert (plan.global_batch, config.epochs, plan.accumulation) == (batch, epochs, 1 if gpus == 8 else 8)
    rate, steps = build_schedule(config, plan), plan.steps_per_epoch
    # The first step; the peak, at the end of the warm-up; and the power of what is left.
    for epoch, wanted in rates.items():
        step = (epoch + 1) * steps - 1 if epoch in (1, 15) else epoch * steps
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-3), epoch


def test_all_shipped_configs_load_in_every_variant() -> None:
    stems = {path.stem for path in (REPO / "configs").glob("*.py")}
    machines = {"dgx1_50e", "dgx1_90e", "dgx1_250e", "dgx2_50e", "dgx2_90e", "dgx2_250e", "dgxa100_90e", "dgxa100_250e"}
    others = {"default", "nvidia_defaults", "quickstart", "fine_tune", "linear_probe", "fashion_mnist"}
    assert stems == machines | others | TARGETS
    for stem in stems:
        configs.load(str(REPO / f"configs/{stem}.py"))
    with pytest.raises(UserError, match="its variants: fp16, fp32"):
        configs.load("configs/dgx1_90e.py:tf32")


@pytest.mark.parametrize(("variant", "images"), [("images100", 100), ("images1000", 1000), ("images10000", 10_000)])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_fine_tuning_by_number_of_images_has_steps(variant: str, images: int, num_devices: int) -> None:
    """An epoch of that many images, a fifth of them set apart, has a step on each machine."""
    for recipe in ("fine_tune", "linear_probe"):
        config, name = configs.load(f"configs/{recipe}.py:{variant}")
        plan = make_plan(config, num_images=images * 8 // 10, num_devices=num_devices)
        assert name == f"{recipe}-{variant}" and plan.steps_per_epoch >= 1
        assert plan.steps_per_epoch * config.epochs >= (300 if num_devices == 1 else 40)
        assert config.recipe.warmup_epochs <= config.epochs / 5


def test_first_variant_is_the_default() -> None:
    assert configs.load("configs/dgx1_90e.py")[0].precision == "fp16"
    assert configs.load("configs/dgxa100_250e.py")[0].precision == "bf16"


def test_plan_accumulates_on_fewer_devices() -> None:
    config = configs.override(Config(), [("batch_size", "128"), ("recipe.optimizer_batch_size", "2048")])
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
        (
            [("recipe.optimizer_batch_size", "2048")],
            96,
            1,
            "batch_size=96 or less and --config.recipe.optim",
        ),
        ([("recipe.optimizer_batch_size", "2048")], 3000, 16, "global batch of 4096; use --config.batch_size=187 or"),
        ([("recipe.optimizer_batch_size", "512")], 300, 1, "optimizer_batch_size=256, or 0"),
        ([("epochs", "1000000"), ("batch_size", "1")], 10**6, 1, "more than the 2**31 steps"),
    ],
)
def test_impossible_plans(overrides: list[tuple[str, str]], num_images: int, num_devices: int, message: str) -> None:
    config = configs.override(Config(), overrides)
    with pytest.raises(UserError, match=re.escape(message)):
        make_plan(config, num_images=num_images, num_devices=num_devices)


def test_absolute_learning_rate() -> None:
    config = configs.override(Config(), [("recipe.lr_batch_size", "0"), ("recipe.lr", "0.1")])
    assert make_plan(config, num_images=10**6, num_devices=8).peak_lr == 0.1
