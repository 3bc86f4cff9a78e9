"""What a change of each option does to a run that has begun, and a run of an earlier version."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from conftest import REPO, Run

from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.config import loading as configs
from rn50_jax.config.derived import Plan, make_plan
from rn50_jax.config.fields import Option
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config, options
from rn50_jax.data.batch import Position
from rn50_jax.data.image_set import ImageSet
from rn50_jax.errors import UserError
from rn50_jax.training.build import build_state
from rn50_jax.training.resume import Start, find_start
from rn50_jax.training.run_facts import checkpoint_meta
from rn50_jax.training.stream_facts import stream_facts

CLASSES = ("a", "b", "c")
IMAGES = ImageSet((), np.zeros(400, np.int32))
BASE = configs.override(
    Config(),
    [
        ("epochs", "2"),
        ("batch_size", "4"),
        ("precision", "fp32"),
        ("data.backend", "synthetic"),
        ("data.image_size", "32"),
        ("data.resize", "0"),
        ("model.arch", "resnet18"),
        ("model.stages", "(1,)"),
        ("model.width", "8"),
        ("recipe.loss", "bce"),
        ("recipe.ema_decay", "0.9"),
    ],
)
# Where another value does not follow from the type and what stands there.
OTHER = {
    "model.arch": "resnet50",
    "model.stages": "(2,)",
    "model.widths": "(16,)",
    "data.image_size": "40",
    "data.resize": "64",
    "data.image_sizes": "((0, 64),)",
    "data.crop_area": "(0.2, 1.0)",
    "data.crop_aspect": "(1.0, 1.0)",
    "data.background": "(1, 2, 3)",
    "data.mean": "(0.5, 0.5, 0.5)",
    "data.std": "(0.5, 0.5, 0.5)",
    "data.randaugment": "(3, 9)",
    "data.synthetic_images": "(800, 10)",
    "recipe.milestones": "(1,)",
    "recipe.optimizer_batch_size": "8",
    "recipe.bn_group": "0",
    "finetune.freeze": "('stem',)",
    "finetune.lr_scales": "(('fc', 2.0),)",
    "compute.xla_flags": "--xla_a=1",
}
# These change the number of images per device and update, or are presets of options that are refused.
REFUSED_FOR_ANOTHER_REASON = {
    "batch_size": "the number of images per device and update was 4",
    "recipe.optimizer_batch_size": "the number of images per device and update was 4",
    "recipe.exact_reference": "config.model.se_units was 0 and is 16 now",
    "data.val_share": "chose its validation images with config.data.val_share=0.0",
}


def other_value(option: Option) -> str:
    """Another value, as on a command line."""
    now = BASE.flat()[option.key]
    if option.key in OTHER:
        return OTHER[option.key]
    if option.kind is bool:
        return str(not now)
    if option.kind is str:
        listed = [part.strip(" '") for part in option.valid.removeprefix("one of ").split(",")]
        return next(name for name in listed if name != now) if option.valid.startswith("one of") else "other"
    changes = (now + 1, now / 2, now + 0.5) if option.kind is float else (now + 1, now * 2)
    return next(str(option.kind(value)) for value in changes if option.holds(option.kind(value)) and value != now)


class Begun(NamedTuple):
    """A run of which a checkpoint was saved after two steps."""

    workdir: Path
    checkpoints: Checkpoints


def plan_of(config: Config) -> Plan:
    return make_plan(config, num_images=400, num_devices=1)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    workdir = tmp_path_factory.mktemp("run")
    state = build_state(BASE, build_model(BASE, num_classes=3, platform="cpu"))
    facts = stream_facts(BASE, IMAGES, plan_of(BASE))
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        meta = checkpoint_meta(BASE, CLASSES, plan_of(BASE), facts, Position(0, 2))
        checkpoints.save(jax.device_get(state), meta | {"goodput": {}}, {})
        checkpoints.wait()
        yield Begun(workdir, checkpoints)


def resume(begun: Begun, config: Config) -> Start:
    return find_start(
        config,
        begun.workdir,
        begun.checkpoints,
        model=build_model(config, num_classes=3, platform="cpu"),
        class_names=CLASSES,
        plan=plan_of(config),
        stream=stream_facts(config, IMAGES, plan_of(config)),
        local_devices=[0],
    )


def arrays(config: Config) -> Any:
    state = build_state(config, build_model(config, num_classes=3, platform="cpu"), abstract=True)
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)


@pytest.mark.parametrize("key", options())
def test_every_option_has_the_effect_that_it_declares(
    key: str, begun: Begun, capfd: pytest.CaptureFixture[str]
) -> None:
    option = options()[key]
    config = configs.override(BASE, [(key, other_value(option))])
    assert config.flat()[key] != BASE.flat()[key]
    if key == "data.backend":  # synthetic data has no places in a stream that DALI could go on from
        assert "stream" in option.affects
    elif key in REFUSED_FOR_ANOTHER_REASON:
        with pytest.raises(UserError, match=REFUSED_FOR_ANOTHER_REASON[key]):
            resume(begun, config)
    elif "arrays" in option.affects and not option.only_on_or_off:
        with pytest.raises(UserError, match=f"another model or optimizer: config.{key} was "):
            resume(begun, config)
    elif "stream" in option.affects:
        with pytest.raises(UserError, match=rf"in the middle of epoch 1, which cannot go on: config.{key} was "):
            resume(begun, config)
    else:
        start = resume(begun, config)
        assert start.position[:2] == (0, 2)
        told = capfd.readouterr().err
        if "start" in option.affects:
            assert "goes on from its own checkpoints and not from other" in told
        else:
            assert f"config.{key} was {BASE.flat()[key]!r} and is {config.flat()[key]!r}" in told


@pytest.mark.parametrize("key", options())
def test_the_arrays_of_a_state_depend_on_what_declares_it_alone(key: str) -> None:
    option = options()[key]
    config = configs.override(BASE, [(key, other_value(option))])
    if "arrays" not in option.affects or option.only_on_or_off:
        assert arrays(config) == arrays(BASE)
    elif key != "model.se_units":  # of no effect without squeeze and excitation
        assert arrays(config) != arrays(BASE)


def test_averages_cannot_begin_or_end_within_a_run(begun: Begun) -> None:
    without = configs.override(BASE, [("recipe.ema_decay", "0")])
    assert arrays(without) != arrays(BASE)
    with pytest.raises(UserError, match=r"config\.recipe\.ema_decay was 0\.9 and is 0\.0 now"):
        resume(begun, without)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run of the version of 2026-11-29, interrupted after step 6 of its first epoch of 500 steps.

    It had, besides what the config says now, report.print_every, model.max_pool, tune.lr_scales, loss_scale.growth and
    others under their earlier names. A version that cannot read it has to say so in one line, and this test with it.
    """
    return Path(shutil.copytree(REPO / "tests/golden_run", tmp_path / "run"))


