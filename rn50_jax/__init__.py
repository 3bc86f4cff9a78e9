"""ResNet-50 v1.5 training, evaluation, prediction and benchmarking in JAX/Flax."""

import logging

# Where matplotlib finds no folder of the user's for its caches, it takes a temporary one, at length.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

__version__ = "0.1.0"
