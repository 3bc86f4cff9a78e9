"""ResNet-50 v1.5 in 16 epochs, most of them on small images.

    python -m rn50_jax.train --config configs/progressive_16e.py --config.data.dir=/data/imagenet

Target, not measured here: 73.8 % top-1 in 14.9 minutes on 8 A100, published with libffcv/ffcv-imagenet, from whose
rn50_configs/rn50_16_epochs.yaml these values are: 512 images on each of 8 GPUs, of 160 px and then 192 px (there a ramp
over epochs 11 to 13 in steps of 32 px, a single step). Expect less: that figure comes with BlurPool, and with 256 px
and mirror images in validation. Here the network is plain, and validation is on 224 px, every image once.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.epochs = 16
    config.batch_size = 512
    config.data.image_sizes = ((0, 160), (12, 192))
    config.data.workers = 16
    config.recipe.lr = 1.7
    config.recipe.lr_batch_size = 4096
    config.recipe.schedule = "linear"
    config.recipe.warmup_epochs = 2
    config.recipe.momentum = 0.9
    config.recipe.weight_decay = 1e-4
    config.recipe.label_smoothing = 0.1
    config.log.print_every = 50
    return config
