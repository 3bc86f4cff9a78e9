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
    variant, lowering, stem = FAMILY[config.model.arch], config.model.conv_lowering, config.model.stem
    if lowering == "auto":
        lowering = "matmul" if platform == "cpu" else "native"
    if stem == "auto":  # XLA rewrites it by itself for float16 alone
        stem = "padded" if platform == "gpu" and config.precision == "bf16" else "conv"
    return ResNet(
        variant=variant._replace(stages=config.model.stages or variant.stages),
        num_classes=num_classes,
        precision=PRECISIONS[config.precision],
        width=config.model.width,
        widths=config.model.widths,
        se_units=config.model.se_units,
        fan=INITS[config.model.init],
        zero_init_last_gamma=config.model.zero_init_last_gamma,
        lowering=lowering,
        stem=stem,
        max_pool=config.model.max_pool,
        sync=sync,
        fused_norm=config.model.fused_norm,
        frozen=config.tune.freeze,
    )
