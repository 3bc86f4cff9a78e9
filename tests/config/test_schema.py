"""The schema: each option is declared once, used, and offers what the factories make and nothing else."""

import ast
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPO

from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config, affecting, options
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.conv_norm import IMPLS
from rn50_jax.models.initial import INITS
from rn50_jax.training.build import build_optimizer, build_schedule

PACKAGE = REPO / "rn50_jax"


def outside() -> dict[Path, ast.AST]:
    """The package's modules but for the room in which options are declared and read."""
    return {
        path: ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "config" or path.stem in ("derived", "model")
    }


def test_every_option_is_declared_whole() -> None:
    for key, option in options().items():
        assert option.holds(option.default), key
        assert option.valid and option.meaning, key
        assert option.kind in (int, float, bool, str, tuple), key
    assert {option.key for option in affecting("machine")} == {"compute.compile_cache", "compute.xla_flags"}


# Where values come by key, because a weight file or a command line has only some of them.
BY_KEY = ("weights/torch_names.py", "training/pretrained.py", "inference/trained_model.py", "weights/metadata.py")


def test_every_option_is_used_and_by_attribute_alone() -> None:
    """A misspelt attribute is an error of mypy; a misspelt string would be one of a user's run."""
    names, read = {key.rpartition(".")[2] for key in options()}, set()
    for path, module in outside().items():
        for node in ast.walk(module):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                by_key = "." in str(node.slice.value) and node.slice.value in options()
                assert not by_key or str(path).endswith(BY_KEY), where
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
                assert not (isinstance(node.args[1], ast.Constant) and node.args[1].value in names), where
    # These act by other names: as the properties of their section, and as a preset of other options.
    indirect = {"dir", "image_sizes", "resize", "exact_reference"}
    assert names - read <= indirect


def test_an_option_is_written_in_two_places() -> None:
    """Its declaration and its use: outside of the schema no list of keys is kept that a new one could be missing in."""
    lists = []
    for path, module in outside().items():
        for node in ast.walk(module):
            if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
                items = node.keys if isinstance(node, ast.Dict) else node.elts
                keys = [str(item.value) for item in items if isinstance(item, ast.Constant) and item.value in options()]
                if len([key for key in keys if "." in key]) > 2:
                    lists.append((str(path.relative_to(PACKAGE)), keys))
    assert sorted(lists) == [
        ("train.py", ["model.pretrained_weights", "run.resume", "run.target_top1"]),  # that have options of their own
        ("weights/architecture.py", [option.key for option in affecting("arrays") if option.key.startswith("model.")]),
    ]


def test_the_option_that_contributing_shows_is_whole() -> None:
    """Its two places, as they are; nothing else names it but a page made from the schema, and what others call it."""
    text = (REPO / "CONTRIBUTING.md").read_text()
    for part in re.findall(r"^```diff\n(.*?)```", text, re.MULTILINE | re.DOTALL)[0].split("--- ")[1:]:
        file, _, lines = part.partition("\n")
        assert "\n".join(line[1:] for line in lines.splitlines()) in (REPO / file).read_text()
    files = [path for path in PACKAGE.rglob("*.py") if "vertical_flip" in path.read_text()]
    assert {str(path.relative_to(PACKAGE)) for path in files} == {
        "config/sections/data.py",
        "config/synonyms.py",
        "data/dali.py",
    }


def choices(key: str) -> set[str]:
    return set(re.findall(r"'([^']+)'", options()[key].valid))


def test_what_the_schema_offers_is_what_there_is() -> None:
    assert choices("model.init") == set(INITS)
    assert choices("compute.impl") == set(IMPLS)
    assert choices("precision") == set(PRECISIONS)


@pytest.mark.parametrize("key", ["recipe.optimizer", "recipe.schedule", "recipe.decay_mask"])
def test_every_choice_of_the_recipe_is_built_and_no_other(key: str) -> None:
    plan = make_plan(Config(), num_images=1_281_167, num_devices=1)
    model = build_model(Config(), num_classes=2, platform="cpu")
    shapes = {"bn1": {"scale": np.ones(2)}, "fc": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}
    for name in choices(key):
        config = configs.override(Config(), [(key, name)])
        build_optimizer(config, model).init(shapes)
        assert float(build_schedule(config, plan)(jnp.asarray(3))) > 0
    if key in ("recipe.optimizer", "recipe.schedule"):
        unknown = Config().recipe.model_copy(update={key.partition(".")[2]: "other"})
        config = Config().model_copy(update={"recipe": unknown})
        with pytest.raises(ValueError, match="other"):
            build_optimizer(config, model)
            build_schedule(config, plan)(jnp.asarray(3))
