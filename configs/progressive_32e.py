"""ResNet-50 v1.5 in 32 epochs, most of them on small images.

    python -m rn50_jax.train --config configs/progressive_32e.py --config.data.dir=/data/imagenet

Target, not measured here: 76.6 % top-1 in 28.7 minutes on 8 A100, published with libffcv/ffcv-imagenet, from whose
rn50_configs/rn50_32_epochs.yaml these values are: 512 images on each of 8 GPUs, of 160 px and then 192 px (there a ramp
over epochs 23 to 27 in steps of 32 px, a single step). Expect less: that figure comes with BlurPool, and with 256 px
and mirror images in validation. Here the network is plain, and validation is on 224 px, every image once.
"""

from ml_collections import ConfigDict

from configs import progressive_16e


def get_config() -> ConfigDict:
    config = progressive_16e.get_config()
    config.epochs = 32
    config.data.image_sizes = ((0, 160), (25, 192))
    return config
