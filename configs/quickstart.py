"""ResNet-50 on 1,797 real handwritten digits: minutes on two CPU cores, at least 96 % top-1.

python -m rn50_jax.train --config configs/quickstart.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.epochs = 8
    config.batch_size = 32
    config.precision = "fp32"

    # At this learning rate for a batch of 32, blocks that start as the identity are what keeps the first epoch stable.
    config.model.zero_init_last_gamma = True

    config.data.dir = "data/digits"
    config.data.builtin = "digits"
    config.data.image_size = 32
    config.data.resize = 32
    config.data.crop_area = (0.6, 1.0)  # digits fill their image: a small crop would cut them to pieces
    config.data.flip = 0.0  # digits are not mirror-symmetric
    config.data.workers = 2

    config.recipe.lr = 0.02
    config.recipe.lr_batch_size = 32
    config.recipe.warmup_epochs = 1
    config.log.print_every = 10
    return config
