"""Frozen parts and learning rates by part: what stands still, what is not computed, and what is refused."""

import json
import re
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from helpers.tiny import CLASSES, OPTIONS, assert_same_bits, make_batch, place

from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, replicate
from rn50_jax.errors import UserError
from rn50_jax.models.family import FAMILY
from rn50_jax.models.network import part_of, parts_of, split_frozen
from rn50_jax.training.build import build_optimizer, build_state, compile_steps
from rn50_jax.training.memory import Memory, analyse_memory
from rn50_jax.training.optim import lamb, lars, rate_factors, sgd
from rn50_jax.training.state import TrainState
from rn50_jax.training.step import train_step


def make_config(*overrides: tuple[str, str]) -> Config:
    small = [("model.arch", "resnet18"), ("model.stages", "(1, 1)"), ("model.width", "8"), ("precision", "fp32")]
    config = configs.override(Config(), [*small, ("data.image_size", "32"), *overrides])
    return config


def one_step(config: Config, devices: int, optimizer: Any = None) -> tuple[Any, TrainState, Any]:
    """The compiled step of a config, a state for it, and that step's program as text."""
    model = build_model(config, num_classes=CLASSES, platform="gpu")  # convolutions as such, to be counted
    mesh = make_mesh(jax.devices()[:devices])
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer or build_optimizer(config, model),
        learning_rate=lambda step: 0.1,
        **OPTIONS.replace(ema_decay=config.recipe.ema_decay)._asdict(),
        axis_name=AXIS,
    )
    compiled = map_over_devices(step, mesh, mode="pmap")
    state = replicate(build_state(config, model), mesh)
    return compiled, state, compiled.lower(state, place(make_batch(devices, 4))).as_text()


def test_parts_go_from_the_input_to_the_output() -> None:
    model = build_model(make_config(), num_classes=3, platform="cpu")
    params = build_state(make_config(), model, abstract=True).params
    parts = ("stem", "layer1", "layer2", "fc")
    assert parts_of(model) == parts
    assert {part_of(model, module) for module in params} == set(parts)
    trained, held = split_frozen(params, model.clone(frozen=("stem", "layer1")))
    assert sorted(held) == ["bn1", "conv1", "layer1_0"] and sorted(trained) == ["fc", "layer2_0"]
    assert rate_factors(parts, decay=0.5, scales=()) == {"stem": 1 / 8, "layer1": 1 / 4, "layer2": 1 / 2, "fc": 1}
    scaled = rate_factors(parts, decay=1.0, scales=(("layer1", 0.1),))
    assert scaled == {"stem": 1, "layer1": 0.1, "layer2": 1, "fc": 1}


@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_frozen_parts_stay_bit_for_bit(optimizer: str) -> None:
    # Three devices: a mean over them would round.
    frozen = ("stem", "layer2")
    config = make_config(
        ("finetune.freeze", str(frozen)), ("recipe.optimizer", optimizer), ("recipe.ema_decay", "0.9")
    )  # layer1 learns through layer2
    step, state, _ = one_step(config, 3)
    # Weights and statistics as after training, of which no value is a round number.
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + rng.uniform(0.01, 0.02, x.shape).astype(np.float32), jax.device_get(state))
    start = jax.device_get(state)._replace(params=noisy.params, batch_stats=noisy.batch_stats)
    start = start._replace(ema={"params": start.params, "batch_stats": start.batch_stats})
    state = replicate(start, make_mesh(jax.devices()[:3]))
    model = build_model(config, num_classes=CLASSES, platform="cpu")
    for seed in range(2):
        state, _ = step(state, place(make_batch(3, 4, seed)))
    assert int(state.step) == 2
    for trees in ("params", "batch_stats"):
        for before, after in (
            (getattr(start, trees), jax.device_get(getattr(state, trees))),
            (start.ema[trees], jax.device_get(state.ema[trees])),
        ):
            (trained, held), (trained_before, held_before) = (split_frozen(tree, model) for tree in (after, before))
            assert held and set(held) == {name for name in after if part_of(model, name) in frozen}
            assert_same_bits(held, held_before)
            moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), trained, trained_before)
            assert all(jax.tree.leaves(moved))
    assert not any("layer2" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state[3]))


@pytest.mark.slow
def test_gradients_of_what_is_frozen_are_not_computed() -> None:
    def convolutions(*frozen: str) -> int:
        _, _, text = one_step(make_config(("finetune.freeze", str(frozen))), 1)
        return len(re.findall(r"stablehlo.convolution", text))

    # Forward 1 + 2 + 3. Backward two for each but the first, whose input has no gradient; below the lowest part that
    # is trained nothing, and above it none for the weights of what is frozen.
    assert convolutions() == 6 + 11
    assert convolutions("stem", "layer1", "layer2") == 6
    assert convolutions("stem", "layer1") == 6 + 4  # neither of the two on layer1's output has a gradient of it
    assert convolutions("stem", "layer2") == 6 + 3 + 3


