"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) on two CPU cores or on a GPU.

    python -m rn50_jax.prepare_idx FOLDER data/fashion-mnist
    python -m rn50_jax.train --config configs/fashion_mnist.py

The four official files are in FOLDER; docs/data.md says where to get them. The images are centered and of one size, so
short trainings see them whole, mirrored or not. Variants:

- cpu (unless one is given): for two cores; the README says how long it takes and what it reaches;
- gpu: ResNet-18 as wide as for ImageNet, with crops, random erasing and averaged weights; not measured;
- minutes: 10,000 images, the stem for large images, which leaves 7 x 7 at once, and few epochs, for comparing seeds
  and options on a CPU (scripts/twin.py, scripts/ablation.py):

    python -m rn50_jax.prepare_idx FOLDER data/fashion-mnist-10k --train_images 10000
"""

from ml_collections import ConfigDict

from configs import default

VARIANTS = ("cpu", "gpu", "minutes")


def get_config(variant: str = "cpu") -> ConfigDict:
    config = default.get_config()
    config.epochs = 11
    config.batch_size = 128
    config.precision = "fp32"

    config.model.arch = "resnet18"
    config.model.small_stem = True  # the usual one would leave 7 x 7 of 28 x 28
    config.model.stages = (1, 1, 1)
    config.model.width = 32

    config.data.dir = "data/fashion-mnist"
    config.data.image_size = 28
    config.data.resize = 28
    config.data.crop_area = (1.0, 1.0)
    config.data.crop_aspect = (1.0, 1.0)
    config.data.mean = (0.286, 0.286, 0.286)
    config.data.std = (0.353, 0.353, 0.353)
    config.data.workers = 1

    config.recipe.lr = 0.15
    config.recipe.lr_batch_size = 128
    config.recipe.warmup_epochs = 1
    config.recipe.momentum = 0.9
    config.recipe.nesterov = True
    config.recipe.weight_decay = 5e-4
    config.recipe.label_smoothing = 0.0
    config.log.print_every = 50
    if variant == "gpu":
        config.epochs = 100
        config.batch_size = 256
        config.precision = "bf16"
        config.model.stages = (2, 2, 2, 2)
        config.model.width = 64
        config.data.crop_area = (0.7, 1.0)
        config.data.workers = 12
        config.recipe.warmup_epochs = 5
        config.recipe.random_erasing = 0.5
        config.recipe.ema_decay = 0.999
    elif variant == "minutes":
        config.epochs = 8
        config.model.small_stem = False
        config.data.dir = "data/fashion-mnist-10k"
        config.recipe.lr = 0.1
    return config
