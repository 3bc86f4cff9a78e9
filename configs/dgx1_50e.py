"""ResNet-50 v1.5, 50 epochs of ImageNet on a DGX-1 (8 V100).

    python -m rn50_jax.train --config configs/dgx1_50e.py:fp16 --config.data.dir=/data/imagenet

NVIDIA's published top-1 for its recipe on this machine: 76.25 +/- 0.04 (mixed precision), 76.26 +/- 0.07 (FP32).
Variants: fp16, fp32; fp16 unless given. This configuration has not been trained by us yet.
"""

from ml_collections import ConfigDict

from configs import dgx1_90e

VARIANTS = dgx1_90e.VARIANTS


def get_config(variant: str = "fp16") -> ConfigDict:
    config = dgx1_90e.get_config(variant)
    config.epochs = 50
    return config
