"""ResNet v1.5 (He et al. 2015, arXiv:1512.03385; v1.5 strides in the 3x3 convolution), NHWC.

Submodules carry torchvision's names with dots as underscores inside a block's path (`layer1_0.conv1`,
`layer1_0.downsample_0`), so that weights map by renaming.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rn50_jax.models.conv import Conv
from rn50_jax.precision import Precision


class Variant(NamedTuple):
    """One member of the family: blocks per stage, and whether blocks are bottlenecks (expansion 4) or basic (1)."""

    stages: tuple[int, ...]
    bottleneck: bool


FAMILY: dict[str, Variant] = {
    "resnet18": Variant((2, 2, 2, 2), bottleneck=False),
    "resnet34": Variant((3, 4, 6, 3), bottleneck=False),
    "resnet50": Variant((3, 4, 6, 3), bottleneck=True),
    "resnet101": Variant((3, 4, 23, 3), bottleneck=True),
    "resnet152": Variant((3, 8, 36, 3), bottleneck=True),
}


class Block(nn.Module):
    """Residual block: convolutions with BatchNorm, a shortcut, ReLU after the sum."""

    width: int
    stride: int
    bottleneck: bool
    conv: partial[Conv]
    norm: partial[nn.BatchNorm]
    zero_init_last_gamma: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last = nn.initializers.zeros if self.zero_init_last_gamma else nn.initializers.ones
        features = self.width * (4 if self.bottleneck else 1)
        if self.bottleneck:
            # v1.5: the stride sits in the 3x3 convolution; v1 had it in the first 1x1.
            y = nn.relu(self.norm(name="bn1")(self.conv(self.width, 1, name="conv1")(x)))
            y = nn.relu(self.norm(name="bn2")(self.conv(self.width, 3, self.stride, name="conv2")(y)))
            y = self.norm(name="bn3", scale_init=last)(self.conv(features, 1, name="conv3")(y))
        else:
            y = nn.relu(self.norm(name="bn1")(self.conv(self.width, 3, self.stride, name="conv1")(x)))
            y = self.norm(name="bn2", scale_init=last)(self.conv(features, 3, name="conv2")(y))
        # By stride and channels, not by shape: on tiny images a stride may leave the shape as it was.
        if self.stride != 1 or x.shape[-1] != features:
            x = self.conv(features, 1, self.stride, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet v1.5 of any variant; 25,557,032 parameters for resnet50 with 1,000 classes.

    Convolutions and activations are in `precision.compute`; parameters, BatchNorm statistics, pooled features
    and logits are float32. BatchNorm: epsilon 1e-5, running averages 0.9 * old + 0.1 * batch (torch's defaults),
    statistics of the device's own batch.
    """

    variant: Variant
    num_classes: int
    precision: Precision
    width: int = 64
    zero_init_last_gamma: bool = False
    lowering: str = "native"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Classifies normalised images.

        Args:
          x: [B, H, W, 3], any float dtype.
          train: True normalises with the batch's statistics and updates the running ones (collection `batch_stats`).

        Returns:
          Logits, float32 [B, num_classes].
        """
        dtype, matmul = self.precision.compute, self.precision.matmul
        conv = partial(Conv, dtype=dtype, precision=matmul, lowering=self.lowering)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
        x = nn.relu(norm(name="bn1")(conv(self.width, 7, 2, name="conv1")(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.variant.stages):
            for index in range(blocks):
                x = Block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    bottleneck=self.variant.bottleneck,
                    conv=conv,
                    norm=norm,
                    zero_init_last_gamma=self.zero_init_last_gamma,
                    name=f"layer{stage + 1}_{index}",
                )(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return Head(self.num_classes, name="fc")(x)


class Head(nn.Module):
    """Float32 linear classifier with torch's `nn.Linear` initialisation: U(-1, 1) / sqrt(fan_in), bias too."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bound = x.shape[-1] ** -0.5

        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        kernel = self.param("kernel", init, (x.shape[-1], self.num_classes))
        bias = self.param("bias", init, (self.num_classes,))
        return jnp.dot(x, kernel, precision=lax.Precision.HIGHEST) + bias
