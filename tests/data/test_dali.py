"""The DALI pipelines and the feed, on real files."""

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.loading import eval_data, open_data, train_data
from helpers.trees import make_config, write_image
from PIL import Image

from rn50_jax.config.derived import make_plan
from rn50_jax.config.schema import options
from rn50_jax.config.sections.data import DataConfig
from rn50_jax.data import dali, dali_decoders
from rn50_jax.data.batch import Position, TrainBatch
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.loader import train_batches
from rn50_jax.data.prefetch import prefetch
from rn50_jax.data.sampler import train_order
from rn50_jax.distributed.devices import make_mesh
from rn50_jax.errors import UserError
from rn50_jax.training.divergence import files_of_step

START = Position(0, 0)


def grey_numbers(batch: dict[str, jax.Array]) -> np.ndarray:
    """The number that each image of `tree` shows, [D, B]."""
    return np.round(np.asarray(batch["image"]).mean((2, 3, 4)) / 5).astype(int)


@pytest.mark.parametrize(("num_devices", "device_batch"), [(1, 4), (2, 2), (3, 2), (8, 1)])
def test_training_batches_match_their_labels_and_order(tree: Path, num_devices: int, device_batch: int) -> None:
    config = make_config(tree, ("batch_size", str(device_batch)))
    dataset = open_data(config)
    mesh = make_mesh(jax.devices()[:num_devices])
    plan = make_plan(config, num_images=22, num_devices=num_devices)
    batches = [b.batch for b in train_data(config, dataset.train, plan, mesh, Position(0, 0))]
    steps = 22 // (num_devices * device_batch)
    assert len(batches) == 2 * steps
    wanted = [
        train_order(22, steps=steps, num_devices=num_devices, device_batch=device_batch, seed=0, epoch=epoch)
        for epoch in range(2)
    ]
    for batch, indices in zip(batches, np.concatenate(wanted), strict=True):
        assert batch["image"].shape == (num_devices, device_batch, 32, 32, 3)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(grey_numbers(batch), indices)
        np.testing.assert_array_equal(batch["label"], dataset.train.labels[indices])
        assert np.all(np.asarray(batch["weight"]) == 1)
    for epoch in range(2):  # every image at most once, and at most one global batch is left out
        seen = np.concatenate([grey_numbers(b).reshape(-1) for b in batches[epoch * steps : (epoch + 1) * steps]])
        assert len(set(seen.tolist())) == len(seen) > 22 - num_devices * device_batch


