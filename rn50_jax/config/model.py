"""From config to model."""

from ml_collections import ConfigDict

from rn50_jax.models.conv import INITS
from rn50_jax.models.norm import NormSync
from rn50_jax.models.precision import PRECISIONS
from rn50_jax.models.resnet import FAMILY, ResNet


def build_model(config: ConfigDict, *, num_classes: int, platform: str, sync: NormSync | None = None) -> ResNet:
    """Returns the config's model.

    Args:
      platform: "cpu" or "gpu", decides what "auto" stands for in `model.conv_lowering` and `model.stem`.
      sync: devices that share BatchNorm's statistics; of use in training only.
    """
    variant = FAMILY[config.model.arch]
    return ResNet(
        variant=variant._replace(stages=config.model.stages or variant.stages),
        num_classes=num_classes,
        precision=PRECISIONS[config.precision],
        width=config.model.width,
        widths=config.model.widths,
        se_units=config.model.se_units,
        fan=INITS[config.model.init],
        zero_init_last_gamma=config.model.zero_init_last_gamma,
        lowering=conv_lowering(config, platform),
        stem=stem(config, platform),
        max_pool=config.model.max_pool,
        sync=sync,
        fused_norm=config.model.fused_norm,
        frozen=config.tune.freeze,
    )


def conv_lowering(config: ConfigDict, platform: str) -> str:
    """Returns the lowering that `models.conv.conv2d` is to use."""
    if config.model.conv_lowering != "auto":
        return str(config.model.conv_lowering)
    return "matmul" if platform == "cpu" else "native"


def stem(config: ConfigDict, platform: str) -> str:
    """Returns how the first convolution is written: the config's choice, or as XLA does itself for float16 alone."""
    if config.model.stem != "auto":
        return str(config.model.stem)
    return "padded" if platform == "gpu" and config.precision == "bf16" else "conv"
