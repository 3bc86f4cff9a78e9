"""ResNet-50 v1.5, 90 epochs of ImageNet on a DGX A100 (8 A100).

    python -m rn50_jax.train --config configs/dgxa100_90e.py:bf16 --config.data.dir=/data/imagenet

NVIDIA's published top-1 for its recipe on this machine: 77.12 +/- 0.11 (mixed precision), 76.95 +/- 0.18 (TF32).
Variants: bf16, fp16, tf32, fp32; bf16 unless given. This configuration has not been trained by us yet.
"""

from ml_collections import ConfigDict

from configs import default

VARIANTS = ("bf16", "fp16", "tf32", "fp32")


def get_config(variant: str = "bf16") -> ConfigDict:
    config = default.get_config()
    config.epochs = 90
    config.precision = variant
    config.batch_size = 256
    config.recipe.warmup_epochs = 8
    config.data.workers = 16
    config.log.print_every = 100
    config.log.dle_json = "raport.json"
    return config