@pytest.mark.parametrize("num_devices", [1, 3])
def test_the_stream_goes_on_from_any_position(digits: Path, num_devices: int) -> None:
    config = make_config(digits, ("batch_size", str(300 // num_devices)), ("data.flip", "0.5"))
    dataset = open_data(config)
    mesh = make_mesh(jax.devices()[:num_devices])
    plan = make_plan(config, num_images=1500, num_devices=num_devices)

    def bits(batches: Iterable[TrainBatch]) -> list[tuple[bytes, bytes]]:
        return [(np.asarray(b.batch["image"]).tobytes(), np.asarray(b.batch["label"]).tobytes()) for b in batches]

    everything = list(train_data(config, dataset.train, plan, mesh, Position(0, 0)))
    wanted = bits(everything)
    assert len(set(wanted)) == len(wanted) == 10
    for done in (0, 1, 3, 5, 9):
        epoch, step = divmod(done, 5)
        start = Position(epoch, step, everything[done - 1].pipelines if step else ())
        starts = [start, Position(epoch - 1, 5, everything[done - 1].pipelines)] if done == 5 else [start]
        for start in starts:  # the beginning of an epoch is the end of the one before
            assert bits(train_data(config, dataset.train, plan, mesh, start)) == wanted[done:]
    names = files_of_step(dataset.train, plan, 7, seed=config.seed)
    labels = [int(Path(name).parent.name) for name in names]
    np.testing.assert_array_equal(labels, np.asarray(everything[7].batch["label"]).reshape(-1))


def test_crops_do_not_depend_on_threads(digits: Path) -> None:
    results = []
    for workers in ("1", "3"):
        config = make_config(digits, ("batch_size", "64"), ("data.workers", workers))
        dataset = open_data(config)
        plan = make_plan(config, num_images=1500, num_devices=1)
        mesh = make_mesh(jax.devices()[:1])
        stream = train_data(config, dataset.train, plan, mesh, Position(0, 0))
        results.append([np.asarray(b.batch["image"]).tobytes() for b in itertools.islice(stream, 5)])
        stream.close()
    assert results[0] == results[1]


@pytest.mark.parametrize(("flip", "vertical_flip"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_flips_are_those_of_numpy(tmp_path: Path, flip: float, vertical_flip: float) -> None:
    pixels = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3) % 251
    path = tmp_path / "image.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    data = DataConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=flip, vertical_flip=vertical_flip)
    pipeline = dali.train_pipeline(
        ImageSet((str(path),), np.zeros(1, np.int32)),
        np.zeros(200, np.int64),
        data,
        image_size=32,
        batch_size=200,
        num_threads=2,
        device_id=None,
        seed=3,
    )
    found = np.asarray(next(dali.deliver(pipeline, remember=False)).images)
    ways = [pixels[::up, ::left] for up in (1, -1) for left in (1, -1)]  # as it is, mirrored, upside down, both
    counts = np.array([np.all(found == way, axis=(1, 2, 3)).sum() for way in ways])
    wanted = np.outer([1 - vertical_flip, vertical_flip], [1 - flip, flip]).ravel()
    assert counts.sum() == 200
    np.testing.assert_allclose(counts / 200, wanted, atol=0.15)


def test_no_buffer_is_used_again_while_a_batch_lives(digits: Path) -> None:
    config = make_config(digits, ("batch_size", "50"), ("epochs", "1"))
    dataset = open_data(config)
    plan = make_plan(config, num_images=1500, num_devices=2)
    mesh = make_mesh(jax.devices()[:2])
    checksum = jax.jit(lambda x: x.astype(np.uint32).sum((1, 2, 3, 4)))
    batches, sums = [], []
    for batch, _ in train_data(config, dataset.train, plan, mesh, Position(0, 0)):
        batches.append(batch)
        sums.append(checksum(batch["image"]))  # computed later, while the feed goes on
    wanted = [np.asarray(batch["image"]).astype(np.uint32).sum((1, 2, 3, 4)) for batch in batches]
    np.testing.assert_array_equal(sums, wanted)
    assert len({tuple(s.tolist()) for s in wanted}) == len(wanted) == 15


def test_image_size_by_epoch(digits: Path) -> None:
    config = make_config(
        digits, ("batch_size", "500"), ("epochs", "4"), ("data.image_sizes", "((0, 32), (1, 64), (3, 40))")
    )
    dataset = open_data(config)
    plan = make_plan(config, num_images=1500, num_devices=1)
    mesh = make_mesh(jax.devices()[:1])
    stream = train_data(config, dataset.train, plan, mesh, Position(0, 0))
    assert [b.batch["image"].shape[2] for b in stream] == 3 * [32] + 6 * [64] + 3 * [40]
    assert next(eval_data(config, dataset.val, mesh))["image"].shape[2] == 32


@pytest.mark.parametrize("augment", ["randaugment", "autoaugment", "trivialaugment"])
@pytest.mark.slow
def test_augmentation_changes_pixels_and_resumes_exactly(digits: Path, augment: str) -> None:
    mesh = make_mesh(jax.devices()[:1])

    def pixels(augment: str, start: Position = START) -> tuple[list[np.ndarray], list[TrainBatch]]:
        config = make_config(digits, ("batch_size", "250"), ("epochs", "1"), ("data.augment", augment))
        plan = make_plan(config, num_images=1500, num_devices=1)
        got = list(train_data(config, open_data(config).train, plan, mesh, start))
        return [np.asarray(b.batch["image"][0], np.float32) for b in got], got

    plain, _ = pixels("none")
    changed, batches = pixels(augment)
    different = [np.any(a != b, axis=(1, 2, 3)) for a, b in zip(plain, changed, strict=True)]
    assert np.mean(different) > 0.5
    again, _ = pixels(augment, Position(0, 2, batches[1].pipelines))
    np.testing.assert_array_equal(again, changed[2:])


def test_crop_and_flip_follow_the_config(tmp_path: Path) -> None:
    # Left half black, right half white: a flip swaps the halves, a crop moves the edge.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)

    def images(flip: float, area: tuple[float, float]) -> np.ndarray:
        one = ImageSet((str(path),), np.zeros(1, np.int32))
        pipeline = dali.train_pipeline(
            one,
            np.zeros(64, np.int64),
            DataConfig(crop_area=area, crop_aspect=(1.0, 1.0), flip=flip),
            image_size=32,
            batch_size=64,
            num_threads=2,
            device_id=None,
            seed=3,
        )
        return np.asarray(next(dali.deliver(pipeline, remember=False)).images)

    whole = images(0.0, (1.0, 1.0))
    away_from_the_edge = np.r_[0:15, 17:32]
    half = np.broadcast_to(pixels[::2, ::2], whole.shape)
    np.testing.assert_array_equal(whole[:, :, away_from_the_edge], half[:, :, away_from_the_edge])
    flipped = images(0.5, (1.0, 1.0))[:, 0, 0, 0] == 255
    assert 16 < flipped.sum() < 48
    edges = (images(0.0, (0.25, 0.5)) > 127)[:, 0, :, 0].sum(1)
    assert len(np.unique(edges)) > 8


@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
def test_evaluation_batches_are_exact(tree: Path, num_devices: int) -> None:
    config = make_config(tree)
    dataset = open_data(config)
    mesh = make_mesh(jax.devices()[:num_devices])
    seen, labels = [], []
    for batch in eval_data(config, dataset.val, mesh):
        real = np.asarray(batch["weight"]) == 1
        seen += grey_numbers(batch)[real].tolist()
        labels += np.asarray(batch["label"])[real].tolist()
    assert seen == list(range(10))
    assert labels == dataset.val.labels.tolist()


def test_evaluation_transform_equals_pillow(tmp_path: Path) -> None:
    # The reference resizes the shorter side to 256 with an antialiased bilinear filter and crops 224 at the centre.
    rng = np.random.default_rng(0)
    decode = dali_decoders.make_decoder(transform="torchvision", image_size=224, resize=256, workers=1)
    sizes = ((500, 375), (333, 500), (256, 256), (300, 900), (640, 427), (427, 640), (401, 283), (2000, 251), (90, 70))
    for width, height in sizes:
        small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / "image.png")
        size = tuple(int(256 * extent / min(width, height)) for extent in (width, height))
        resized = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (round((extent - 224) / 2) for extent in size)
        wanted = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.int32)
        got = decode((tmp_path / "image.png").read_bytes()).astype(np.int32)
        difference = np.abs(got - wanted)
        assert difference.max() <= 2 and difference.mean() < 0.6, (width, height, difference.max(), difference.mean())


def test_transform_of_the_reference_does_not_antialias(tmp_path: Path) -> None:
    # Shrunk by two without antialiasing, one-pixel stripes are sampled half-way between black and white pixels or on
    # them, never averaged over four; DALI's own defaults are the reference.
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, ::4] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    encoded = (tmp_path / "image.png").read_bytes()
    images = {
        name: dali_decoders.make_decoder(transform=name, image_size=64, resize=64, workers=1)(encoded)
        for name in ("torchvision", "dali")
    }
    wanted = pixels.reshape(64, 2, 64, 2, 3).mean((1, 3))  # bilinear at the middle between two pixels
    assert np.abs(images["dali"].astype(int) - wanted).max() <= 1
    assert np.abs(images["torchvision"].astype(int) - wanted).max() > 20


def test_every_kind_of_image_is_decoded(tmp_path: Path) -> None:
    decode = dali_decoders.make_decoder(transform="torchvision", image_size=32, resize=32, workers=1)
    grey = Image.new("RGB", (48, 40), (120, 120, 120))
    variants = {
        "cmyk.jpg": grey.convert("CMYK"),
        "grey.jpg": grey.convert("L"),
        "progressive.jpg": grey,
        "alpha.png": grey.convert("RGBA"),
        "palette.png": grey.quantize(2),
        "image.webp": grey,
        "image.bmp": grey,
        "image.tiff": grey,
    }
    for name, image in variants.items():
        image.save(tmp_path / name, **({"progressive": True} if name.startswith("progressive") else {}))
        pixels = decode((tmp_path / name).read_bytes())
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
        assert np.abs(pixels.astype(int) - 120).max() <= 3, name
    # A PNG that is named .JPEG, as ImageNet has one, is read for what it is.
    (tmp_path / "png.JPEG").write_bytes((tmp_path / "alpha.png").read_bytes())
    assert decode((tmp_path / "png.JPEG").read_bytes()).shape == (32, 32, 3)


def test_decoder_goes_on_after_a_bad_file(tmp_path: Path) -> None:
    decode = dali_decoders.make_decoder(transform="torchvision", image_size=32, resize=32, workers=1)
    write_image(tmp_path / "good.png", (9, 9, 9))
    good = (tmp_path / "good.png").read_bytes()
    for bad in (b"", b"text", good[:60]):
        with pytest.raises(ValueError):
            decode(bad)
        assert decode(good)[0, 0].tolist() == [9, 9, 9]


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "gone"])
@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_bad_file_in_the_stream_is_named(tree: Path, damage: str, num_devices: int) -> None:
    config = make_config(tree, ("data.max_bad_images", "0"))
    dataset = open_data(config)
    bad = tree / "val/cat/2.png"
    {
        "text": lambda: bad.write_bytes(b"no image"),
        "empty": lambda: bad.write_bytes(b""),
        "truncated": lambda: bad.write_bytes(bad.read_bytes()[:60]),
        "gone": bad.unlink,
    }[damage]()
    mesh = make_mesh(jax.devices()[:num_devices])
    with pytest.raises(UserError) as error:
        list(eval_data(config, dataset.val, mesh))
    assert f"{bad} cannot be used: " in str(error.value)
    assert "\n" not in str(error.value)


