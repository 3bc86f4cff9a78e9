"""`data.val_share`: a share of each class set apart, the same images wherever and whenever they are asked for."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Run
from helpers.loading import open_data
from helpers.trees import make_config, write_image

from rn50_jax.data.check.write_split import check_new
from rn50_jax.data.dataset import misfits
from rn50_jax.data.formats.file_list import read_list
from rn50_jax.data.image_set import names_from_root, with_classes
from rn50_jax.data.val_share import validation_mask
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import _fitted

COUNTS = {"ant": 10, "bee": 2, "cat": 33}
SHARE = ("data.val_share", "0.2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder a class, unbalanced, and no split."""
    for label, (name, count) in enumerate(COUNTS.items()):
        for number in range(count):
            write_image(tmp_path / "photos" / name / f"{number}.png", (80 * label, number, 0))
    return tmp_path / "photos"


def test_each_class_gives_its_share_and_nothing_is_on_both_sides(photos: Path) -> None:
    train, val, classes = open_data(make_config(photos, SHARE))
    assert classes == tuple(COUNTS)
    assert np.bincount(val.labels).tolist() == [2, 1, 7]  # 0.2 of 10, 2 and 33, rounded, but at least one
    assert np.bincount(train.labels).tolist() == [8, 1, 26]
    everything = sorted(str(path) for path in photos.glob("*/*"))
    assert sorted((*train.files, *val.files)) == everything
    for images in (train, val):
        assert [classes[label] for label in images.labels] == [Path(file).parent.name for file in images.files]
        assert all(name.count("/") == 1 for name in names_from_root(images))


def test_the_seed_decides_and_neither_place_nor_order(photos: Path) -> None:
    def names(root: Path, seed: int) -> list[str]:
        return list(names_from_root(open_data(make_config(root, SHARE, ("seed", str(seed)))).val))

    elsewhere = photos.rename(photos.with_name("moved"))
    assert names(elsewhere, 0) == names(elsewhere, 0) != names(elsewhere, 1)
    before = names(elsewhere, 0)
    shutil.copytree(elsewhere, photos)
    assert names(photos, 0) == before
    # By train/ alone they are called otherwise.
    (elsewhere / "train").mkdir()
    for name in COUNTS:
        (elsewhere / name).rename(elsewhere / "train" / name)
    assert len(names(elsewhere, 0)) == len(before)
    assert all(name.startswith("train/") for name in names(elsewhere, 0))


def test_over_seeds_every_image_is_chosen_equally_often() -> None:
    names, labels = [f"a/{number}.jpg" for number in range(20)], np.zeros(20, np.int64)
    chosen = [validation_mask(names, labels, ("a",), share=0.25, seed=seed) for seed in range(2000)]
    assert {mask.sum() for mask in chosen} == {5}
    # Binomial: 2000 draws of probability 0.25 have a standard deviation of 19.4.
    assert np.abs(np.sum(chosen, axis=0) - 500).max() < 5 * 19.4


@pytest.mark.parametrize(("share", "wanted"), [(0.001, 1), (0.5, 4), (0.999, 6)])
def test_both_sides_have_an_image_whatever_the_share(share: float, wanted: int) -> None:
    names, labels = [f"{number}" for number in range(7)], np.zeros(7, np.int64)
    assert validation_mask(names, labels, ("a",), share=share, seed=0).sum() == wanted


def test_a_class_of_one_image_is_named(photos: Path) -> None:
    (photos / "bee/1.png").unlink()
    with pytest.raises(UserError, match="class 'bee' has 1 image, too few to train on one and validate on another"):
        open_data(make_config(photos, SHARE))


def test_what_is_no_split_is_told_how_to_become_one(photos: Path) -> None:
    with pytest.raises(
        UserError, match=r"val_share=0.2, or make both folders with: .*check_data \S+ --split 0.2$"
    ) as e:
        open_data(make_config(photos))
    assert "no split into train/ and val/, but classes" in str(e.value)
    (photos / "train").mkdir()
    for name in COUNTS:
        (photos / name).rename(photos / "train" / name)
    with pytest.raises(UserError, match=r"has train/, but no val/; .*val_share=0.2"):
        open_data(make_config(photos))
    shutil.copytree(photos / "train", photos / "val")
    with pytest.raises(UserError, match=r"val has validation images already; leave .*val_share=0.2 out"):
        open_data(make_config(photos, SHARE))
    with pytest.raises(UserError, match=r"val_list='x' and .*val_share=0.2 exclude each other"):
        open_data(make_config(photos, SHARE, ("data.val_list", "x")))


