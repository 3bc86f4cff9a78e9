"""The schema offers what the factories make, and nothing else."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.schema import RULES
from rn50_jax.models.conv import INITS, LOWERINGS, STEMS
from rn50_jax.models.pool import LOWERINGS as POOL_LOWERINGS
from rn50_jax.models.precision import PRECISIONS
from rn50_jax.models.resnet import FAMILY
from rn50_jax.training.build import build_optimizer, build_options, build_schedule


def choices(key: str) -> set[str]:
    return set(re.findall(r"'([^']+)'", RULES[key].valid))


def test_what_the_schema_offers_is_what_there_is() -> None:
    assert choices("model.arch") == set(FAMILY)
    assert choices("model.init") == set(INITS)
    assert choices("model.conv_lowering") == {"auto", *LOWERINGS}
    assert choices("model.stem") == {"auto", *STEMS}
    assert choices("model.max_pool") == set(POOL_LOWERINGS)
    assert choices("precision") == set(PRECISIONS)


@pytest.mark.parametrize("key", ["recipe.optimizer", "recipe.schedule", "recipe.decay_mask", "recipe.loss"])
def test_every_choice_of_the_recipe_is_built_and_no_other(key: str) -> None:
    plan = make_plan(default.get_config(), num_images=1_281_167, num_devices=1)
    shapes = {"bn1": {"scale": np.ones(2)}, "fc": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}
    for name in choices(key):
        config = configs.override(default.get_config(), [(key, name)])
        build_optimizer(config).init(shapes)
        assert float(build_schedule(config, plan)(jnp.asarray(3))) > 0
        build_options(config, 1)
    if key in ("recipe.optimizer", "recipe.schedule"):
        unknown = ConfigDict(default.get_config().to_dict())
        unknown.update_from_flattened_dict({key: "other"})
        with pytest.raises(ValueError, match="other"):
            build_optimizer(unknown)
            build_schedule(unknown, plan)(jnp.asarray(3))
