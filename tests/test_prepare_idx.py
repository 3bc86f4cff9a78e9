"""MNIST's files and those of its kin as class folders and tar shards, through the command."""

import gzip
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Run, assert_user_error
from helpers.idx_files import INT32, MNIST, idx, image_file, make_images, write_set
from helpers.loading import eval_data, open_data, train_data
from helpers.logs import files_of_at_most
from helpers.trees import make_config
from PIL import Image

from rn50_jax.config.derived import make_plan
from rn50_jax.data.prepare import idx_folders
from rn50_jax.distributed.devices import make_mesh
from rn50_jax.errors import UserError
from rn50_jax.prepare_idx import main

TRAIN = make_images(12, seed=1), [1, 0, 1, 2, 0, 2, 1, 0, 0, 1, 2, 1]
VAL = make_images(4, seed=2), [2, 1, 0, 0]
FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three classes; 12 and 4 gray images of 9 rows and 11 columns."""
    write_set(tmp_path / "files", TRAIN, VAL, [f"{name}.gz" for name in MNIST])
    return tmp_path / "files"


def read_tree(split: Path) -> dict[str, np.ndarray]:
    """Pixels by class/name, as Pillow decodes them."""
    found = {}
    for path in sorted(split.rglob("*.png")):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.mode in ("L", "RGB")
            found[f"{path.parent.name}/{path.name}"] = np.asarray(image)
    return found


def assert_tree(split: Path, images: np.ndarray, names: Sequence[str], digits: int) -> None:
    """The folder holds these images, each in the folder of its class."""
    found = read_tree(split)
    assert set(found) == {f"{name}/{number:0{digits}d}.png" for number, name in enumerate(names)}
    for number, name in enumerate(names):
        assert np.array_equal(found[f"{name}/{number:0{digits}d}.png"], images[number])


def test_class_folders_that_training_reads(files: Path, tmp_path: Path, call: Run) -> None:
    done = call("prepare_idx", files, tmp_path / "new/out")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"{tmp_path}/new/out: 12 + 4 images of 3 classes, 11 x 9 pixels\n"
    assert_tree(tmp_path / "new/out/train", TRAIN[0], list(map(str, TRAIN[1])), 2)
    assert_tree(tmp_path / "new/out/val", VAL[0], list(map(str, VAL[1])), 1)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    data = open_data(make_config(tmp_path / "new/out"))
    assert data.class_names == ("0", "1", "2")
    for images, labels in ((data.train, TRAIN[1]), (data.val, VAL[1])):
        assert {
            int(Path(file).stem): label for file, label in zip(images.files, images.labels.tolist(), strict=True)
        } == (dict(enumerate(labels)))


def test_shards(files: Path, tmp_path: Path, call: Run) -> None:
    done = call("prepare_idx", files, tmp_path / "out", "--pack", tmp_path / "shards")
    assert done.returncode == 0 and "shards/train: 12 images in 1 shard" in done.stdout
    data = open_data(make_config(tmp_path / "shards"))
    assert data.class_names == ("0", "1", "2") and data.train.members is not None
    assert sorted(data.train.labels.tolist()) == sorted(TRAIN[1])
    # What the refusal says to do instead goes on, or finds nothing to do.
    done = call("prepare_idx", files, tmp_path / "out", "--pack", tmp_path / "shards")
    assert_user_error(done, f"to pack what is there: python -m rn50_jax.pack {tmp_path}/out {tmp_path}/shards")
    assert "is packed already" in call("pack", tmp_path / "out", tmp_path / "shards").stdout


@pytest.mark.parametrize("colors", [0, 3])
def test_pixels_around_and_rows_for_columns(tmp_path: Path, colors: int) -> None:
    images = make_images(3, 8, 10, colors=colors)
    write_set(tmp_path / "files", (images, [0, 1, 1]), (images[:2], [1, 0]))
    assert main([str(tmp_path / "files"), str(tmp_path / "out"), "--pad", "2", "--transpose"]) == 0
    for pixels in read_tree(tmp_path / "out/train").values():
        assert pixels.shape[:2] == (14, 12)
        assert pixels.sum(dtype=int) == pixels[2:-2, 2:-2].sum(dtype=int)
    inner = read_tree(tmp_path / "out/train")["1/2.png"][2:-2, 2:-2]
    assert all(np.array_equal(inner[x, y], images[2][y, x]) for x in range(10) for y in range(8))


def test_training_draws_windows_of_padded_images_and_resizes_nothing(tmp_path: Path) -> None:
    images = make_images(40, 28, 28)
    write_set(tmp_path / "files", (images, [0, 1] * 20), (images[:2], [1, 0]))
    assert main([str(tmp_path / "files"), str(tmp_path / "out"), "--pad", "2"]) == 0
    windows = (("data.crop_area", "(0.765625, 0.765625)"), ("data.crop_aspect", "(1.0, 1.0)"))
    config = make_config(
        tmp_path / "out",
        ("data.image_size", "28"),
        ("data.resize", "32"),
        *windows,
        ("batch_size", "40"),
        ("epochs", "10"),
    )
    data, mesh = open_data(config), make_mesh(jax.devices()[:1])
    plan = make_plan(config, num_images=40, num_devices=1)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    place_of = {image[y : y + 28, x : x + 28].tobytes(): (y, x) for image in padded for y in range(5) for x in range(5)}
    places = set()
    for batch in train_data(config, data.train, plan, mesh):
        pixels = np.asarray(batch.batch["image"])[0]
        for image in pixels:
            either = image[..., 0].tobytes(), image[:, ::-1, 0].tobytes()  # mirrored or not
            (place,) = [place_of[found] for found in either if found in place_of]
            places.add(place)
    assert len(places) == 25
    (batch,) = eval_data(config, data.val, mesh)
    assert {image[..., 0].tobytes() for image in np.asarray(batch["image"])[0][:2]} == {
        image[2:-2, 2:-2].tobytes() for image in padded[:2]
    }


def test_names_of_a_file_and_labels_that_nothing_has(tmp_path: Path, call: Run) -> None:
    """EMNIST's letters count from 1, so the first name is nobody's."""
    write_set(tmp_path / "files", (TRAIN[0][:3], [2, 1, 2]), (VAL[0][:2], [1, 2]))
    (tmp_path / "names.txt").write_text("none\nb\na\n")
    done = call("prepare_idx", tmp_path / "files", tmp_path / "out", "--class_names", tmp_path / "names.txt")
    assert "training counts classes by their sorted names: 0 is a, and 1 is b" in done.stdout
    assert_tree(tmp_path / "out/train", TRAIN[0], ["a", "b", "a"], 1)


def test_folders_of_many_classes_are_in_the_order_of_labels(tmp_path: Path) -> None:
    write_set(tmp_path / "files", (make_images(30), list(range(1, 31))), (make_images(30), list(range(30, 0, -1))))
    assert main([str(tmp_path / "files"), str(tmp_path / "out")]) == 0
    assert open_data(make_config(tmp_path / "out")).class_names == tuple(f"{label:02d}" for label in range(1, 31))


def test_the_first_training_images(files: Path, tmp_path: Path, call: Run) -> None:
    assert call("prepare_idx", files, tmp_path / "out", "--train_images", 4).returncode == 0
    # The names do not depend on how many are taken.
    assert_tree(tmp_path / "out/train", TRAIN[0], ["1", "0", "1", "2"], 2)
    assert len(read_tree(tmp_path / "out/val")) == 4
    done = call("prepare_idx", files, tmp_path / "few", "--train_images", 3)
    assert_user_error(done, "class '2' has images in val, but none in train, of which --train_images takes 3;")


def test_qmnist(tmp_path: Path) -> None:
    kinds = ("images-idx3-ubyte", "labels-idx2-int")
    for split, (images, labels) in (("train", TRAIN), ("test", VAL)):
        table = [number for label in labels for number in (label, 1, 2000 + label, 9, 0, 0, 0, 0)]
        for kind, content in zip(kinds, (image_file(images), idx([len(labels), 8], table, INT32)), strict=True):
            (tmp_path / f"qmnist-{split}-{kind}.gz").write_bytes(gzip.compress(content))
    assert main([str(tmp_path), str(tmp_path / "out")]) == 0
    assert_tree(tmp_path / "out/train", TRAIN[0], list(map(str, TRAIN[1])), 2)


@pytest.mark.parametrize(
    ("spoil", "args", "message"),
    [
        (lambda f: (f / f"{MNIST[1]}.gz").unlink(), "", "files has no file of train labels; it needs four"),
        (lambda f: os.truncate(f / f"{MNIST[0]}.gz", 300), "", f"{MNIST[0]}.gz is damaged or cut short"),
        (
            lambda f: (f / f"{MNIST[3]}.gz").write_bytes(idx([3], [0, 1, 2])),
            "",
            "t10k-labels-idx1-ubyte.gz has 3 labels, and t10k-images-idx3-ubyte.gz 4 images; get those that belong",
        ),
        (
            lambda f: (f / f"{MNIST[3]}.gz").write_bytes(idx([4], [0, 1, 1, 0])),
            "",
            "t10k-labels-idx1-ubyte.gz: class '2' has images in train, but none in val; get files that belong together",
        ),
        (lambda f: (f / "n").write_text("a\nb\n"), "--class_names n", "has the label 2, and --class_names has 2 names"),
        (
            lambda f: (f / "n").write_text("a\nb/c\nd\n"),
            "--class_names n",
            "'b/c' cannot be the name of a class's",
        ),
        (
            lambda f: (f / "n").write_text("a\n..\nd\n"),
            "--class_names n",
            "'..' cannot be the name of a class's",
        ),
        (lambda f: (f / "n").write_text(f"a\n{'ü' * 128}\nd\n"), "--class_names n", "cannot be the name of a class's"),
        (
            lambda f: (f / "n").write_text("a\na\nd\n"),
            "--class_names n",
            "n has none, an empty one or one twice",
        ),
        (lambda f: None, "--class_names none.txt", "--class_names none.txt: No such file or directory"),
        (lambda f: None, "--pad -1", "--pad -1 must be at least 0"),
        (
            lambda f: None,
            "--pad 1000000000",
            "makes images of more than 4096 pixels a side; choose less",
        ),
        (lambda f: None, "--train_images 0", "--train_images 0 must be at least 1"),
        (
            lambda f: (f / "out").mkdir() or (f / "out/.x").touch(),
            "",
            "out exists and is not an empty folder; remove",
        ),
        (lambda f: (f / "out").touch(), "", "out exists and is not an empty folder; remove it, or give another"),
        (lambda f: (f / "out").symlink_to("nothing"), "", "out exists and is not an empty folder; remove"),
        (lambda f: None, "--pack out", "--pack out must not be out, nor in it or around it; give another folder"),
        (lambda f: None, "--pack out/shards", "--pack out/shards must not be out, nor in it"),
        (
            lambda f: (f / f"{MNIST[2]}.gz").write_bytes(image_file(make_images(4, 10, 11))),
            "",
            "t10k-images-idx3-ubyte.gz has images of 11 x 10 pixels, and train-images-idx3-ubyte.gz of 11 x 9 pixels",
        ),
        (lambda f: (f / "n").write_text("\na\nb\nd\n"), "--class_names n", "n has none, an empty one or one twice"),
        (lambda f: (f / "s").touch(), "--pack s", "s exists and is not an empty folder; remove it, or give another"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    files: Path, call: Run, spoil: Callable[[Path], object], args: str, message: str
) -> None:
    spoil(files)
    before = sorted(files.rglob("*"))
    assert_user_error(call("prepare_idx", files, "out", *args.split(), cwd=files), message)
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_folder_one_is_in_is_not_replaced(files: Path, tmp_path: Path, call: Run, out: str) -> None:
    (tmp_path / "here").mkdir()
    assert_user_error(call("prepare_idx", files, out, cwd=tmp_path / "here"), f"{out} is the folder you are in, or")


def test_an_empty_folder_and_a_link_to_one_are_filled(files: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "a", tmp_path / "link"):
        (tmp_path / "a" if out.name == "a" else tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to("b")
    for name in ("a", "link"):
        assert main([str(files), str(tmp_path / name)]) == 0
        assert len(read_tree(tmp_path / name / "train")) == 12
    assert (tmp_path / "link").is_symlink()


def test_a_folder_that_cannot_be_replaced_is_told(
    files: Path, tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mounted disk, or one that another command fills meanwhile."""
    write_split = idx_folders._write_split

    def meanwhile(folder: Path, *args: object) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/theirs").touch()
        write_split(folder, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(idx_folders, "_write_split", meanwhile)
    assert_user_error(call("prepare_idx", files, tmp_path / "out"), "out is in use, as a mounted disk is")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    images = make_images(2, 64, 64)  # of noise, which PNG makes no smaller than the limit
    write_set(tmp_path / "files", (images, [0, 1]), (images, [0, 1]))
    full = "the disk of .*out is full: File too large; make room and run the same command again$"
    with files_of_at_most(4000), pytest.raises(UserError, match=full):
        main([str(tmp_path / "files"), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_room_is_looked_for_in_advance(files: Path, tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 5000}))
    assert_user_error(call("prepare_idx", files, tmp_path / "out"), "needs 65.5 kB more, and its disk has 5 kB free")
    assert not (tmp_path / "out").exists()


# As the files were packed when they were published: the seconds in their headers.
PACKED_AT = dict(zip(MNIST, (1504176606, 1504176606, 1504176627, 1504176627), strict=True))
PUBLISHED = dict(
    zip(
        MNIST,
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        strict=True,
    )
)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_itself(tmp_path: Path, call: Run) -> None:
    """Debian's files are the published ones but for name and time in the header of gzip, which are put back here."""
    for name in MNIST:
        data = (FASHION / f"{name}.gz").read_bytes()
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", PACKED_AT[name]) + data[8:10] + name.encode() + b"\0"
        assert hashlib.md5(header + data[10:]).hexdigest() == PUBLISHED[name]
    done = call("prepare_idx", FASHION, tmp_path / "out", "--train_images", 100)
    assert done.returncode == 0 and f"{FASHION} is Fashion-MNIST, whose classes have names" in done.stdout
    assert "100 + 10,000 images of 10 classes, 28 x 28 pixels" in done.stdout
    assert "0 is ankle-boot, and 9 is trouser" in done.stdout
    with gzip.open(FASHION / f"{MNIST[0]}.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(60_000, 28, 28)
    # The first labels of train, as everybody's first look at the data set shows them: an ankle boot, a T-shirt, ...
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
    names = [classes[label] for label in (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)]
    train = read_tree(tmp_path / "out/train")
    for number, name in enumerate(names):
        assert np.array_equal(train[f"{name}/{number:05d}.png"], pixels[number])
    assert {len(list(folder.iterdir())) for folder in (tmp_path / "out/val").iterdir()} == {1000}
