"""All of a pretrained network, trained on images of other classes.

    python -m rn50_jax.train --config configs/fine_tune.py --config.data.dir=my_images --pretrained_weights resnet50.pth

Variants by the number of photographs: images100, images1000 and images10000, each from a third to three times as many;
images (unless one is given), for tens of thousands; digits, the built-in ones, for a trial on a CPU.

The rate falls towards the input, whose features fit any images. The fewer images, the more epochs, so that there are
hundreds of updates: 500 below 20,000 images, and no mixup, is the rule of BiT (Kolesnikov et al. 2020,
arXiv:1912.11370, and bit_hyperrule.py of google-research/big_transfer). PyTorch's tutorial of transfer learning has 25
epochs for about 300 images, SGD with momentum 0.9, and a tenth of the classifier's rate for all else. images100 and
images1000 come near 500 updates on one device; their batches fit eight. docs/fine-tuning.md says what was measured.
"""

from ml_collections import ConfigDict

from configs import default, quickstart

VARIANTS = ("images", "images100", "images1000", "images10000", "digits")


def get_config(variant: str = "images") -> ConfigDict:
    config = quickstart.get_config() if variant == "digits" else default.get_config()
    config.epochs = 2 if variant == "digits" else 10
    config.batch_size = 32
    config.recipe.lr = 0.02
    config.recipe.lr_batch_size = 32
    config.recipe.warmup_epochs = 1
    config.recipe.momentum = 0.9
    config.finetune.lr_decay = 0.7
    config.log.print_every = 10
    if variant == "images100":
        config.epochs = 40
        config.batch_size = 8
        config.recipe.warmup_epochs = 4
    elif variant == "images1000":
        config.epochs = 20
        config.recipe.warmup_epochs = 2
    elif variant == "images10000":
        config.epochs = 15
        config.batch_size = 64
        config.data.augment = "trivialaugment"
        config.recipe.ema_decay = 0.99
    return config