def test_prefetch_keeps_order_and_passes_errors_on() -> None:
    def numbers(last: int) -> Any:
        yield from range(last)
        raise OSError("broken")

    stream = prefetch(numbers(5), 2)
    got = []
    with pytest.raises(OSError, match="broken"):
        for number in stream:
            got.append(number)
    assert got == [0, 1, 2, 3, 4]


def test_prefetch_works_ahead_but_not_further_than_asked() -> None:
    made: list[int] = []

    def numbers() -> Any:
        for number in range(100):
            made.append(number)
            yield number

    stream = prefetch(numbers(), 3)
    assert next(stream) == 0
    stream.close()
    assert len(made) <= 4


def test_synthetic_data_stands_for_its_count() -> None:
    config = make_config("", ("data.dir", "x"), ("data.backend", "synthetic"), ("data.synthetic_images", "(20, 10)"))
    dataset = open_data(config)
    assert (len(dataset.train.labels), len(dataset.val.labels), len(dataset.class_names)) == (20, 10, 1000)
    mesh = make_mesh(jax.devices()[:2])
    batches = list(eval_data(config, dataset.val, mesh))
    assert sum(float(np.sum(batch["weight"])) for batch in batches) == 10
    plan = make_plan(config, num_images=20, num_devices=2)
    first, second = (
        b.batch for b in itertools.islice(train_data(config, dataset.train, plan, mesh, Position(0, 0)), 2)
    )
    assert first["image"].shape == (2, 4, 32, 32, 3)
    assert second["image"] is first["image"]


