"""The index of class folders, the order of images and the DALI pipelines, on real files."""

import itertools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import default
from rn50_jax import config as configs
from rn50_jax import parallel
from rn50_jax.data import dali
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.digits import write_digits
from rn50_jax.data.feed import eval_batches, prefetch, train_batches
from rn50_jax.data.folder import check_class_names, scan_split
from rn50_jax.data.names import human_names
from rn50_jax.data.order import crop_seed, eval_order, train_order
from rn50_jax.errors import UserError


def make_config(root: Path | str, *overrides: tuple[str, str]) -> ConfigDict:
    basics = [
        ("data.dir", str(root)),
        ("data.image_size", "32"),
        ("data.resize", "32"),
        ("data.workers", "2"),
        ("batch_size", "4"),
        ("epochs", "2"),
        ("recipe.warmup_epochs", "0"),
    ]
    config = configs.override(default.get_config(), [*basics, *overrides])
    configs.validate(config)
    return config


def write_image(path: Path, color: tuple[int, int, int] = (0, 0, 0), size: tuple[int, int] = (40, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes; each image's grey value tells its number, class by class."""
    number = itertools.count()
    for split, counts in (("train", (7, 9, 6)), ("val", (3, 2, 5))):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            for i in range(count):
                grey = 5 * (next(number) % 22)
                write_image(tmp_path / split / name / f"{i}.png", (grey, grey, grey))
        number = itertools.count()
    return tmp_path


def test_digits_are_real_and_split_once_and_for_all(digits: Path) -> None:
    train, val = (scan_split(digits / split)[1] for split in ("train", "val"))
    assert (len(train.files), len(val.files)) == (1500, 297)
    names = {Path(file).name for file in (*train.files, *val.files)}
    assert len(names) == 1797
    assert [Path(file).name for file in val.files[:3]] == ["0036.jpg", "0072.jpg", "0130.jpg"]
    with Image.open(train.files[0]) as image:
        assert (image.size, image.format) == ((32, 32), "JPEG")
    assert not digits.with_name("digits.unfinished").exists()


def test_interrupted_writing_of_digits_starts_again(tmp_path: Path) -> None:
    (tmp_path / "digits.unfinished/train/3").mkdir(parents=True)
    (tmp_path / "digits.unfinished/train/3/extra.jpg").touch()
    write_digits(tmp_path / "digits")
    assert not (tmp_path / "digits/train/3/extra.jpg").exists()


def test_scan_sorts_and_ignores_what_is_no_image(tree: Path) -> None:
    (tree / "train/.git").mkdir()
    (tree / "train/notes.txt").touch()
    (tree / "train/ant/.hidden.png").touch()
    (tree / "train/ant/readme.md").touch()
    (tree / "train/ant/folder.png").mkdir()
    os.symlink(tree / "train/bee/0.png", tree / "train/ant/zz link ü.PNG")
    names, images = scan_split(tree / "train")
    assert names == ("ant", "bee", "cat")
    assert [Path(file).name for file in images.files[:8]] == [*(f"{i}.png" for i in range(7)), "zz link ü.PNG"]
    assert np.bincount(images.labels).tolist() == [8, 9, 6]


def test_class_folder_may_be_a_link(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    os.symlink(tree / "train", other / "train")
    os.symlink(tree / "val", other / "val")
    assert open_dataset(make_config(other)).class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: (t / "val").rename(t / "validation"), "val does not exist"),
        (lambda t: [p.unlink() for p in (t / "train/bee").iterdir()], "train/bee has no images"),
        (lambda t: (t / "val/bee").rename(t / "val/wasp"), "class 'bee' is in train/ but not in val/"),
        (lambda t: (t / "train").rename(t / "t") and (t / "train").mkdir(), "train has no class folders"),
    ],
)
def test_damaged_trees_are_refused(tree: Path, damage: Any, message: str) -> None:
    damage(tree)
    with pytest.raises(UserError) as error:
        open_dataset(make_config(tree))
    assert message in str(error.value)


def test_missing_data_and_wrong_class_count(tree: Path) -> None:
    with pytest.raises(UserError, match=r"data.dir='/nowhere' is not a folder; pass --config.data.dir=DIR"):
        open_dataset(make_config("/nowhere"))
    with pytest.raises(UserError, match="num_classes=7, but .* has 3 class folders"):
        open_dataset(make_config(tree, ("model.num_classes", "7")))