def test_classes_may_be_called_train_and_val(tmp_path: Path, call: Run) -> None:
    for name in ("train", "val", "tram"):
        for number in range(3):
            write_image(tmp_path / name / f"{number}.png")
    train, val, classes = open_data(make_config(tmp_path, SHARE))
    assert (classes, len(train.labels), len(val.labels)) == (("train", "tram", "val"), 6, 3)
    with pytest.raises(UserError, match=r"no split into train/ and val/, but classes; .*val_share=0.2"):
        open_data(make_config(tmp_path))
    assert "9 images of 3 classes" in call("check_data", tmp_path).stdout


def test_lists_are_split_too(photos: Path) -> None:
    images = sorted(str(path.relative_to(photos)) for path in photos.glob("*/*"))
    lines = [f"{name}\t{name.partition('/')[0]}\n" for name in images]
    (photos / "all.tsv").write_text("".join(f"#class\t{name}\n" for name in COUNTS) + "".join(lines))
    by_list = open_data(make_config(photos, SHARE, ("data.train_list", "all.tsv")))
    by_folder = open_data(make_config(photos, SHARE))
    assert set(by_list.val.files) == set(by_folder.val.files)


def test_tar_shards_are_split_too(tree: Path, tmp_path: Path, call: Run) -> None:
    packed = tmp_path / "packed"
    call("pack", tree, packed)
    for place in (packed / "val").iterdir():
        place.unlink()
    (packed / "val").rmdir()
    train, val, _ = open_data(make_config(packed, SHARE))
    assert np.bincount(val.labels).tolist() == [1, 2, 1]
    assert val.members is not None and train.members is not None
    assert len(val.members.offset) == 4 and not set(val.files) & set(train.files)
    assert val.files == open_data(make_config(packed, SHARE)).val.files


def test_only_one_split_wanted_takes_all_of_an_unsplit_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    val = open_data(make_config(photos), need_train=False).val
    assert len(val.labels) == sum(COUNTS.values())
    assert "has no val/: all 45 images of its classes are taken" in capsys.readouterr().out
    assert len(open_data(make_config(photos), need_val=False).train.labels) == 45


