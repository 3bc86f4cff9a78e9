"""The options of the network."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rn50_jax.config.fields import Section, one_of, option, that
from rn50_jax.config.limits import MOST_CLASSES
from rn50_jax.errors import UserError
from rn50_jax.models.family import FAMILY

_OWN = re.compile(r".*\.py:[^\W\d]\w*", re.DOTALL)


class ModelConfig(Section):
    """The network."""

    arch: Annotated[str, that(lambda v: v in FAMILY or _OWN.fullmatch(v))] = option(
        "resnet50",
        "member of the family, or a function of your own that returns a Flax module",
        valid=f"{one_of(*FAMILY)}, or FILE.py:FUNCTION",
        affects="arrays",
    )
    stages: Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], Field(max_length=8)] = option(
        (),
        "blocks per stage; (): those of model.arch",
        valid="integers >= 1, such as (3, 4, 6, 3), or (); at most 8, and none above 1000",
        affects="arrays",
    )
    width: Annotated[int, Field(ge=8, le=2**14)] = option(
        64, "channels of the stem; every layer scales with it", affects="arrays"
    )
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=2**14)], ...], Field(max_length=8)] = option(
        (),
        "width of each stage; (): model.width times 1, 2, 4, ...",
        valid="integers >= 1, such as (64, 128, 256, 512), or (); at most 8, and none above 16384",
        affects="arrays",
    )
    se_units: Annotated[int, Field(ge=0, le=2**14)] = option(
        0,
        "hidden units of squeeze and excitation; 0: a sixteenth of the channels (timm); NVIDIA has 16",
        affects="arrays",
        exact=16,
    )
    small_stem: bool = option(
        False,
        "True: the stem is a 3x3 convolution that keeps the size, without pooling, for images of 64 pixels or fewer "
        "(CIFAR's, He et al. 2015)",
        affects="arrays",
    )
    num_classes: Annotated[int, Field(ge=0, le=MOST_CLASSES)] = option(
        0, "0: as many as there are class folders (synthetic data: 1000)"
    )
    init: Literal["classic", "fanin", "grp-fanin", "grp-fanout"] = option(
        "fanin", "He initialization of convolutions: fanin or classic (fan-out); also grp-fanin, grp-fanout"
    )
    zero_init_last_gamma: bool = option(False, "True: every residual block starts as the identity (Goyal et al. 2017)")
    pretrained_weights: str = option(
        "",
        'weights that a new run starts from, with their architecture unless the command line gives one; "": none '
        "(also --pretrained_weights FILE)",
        valid="a weight file, the folder of a run, or empty",
        affects="start",
    )

    @property
    def is_own(self) -> bool:
        """Whether the network is code of the user's, see `own_network`."""
        return self.arch not in FAMILY

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Blocks of each stage; of a network of one's own none."""
        return self.stages or (() if self.is_own else FAMILY[self.arch].stages)

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Width of each stage."""
        return self.widths or tuple(self.width * 2**stage for stage in range(len(self.num_blocks)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_own:
            return self
        variant, widths = FAMILY[self.arch], self.stage_widths
        if self.small_stem and variant.deep_stem:
            raise UserError(
                f"config.model.arch={self.arch!r} has a stem of its own; write --config.model.small_stem=false"
            )
        if len(widths) != len(self.num_blocks):
            raise UserError(
                f"config.model.widths={widths} has {len(widths)} stages, but config.model.stages={self.num_blocks}; "
                "give one width per stage"
            )
        for width in widths:
            if width * variant.inner % variant.groups:
                raise UserError(
                    f"config.model.arch={self.arch!r} has {variant.groups} groups, so the width of a stage must be a "
                    f"multiple of {variant.groups // variant.inner}, and config.model.width or widths makes it {width}"
                )
        return self
