"""Every option at its default; the recipe is NVIDIA's for ResNet-50 v1.5.

Other configs start from this one and change a few lines; on the command line it is `--config.key=value`. All keys with
their meanings: docs/config.md, or --help_config.
"""

from ml_collections import ConfigDict

from rn50_jax.config.loading import defaults


def get_config() -> ConfigDict:
    return defaults()