def test_a_run_of_an_earlier_version_resumes(earlier: Path, call: Run) -> None:
    command = ("train", "--config", earlier / "config.json", "--workdir", earlier, "--config.run.hang_timeout=1000")
    done = call(*command)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 0, step 6" in done.stdout
    assert "config.report.print_every is config.log.print_every now" in done.stderr
    for gone in ("recipe.cutmix_share=0.25", "model.max_pool=native"):
        assert f"config.{gone} is gone" in done.stderr
    assert "Traceback" not in done.stderr
    steps = [json.loads(line)["step"] for line in (earlier / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(2, 1001, 2))
    written = json.loads((earlier / "config.json").read_text())
    assert set(configs.flatten(written)) == set(options())
    assert written["finetune"]["lr_scales"] == [["fc", 2.0]]


def test_a_run_of_an_earlier_version_is_evaluated_and_plotted(earlier: Path, call: Run, tmp_path: Path) -> None:
    for command in (("evaluate", "--checkpoint", "latest", "--workdir", earlier), ("plot", earlier)):
        done = call(*command)
        assert done.returncode == 0, done.stderr


def test_an_option_that_an_earlier_run_lacked_had_its_default(
    begun: Begun, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = begun.checkpoints.restore_newest

    def as_of_earlier(like: Any, check: Any) -> Any:
        found = read(like, check)
        assert found is not None
        del found[1]["config"]["data"]["flip"], found[1]["stream"]["config.data.flip"]
        return found

    monkeypatch.setattr(begun.checkpoints, "restore_newest", as_of_earlier)
    assert resume(begun, BASE).position[:2] == (0, 2)
    assert (
        "is of an earlier version: config.data.flip, which it did not have, takes its default 0.5"
        in capfd.readouterr().err
    )
    with pytest.raises(UserError, match=r"config\.data\.flip was 0\.5 and is 0\.25 now"):
        resume(begun, configs.override(BASE, [("data.flip", "0.25")]))
