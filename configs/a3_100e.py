"""ResNet-50 v1.5 by the A3 procedure of "ResNet strikes back": 100 epochs on 160 px.

    python -m rn50_jax.train --config configs/a3_100e.py --config.data.dir=/data/imagenet

Target, not measured here: 78.1 % top-1 (Wightman et al. 2021, arXiv:2110.00476; 78.05 % in timm's table of results). A
batch of 2,048, binary cross-entropy of whole targets (timm's --bce-target-thresh 0.2), LAMB with timm's clipping, mixup
or CutMix, RandAugment; validation on 224 px, 95 % of the shorter side. Where we depart: RandAugment is DALI's, whose 18
of 30 stands for timm's 6 of 10, without noise; images are resized bilinearly, where timm also takes bicubic filters.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.epochs = 100
    config.batch_size = 256
    config.data.image_sizes = ((0, 160),)
    config.data.resize = 235  # 224 / 0.95
    config.data.augment = "randaugment"
    config.data.randaugment = (2, 18)
    config.data.workers = 16
    recipe = config.recipe
    recipe.optimizer_batch_size = 2048
    recipe.optimizer = "lamb"
    recipe.lr = 8e-3
    recipe.lr_batch_size = 2048
    recipe.warmup_epochs = 5
    recipe.end_lr = 1e-6
    recipe.clip_norm = 1.0
    recipe.weight_decay = 0.02
    recipe.decay_mask = "no_bn_bias"
    recipe.loss = "bce"
    recipe.bce_threshold = 0.2
    recipe.label_smoothing = 0.0
    recipe.mixup = 0.1
    recipe.cutmix = 1.0
    config.log.print_every = 100
    return config
