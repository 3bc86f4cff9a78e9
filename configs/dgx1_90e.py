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
    # As the reference: 8 GPUs reach the global batch in one pass, or in two with FP32; fewer accumulate more of them.
    config.batch_size = 128 if variant == "fp32" else 256
    config.recipe.optimizer_batch_size = 2048
    config.recipe.warmup_epochs = 8
    config.log.print_every = 100
    config.log.dle_json = "raport.json"
    return config
