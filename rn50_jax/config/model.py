"""From config to model."""

from rn50_jax.config.own_network import own_network
from rn50_jax.config.schema import Config
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY
from rn50_jax.models.initial import INITS
from rn50_jax.models.network import Network
from rn50_jax.models.norm import NormSync
from rn50_jax.models.resnet import ResNet


def build_model(config: Config, *, num_classes: int, platform: str, sync: NormSync | None = None) -> Network:
    """Returns the config's model: a member of the family, or one of the user's own.

    Args:
      platform: "cpu" or "gpu", for what is written otherwise for each.
      sync: devices that share BatchNorm's statistics; of use in training only.
    """
    model = config.model
    compute = PRECISIONS[config.precision]._replace(platform=platform, impl=config.compute.impl, sync=sync)
    if model.is_own:
        return own_network(config, num_classes=num_classes, compute=compute)
    return ResNet(
        variant=FAMILY[model.arch]._replace(stages=model.num_blocks),
        num_classes=num_classes,
        compute=compute,
        width=model.width,
        widths=model.widths,
        se_units=model.se_units,
        small_stem=model.small_stem,
        fan=INITS[model.init],
        zero_init_last_gamma=model.zero_init_last_gamma,
        frozen=config.finetune.freeze,
    )
