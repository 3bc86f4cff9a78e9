"""Finding, reading and decoding the files that a command line means."""

import io
import itertools
import os
import shutil
import sys
import tarfile
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from helpers.loading import decode_data
from helpers.trees import make_config, write_image
from PIL import Image

from rn50_jax.data import image_set
from rn50_jax.data.dali_decoders import make_decoder
from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.data.image_set import Members
from rn50_jax.data.images import decodable
from rn50_jax.data.images.headers import PROBLEMS
from rn50_jax.exporting.check import evenly
from rn50_jax.inference.image_files import Found, find_images, found_in

PHOTO = Path(sklearn.datasets.__file__).parent / "images/china.jpg"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders with images and other things, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.jpg",
        "a.PNG",
        "sub/deep er/ü.jpeg",
        "sub/z.png",
        ".hidden/x.jpg",
        ".y.jpg",
        "no.txt",
        "odd[1].jpg",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "photos/sub/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    return tmp_path / "photos"


def names(*words: str, null: bool = False) -> list[str]:
    return [found.file + (f": {found.problem}" if found.problem else "") for found in find_images(words, null=null)]


def test_a_folder_means_all_images_in_it(photos: Path) -> None:
    everything = ["a.PNG", "b.jpg", "gone.jpg", "odd[1].jpg", "sub/deep er/ü.jpeg", "sub/z.png"]
    assert names("photos") == [f"photos/{name}" for name in everything]
    assert names("photos/") == names("photos")
    assert names(str(photos)) == [f"{photos}/{name}" for name in everything]
    assert names("empty")[0].startswith("empty: holds no images (.jpg, ")


def test_files_and_patterns(photos: Path) -> None:
    # What is named is taken, whatever its suffix, and as it was written.
    assert names("./photos/no.txt", "photos/.y.jpg", "photos/none.jpg") == [
        "./photos/no.txt",
        "photos/.y.jpg",
        "photos/none.jpg",
    ]
    assert names("photos/*.jpg") == ["photos/b.jpg", "photos/gone.jpg", "photos/odd[1].jpg"]
    assert names("photos/**/*.jpeg")[0] == "photos/sub/deep er/ü.jpeg"
    up = [f"photos/sub/up/{name}" for name in ("a.PNG", "b.jpg", "gone.jpg", "odd[1].jpg")]
    assert names("photos/s*") == ["photos/sub/deep er/ü.jpeg", *up, "photos/sub/z.png"]
    assert names("photos/odd[1].jpg") == ["photos/odd[1].jpg"]
    assert names("photos/*.gif") == ["photos/*.gif: matches no file"]


def test_a_folder_that_cannot_be_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(folder: str) -> object:
        if folder.endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names("photos")[-1] == "photos/sub: cannot be read: Permission denied"


class Stdin:
    def __init__(self, text: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(text), 5)  # type: ignore[arg-type]

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("text", "null", "expected"),
    [
        (b"a b.jpg\nphotos/sub/z.png\n\nx*.jpg", False, ["a b.jpg", "photos/sub/z.png", "x*.jpg"]),
        (b"a.jpg\r\nb.jpg\r\n", False, ["a.jpg", "b.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", True, ["a\nb.jpg", "c.jpg"]),
        (b"\xff.jpg\n", False, ["\udcff.jpg"]),
        (b"", False, []),
        (b"photos/sub/deep er\n", False, ["photos/sub/deep er/ü.jpeg"]),
    ],
)
def test_names_on_standard_input(
    photos: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, null: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(text))
    assert names("-", null=null) == expected
    monkeypatch.setattr(sys, "stdin", Stdin(text))
    assert names("first.jpg", "-", "last.jpg", null=null) == ["first.jpg", *expected, "last.jpg"]


