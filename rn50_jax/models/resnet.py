"""ResNet v1.5 (He et al. 2015, arXiv:1512.03385; v1.5 strides in the 3x3 convolution), NHWC, with its relatives
ResNeXt (Xie et al. 2016, arXiv:1611.05431) and SE-ResNet (Hu et al. 2017, arXiv:1709.01507).

Submodules carry torchvision's names with dots as underscores inside a block's path (`layer1_0.conv1`,
`layer1_0.downsample_0`), so that weights map by renaming.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rn50_jax.models.conv import Conv
from rn50_jax.models.family import Variant
from rn50_jax.models.norm import BatchNorm, FoldedNorm, NormSync, add_relu
from rn50_jax.models.pool import mean_pool
from rn50_jax.models.precision import Precision

Norm = partial[BatchNorm] | type[FoldedNorm]
Variables = dict[str, Any]  # {"params", "batch_stats"}: trees of arrays


class Linear(nn.Module):
    """Float32 linear layer."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return jnp.dot(x, kernel, precision=lax.Precision.HIGHEST) + bias


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate in (0, 1) that is computed, in float32, from the channels' means."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        means = mean_pool(x)
        gate = nn.sigmoid(Linear(x.shape[-1], name="fc2")(nn.relu(Linear(self.units, name="fc1")(means))))
        return x * gate[:, None, None, :].astype(x.dtype)


class Block(nn.Module):
    """Residual block: convolutions with BatchNorm, a shortcut, ReLU after the sum."""

    variant: Variant
    width: int
    stride: int
    conv: partial[Conv]
    norm: Norm
    se_units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups, inner = self.variant.groups, self.width * self.variant.inner
        features = self.width * self.variant.expansion
        shortcut = x
        # By stride and channels, not by shape: on tiny images a stride may leave the shape as it was.
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = self.conv(features, 1, self.stride, name="downsample_0")(x)
            shortcut = self.norm(name="downsample_1")(shortcut)
        if self.variant.bottleneck:
            # v1.5: the stride sits in the 3x3 convolution; v1 had it in the first 1x1.
            y = self.norm(name="bn1")(self.conv(inner, 1, name="conv1")(x), relu=True)
            y = self.norm(name="bn2")(self.conv(inner, 3, self.stride, groups, name="conv2")(y), relu=True)
            y = self.conv(features, 1, name="conv3")(y)
        else:
            y = self.norm(name="bn1")(self.conv(inner, 3, self.stride, groups, name="conv1")(x), relu=True)
            y = self.conv(features, 3, 1, groups, name="conv2")(y)
        last = self.norm(name="bn3" if self.variant.bottleneck else "bn2")
        if not self.variant.se:
            return last(y, shortcut, relu=True)
        y = SqueezeExcitation(self.se_units or max(features // 16, 1), name="se")(last(y))
        return add_relu(y, shortcut, relu=True)


class ResNet(nn.Module):
    """ResNet v1.5 of any variant; 25,557,032 parameters for resnet50 with 1,000 classes.

    Convolutions and activations are in `precision.compute`; parameters, BatchNorm statistics, pooled features
    and logits are float32.

    width: channels of the stem. widths: of the stages; empty for width * (1, 2, 4, ...).
    fan, zero_init_last_gamma: of the initial values, which `initial.initial_variables` draws; `init` gives zeros.
    se_units: hidden units of squeeze and excitation; 0 for a sixteenth of the block's channels.
    lowering, stem: of the convolutions and of the first one, see `conv2d`. max_pool: see `pool.max_pool`.
    sync: devices that share BatchNorm's statistics in training; None if none do.
    fused_norm: see `BatchNorm.fused`.
    folded: the model of `models.fold.fold_model`: each convolution has a bias, there is no BatchNorm, no training.
    packed: the model of `models.fold.pack_model`, see `Conv`.
    frozen: parts (see `part_names`) that are not trained: their BatchNorms use their running statistics, and leave
    them alone, in training too.
    """

    variant: Variant
    num_classes: int
    precision: Precision
    width: int = 64
    widths: tuple[int, ...] = ()
    se_units: int = 0
    fan: str = "fan_in"
    zero_init_last_gamma: bool = False
    lowering: str = "native"
    stem: str = "conv"
    max_pool: str = "fused"
    sync: NormSync | None = None
    fused_norm: bool = True
    folded: bool = False
    packed: bool = False
    frozen: tuple[str, ...] = ()

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
        types = {"dtype": self.precision.compute, "precision": self.precision.matmul}
        conv = partial(Conv, lowering=self.lowering, bias=self.folded, packed=self.packed, **types)
        norm = self._norm(train, "stem")
        stem = self.lowering if self.stem == "conv" else self.stem
        x = norm(name="bn1")(conv(self.width, 7, 2, lowering=stem, name="conv1")(x), relu=True, pool=self.max_pool)
        for stage, blocks in enumerate(self.variant.stages):
            norm = self._norm(train, f"layer{stage + 1}")
            for index in range(blocks):
                x = Block(
                    variant=self.variant,
                    width=self.widths[stage] if self.widths else self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    se_units=self.se_units,
                    name=f"layer{stage + 1}_{index}",
                )(x)
        features = mean_pool(x)
        return Linear(self.num_classes, name="fc")(features) if head else features

    def _norm(self, train: bool, part: str) -> Norm:
        """What makes the BatchNorms of a part of the network."""
        if self.folded:
            return FoldedNorm
        return partial(
            BatchNorm,
            use_running_average=not train or part in self.frozen,
            dtype=self.precision.compute,
            sync=self.sync,
            fused=self.fused_norm,
        )
