"""Configs of the benchmark, small enough for tests."""

from typing import Any

from conftest import REPO

from rn50_jax.config import loading as configs

SMALL = (("model.arch", "resnet18"), ("model.width", "8"), ("model.stages", "(1, 1)"), ("model.num_classes", "5"))


def small_config() -> Any:
    config, _ = configs.load(str(REPO / "configs/quickstart.py"))
    return configs.override(config, [*SMALL, ("batch_size", "4"), ("data.backend", "synthetic")])
