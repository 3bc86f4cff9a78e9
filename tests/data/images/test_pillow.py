"""`predict --resize pillow`: pixels of torchvision's transforms of Pillow's images, and the problems of others."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from helpers.damage import encode, make_photo, write_kinds
from helpers.loading import decode_data
from helpers.torchvision_transforms import resize_and_center_crop
from helpers.trees import make_config
from PIL import Image

from rn50_jax.data.images.headers import ImageProblem
from rn50_jax.data.images.pillow import decode
from rn50_jax.inference.image_files import Decoded, find_images
from rn50_jax.inference.trained_model import load_run
from rn50_jax.predict import make_classifier

RESIZE, CROP = 40, 32


def transformed(image: Image.Image, resize: int = RESIZE, crop: int = CROP) -> np.ndarray:
    return resize_and_center_crop(image, resize, crop)


def mine(data: bytes) -> np.ndarray:
    return decode(data, image_size=CROP, resize=RESIZE)


def rotated(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encode(image, exif=exif)


def see_through(image: Image.Image) -> bytes:
    return encode(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=bytes(range(256)))


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": encode,
    "progressive JPEG": lambda image: encode(image, progressive=True, subsampling=2),
    "grey JPEG": lambda image: encode(image.convert("L")),
    "CMYK JPEG": lambda image: encode(image.convert("CMYK")),
    "JPEG with a tag of rotation": rotated,
    "PNG": lambda image: encode(image, "PNG"),
    "PNG with a palette": lambda image: encode(image.convert("P"), "PNG"),
    "PNG with a palette and alpha": see_through,
    "PNG with alpha": lambda image: encode(image.convert("RGBA"), "PNG"),
    "grey PNG with alpha": lambda image: encode(image.convert("LA"), "PNG"),
    "PNG of one bit": lambda image: encode(image.convert("1"), "PNG"),
    "animated PNG": lambda image: encode(image, "PNG", save_all=True, append_images=[Image.new("RGB", image.size)]),
    "WebP": lambda image: encode(image, "WEBP"),
    "BMP": lambda image: encode(image, "BMP"),
    "TIFF of four inks": lambda image: encode(image.convert("CMYK"), "TIFF"),
    "PPM": lambda image: encode(image, "PPM"),
    "JPEG 2000": lambda image: encode(image, "JPEG2000"),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of Pillow, when asked for RGB
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (43, 40), (40, 41), (33, 300), (200, 20), (64, 64)], ids=str)
def test_pixels_are_those_of_torchvisions_transforms(kind: str, size: tuple[int, int]) -> None:
    data = FORMATS[kind](make_photo(3, size))
    with Image.open(io.BytesIO(data)) as image:
        wanted = transformed(image)
    found = mine(data)
    assert found.dtype == np.uint8 and found.shape == (CROP, CROP, 3)
    np.testing.assert_array_equal(found, wanted)


def test_the_sizes_of_nvidias_classify() -> None:
    photo = make_photo(1, (500, 375))
    data = encode(photo, "PNG")
    np.testing.assert_array_equal(decode(data, image_size=224, resize=256), transformed(photo, 256, 224))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight_before_they_are_resized(kind: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (50, 70)).astype(np.uint16)
    eight = Image.fromarray(np.rint(deep / 257).astype(np.uint8))
    np.testing.assert_array_equal(mine(encode(Image.fromarray(deep), kind)), transformed(eight))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"profile\0\1x"),
        chunk(b"fdAT", b""),
    ],
    ids=["a long text", "a profile of a kind that is not known", "a frame without an animation"],
)
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
def test_what_a_png_says_beside_its_pixels_spoils_none(extra: bytes, place: bytes) -> None:
    photo = make_photo(2)
    data = encode(photo, "PNG")
    at = data.index(place) - 4
    np.testing.assert_array_equal(mine(data[:at] + extra + data[at:]), transformed(photo))


def test_pillows_limits_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("JPEG", "CMYK JPEG", "PNG", "PNG with a palette", "BMP"):
        assert mine(FORMATS[kind](make_photo(4))).shape == (CROP, CROP, 3)


def test_a_strip_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    strip = encode(Image.new("L", (1, 2900)), "PNG")
    with pytest.raises(ImageProblem, match=r"too large \(1 x 2900, as it is resized 512 x 1484800\)"):
        decode(strip, image_size=448, resize=512)

    def resize(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", resize)
    with pytest.raises(ImageProblem, match=r"too large \(1 x 2900\)"):
        mine(strip)


def test_the_same_files_are_refused_for_the_same_reasons(tmp_path: Path) -> None:
    write_kinds(tmp_path)
    config = make_config(tmp_path, ("data.resize", str(RESIZE)))
    files = list(find_images([str(tmp_path)]))

    def decoded(*, by_pillow: bool) -> list[Decoded]:
        return [item for file in files for item in decode_data(config, [file], by_pillow=by_pillow)]

    dali, pillow = decoded(by_pillow=False), decoded(by_pillow=True)
    assert {item.file: item.problem for item in pillow} == {item.file: item.problem for item in dali}
    for a, b in zip(dali, pillow, strict=True):
        if a.image is not None and b.image is not None:
            assert np.abs(a.image.astype(int) - b.image).max() <= 2, a.file
    assert len({item.problem for item in pillow}) > 5


def test_answers_are_those_of_pillows_pixels(trained: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    photos = [make_photo(seed, (90 + seed, 60)) for seed in range(4)]
    for seed, photo in enumerate(photos):
        photo.save(tmp_path / f"{seed}.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "3.png").read_bytes()[:-200])
    (tmp_path / "5.png").write_text("no image")
    options = ("--workdir", trained[0], tmp_path, "--json", "--top_k", 10, "--config.data.transform=dali")
    done = call("predict", *options, "--resize", "pillow", "--config.data.resize=40")
    assert done.returncode == 1 and done.stderr == "4 images classified, 2 failed\n"
    answers = json.loads(done.stdout)
    problems = [
        "the file is cut short: its end is missing; get it again",
        "no image (it is text): leave it out",
    ]
    assert [answer["error"] for answer in answers[4:]] == problems

    stored = load_run(trained[0], "best", [("data.backend", "dali-cpu")])
    classify = make_classifier(stored, batch_size=4, devices=stored.devices[:1])
    wanted = np.asarray(classify([transformed(photo) for photo in photos]))[0]
    found = [{p["index"]: p["probability"] for p in answer["predictions"]} for answer in answers[:4]]
    for p, q in zip(found, wanted, strict=True):
        assert p == pytest.approx(dict(enumerate(q.tolist())), abs=1e-6)
    by_dali = json.loads(call("predict", *options, "--config.data.resize=40").stdout)
    assert all(a["predictions"] != b["predictions"] for a, b in zip(answers[:4], by_dali[:4], strict=True))
