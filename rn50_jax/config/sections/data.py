"""The options of the images."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rn50_jax.config.fields import CountOrZero, Fraction, Probability, Section, option, that
from rn50_jax.errors import UserError

_SMALLEST, _PIXELS = 16, 2**14  # on a side of an image
_Threads = Annotated[int, Field(ge=1, le=1024)]
_Images = Annotated[int, Field(ge=1, le=10**8)]
_Byte = Annotated[int, Field(ge=0, le=255)]
_Range = tuple[float, float]
_Color = tuple[float, float, float]


def _within(low: float, high: float) -> AfterValidator:
    return that(lambda pair: low <= pair[0] <= pair[1] <= high)


def _between(low: float, high: float) -> str:
    return f"two numbers (smallest, largest) with {low:g} <= smallest <= largest <= {high:g}"


def _is_image_sizes(pairs: tuple[tuple[int, int], ...]) -> bool:
    epochs = [epoch for epoch, _ in pairs]
    rising = all(a < b for a, b in pairwise(epochs))
    return not pairs or (epochs[0] == 0 and rising and all(_SMALLEST <= size <= _PIXELS for _, size in pairs))


def eval_resize(image_size: int, resize: int) -> int:
    """Returns the pixels of the shorter side before the center crop: `resize`, or for 0 as 256 to 224, rounded."""
    return resize or round(image_size * 256 / 224)


class DataConfig(Section):
    """The images, and how they become batches."""

    # Not by min_length: pydantic would refuse names of bytes that are not UTF-8.
    dir: Annotated[str, that(bool)] = option(
        "/data/imagenet",
        "holds train/<class>/<image> and val/<class>/<image>, or train/*.tar and val/*.tar",
        valid="a folder",
    )
    train_list: str = option(
        "",
        'file list of the training images, a path and a class per line, see docs/data.md; "": none',
        valid="a file, or empty",
    )
    val_list: str = option("", "the same for validation", valid="a file, or empty")
    val_share: Fraction = option(
        0.0,
        "share of each class that is set apart for validation, drawn by seed, of a data.dir without val/, such as 0.2 "
        "of <class>/<image>; 0: val/ is there",
        affects="split",
    )
    builtin: Literal["", "digits"] = option(
        "", "digits: training writes scikit-learn's 1,797 digits to a data.dir that does not exist"
    )
    backend: Literal["dali-cpu", "dali-gpu", "synthetic"] = option(
        "dali-cpu", "dali-cpu, dali-gpu (decodes on the GPU) or synthetic (one constant random batch)", affects="stream"
    )
    image_size: Annotated[int, Field(ge=_SMALLEST, le=_PIXELS)] = option(
        224, "height and width that the model sees", unit="pixels", affects="stream", prepares=True
    )
    image_sizes: Annotated[tuple[tuple[int, int], ...], that(_is_image_sizes)] = option(
        (),
        "training only: ((first epoch, pixels), ...); (): image_size",
        valid="pairs (first epoch, pixels) such as ((0, 128), (30, 176)), epochs rising from 0 and pixels >= 16, or ()",
        affects="stream",
    )
    resize: Annotated[int, that(lambda v: v == 0 or _SMALLEST <= v <= _PIXELS)] = option(
        0,
        "shorter side before the center crop in evaluation, at least data.image_size; 0: as 256 to 224, in proportion "
        "to data.image_size",
        valid=f"0 or an integer from {_SMALLEST} to {_PIXELS}",
        unit="pixels",
        prepares=True,
    )
    crop_area: Annotated[_Range, _within(1e-4, 1)] = option(
        (0.08, 1.0), "training crop, share of the image's area", valid=_between(1e-4, 1), affects="stream"
    )
    crop_aspect: Annotated[_Range, _within(0.1, 10)] = option(
        (3 / 4, 4 / 3), "training crop, width over height", valid=_between(0.1, 10), affects="stream"
    )
    transform: Literal["torchvision", "dali"] = option(
        "torchvision",
        "pixels of torchvision (antialiased) or of NVIDIA's dali pipeline (not antialiased)",
        affects="stream",
        exact="dali",
        prepares=True,
    )
    exif_rotation: bool = option(
        False,
        "True: photographs are turned upright, as their EXIF tag says; False: seen as stored",
        affects="stream",
        prepares=True,
    )
    background: Annotated[tuple[_Byte, ...], that(lambda v: len(v) in (0, 3))] = option(
        (),
        "color behind transparent images, such as (255, 255, 255); (): their transparency is dropped",
        valid="three integers from 0 to 255 (red, green, blue), or ()",
        affects="stream",
        prepares=True,
    )
    mean: Annotated[_Color, that(lambda v: min(v) >= 0 and max(v) <= 1)] = option(
        (0.485, 0.456, 0.406),
        "of red, green and blue in 0 to 1, subtracted from pixels; ImageNet's",
        valid="three numbers from 0 to 1 (red, green, blue)",
        prepares=True,
    )
    std: Annotated[_Color, that(lambda v: min(v) > 0 and max(v) <= 1)] = option(
        (0.229, 0.224, 0.225),
        "standard deviations, by which they are then divided",
        valid="three numbers > 0 and at most 1",
        prepares=True,
    )
    flip: Probability = option(0.5, "probability of a horizontal flip in training", affects="stream")
    vertical_flip: Probability = option(
        0.0, "probability of a vertical flip in training, for images that have no top", affects="stream"
    )
    augment: Literal["none", "randaugment", "autoaugment", "trivialaugment"] = option(
        "none", "after crop and flip: none, randaugment, autoaugment or trivialaugment (DALI's)", affects="stream"
    )
    randaugment: Annotated[tuple[int, int], that(lambda v: 1 <= v[0] <= 100 and 0 <= v[1] <= 30)] = option(
        (2, 9),
        "operations per image and their magnitude",
        valid="two integers, operations from 1 to 100 and magnitude from 0 to 30",
        affects="stream",
    )
    max_bad_images: CountOrZero = option(
        100, "images that cannot be decoded, which a run replaces by others; one more ends it", unit="images"
    )
    workers: _Threads = option(5, "DALI threads per device")
    hw_decoder_load: Probability = option(
        0.65, "dali-gpu: share of JPEGs that go to the GPU's JPEG engine, if it has one"
    )
    synthetic_images: tuple[_Images, _Images] = option(
        (1281167, 50000),
        "images per epoch that synthetic data stands for (training, validation)",
        valid="two integers from 1 to 100,000,000",
    )

    @property
    def root(self) -> Path:
        """The folder `dir`, with `~` for the user's home, if there is one."""
        return Path(os.path.expanduser(self.dir))  # noqa: PTH111, that of Path raises where there is none

    @property
    def eval_resize(self) -> int:
        """Shorter side before the center crop in evaluation, in pixels."""
        return eval_resize(self.image_size, self.resize)

    def train_size(self, epoch: int) -> int:
        """Returns the height and width of the training images in an epoch (from 0), in pixels."""
        sizes = [size for first, size in self.image_sizes if first <= epoch]
        return sizes[-1] if sizes else self.image_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 0 < self.resize < self.image_size:
            raise UserError(
                f"config.data.resize={self.resize} must be at least config.data.image_size={self.image_size}, or 0: in "
                "proportion to it"
            )
        return self
