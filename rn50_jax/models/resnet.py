"""ResNet v1.5 (He et al. 2015, arXiv:1512.03385; v1.5 strides in the 3x3 convolution), NHWC, with its relatives
ResNeXt (Xie et al. 2016, arXiv:1611.05431), SE-ResNet (Hu et al. 2017, arXiv:1709.01507) and ResNet-D (He et al. 2018,
arXiv:1812.01187).

Submodules carry torchvision's names (timm's, where torchvision has no such layer) with dots as underscores inside a
block's path (`layer1_0.conv1`, `layer1_0.downsample_0`), so that weights map by renaming.
"""

from functools import partial

import jax
from flax import linen as nn

from rn50_jax.models.compute import Compute
from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.family import Variant
from rn50_jax.models.layers import AddRelu, AveragePool, Gate, Linear, MeanPool
from rn50_jax.models.parts import part_names, part_of


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate in (0, 1) that is computed, in float32, from the channels' means."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = Linear(self.units, "relu", name="fc1")(MeanPool()(x))
        return Gate()(x, Linear(x.shape[-1], "sigmoid", name="fc2")(hidden))


class Block(nn.Module):
    """Residual block: convolutions with BatchNorm, a shortcut, ReLU after the sum."""

    variant: Variant
    width: int
    stride: int
    layer: partial[ConvNorm]
    zero_init_last_gamma: bool
    se_units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups, inner = self.variant.groups, self.width * self.variant.inner
        features = self.width * self.variant.expansion
        shortcut = x
        # By stride and channels, not by shape: on tiny images a stride may leave the shape as it was.
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = self._shortcut(x, features)
        ending = {"relu": not self.variant.se, "zero_scale": self.zero_init_last_gamma}
        if self.variant.bottleneck:
            # v1.5: the stride sits in the 3x3 convolution; v1 had it in the first 1x1.
            y = self.layer(inner, 1, relu=True, name="conv1", norm="bn1")(x)
            y = self.layer(inner, 3, self.stride, groups, relu=True, name="conv2", norm="bn2")(y)
            last = self.layer(features, 1, name="conv3", norm="bn3", **ending)
        else:
            y = self.layer(inner, 3, self.stride, groups, relu=True, name="conv1", norm="bn1")(x)
            last = self.layer(features, 3, 1, groups, name="conv2", norm="bn2", **ending)
        if not self.variant.se:
            return last(y, shortcut)
        y = SqueezeExcitation(self.se_units or max(features // 16, 1), name="se")(last(y))
        return AddRelu()(y, shortcut)

    def _shortcut(self, x: jax.Array, features: int) -> jax.Array:
        if not self.variant.average_shortcut:
            return self.layer(features, 1, self.stride, name="downsample_0", norm="downsample_1")(x)
        x = AveragePool()(x) if self.stride == 2 else x
        return self.layer(features, 1, name="downsample_1", norm="downsample_2")(x)


class ResNet(nn.Module):
    """ResNet v1.5 of any variant; 25,557,032 parameters for resnet50 with 1,000 classes.

    Convolutions and activations are in `compute.dtype`; parameters, BatchNorm statistics, pooled features and logits
    are float32.

    width: channels of the stem. widths: of the stages; empty for width * (1, 2, 4, ...).
    fan, zero_init_last_gamma: of the initial values, which `initial.initial_variables` draws; `init` gives zeros.
    se_units: hidden units of squeeze and excitation; 0 for a sixteenth of the block's channels.
    small_stem: the stem is a 3x3 convolution of stride 1 without pooling, as He et al. 2015 have it for CIFAR's 32
    pixels; not with a variant's deep stem.
    frozen: names of `parts` that are not trained: their BatchNorms use their running statistics, and leave them alone,
    in training too.
    """

    variant: Variant
    num_classes: int
    compute: Compute
    width: int = 64
    widths: tuple[int, ...] = ()
    se_units: int = 0
    small_stem: bool = False
    fan: str = "fan_in"
    zero_init_last_gamma: bool = False
    frozen: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that can be trained or frozen, from the input to the output."""
        return part_names(len(self.variant.stages))

    def part_of(self, module: str) -> str:
        """Returns the part that a top-level module belongs to."""
        return part_of(module)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, head: bool = True) -> jax.Array:
        """Classifies normalized images.

        Args:
          x: [B, H, W, 3], any float dtype.
          train: True normalizes with the batch's statistics and updates the running ones (collection `batch_stats`).
          head: False leaves out the classifier.

        Returns:
          Logits, float32 [B, num_classes]; without the head the pooled features, float32 [B, C].
        """

        def layer(part: str) -> partial[ConvNorm]:
            return partial(ConvNorm, fan=self.fan, train=train and part not in self.frozen, compute=self.compute)

        stem = partial(layer("stem"), relu=True)
        if self.variant.deep_stem:
            x = stem(self.width // 2, 3, 2, name="conv1_0", norm="conv1_1")(x)
            x = stem(self.width // 2, 3, name="conv1_3", norm="conv1_4")(x)
            x = stem(self.width, 3, pool=True, name="conv1_6", norm="bn1")(x)
        elif self.small_stem:
            x = stem(self.width, 3, name="conv1", norm="bn1")(x)
        else:
            x = stem(self.width, 7, 2, pool=True, name="conv1", norm="bn1")(x)
        for stage, blocks in enumerate(self.variant.stages):
            for index in range(blocks):
                x = Block(
                    variant=self.variant,
                    width=self.widths[stage] if self.widths else self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    layer=layer(f"layer{stage + 1}"),
                    zero_init_last_gamma=self.zero_init_last_gamma,
                    se_units=self.se_units,
                    name=f"layer{stage + 1}_{index}",
                )(x)
        features = MeanPool()(x)
        return Linear(self.num_classes, name="fc")(features) if head else features
