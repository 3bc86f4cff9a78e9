"""ResNet-50 v1.5, 250 epochs of ImageNet on a DGX-2 (16 V100).

    python -m rn50_jax.train --config configs/dgx2_250e.py:fp16 --config.data.dir=/data/imagenet

NVIDIA's published top-1 for its recipe on this machine: 78.59 +/- 0.13 (mixed precision), 78.46 +/- 0.03 (FP32).
Variants: fp16, fp32; fp16 unless given. This configuration has not been trained by us yet.
"""

from ml_collections import ConfigDict

from configs import dgx2_90e

VARIANTS = dgx2_90e.VARIANTS


def get_config(variant: str = "fp16") -> ConfigDict:
    config = dgx2_90e.get_config(variant)
    config.epochs = 250
    config.recipe.mixup = 0.2
    return config
