"""ResNet-50 v1.5, 50 epochs of ImageNet on a DGX-2 (16 V100).

    python -m rn50_jax.train --config configs/dgx2_50e.py:fp16 --config.data.dir=/data/imagenet

NVIDIA's published top-1 for its recipe on this machine: 75.81 +/- 0.08 (mixed precision), 76.04 +/- 0.05 (FP32).
Variants: fp16, fp32; fp16 unless given. This configuration has not been trained by us yet.
"""

from ml_collections import ConfigDict

from configs import dgx2_90e

VARIANTS = dgx2_90e.VARIANTS


def get_config(variant: str = "fp16") -> ConfigDict:
    config = dgx2_90e.get_config(variant)
    config.epochs = 50
    return config
