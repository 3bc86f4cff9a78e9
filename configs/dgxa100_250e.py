"""ResNet-50 v1.5, 250 epochs of ImageNet on a DGX A100 (8 A100).

    python -m rn50_jax.train --config configs/dgxa100_250e.py:bf16 --config.data.dir=/data/imagenet

NVIDIA's published top-1 for its recipe on this machine: 78.43 +/- 0.11 (mixed precision), 78.38 +/- 0.17 (TF32).
Variants: bf16, fp16, tf32, fp32; bf16 unless given. This configuration has not been trained by us yet.
"""

from ml_collections import ConfigDict

from configs import dgxa100_90e

VARIANTS = dgxa100_90e.VARIANTS


def get_config(variant: str = "bf16") -> ConfigDict:
    config = dgxa100_90e.get_config(variant)
    config.epochs = 250
    config.recipe.mixup = 0.2
    return config
