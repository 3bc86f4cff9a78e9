"""The index of class folders and the order of images."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.loading import open_data
from helpers.trees import make_config
from PIL import Image

from rn50_jax.config.derived import make_plan
from rn50_jax.data.formats import shards, splits
from rn50_jax.data.formats.class_folders import scan_split, visible_entries
from rn50_jax.data.formats.imagenet_names import human_names
from rn50_jax.data.image_set import ImageSet, check_class_names, fingerprint, names_from_root
from rn50_jax.data.prepare.digits import write_digits
from rn50_jax.data.sampler import crop_seed, eval_order, train_order
from rn50_jax.errors import UserError
from rn50_jax.io.files import folder_written_whole
from rn50_jax.training.stream_facts import changed_fact, stream_facts


def test_digits_are_real_and_split_once_and_for_all(digits: Path) -> None:
    train, val = (scan_split(digits / split)[1] for split in ("train", "val"))
    assert (len(train.files), len(val.files)) == (1500, 297)
    names = {Path(file).name for file in (*train.files, *val.files)}
    assert len(names) == 1797
    assert [Path(file).name for file in val.files[:3]] == ["0036.jpg", "0072.jpg", "0130.jpg"]
    with Image.open(train.files[0]) as image:
        assert (image.size, image.format) == ((32, 32), "JPEG")
    assert not list(digits.parent.glob(".digits.*"))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a/x"
    with pytest.raises(ZeroDivisionError), folder_written_whole(target) as unfinished:
        (unfinished / "half").touch()
        raise ZeroDivisionError
    assert not list(tmp_path.glob("a/*"))
    with folder_written_whole(target) as unfinished, folder_written_whole(target) as faster:
        (unfinished / "late").touch()
        (faster / "1").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a", "a/x", "a/x/1"]
    assert target.stat().st_mode == target.parent.stat().st_mode


def test_scan_sorts_and_ignores_what_is_no_image(tree: Path) -> None:
    (tree / "train/.git").mkdir()
    (tree / "train/notes.txt").touch()
    (tree / "train/ant/.hidden.png").touch()
    (tree / "train/ant/readme.md").touch()
    (tree / "train/ant/folder.png").mkdir()
    (tree / "train/ant/zz link ü.PNG").symlink_to(tree / "train/bee/0.png")
    names, images = scan_split(tree / "train")
    assert names == ("ant", "bee", "cat")
    assert [Path(file).name for file in images.files[:8]] == [*(f"{i}.png" for i in range(7)), "zz link ü.PNG"]
    assert np.bincount(images.labels).tolist() == [8, 9, 6]


def test_class_folder_may_be_a_link(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "train").symlink_to(tree / "train")
    (other / "val").symlink_to(tree / "val")
    assert open_data(make_config(other)).class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: (t / "val").rename(t / "validation"), "has train/, but no val/"),
        (lambda t: [p.unlink() for p in (t / "train/bee").iterdir()], "train/bee has no images"),
        (lambda t: (t / "val/bee").rename(t / "val/wasp"), "class 'bee' is in train/ but not in val/"),
        (lambda t: (t / "train").rename(t / "t") and (t / "train").mkdir(), "train has no class folders"),
    ],
)
def test_damaged_trees_are_refused(tree: Path, damage: Any, message: str) -> None:
    damage(tree)
    with pytest.raises(UserError) as error:
        open_data(make_config(tree))
    assert message in str(error.value)


def test_missing_data_and_wrong_class_count(tree: Path) -> None:
    with pytest.raises(UserError, match=r"data.dir='/nowhere' is not a folder; pass --config.data.dir=DIR"):
        open_data(make_config("/nowhere"))
    with pytest.raises(UserError, match=r"num_classes=7, but .* has 3 classes"):
        open_data(make_config(tree, ("model.num_classes", "7")))


def test_class_names_of_a_checkpoint_must_fit() -> None:
    check_class_names(("a", "b"), ("a", "b"), "d")
    with pytest.raises(UserError, match="class 'b' is missing"):
        check_class_names(("a", "c"), ("a", "b"), "d")


FILES = ("/data/A/x/1.jpg", "/data/B/x/2.jpg")


def image_set(files: Sequence[str], labels: Sequence[int] = (0, 1), root: str = "/data") -> ImageSet:
    return ImageSet(tuple(files), np.array(labels, np.int32), root=root)


def test_a_fingerprint_knows_order_names_labels_and_classes_wherever_they_lie() -> None:
    same = [
        image_set(FILES),
        image_set([file.replace("/data", "/mnt/other") for file in FILES], root="/mnt/other"),
        image_set([file.replace("/data", "data") for file in FILES], root="data"),
        image_set(["A/x/1.jpg", "B/x/2.jpg"], root="."),
        image_set(FILES, root=""),
        image_set([file.replace("/data", "/mnt/other") for file in FILES], root="/data"),
        image_set(FILES)._replace(labels=np.array([0, 1], np.int64)),
    ]
    assert {fingerprint(images) for images in same} == {fingerprint(same[0])}
    assert fingerprint(same[0]).startswith("2 images")
    others = [
        image_set(FILES, [1, 0]),
        image_set(["/data/x/1.jpg", "/data/x/2.jpg"]),
        image_set(FILES[::-1]),
        image_set(["/data/A/x/1.jp", "/data/gB/x/2.jpg"]),
        image_set(["/data/A/x/1.jpg\nB/x/2.jpg", "/data/"]),
        image_set(FILES, root="/"),
        image_set(["/data/A/x/caf\udce9.jpg", FILES[1]]),
    ]
    prints = {fingerprint(images) for images in (same[0], *others)}
    prints |= {fingerprint(same[0], names) for names in (["a", "b"], ["b", "a"], ["ab", ""], ["\ud800", "b"])}
    assert len(prints) == 12


def test_names_from_the_root() -> None:
    files = ("/data/train/a/1.jpg", "/elsewhere/data/2.jpg", "/database/3.jpg")
    assert names_from_root(image_set(files)) == ["train/a/1.jpg", *files[1:]]
    assert names_from_root(image_set(files, root="/")) == [file[1:] for file in files]
    assert names_from_root(image_set(["/d/a/1.jpg"], root="")) == ["1.jpg"]
    assert names_from_root(ImageSet((), np.zeros(3, np.int32))) == ()


def test_what_differs_from_a_checkpoint_is_named(tree: Path) -> None:
    config = make_config(tree)
    facts = stream_facts(config, open_data(config).train, make_plan(config, num_images=22, num_devices=1))
    saved = json.loads(json.dumps(facts))
    assert changed_fact(saved, facts) is None
    others = {"the training set": "22 images, 0123456789abcdef", "config.seed": 8, "what a newer version knows": 1}
    for name, value in others.items():
        assert changed_fact(saved | {name: value}, facts).name == name
    assert changed_fact(others | {"the form of the stream": 2}, facts).name == "the form of the stream"


def test_names_that_are_not_utf8_have_a_fingerprint(tree: Path) -> None:
    images = (tree / "train/ant/0.png").rename(os.fsdecode(os.fsencode(tree) + b"/train/ant/caf\xe9.png"))
    found = scan_split(tree / "train")[1]
    assert str(images) in found.files and fingerprint(found).startswith("22 images")


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


def test_names_of_imagenet_classes() -> None:
    assert human_names(("n01440764", "n15075141"))[0] == "tench, Tinca tinca"
    assert human_names(("n01440764", "cat")) == ("n01440764", "cat")
    assert human_names(("cat",)) == ("cat",)


def test_links_to_themselves_are_no_classes_and_no_images(tree: Path) -> None:
    wanted = scan_split(tree / "train")
    for name in ("train/loop", "train/ant/loop.jpg"):
        (tree / name).symlink_to(Path(name).name)
    os.mkfifo(tree / "train/pipe")
    os.mkfifo(tree / "train/ant/pipe.jpg")
    names, images = scan_split(tree / "train")
    assert (names, images.files) == (wanted[0], wanted[1].files)


@pytest.mark.parametrize("name", ["train/ant", "train", "."])
def test_folders_that_cannot_be_read_are_named(tree: Path, name: str) -> None:
    user, denied = os.geteuid(), tree / name
    for folder in tree.parents:
        if user == 0 and folder.stat().st_uid == 0 and folder.is_relative_to(tree.parents[1]):
            folder.chmod(0o755)  # for the user that root becomes
    denied.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(UserError, match="cannot be read: Permission denied; see its permissions"):
            open_data(make_config(tree))
    finally:
        os.seteuid(user)
        denied.chmod(0o755)


def test_names_of_jpeg_and_pictures_that_are_not_read(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jfif", "b.JPE", "c.heic", "d.HEIC", "e.gif", "f.cr2", "notes.txt"):
        shutil.copy(tree / "train/ant/0.png", tree / "train/ant" / name)
    _, images = scan_split(tree / "train")
    names = [Path(file).name for file in images.files[:9]]
    assert names == [*(f"{i}.png" for i in range(7)), "a.jfif", "b.JPE"]
    assert [Path(file).name for file in images.not_read] == ["c.heic", "d.HEIC", "e.gif", "f.cr2"]
    assert capsys.readouterr().err == (
        f"note: {tree}/train: 4 pictures are not read (2 .heic, 1 .gif, 1 .cr2); convert them to JPEG, for example "
        f"with ImageMagick: mogrify -format jpg *.heic *.HEIC *.gif *.cr2; the first is {tree}/train/ant/c.heic\n"
    )
    for file in images.files[:9]:
        Path(file).unlink()
    with pytest.raises(UserError, match=r"ant has no images that are read: 4 pictures are not read \(2 \.heic, "):
        scan_split(tree / "train")


def test_a_split_is_known_by_its_first_picture(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class folders may hold a million images on a network: to tell a split, they are not listed."""
    listed = []

    def visible(folder: Path) -> list[os.DirEntry[str]]:
        listed.append(folder)
        return visible_entries(folder)

    monkeypatch.setattr(splits, "visible_entries", visible)
    monkeypatch.setattr(shards, "visible_entries", visible)
    assert splits.is_split(tree / "train") and not splits.is_unsplit(tree)
    assert set(listed) == {tree / "train"}
    (tree / "train/ant").chmod(0)
    try:
        assert splits.is_split(tree / "train")  # by the next class; whoever reads the class says what is wrong
    finally:
        (tree / "train/ant").chmod(0o755)


def test_the_digits_need_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(UserError, match="is not installed: pip install scikit-learn, copy"):
        write_digits(tmp_path / "data/digits")
    assert not (tmp_path / "data").exists()