def test_frozen_batch_norms_use_their_running_statistics() -> None:
    config = make_config(("finetune.freeze", "('stem', 'layer1', 'layer2')"))
    model = build_model(config, num_classes=CLASSES, platform="cpu")
    state = build_state(config, model)
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    training, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(training, model.apply(variables, images, train=False))
    assert_same_bits(jax.device_get(updated["batch_stats"]), jax.device_get(state.batch_stats))
    features = model.apply(variables, images, train=False, head=False)
    assert features.shape == (4, 16) and features.dtype == np.float32
    head = state.params["fc"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], training, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_config_builds_the_optimizer_it_describes() -> None:
    model = build_model(make_config(), num_classes=3, platform="cpu")
    state = build_state(make_config(), model)
    params = {module: state.params[module] for module in ("bn1", "conv1", "layer1_0", "fc")}
    params["layer2_0"] = {"downsample_1": state.params["layer2_0"]["downsample_1"]}
    grads = jax.tree.map(lambda x: np.full(x.shape, 0.01, np.float32), params)
    shared = {"weight_decay": 0.02, "mask": "no_bn_bias"}
    wanted = {
        "sgd": sgd(momentum=0.5, nesterov=True, **shared),
        "lars": lars(momentum=0.5, nesterov=True, trust=0.3, **shared),
        "lamb": lamb(beta1=0.7, beta2=0.8, eps=0.1, **shared),
    }
    keys = {"momentum": 0.5, "nesterov": True, "lars_trust": 0.3, "beta1": 0.7, "beta2": 0.8, "eps": 0.1}
    keys |= {"weight_decay": 0.02, "decay_mask": "no_bn_bias"}
    for name, tx in wanted.items():
        overrides = [(f"recipe.{key}", str(value)) for key, value in (keys | {"optimizer": name}).items()]
        for extra in ([], [("finetune.lr_decay", "0.5"), ("finetune.lr_scales", "[('fc', 2.0)]")]):
            ours = build_optimizer(make_config(*overrides, *extra), model)
            update, theirs = (t.update(grads, t.init(params), params, learning_rate=0.1)[0] for t in (ours, tx))
            for module, part in theirs.items():
                factor = {"stem": 1 / 8, "layer1": 1 / 4, "layer2": 1 / 2, "fc": 2.0}[part_of(model, module)]
                factor = factor if extra else 1
                scaled = jax.tree.map(lambda u, f=factor: f * u, part)
                jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), update[module], scaled)
    clipping = build_optimizer(make_config(("recipe.clip_norm", "1e-6"), ("recipe.weight_decay", "0")), model)
    small = clipping.update(grads, clipping.init(params), params, learning_rate=1.0)[0]
    assert float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(small)))) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (
            "finetune.freeze",
            "('layer5',)",
            "names 'layer5'; the parts of the model are stem, layer1, layer2",
        ),
        ("finetune.freeze", "stem", "must be names of parts, such as ('stem', 'layer1')"),
        ("finetune.freeze", "('stem', 'stem')", "names a part twice"),
        ("finetune.freeze", "('stem', 'layer1', 'layer2', 'layer3', 'layer4', 'fc')", "leaves nothing to train"),
        ("finetune.lr_scales", "(('layer9', 0.1),)", "names 'layer9'"),
        ("finetune.lr_scales", "(('fc', 0),)", "pairs of a part and a factor > 0"),
        ("finetune.lr_scales", "('fc', 0.1)", "pairs of a part and a factor > 0"),
        ("finetune.lr_decay", "0", "must be a number > 0 and at most 1"),
        ("recipe.bce_threshold", "0.2", "is of no use with config.recipe.loss='cross_entropy'"),
        ("recipe.optimizer", "adam", "one of 'sgd', 'lars', 'lamb'"),
        ("recipe.random_erasing", "1.5", "from 0 to 1"),
        ("run.target_top1", "101", "from 0 to 100"),
    ],
)
def test_mistakes_name_the_key(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        configs.override(Config(), [(key, text)])


def test_a_rate_for_what_is_frozen_and_a_target_without_validation_are_refused() -> None:
    both = [("finetune.freeze", "('stem',)"), ("finetune.lr_scales", "(('stem', 0.1),)")]
    with pytest.raises(UserError, match=r"lr_scales has a rate for 'stem', which config.finetune.freeze holds"):
        configs.override(Config(), both)
    target = [("run.training_only", "true"), ("run.target_top1", "76")]
    with pytest.raises(UserError, match=r"training_only and config.run.target_top1 exclude each other"):
        configs.override(Config(), target)


def test_pairs_come_back_from_json_as_they_were() -> None:
    config = make_config(("finetune.lr_scales", "[['layer1', 0.1], ('fc', 2)]"))
    again = configs.from_saved(json.loads(json.dumps(config.to_dict())), source="it").config
    assert again.finetune.lr_scales == (("layer1", 0.1), ("fc", 2))


def test_parts_of_every_architecture() -> None:
    for arch in FAMILY:
        model = build_model(make_config(("model.arch", arch), ("model.stages", "(1, 1, 1, 1)"), ("model.width", "64")),
                            num_classes=3, platform="cpu")  # fmt: skip
        params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
        assert {part_of(model, module) for module in params} == set(parts_of(model))
        assert parts_of(model) == ("stem", "layer1", "layer2", "layer3", "layer4", "fc")


def test_less_memory_is_needed_for_less_to_train() -> None:
    def analyse(*overrides: tuple[str, str]) -> Memory:
        config = make_config(*overrides)
        model = build_model(config, num_classes=CLASSES, platform="cpu")
        mesh = make_mesh(jax.devices()[:2])
        plan = make_plan(config, num_images=1000, num_devices=2)
        step, _ = compile_steps(config, model, plan, mesh)
        state, batch = replicate(build_state(config, model), mesh), place(make_batch(2, 8))
        memory = analyse_memory(step, state, batch)
        assert memory is not None
        assert memory.state == sum(x.nbytes for x in jax.tree.leaves(state))
        assert memory.images == 8 * (32 * 32 * 3 + 4 + 4)  # of one device: pixels, label, weight
        return memory

    whole, probe = analyse(), analyse(("finetune.freeze", "('stem', 'layer1', 'layer2')"))
    assert probe.state < whole.state and probe.workspace < whole.workspace / 2
