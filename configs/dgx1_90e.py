"""ResNet-50 v1.5, 90 epochs of ImageNet on a DGX-1 (8 V100).

    python -m rn50_jax.train --config configs/dgx1_90e.py:fp16 --config.data.dir=/data/imagenet

NVIDIA's published top-1 for its recipe on this machine: 77.23 +/- 0.04 (mixed precision), 77.08 +/- 0.08 (FP32).
Variants: fp16, fp32; fp16 unless given. This configuration has not been trained by us yet.
"""

from ml_collections import ConfigDict

from configs import default

VARIANTS = ("fp16", "fp32")


def get_config(variant: str = "fp16") -> ConfigDict:
    config = default.get_config()
    config.epochs = 90
    config.precision = variant
    config.batch_size = 256
    if variant == "fp32":
        # As the reference: two passes of 128 images on each device make the same global batch.
        config.batch_size = 128
        config.recipe.optimizer_batch_size = 2048
    config.recipe.warmup_epochs = 8
    config.report.print_every = 100
    return config