def test_class_names_of_a_checkpoint_must_fit() -> None:
    check_class_names(("a", "b"), ("a", "b"), "d")
    with pytest.raises(UserError, match="class 'b' is missing"):
        check_class_names(("a", "c"), ("a", "b"), "d")


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_an_epoch_uses_every_image_at_most_once(num_devices: int) -> None:
    def order(epoch: int, seed: int = 0) -> np.ndarray:
        return train_order(
            103, steps=12, num_devices=num_devices, device_batch=8 // num_devices, seed=seed, epoch=epoch
        )

    assert order(0).shape == (12, num_devices, 8 // num_devices)
    assert len(np.unique(order(0))) == 96
    assert not np.array_equal(order(0), order(1))
    assert not np.array_equal(order(0), order(0, seed=1))
    assert set(range(103)) == set(order(0).flat) | set(order(1).flat) | set(order(2).flat)
    alone = train_order(103, steps=12, num_devices=1, device_batch=8, seed=0, epoch=0)
    assert np.array_equal(order(0).reshape(12, 8), alone.reshape(12, 8))


@pytest.mark.parametrize(("num_images", "num_devices", "batch"), [(10, 1, 4), (10, 3, 4), (8, 2, 4), (1, 8, 2)])
def test_evaluation_covers_every_image_once(num_images: int, num_devices: int, batch: int) -> None:
    order, weights = eval_order(num_images, num_devices=num_devices, device_batch=batch)
    assert order.shape == weights.shape == (-(-num_images // (num_devices * batch)), num_devices, batch)
    assert sorted(order[weights == 1]) == list(range(num_images))


def test_crop_seeds_differ() -> None:
    seeds = {crop_seed(s, e, d) for s in range(5) for e in range(5) for d in range(8)}
    assert len(seeds) == 200
    assert min(seeds) >= 0 and max(seeds) < 2**31


def grey_numbers(batch: dict[str, jax.Array]) -> np.ndarray:
    """The number that each image of `tree` shows, [D, B]."""
    return np.round(np.asarray(batch["image"]).mean((2, 3, 4)) / 5).astype(int)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_training_batches_match_their_labels_and_order(tree: Path, num_devices: int) -> None:
    config = make_config(tree, ("batch_size", str(4 // num_devices)))
    dataset = open_dataset(config)
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    plan = configs.plan(config, num_images=22, num_devices=num_devices)
    batches = list(train_batches(config, dataset.train, plan, mesh, first_epoch=0))
    assert len(batches) == 2 * 5
    wanted = [
        train_order(22, steps=5, num_devices=num_devices, device_batch=4 // num_devices, seed=0, epoch=epoch)
        for epoch in range(2)
    ]
    for batch, indices in zip(batches, np.concatenate(wanted), strict=True):
        assert batch["image"].shape == (num_devices, 4 // num_devices, 32, 32, 3)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(grey_numbers(batch), indices)
        np.testing.assert_array_equal(batch["label"], dataset.train.labels[indices])
        assert np.all(np.asarray(batch["weight"]) == 1)


def test_the_second_epoch_can_be_started_at(digits: Path) -> None:
    config = make_config(digits, ("batch_size", "500"), ("data.flip", "0.5"))
    dataset = open_dataset(config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    plan = configs.plan(config, num_images=1500, num_devices=1)
    everything = [np.asarray(b["image"]) for b in train_batches(config, dataset.train, plan, mesh, 0)]
    second = [np.asarray(b["image"]) for b in train_batches(config, dataset.train, plan, mesh, 1)]
    assert [a.tobytes() for a in everything[3:]] == [b.tobytes() for b in second]


def test_crops_do_not_depend_on_threads_or_prefetch(digits: Path) -> None:
    results = []
    for workers, depth in (("1", "1"), ("3", "4")):
        config = make_config(digits, ("batch_size", "64"), ("data.workers", workers), ("data.prefetch", depth))
        dataset = open_dataset(config)
        plan = configs.plan(config, num_images=1500, num_devices=1)
        mesh = parallel.make_mesh(jax.devices()[:1])
        stream = train_batches(config, dataset.train, plan, mesh, 0)
        results.append([np.asarray(batch["image"]).tobytes() for batch in itertools.islice(stream, 5)])
        stream.close()
    assert results[0] == results[1]


def test_crop_and_flip_follow_the_config(tmp_path: Path) -> None:
    # Left half black, right half white: a flip swaps the halves, a crop moves the edge.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)

    def images(flip: float, area: tuple[float, float]) -> np.ndarray:
        pipeline = dali.train_pipeline(
            [str(path)] * 64,
            image_size=32,
            crop_area=area,
            crop_aspect=(1.0, 1.0),
            flip=flip,
            on_gpu=False,
            batch_size=64,
            num_threads=2,
            device_id=None,
            seed=3,
        )
        ((batch, _),) = next(dali.run_pipelines([pipeline]))
        return np.asarray(batch)

    whole = images(0.0, (1.0, 1.0))
    away_from_the_edge = np.r_[0:15, 17:32]
    half = np.broadcast_to(pixels[::2, ::2], whole.shape)
    np.testing.assert_array_equal(whole[:, :, away_from_the_edge], half[:, :, away_from_the_edge])
    flipped = images(0.5, (1.0, 1.0))[:, 0, 0, 0] == 255
    assert 16 < flipped.sum() < 48
    edges = (images(0.0, (0.25, 0.5)) > 127)[:, 0, :, 0].sum(1)
    assert len(np.unique(edges)) > 8


@pytest.mark.parametrize("num_devices", [1, 3])
def test_evaluation_batches_are_exact(tree: Path, num_devices: int) -> None:
    config = make_config(tree)
    dataset = open_dataset(config)
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    seen, labels = [], []
    for batch in eval_batches(config, dataset.val, mesh):
        real = np.asarray(batch["weight"]) == 1
        seen += grey_numbers(batch)[real].tolist()
        labels += np.asarray(batch["label"])[real].tolist()
    assert seen == list(range(10))
    assert labels == dataset.val.labels.tolist()


def test_evaluation_transform_equals_pillow(tmp_path: Path) -> None:
    # The reference resizes the shorter side to 256 with an antialiased bilinear filter and crops 224 at the centre.
    rng = np.random.default_rng(0)
    decode = dali.make_decoder(image_size=224, resize=256, workers=1)
    for width, height in ((500, 375), (333, 500), (256, 256), (300, 900)):
        small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / "image.png")
        scale = 256 / min(width, height)
        size = (256, int(height * scale)) if width < height else (int(width * scale), 256)
        resized = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (round((extent - 224) / 2) for extent in size)
        wanted = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.int32)
        got = decode((tmp_path / "image.png").read_bytes()).astype(np.int32)
        assert np.abs(got - wanted).mean() < 0.6, (width, height)


def test_every_kind_of_image_is_decoded(tmp_path: Path) -> None:
    decode = dali.make_decoder(image_size=32, resize=32, workers=1)
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
    decode = dali.make_decoder(image_size=32, resize=32, workers=1)
    write_image(tmp_path / "good.png", (9, 9, 9))
    good = (tmp_path / "good.png").read_bytes()
    for bad in (b"", b"text", good[:60]):
        with pytest.raises(ValueError):
            decode(bad)
        assert decode(good)[0, 0].tolist() == [9, 9, 9]


def test_bad_file_in_the_stream_is_a_user_error(tree: Path) -> None:
    (tree / "val/bee/1.png").write_bytes(b"no image")
    config = make_config(tree)
    mesh = parallel.make_mesh(jax.devices()[:1])
    with pytest.raises(UserError, match="DALI cannot read an image"):
        list(eval_batches(config, open_dataset(config).val, mesh))


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
    dataset = open_dataset(config)
    assert (len(dataset.train.labels), len(dataset.val.labels), len(dataset.class_names)) == (20, 10, 1000)
    mesh = parallel.make_mesh(jax.devices()[:2])
    batches = list(eval_batches(config, dataset.val, mesh))
    assert sum(float(np.sum(batch["weight"])) for batch in batches) == 10
    plan = configs.plan(config, num_images=20, num_devices=2)
    first, second = itertools.islice(train_batches(config, dataset.train, plan, mesh, 0), 2)
    assert first["image"].shape == (2, 4, 32, 32, 3)
    assert second["image"] is first["image"]


def test_names_of_imagenet_classes() -> None:
    assert human_names(("n01440764", "n15075141"))[0] == "tench, Tinca tinca"
    assert human_names(("n01440764", "cat")) == ("n01440764", "cat")
    assert human_names(("cat",)) == ("cat",)
