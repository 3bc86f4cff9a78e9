"""Only a new classifier on the features of a pretrained network, which stays as it is.

    python -m rn50_jax.train --config configs/linear_probe.py --config.data.dir=my_images --pretrained_weights rn50.pth

Variants: images (unless given), for photographs; digits, the built-in ones, for a trial on a CPU. docs/fine-tuning.md
has figures for these; for photographs we have none.
"""

from ml_collections import ConfigDict

from configs import fine_tune

VARIANTS = fine_tune.VARIANTS


def get_config(variant: str = "images") -> ConfigDict:
    config = fine_tune.get_config(variant)
    config.finetune.freeze = ("stem", "layer1", "layer2", "layer3", "layer4")
    config.finetune.lr_decay = 1.0
    config.recipe.lr = 0.03
    config.recipe.warmup_epochs = 0
    config.recipe.weight_decay = 0.0
    return config
