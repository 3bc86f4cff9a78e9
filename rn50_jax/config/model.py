"""From config to model."""

from rn50_jax.config.schema import Config
from rn50_jax.models.conv import INITS
from rn50_jax.models.family import FAMILY
from rn50_jax.models.norm import NormSync
from rn50_jax.models.precision import PRECISIONS
from rn50_jax.models.resnet import ResNet


def build_model(config: Config, *, num_classes: int, platform: str, sync: NormSync | None = None) -> ResNet:
    """Returns the config's model.

    Args:
      platform: "cpu" or "gpu", decides what "auto" stands for in `compute.conv_lowering` and `compute.stem`.
      sync: devices that share BatchNorm's statistics; of use in training only.
    """
    model, compute = config.model, config.compute
    lowering, stem = str(compute.conv_lowering), str(compute.stem)
    if lowering == "auto":
        lowering = "matmul" if platform == "cpu" else "native"
    if stem == "auto":  # XLA rewrites it by itself for float16 alone
        stem = "padded" if platform == "gpu" and config.precision == "bf16" else "conv"
    return ResNet(
        variant=FAMILY[model.arch]._replace(stages=model.num_blocks),
        num_classes=num_classes,
        precision=PRECISIONS[config.precision],
        width=model.width,
        widths=model.widths,
        se_units=model.se_units,
        fan=INITS[model.init],
        zero_init_last_gamma=model.zero_init_last_gamma,
        lowering=lowering,
        stem=stem,
        max_pool=compute.max_pool,
        sync=sync,
        fused_norm=compute.fused_norm,
        frozen=config.finetune.freeze,
    )