# Of an image as the file has it: upright, over a color, and everything that is drawn.
SEEN = {
    "data.image_size": {"image_size": 40},
    "data.image_sizes": {"image_sizes": ((0, 40),)},
    "data.crop_area": {"crop_area": (0.2, 0.3)},
    "data.crop_aspect": {"crop_aspect": (2.0, 3.0)},
    "data.transform": {"transform": "dali"},
    "data.exif_rotation": {"exif_rotation": True},
    "data.background": {"background": (200, 30, 90)},
    "data.flip": {"flip": 1.0},
    "data.vertical_flip": {"vertical_flip": 1.0},
    "data.augment": {"augment": "trivialaugment"},
    "data.randaugment": {"augment": "randaugment", "randaugment": (3, 20)},
    "data.resize": {"resize": 64},
    "data.mean": {"mean": (0.1, 0.2, 0.3)},
    "data.std": {"std": (0.1, 0.2, 0.3)},
    "data.max_bad_images": {"max_bad_images": 7},
    "data.workers": {"workers": 3},
    "data.hw_decoder_load": {"hw_decoder_load": 0.1},
}
# What names or splits the images, which is compared by itself, and decoders that have no GPU here.
ELSEWHERE = {"dir", "train_list", "val_list", "val_share", "builtin", "backend", "synthetic_images"}


def test_what_changes_the_pixels_of_training_declares_it(tmp_path: Path) -> None:
    """Independently of what is compared on resume: another value gives other pixels, or it does not."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(8):
        pixels = np.repeat(np.repeat(rng.integers(0, 256, (12, 16, 4), np.uint8), 5, 0), 5, 1)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", exif=exif)
    images = ImageSet(tuple(map(str, sorted(tmp_path.iterdir()))), np.zeros(8, np.int32))
    mesh = make_mesh(jax.devices()[:1])

    def first_batch(**values: Any) -> bytes:
        data = DataConfig(image_size=32, workers=2).replace(**values)
        shape = {"seed": 0, "num_classes": 1, "epochs": 1, "steps_per_epoch": 1, "device_batch": 8}
        with contextlib.closing(train_batches(images, data, mesh, **shape)) as batches:
            return np.asarray(next(batches).batch["image"]).tobytes()

    keys = {key for key in options() if key.startswith("data.")}
    assert keys == SEEN.keys() | {f"data.{name}" for name in ELSEWHERE}
    plain, augmented = first_batch(), first_batch(augment="randaugment")
    for key, values in SEEN.items():
        before = augmented if key == "data.randaugment" else plain
        assert (first_batch(**values) != before) == ("stream" in options()[key].affects), key
