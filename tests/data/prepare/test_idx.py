"""IDX files: what is read of them, under which names they are found, and what is refused."""

import gzip
import hashlib
import os
import re
import subprocess
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import DOUBLE, FLOAT, INT8, INT16, INT32, MNIST, UINT8, idx, image_file, make_images

from rn50_jax.data.prepare.idx import find_files, read_images, read_labels
from rn50_jax.errors import UserError

GOOD = image_file(make_images(3))
PACKED = gzip.compress(GOOD, mtime=0)
BOMB = gzip.compress(idx([3, 9, 11], [0] * 297) + bytes(50_000_000), 1)


def message_of(value: object) -> str:
    """Names a case: bytes would be a name of any length."""
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("colors", [0, 3])
def test_images(tmp_path: Path, packed: bool, colors: int) -> None:
    images = make_images(5, 8, 13, colors=colors)
    # By its content: browsers unpack what they download, and keep the name.
    (tmp_path / "a.gz").write_bytes(gzip.compress(image_file(images)) if packed else image_file(images))
    found = read_images(tmp_path / "a.gz").numbers
    assert found.dtype == np.uint8 and np.array_equal(found, images)


@pytest.mark.parametrize("kind", [UINT8, INT8, INT16, INT32])
def test_labels_of_each_type(tmp_path: Path, kind: tuple[int, str]) -> None:
    (tmp_path / "a").write_bytes(idx([4], [3, 0, 100, 7], kind))
    assert read_labels(tmp_path / "a", Path("images"), 4).numbers.tolist() == [3, 0, 100, 7]


