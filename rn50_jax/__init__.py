"""ResNet-50 v1.5 training, evaluation, prediction and benchmarking in JAX/Flax."""

__version__ = "0.1.0"
