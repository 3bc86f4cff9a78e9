"""What the flags of NVIDIA's `main.py` mean when they are not given, for its "non standard configurations".

    python -m rn50_jax.train --config configs/nvidia_defaults.py --config.data.dir=/data/imagenet

`-c fanin --label-smoothing 0.1` are `--config.model.init=fanin --config.recipe.label_smoothing=0.1`; every flag is in
docs/from-nvidia.md. NVIDIA's shipped recipes are dgx1_90e.py and its like.
Variants: fp32, fp16 (its `--fp16` and `--amp`), tf32, bf16; fp32 unless given. This configuration has not been trained
by us yet.
"""

from ml_collections import ConfigDict

from configs import default
from rn50_jax.config.schema import exact_reference

VARIANTS = ("fp32", "fp16", "tf32", "bf16")


def get_config(variant: str = "fp32") -> ConfigDict:
    config = default.get_config()
    config.epochs = 90
    config.precision = variant
    config.batch_size = 256
    config.model.init = "classic"

    config.recipe.lr = 0.1
    config.recipe.lr_batch_size = 0  # absolute, whatever the global batch
    config.recipe.schedule = "step"
    config.recipe.warmup_epochs = 0
    config.recipe.momentum = 0.9
    config.recipe.weight_decay = 1e-4
    config.recipe.label_smoothing = 0.0
    config.loss_scale.init = 1.0

    config.log.print_every = 10
    config.log.dle_json = "experiment_raport.json"
    # What its code does otherwise than it documents, key by key, so that each can be changed: of these,
    # `--bn-weight-decay` is recipe.decay_mask=all, and `--data-backend pytorch` data.transform=torchvision.
    config.update_from_flattened_dict(exact_reference())
    return config
