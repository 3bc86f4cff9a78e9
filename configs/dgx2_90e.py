"""ResNet-50 v1.5, 90 epochs of ImageNet on a DGX-2 (16 V100).

    python -m rn50_jax.train --config configs/dgx2_90e.py:fp16 --config.data.dir=/data/imagenet

NVIDIA's published top-1 for its recipe on this machine: 77.10 +/- 0.06 (mixed precision), 77.23 +/- 0.04 (FP32).
Variants: fp16, fp32; fp16 unless given. This configuration has not been trained by us yet.
"""

from ml_collections import ConfigDict

from configs import dgx1_90e

VARIANTS = dgx1_90e.VARIANTS


def get_config(variant: str = "fp16") -> ConfigDict:
    config = dgx1_90e.get_config(variant)
    config.recipe.optimizer_batch_size = 4096
    config.recipe.warmup_epochs = 16
    config.data.backend = "dali-gpu"
    return config
