"""The members of the family by name. Nothing else is imported here: the schema of the config reads it without JAX."""

from typing import NamedTuple


class Variant(NamedTuple):
    """One member of the family.

    stages: blocks per stage. bottleneck: blocks of three convolutions (expansion 4) or of two (expansion 1).
    groups: of the 3x3 convolution. inner: width of a bottleneck's first two convolutions over the stage's width.
    se: whether each block ends in squeeze and excitation.
    deep_stem: three 3x3 convolutions in the place of the 7x7 one, ResNet-C of He et al. 2018 (arXiv:1812.01187).
    average_shortcut: a shortcut that halves the image averages before its 1x1 convolution, their ResNet-D.
    """

    stages: tuple[int, ...]
    bottleneck: bool
    groups: int = 1
    inner: int = 1
    se: bool = False
    deep_stem: bool = False
    average_shortcut: bool = False

    @property
    def expansion(self) -> int:
        """Output channels of a block divided by the stage's width."""
        return 4 if self.bottleneck else 1


FAMILY: dict[str, Variant] = {
    "resnet18": Variant((2, 2, 2, 2), bottleneck=False),
    "resnet34": Variant((3, 4, 6, 3), bottleneck=False),
    "resnet50": Variant((3, 4, 6, 3), bottleneck=True),
    "resnet50d": Variant((3, 4, 6, 3), bottleneck=True, deep_stem=True, average_shortcut=True),
    "resnet101": Variant((3, 4, 23, 3), bottleneck=True),
    "resnet152": Variant((3, 8, 36, 3), bottleneck=True),
    "resnext50-32x4d": Variant((3, 4, 6, 3), bottleneck=True, groups=32, inner=2),
    "resnext101-32x4d": Variant((3, 4, 23, 3), bottleneck=True, groups=32, inner=2),
    "se-resnet50": Variant((3, 4, 6, 3), bottleneck=True, se=True),
    "se-resnext101-32x4d": Variant((3, 4, 23, 3), bottleneck=True, groups=32, inner=2, se=True),
}
