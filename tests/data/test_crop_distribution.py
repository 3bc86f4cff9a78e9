"""Whether training's random crops are distributed as torchvision's, and evaluation's pixels on real photographs.

`python -m pytest tests/data/test_crop_distribution.py -s -m ""` prints the table of docs/data.md. torchvision and more
packages' photographs are used where they are installed.
"""

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import pytest
import sklearn.datasets
from helpers.ruler import draw_ruler, read_boxes
from helpers.torchvision_transforms import Transforms, documented, installed, resize_and_center_crop, torchvisions
from PIL import Image
from scipy.stats import binomtest, ks_2samp, kstest

from rn50_jax.config.sections.data import DataConfig
from rn50_jax.data import dali_decoders
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.images import pillow
from rn50_jax.data.loader import train_batches
from rn50_jax.distributed.devices import make_mesh

SIZE = 64  # of the crops, in pixels
# The seeds are fixed, and with them all p-values: the bounds are for those of another DALI or NumPy.
BY_CHANCE, BY_NO_CHANCE = 1e-4, 1e-6
SHAPES = [(640, 427), (427, 640), (500, 500)]
STRIP = (712, 89)  # most attempts to place a box fail, and often all ten
TORCHVISION = installed()


def reference(seed: int) -> Transforms:
    return torchvisions(TORCHVISION, seed) if TORCHVISION else documented(seed)


def in_package(package: str, folder: str, *names: str) -> list[Path]:
    """Files of a Python package, which is not imported; none if it is not installed."""
    spec = importlib.util.find_spec(package)
    return [Path(*(spec.submodule_search_locations or ()), folder, name) for name in names] if spec else []