def test_what_was_chosen_stays_whatever_is_added(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(photos, SHARE)
    chosen = frozenset(names_from_root(open_data(config).val))
    for number in range(100, 140):
        write_image(photos / "ant" / f"{number}.png")
    again = open_data(config, val_images=chosen)
    assert frozenset(names_from_root(again.val)) == chosen
    assert len(again.train.labels) == 45 + 40 - len(chosen)
    assert not capsys.readouterr().err
    (photos / sorted(chosen)[0]).unlink()
    assert len(open_data(config, val_images=chosen).val.labels) == len(chosen) - 1
    assert f"1 of {len(chosen)} validation images of this run are gone" in capsys.readouterr().err
    (tmp := photos.parent / "rest").mkdir()
    for name in chosen:
        if (photos / name).exists():
            (tmp / name).parent.mkdir(exist_ok=True)
            shutil.copy(photos / name, tmp / name)
    with pytest.raises(UserError, match="has no images to train on beside the run's validation images"):
        open_data(make_config(tmp, SHARE), val_images=chosen)
    with pytest.raises(UserError, match="none of the 1 validation images that the run set apart is in"):
        open_data(config, val_images=frozenset(("ant/none.png",)))


def test_an_image_that_a_list_names_twice_is_on_one_side(photos: Path) -> None:
    names = sorted(f"{path.parent.name}/{path.name}" for path in photos.glob("*/*"))
    (photos / "twice.tsv").write_text("".join(f"{name}\t{name.partition('/')[0]}\n" for name in (*names, *names)))
    (photos / "twice.tsv").write_text(
        "".join(f"#class\t{name}\n" for name in COUNTS) + (photos / "twice.tsv").read_text()
    )
    config = make_config(photos, SHARE, ("data.train_list", "twice.tsv"))
    train, val, _ = open_data(config)
    once = open_data(make_config(photos, SHARE))
    assert set(val.files) == set(once.val.files) and len(val.files) == 2 * len(once.val.files)
    assert not set(train.files) & set(val.files)
    again = open_data(config, val_images=frozenset(names_from_root(val)))
    assert again.val.files == val.files


def test_another_folder_drops_what_does_not_hold_there(photos: Path, tree: Path) -> None:
    chosen = frozenset(names_from_root(open_data(make_config(photos, SHARE)).val))
    moved = photos.rename(photos.with_name("moved"))

    def share_fits(root: Path, val_images: frozenset[str] | None = chosen) -> bool:
        unfit = misfits(make_config(root, SHARE).data, val_images=val_images)
        assert unfit in ([], [("data.val_share", "0")])
        return not unfit

    assert share_fits(moved)  # the same images at another place
    assert not share_fits(tree)  # other images
    assert share_fits(moved, None)
    shutil.copytree(moved, tree / "unsplit")
    assert not share_fits(tree / "unsplit", frozenset(("dog/1.png",)))
    lists = make_config(tree, ("data.val_list", "no.tsv"), ("data.train_list", "no.tsv"))
    assert misfits(lists.data, val_images=None) == [("data.train_list", ""), ("data.val_list", "")]
    kept = _fitted(lists, [("data.val_list", "no.tsv")], None).data  # which the command line gives
    assert (kept.val_list, kept.train_list) == ("no.tsv", "")


def test_classes_are_matched_by_name(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = open_data(make_config(photos), need_train=False)
    shutil.rmtree(photos / "bee")
    some = with_classes(open_data(make_config(photos), need_train=False), dataset.class_names, "photos")
    assert some.class_names == tuple(COUNTS)
    assert np.bincount(some.val.labels).tolist() == [10, 0, 33]
    assert "photos has 2 of the 3 classes; the model still chooses among all of them" in capsys.readouterr().err
    with pytest.raises(UserError, match="class 'bee' is new"):
        with_classes(dataset, ("ant", "cat", "dog"), "photos")
    turned = with_classes(dataset, ("cat", "bee", "ant"), "photos")
    assert np.bincount(turned.val.labels).tolist() == [33, 2, 10]


def test_a_run_keeps_its_validation_images(photos: Path, tmp_path: Path, call: Run) -> None:
    work = tmp_path / "run"
    own = ("--config.data.val_share=0.25", "--config.batch_size=8", "--config.log.tensorboard=False")
    sizes = ("--config.data.image_size=32", "--config.precision=fp32")
    options = ("--config", "default", "--workdir", work, *TINY, f"--config.data.dir={photos}", *own, *sizes)
    done = call("train", *options)
    assert "33 training and 12 validation images (0.25 of each class), 3 classes" in " ".join(done.stdout.split())
    kept = read_list(work / "val_images.tsv")
    assert len(kept.files) == 12 and all((photos / name).exists() for name in kept.files)
    lines = map(json.loads, (work / "metrics.jsonl").read_text().splitlines())
    trained = [line for line in lines if "val.loss" in line][-1]

    # A weight file knows them too, and takes all images of other data.
    call("convert", work, tmp_path / "w.pth", "--checkpoint", "latest")
    words = ("--weights", tmp_path / "w.pth", "--json", tmp_path / "w.json")
    call("evaluate", *words, f"--config.data.dir={photos}")
    by_file = json.loads((tmp_path / "w.json").read_text())
    assert (by_file["val.images"], by_file["val.top1"]) == (12, trained["val.top1"])
    assert by_file["val.loss"] == pytest.approx(trained["val.loss"], rel=1e-5)
    shutil.copytree(photos, tmp_path / "new", copy_function=lambda a, b: shutil.copy(a, f"{b}.new.png"))
    done = call("evaluate", *words, f"--config.data.dir={tmp_path / 'new'}")
    assert json.loads((tmp_path / "w.json").read_text())["val.images"] == 45
    assert "all 45 images of its classes are taken" in done.stdout

    # Images that come later are trained on, and those of before are what every command evaluates.
    for number in range(100, 140):
        write_image(photos / "ant" / f"{number}.png", (0, 0, 250))
    call("evaluate", "--workdir", work, "--checkpoint", "latest", "--json", tmp_path / "all.json")
    result = json.loads((tmp_path / "all.json").read_text())
    assert (result["val.images"], result["val.loss"]) == (12, trained["val.loss"])
    done = call("train", *options, "--config.epochs=3")
    assert "73 training and 12 validation images" in " ".join(done.stdout.split())
    assert read_list(work / "val_images.tsv").files == kept.files

    # All images of another folder, some of the classes.
    shutil.copytree(photos / "cat", tmp_path / "others/cat")
    done = call(
        "evaluate", "--workdir", work, f"--config.data.dir={tmp_path / 'others'}", "--json", tmp_path / "others.json"
    )
    assert json.loads((tmp_path / "others.json").read_text())["val.images"] == 33
    assert "1 of the 3 classes" in done.stderr

    # The same folder by another name, and without the list of what was set apart.
    done = call("evaluate", "--workdir", work, f"--config.data.dir={photos}/../photos")
    assert "12 images" in done.stdout and "on the 0.25 of each class" in done.stdout
    (work / "val_images.tsv").rename(tmp_path / "kept.tsv")
    done = call("train", *options, "--config.epochs=4")
    assert done.returncode == 2 and "val_images.tsv is missing" in done.stderr
    assert "val_images.tsv is missing: the validation images are drawn" in call("evaluate", "--workdir", work).stderr
    (tmp_path / "kept.tsv").rename(work / "val_images.tsv")

    for change in ("--config.data.val_share=0.5", "--config.seed=1"):
        done = call("train", *options, "--config.epochs=4", change)
        assert done.returncode == 2
        assert "it would validate on images that it was trained on; set it back" in done.stderr


@pytest.mark.parametrize("form", ["links", "lists"])
def test_check_data_writes_the_same_split_without_bad_images(
    photos: Path, tmp_path: Path, call: Run, form: str
) -> None:
    wanted = open_data(make_config(photos, SHARE))
    bad = (wanted.train.files[0], wanted.val.files[-1])
    for file in bad:
        Path(file).write_text("no image")
    out = tmp_path / ("out" if form == "links" else "out.tsv")
    done = call("check_data", photos, "--split", "0.2", "--out", out)
    assert done.returncode == 1  # there are bad images
    assert "bad or duplicate images, in neither: 2" in done.stdout
    lists = (("data.train_list", str(tmp_path / "out.train.tsv")), ("data.val_list", str(tmp_path / "out.val.tsv")))
    config = make_config(out) if form == "links" else make_config(photos, *lists)
    found = open_data(config)
    for images, all_of_them in ((found.train, wanted.train), (found.val, wanted.val)):
        assert sorted(str(Path(file).resolve()) for file in images.files) == sorted({*all_of_them.files} - {*bad})
    if form == "links":
        again = call("check_data", photos, "--split", "0.2", "--out", out)
        assert again.returncode == 2 and "exists and is not empty; give another folder with --out" in again.stderr
        # Images and links may move together.
        moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
        assert all(path.exists() for path in moved.glob("out/*/*/*"))


def test_check_data_says_what_to_do_without_a_split(photos: Path, tree: Path, call: Run) -> None:
    assert "Train with --config.data.val_share=0.2" in call("check_data", photos).stdout
    shutil.rmtree(photos)
    assert "val_share" not in call("check_data", tree).stdout
    for words, line in (
        (("--split", "1"), "--split 1 must be between 0 and 1"),
        (("--out", "x"), "--out is of use with --split alone"),
        (("--split", "0.2", "--out", f"{tree}/x"), "and would be a class of it; choose a folder outside"),
        (("--split", "0.2"), "is split already, into train and val; leave out --split"),
    ):
        done = call("check_data", tree, *words)
        assert done.returncode == 2 and line in done.stderr


def test_a_class_whose_good_images_are_all_on_one_side_is_named(photos: Path, call: Run) -> None:
    (photos / "bee/0.png").write_text("no image")
    done = call("check_data", photos, "--split", "0.2")
    assert done.returncode == 2
    assert "class 'bee' has too few good images to train on some and validate on others" in done.stderr


def test_a_folder_to_write_to_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To root every folder is open, so the refusal is the system's by its exception."""

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="out cannot be read: Permission denied; give another folder with --out"):
        check_new(tmp_path / "out", tmp_path / "data")