def test_bad_files_do_not_spoil_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)
    for grey in range(80):
        write_image(tmp_path / f"{grey:03}.png", (3 * grey,) * 3)
    (tmp_path / "005.png").write_text("no image")
    (tmp_path / "050.png").write_bytes((tmp_path / "049.png").read_bytes()[:60])
    (tmp_path / "051.png").write_bytes(b"")
    (tmp_path / "052.png").unlink()
    monkeypatch.setattr(decodable, "MAX_PIXELS", 2000)  # the others have 1,440
    write_image(tmp_path / "053.png", size=(50, 50))
    monkeypatch.setattr(image_set, "MAX_BYTES", 6_000_000)
    with (tmp_path / "054.png").open("wb") as file:
        file.truncate(6_000_001)
    files = [Found(str(tmp_path / f"{grey:03}.png")) for grey in range(80)]
    files[55] = Found("x", "matches no file")
    decoded = list(decode_data(config, files))
    assert [item.file for item in decoded] == [found.file for found in files]
    problems = {i: item.problem for i, item in enumerate(decoded) if item.image is None}
    assert problems == {
        5: "no image (it is text): leave it out",
        50: "the file is cut short: its end is missing; get it again",
        51: "the file is empty (zero bytes); get it again",
        52: "cannot be read: No such file or directory",
        53: f"too large (50 x 50): {PROBLEMS['too large']}",
        54: f"too large (more than 6 MB): {PROBLEMS['too large']}",
        55: "matches no file",
    }
    for grey, item in enumerate(decoded):
        if item.image is not None:
            assert item.image.shape == (32, 32, 3) and item.image.dtype == np.uint8
            assert np.all(item.image == 3 * grey) and not item.problem


@pytest.mark.parametrize("transform", ["torchvision", "dali"])
def test_pixels_are_those_of_single_files(tmp_path: Path, transform: str) -> None:
    config = make_config(tmp_path, ("data.transform", transform))
    with Image.open(PHOTO) as photo:
        for number, size in enumerate(((640, 427), (33, 200), (500, 37))):
            photo.resize(size).save(tmp_path / f"{number}.jpg")
        photo.convert("L").save(tmp_path / "grey.jpg")
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    decode = make_decoder(transform=transform, image_size=32, resize=32, workers=1)
    decoded = list(decode_data(config, find_images([str(tmp_path)])))
    assert len(decoded) == 5
    for item in decoded:
        np.testing.assert_array_equal(item.image, decode(Path(item.file).read_bytes()))


def test_few_files_are_held_at_a_time(tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    write_image(image)
    asked = itertools.count()
    endless = (Found(str(image)) for _ in asked)
    with closing(decode_data(make_config(tmp_path), endless)) as decoded:
        assert len(list(islice(decoded, 100))) == 100
    assert next(asked) < 100 + 5 * 32


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, PHOTO.read_bytes()[:1])
    os.close(write)
    (decoded,) = decode_data(make_config(tmp_path), [Found(f"/dev/fd/{read}")])
    os.close(read)
    assert decoded.problem.startswith("no image")
    (decoded,) = decode_data(make_config(tmp_path), [Found("a\0b")])
    assert decoded.problem == "cannot be the name of a file"


def test_images_in_tars(tree: Path) -> None:
    _, images = scan_split(tree / "val")
    with tarfile.open(tree / "x.tar", "w") as tar:
        for file in images.files:
            tar.add(file)
    with tarfile.open(tree / "x.tar") as tar:
        offsets, sizes = np.array([(member.offset_data, member.size) for member in tar]).T
    packed = images._replace(members=Members((str(tree / "x.tar"),), np.zeros(10, np.int32), offsets, sizes))
    config = make_config(tree)
    for a, b in zip(decode_data(config, found_in(images)), decode_data(config, found_in(packed)), strict=True):
        assert a.file == b.file
        np.testing.assert_array_equal(a.image, b.image)
    few = list(decode_data(config, evenly(found_in(packed), 3)))
    assert [item.file for item in few] == [images.files[i] for i in (0, 4, 9)]
    assert [item.image[0, 0, 0] for item in few] == [0, 20, 45]


def test_links_to_nothing_and_pipes_that_nobody_writes_to(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.jpg").write_bytes(PHOTO.read_bytes())
    for name, target in (("loop", "loop"), ("loop.jpg", "loop.jpg"), ("self", "."), ("zero.jpg", "/dev/zero")):
        (images / name).symlink_to(target)
    os.mkfifo(images / "pipe.jpg")
    (images / "link.jpg").symlink_to("pipe.jpg")
    found = list(decode_data(make_config(tmp_path), find_images([str(images)])))
    assert [(Path(item.file).name, item.problem) for item in found] == [
        ("good.jpg", ""),
        ("loop.jpg", "cannot be read: Too many levels of symbolic links"),
    ]
    named = [str(images / name) for name in ("pipe.jpg", "zero.jpg")]
    problems = [item.problem for item in decode_data(make_config(tmp_path), find_images(named))]
    assert problems == ["the file is empty (zero bytes); get it again", "cannot be read: it is no plain file"]
