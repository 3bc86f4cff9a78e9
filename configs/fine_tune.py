"""All of a pretrained network, trained on images of other classes.

    python -m rn50_jax.train --config configs/fine_tune.py --config.data.dir=my_images --pretrained_weights resnet50.pth

The rate falls towards the input, whose features fit any images. Variants: images (unless given), for photographs;
digits, the built-in ones, for a trial on a CPU. docs/fine-tuning.md has figures for these; none for photographs.
"""

from ml_collections import ConfigDict

from configs import default, quickstart

VARIANTS = ("images", "digits")


def get_config(variant: str = "images") -> ConfigDict:
    config = quickstart.get_config() if variant == "digits" else default.get_config()
    config.epochs = 2 if variant == "digits" else 10
    config.batch_size = 32
    config.recipe.lr = 0.02
    config.recipe.lr_batch_size = 32
    config.recipe.warmup_epochs = 1
    config.recipe.momentum = 0.9
    config.tune.lr_decay = 0.7
    config.report.print_every = 10
    return config