SCIKIT_IMAGE = "astronaut.png chelsea.png coffee.png hubble_deep_field.jpg motorcycle_left.png retina.jpg rocket.jpg"
PHOTOGRAPHS = {
    "scikit-learn, matplotlib": [
        *(Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")),
        Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    ],
    "scikit-image": in_package("skimage", "data", *SCIKIT_IMAGE.split()),
    "mate-backgrounds": sorted(Path("/usr/share/backgrounds/mate/nature").glob("*.jpg")),  # of Debian
}


def named(name: str, *values: Any, marks: Any = ()) -> Any:
    """The parameters of a test that is skipped where these photographs are not installed."""
    missing = pytest.mark.skipif(not PHOTOGRAPHS[name], reason=f"{name} is not installed")
    return pytest.param(name, *values, marks=[missing, *marks])


def our_crops(files: Sequence[Path], count: int, **data: Any) -> np.ndarray:
    """Crops of the files in turn, uint8 [about count, SIZE, SIZE, 3]: several epochs of training on two devices."""
    each = 1000 // len(files)  # of an epoch's
    images = ImageSet(tuple(str(file) for file in files for _ in range(each)), np.zeros(each * len(files), np.int32))
    steps = len(images.labels) // 40
    batches = train_batches(
        images,
        DataConfig(image_size=SIZE, workers=1, **data),
        make_mesh(jax.devices()[:2]),
        seed=7,
        num_classes=1,
        epochs=round(count / (steps * 40)),
        steps_per_epoch=steps,
        device_batch=20,
    )
    with contextlib.closing(batches):
        return np.concatenate([np.asarray(batch.batch["image"]).reshape(-1, SIZE, SIZE, 3) for batch in batches])


def our_boxes(folder: Path, shape: tuple[int, int], count: int, **data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Left, top, width and height of training's crops of an image of this shape, int [N, 4], and which are mirrored."""
    Image.fromarray(draw_ruler(*shape)).save(folder / "ruler.png", compress_level=0)
    boxes, mirrored = read_boxes(our_crops([folder / "ruler.png"], count, **data), *shape)
    assert np.abs(boxes - boxes.round()).std(0).max() < 0.1
    return boxes.round().astype(int), mirrored


def quantities(boxes: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    left, top, width, height = boxes.T
    sides = {"left": left, "top": top, "width": width, "height": height}
    return {"area": width * height / np.prod(shape), "aspect": width / height} | sides


def moments(crops: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and variance of each crop's red, green and blue, in gray levels."""
    pixels = crops.reshape(len(crops), -1, 3).astype(np.float32)
    values = {"mean": pixels.mean(1), "variance": pixels.var(1)}
    return {
        f"{name}, {color}": v[:, i] for name, v in values.items() for i, color in enumerate(("red", "green", "blue"))
    }


def compare(about: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Prints two-sample Kolmogorov-Smirnov tests as rows of a table, and returns their p-values."""
    p_values = {}
    print()
    for name, values in ours.items():
        test = ks_2samp(values, theirs[name])
        p_values[name] = float(test.pvalue)
        print(f"| {about} | {len(values):,} | {name} | {test.statistic:.4f} | {test.pvalue:.2g} |")
    return p_values


def draw_boxes(transforms: Transforms, shape: tuple[int, int], count: int) -> np.ndarray:
    return np.array([transforms.box(*shape) for _ in range(count)])


def draw_crops(transforms: Transforms, files: Sequence[Path], count: int) -> np.ndarray:
    images = [Image.open(file).convert("RGB") for file in files]
    return np.stack([transforms.crop(images[i % len(images)], SIZE) for i in range(count)])


@pytest.mark.parametrize("shape", [*SHAPES, STRIP], ids=str)
def test_boxes_are_read_off_a_ruler(shape: tuple[int, int]) -> None:
    image, boxes = Image.fromarray(draw_ruler(*shape)), draw_boxes(documented(0), shape, 500)
    parts = [image.crop((x, y, x + w, y + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for x, y, w, h in boxes]
    crops = np.stack([np.asarray(part) for part in parts])
    crops[::2] = crops[::2, :, ::-1]
    found, mirrored = read_boxes(crops, *shape)
    assert mirrored[::2].all() and not mirrored[1::2].any()
    assert np.abs(found - boxes).max() < 0.8 and np.mean(found.round() == boxes) > 0.995


@pytest.mark.slow
@pytest.mark.skipif(TORCHVISION is None, reason="torchvision is not installed")
@pytest.mark.parametrize("shape", [SHAPES[0], STRIP], ids=str)
def test_what_is_written_out_is_torchvisions(shape: tuple[int, int]) -> None:
    ours, theirs = (quantities(draw_boxes(make(3), shape, 10_000), shape) for make in (documented, reference))
    assert min(compare(f"documented, {shape}", ours, theirs).values()) > BY_CHANCE
    photo = Image.open(PHOTOGRAPHS["scikit-learn, matplotlib"][0])
    chain = TORCHVISION.Compose([TORCHVISION.Resize(256), TORCHVISION.CenterCrop(224)])
    np.testing.assert_array_equal(resize_and_center_crop(photo, 256, 224), np.asarray(chain(photo)))


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        pytest.param(SHAPES[0], 2000, marks=pytest.mark.slow),
        *(pytest.param(shape, 10_000, marks=pytest.mark.nightly) for shape in SHAPES),
    ],
    ids=str,
)
def test_boxes_are_torchvisions(shape: tuple[int, int], count: int, tmp_path: Path) -> None:
    boxes, mirrored = our_boxes(tmp_path, shape, count)
    assert len(np.unique(boxes, axis=0)) > 0.99 * count  # no epoch and no device repeats another's
    theirs = quantities(draw_boxes(reference(0), shape, count), shape)
    p_values = compare(f"{shape[0]} x {shape[1]}", quantities(boxes, shape), theirs)
    assert min(p_values.values()) > BY_CHANCE, p_values
    assert binomtest(int(mirrored.sum()), count).pvalue > BY_CHANCE


@pytest.mark.parametrize(
    "count", [pytest.param(2000, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.nightly)]
)
def test_where_no_box_fits(count: int, tmp_path: Path) -> None:
    """After ten attempts both take the full height at an aspect of 4/3: torchvision the middle, DALI any place."""
    width, height = STRIP
    widest = height * 4 / 3
    ours, theirs = our_boxes(tmp_path, STRIP, count)[0], draw_boxes(reference(0), STRIP, count)
    ours_last, theirs_last = ((boxes[:, 2] >= int(widest)) & (boxes[:, 3] == height) for boxes in (ours, theirs))
    p_values = compare(f"{width} x {height}", {"no box fits": ours_last}, {"no box fits": theirs_last})
    fitting = quantities(ours[~ours_last], STRIP), quantities(theirs[~theirs_last], STRIP)
    p_values |= compare(f"{width} x {height}, the others", *fitting)
    assert min(p_values.values()) > BY_CHANCE, p_values
    # Some boxes are that large because they were drawn so.
    np.testing.assert_array_equal(ours[ours_last, 2], int(widest))
    assert np.mean(theirs[theirs_last, :3] == [(width - round(widest)) // 2, 0, round(widest)]) > 0.97
    assert kstest(ours[ours_last, 0] / (width - int(widest)), "uniform").pvalue > BY_CHANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantity", "data"),
    [
        ("aspect", {"crop_aspect": (4 / 5, 5 / 4)}),
        ("area", {"crop_area": (0.25, 1.0)}),
    ],
    ids=str,
)
def test_other_boxes_are_told_apart(quantity: str, data: dict[str, Any], tmp_path: Path) -> None:
    shape = SHAPES[0]
    ours, theirs = our_boxes(tmp_path, shape, 2000, **data)[0], draw_boxes(documented(0), shape, 2000)
    assert compare(f"{data}", quantities(ours, shape), quantities(theirs, shape))[quantity] < BY_NO_CHANCE


@pytest.mark.slow
@pytest.mark.parametrize("data", [{"crop_area": (0.08, 0.5)}, {"transform": "dali"}], ids=str)
def test_other_crops_of_photographs_are_told_apart(data: dict[str, Any]) -> None:
    """Less sharply than boxes: areas from 25 %, with as many crops, only come to p = 4e-6."""
    files = PHOTOGRAPHS["scikit-learn, matplotlib"]
    ours = our_crops(files, 2000, **data)
    p_values = compare(f"{data}", moments(ours), moments(draw_crops(documented(1), files, len(ours))))
    assert min(p_values.values()) < BY_NO_CHANCE


@pytest.mark.parametrize(
    ("photographs", "count"),
    [
        named("scikit-learn, matplotlib", 2000, marks=[pytest.mark.slow]),
        named("scikit-learn, matplotlib", 10_000, marks=[pytest.mark.nightly]),
        named("scikit-image", 10_000, marks=[pytest.mark.nightly]),
        named("mate-backgrounds", 2000, marks=[pytest.mark.nightly]),
    ],
)
def test_crops_have_torchvisions_mean_and_variance(photographs: str, count: int) -> None:
    files = PHOTOGRAPHS[photographs]
    ours = our_crops(files, count)
    theirs = draw_crops(reference(1), files, len(ours))
    p_values = compare(photographs, moments(ours), moments(theirs))
    assert min(p_values.values()) > BY_CHANCE, p_values


@pytest.mark.parametrize("photographs", [named(name) for name in PHOTOGRAPHS])
def test_evaluation_sees_torchvisions_pixels(photographs: str) -> None:
    """To the bit where Pillow decodes (`--resize pillow`), and by a gray level at most where DALI does."""
    decode = dali_decoders.make_decoder(transform="torchvision", image_size=224, resize=256, workers=1)
    print()
    for file in PHOTOGRAPHS[photographs]:
        image = Image.open(file)
        wanted = resize_and_center_crop(image, 256, 224)
        if TORCHVISION:
            chain = TORCHVISION.Compose([TORCHVISION.Resize(256), TORCHVISION.CenterCrop(224)])
            np.testing.assert_array_equal(np.asarray(chain(image)), wanted)
        np.testing.assert_array_equal(pillow.decode(file.read_bytes(), image_size=224, resize=256), wanted)
        difference = np.abs(decode(file.read_bytes()).astype(int) - wanted)
        equal = np.mean(difference == 0)
        print(f"| {file.name} | {difference.max()} | {difference.mean():.3f} | {equal:.1%} |")
        assert difference.max() <= 1