def test_labels_of_qmnist_are_the_first_of_eight_columns(tmp_path: Path) -> None:
    rows = [[5, 0, 2421, 3, 5, 54, 0, 0], [0, 1, 2422, 7, 0, 61, 0, 0], [4, 4, 999_999, 23, 4, 86, 0, 0]]
    (tmp_path / "a").write_bytes(idx([3, 8], [number for row in rows for number in row], INT32))
    assert read_labels(tmp_path / "a", Path("images"), 3).numbers.tolist() == [5, 0, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file, but empty"),
        (b"\0\0\x08", "is no IDX file"),
        (b"<!DOCTYPE html><html>404", "is no IDX file, but HTML"),
        (b"PK\x03\x04" + bytes(100), "is no IDX file, but ZIP"),
        (gzip.compress(PACKED), "is no IDX file, but gzip"),
        (b"\0\0\x0a" + GOOD[3:], "is no IDX file"),
        (b"\x01" + GOOD[1:], "is no IDX file"),
        (GOOD[:15], "is cut short: it ends in its header"),
        (GOOD[:-1], "its header announces 297 bytes and there are 296;"),
        (GOOD + b"\0", "its header announces 297 bytes and there are more"),
        (PACKED[:-1], "damaged or cut short (gzip: "),
        (PACKED[:20], "damaged or cut short (gzip: "),
        (PACKED[:40] + bytes([PACKED[40] ^ 255]) + PACKED[41:], "damaged or cut short"),
        (PACKED[:-6] + b"\0\0" + PACKED[-4:], "damaged or cut short (gzip: CRC"),
        (PACKED + b"garbage", "damaged or cut short (gzip: "),
        (BOMB, "its header announces 297 bytes and there are more"),
        (gzip.compress(idx([2_000_000, 28, 28], [0] * 9)), "its header announces 1,568,000,000 bytes and there are 9;"),
        (idx([2**31 - 1, 4096, 4096], [0] * 9), "there must be one at least, and 2.15 GB at most"),
        (idx([0, 28, 28], []), "announces 0 x 28 x 28 numbers of uint8; there must be one at least"),
        (idx([-3, 28, 28], [0] * 9), "announces -3 x 28 x 28 numbers"),
        (idx([3, -28, 28], [0] * 9), "images of 28 x -28 pixels; a side must have from 8 to 4096"),
        (idx([1, 7, 28], [0] * 196), "images of 28 x 7 pixels; a side must have from 8 to 4096"),
        (idx([1, 8, 0], []), "images of 0 x 8 pixels"),
        (idx([1, 8, 4097], [0] * 8 * 4097), "images of 4097 x 8 pixels"),
        (idx([297], [0] * 297), "holds 297 numbers of uint8, and images are N x H x W"),
        (idx([], []), "holds no numbers of uint8"),
        (idx([1, 9, 11, 4], [0] * 396), "holds 1 x 9 x 11 x 4 numbers of uint8"),
        (idx([1, 9, 11], [0] * 99, INT8), "holds 1 x 9 x 11 numbers of int8"),
        (idx([1, 9, 11], [0] * 99, FLOAT), "numbers of float32"),
        (b"\0\0\x08\xff" + bytes(4 * 255), "numbers of uint8, and images are"),
    ],
    ids=message_of,
)
def test_images_that_are_not_right(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / MNIST[0]
    file.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        read_images(file)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert str(error.value).startswith(str(file)) and re.search("; (get it again|give|a side must)", str(error.value))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD, "holds 3 x 9 x 11 numbers of uint8, and labels are N whole numbers"),
        (idx([2, 7], [0] * 14, INT32), "holds 2 x 7 numbers of int32"),
        (idx([2], [0, 1], FLOAT), "holds 2 numbers of float32"),
        (idx([2], [0, 1], DOUBLE), "holds 2 numbers of float64"),
        (idx([2], [0, -1], INT8), "has the label -1; labels count from 0"),
        (idx([0], []), "has 0 labels, and images 2 images"),
        (idx([2], [0]), "announces 2 bytes and there are 1;"),
        # Compared before anything is read: 400 million of them would take gigabytes.
        (idx([400_000_000], [0]), "has 400,000,000 labels, and images 2 images; get those that belong together"),
    ],
    ids=message_of,
)
def test_labels_that_are_not_right(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_labels(tmp_path / "a", Path("images"), 2)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(UserError, match="a cannot be read: it is no plain file"):
        read_images(tmp_path / "a")


QMNIST = [f"qmnist-{s}-{kind}" for s in ("train", "test") for kind in ("images-idx3-ubyte.gz", "labels-idx2-int.gz")]
LETTERS = [f"emnist-letters-{s}-{k}-ubyte.gz" for s in ("train", "test") for k in ("images-idx3", "labels-idx1")]
DIGITS = [name.replace("letters", "digits") for name in LETTERS]


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (MNIST, MNIST),
        ([f"{name}.gz" for name in MNIST], [f"{name}.gz" for name in MNIST]),
        ([name.replace("-idx", ".idx") for name in MNIST], [name.replace("-idx", ".idx") for name in MNIST]),
        ([*MNIST, f"{MNIST[0]}.gz", "README", "train-images.png"], [f"{MNIST[0]}.gz", *MNIST[1:]]),
        ([*LETTERS, "emnist-letters-mapping.txt"], LETTERS),
        ([*QMNIST, "qmnist-train-labels.tsv.gz", "xnist-images-idx3-ubyte.xz"], QMNIST),
    ],
)
def test_names(tmp_path: Path, names: Sequence[str], taken: Sequence[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = find_files(tmp_path)
    assert [path.name for split in ("train", "val") for path in found[split]] == list(taken)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no file of train images; it needs four, gzipped or not, whose names end in train-images-idx3-ubyte,"),
        (MNIST[:3], "has no file of t10k or test labels"),
        (
            [*LETTERS, *DIGITS],
            "several files of train images: emnist-digits-train-images-idx3-ubyte.gz, emnist-",
        ),
        (
            [*MNIST, "train-images.idx3-ubyte"],
            "files of train images: train-images-idx3-ubyte, train-images.idx3-ubyte; put",
        ),
        ([*LETTERS[:2], *DIGITS[2:]], f"has files of several data sets: {', '.join((*LETTERS[:2], *DIGITS[2:]))}; put"),
    ],
)
def test_names_that_say_too_little_or_too_much(tmp_path: Path, names: Sequence[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=re.escape(message)):
        find_files(tmp_path)


def test_the_command_that_chooses_of_several_sets_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all of it").mkdir()
    for name in (*LETTERS, *DIGITS):
        (tmp_path / "all of it" / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_files(tmp_path / "all of it")
    subprocess.run(str(error.value).partition("for example: ")[2], shell=True, check=True)
    assert [path.name for files in find_files(Path("emnist-digits")).values() for path in files] == DIGITS


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none cannot be read: No such file or directory; pass the folder"):
        find_files(tmp_path / "none")
    for name in MNIST:  # as archives are unpacked by some programs
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="has no file of train images"):
        find_files(tmp_path)


def test_the_sum_is_that_of_the_unpacked_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(PACKED)
    assert read_images(tmp_path / "a").md5 == hashlib.md5(GOOD).hexdigest()
