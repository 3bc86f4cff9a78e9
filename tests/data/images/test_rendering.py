"""Photographs that lie on their side, transparent images and the sizes of evaluation, against Pillow."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.damage import encode, make_photo
from helpers.loading import decode_data, eval_data, open_data
from helpers.trees import make_config
from PIL import Image, ImageOps

from rn50_jax.config.derived import make_plan
from rn50_jax.config.sections.data import DataConfig, eval_resize
from rn50_jax.data import dali, dali_decoders
from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.images import pillow
from rn50_jax.data.images.decodable import quiet_decoders, to_decodable
from rn50_jax.data.images.transform import Rendering
from rn50_jax.distributed.devices import make_mesh
from rn50_jax.inference.image_files import Found
from rn50_jax.training.stream_facts import changed_fact, stream_facts

SIZES = {"image_size": 32, "resize": 40}
UPRIGHT = Rendering(exif_rotation=True)
COLOR = (200, 30, 90)
OVER = Rendering(background=COLOR)


def tag(orientation: int, order: str = ">", kind: int = 3) -> bytes:
    """EXIF with nothing but an orientation, an integer of 16 bits or, with kind 4, of 32."""
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}HHHI", 1, 0x112, kind, 1) + value + bytes(4)


def segments(*contents: bytes) -> bytes:
    """A JPEG with these APP1 segments."""
    data = encode(make_photo(7, (97, 61)))
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(c) + 2) + c for c in contents) + data[2:]


def chunks(place: bytes, *contents: tuple[bytes, bytes], image: Image.Image | None = None) -> bytes:
    """A PNG with these chunks before its first chunk called `place`."""
    data = encode(image or make_photo(8, (97, 61)), "PNG")
    at = data.index(place) - 4
    made = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in contents)
    return data[:at] + b"".join(made) + data[at:]


def upright(data: bytes) -> Image.Image:
    """What Pillow shows."""
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def composited(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*COLOR, 255)), rgba).convert("RGB")


def assert_seen(data: bytes, rendering: Rendering, wanted: Image.Image, most: int = 0) -> None:
    """Both decoders of the evaluation transform see `wanted`, to `most` levels."""
    for transform in ("torchvision", "dali"):
        by_dali = partial(dali_decoders.make_decoder, transform=transform, **SIZES, workers=1)
        found, expected = by_dali(rendering=rendering)(data), by_dali()(encode(wanted, "PNG"))
        assert np.abs(found.astype(int) - expected).max() <= most
    found, expected = (
        pillow.decode(data, **SIZES, rendering=rendering),
        pillow.decode(encode(wanted, "PNG"), **SIZES),
    )
    np.testing.assert_array_equal(found, expected)


def crops(files: list[Path], rendering: Rendering) -> np.ndarray:
    images = ImageSet(tuple(map(str, files)), np.zeros(len(files), np.int32))
    pipeline = dali.train_pipeline(
        images,
        np.arange(len(files)),
        DataConfig(crop_area=(0.1, 0.6), crop_aspect=(0.5, 1.0), **rendering._asdict()),
        image_size=32,
        batch_size=len(files),
        num_threads=2,
        device_id=None,
        seed=3,
    )
    return np.asarray(next(dali.deliver(pipeline, remember=False)).images)


KINDS: dict[str, Callable[[Image.Image, bytes], bytes]] = {
    "JPEG": lambda image, exif: encode(image, exif=b"Exif\0\0" + exif),
    "progressive JPEG": lambda image, exif: encode(image, exif=b"Exif\0\0" + exif, progressive=True, subsampling=0),
    "gray JPEG": lambda image, exif: encode(image.convert("L"), exif=b"Exif\0\0" + exif),
    "PNG": lambda image, exif: encode(image, "PNG", exif=exif),
    "WebP": lambda image, exif: encode(image, "WEBP", exif=exif),
}


@pytest.mark.parametrize("kind", KINDS)
def test_photographs_are_turned_as_pillow_turns_them(kind: str, tmp_path: Path) -> None:
    photo, tagged, turned = make_photo(1, (97, 61)), [], []
    for orientation in range(1, 9):
        data = KINDS[kind](photo, tag(orientation))
        assert upright(data).size == ((61, 97) if orientation > 4 else (97, 61))
        assert_seen(data, UPRIGHT, upright(data))
        with Image.open(io.BytesIO(data)) as stored:
            assert_seen(data, Rendering(), stored.convert("RGB"))
        assert to_decodable(data) == data
        tagged.append(tmp_path / f"tagged {orientation}")
        turned.append(tmp_path / f"turned {orientation}")
        tagged[-1].write_bytes(data)
        turned[-1].write_bytes(encode(upright(data), "PNG"))
    np.testing.assert_array_equal(crops(tagged, UPRIGHT), crops(turned, Rendering()))
    assert np.any(crops(tagged, UPRIGHT) != crops(tagged, Rendering()))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="t" tiff:Orientation="6"/></x:xmpmeta>'
EXIF = b"Exif\0\0"
ODD = {
    "little endian": segments(EXIF + tag(6, "<")),
    "32 bits, which DALI does not read": segments(EXIF + tag(6, kind=4)),
    "behind XMP": segments(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>", EXIF + tag(6)),
    "in XMP alone": segments(b"http://ns.adobe.com/xap/1.0/\0" + XMP),
    "two segments, which end DALI's process": segments(EXIF + tag(6), EXIF + tag(3)),
    "four inks": encode(make_photo(3, (97, 61)).convert("CMYK"), exif=EXIF + tag(6)),
    "PNG, behind the pixels": chunks(b"IEND", (b"eXIf", tag(6))),
    "PNG, in a text": chunks(
        b"IDAT", (b"tEXt", b"Raw profile type exif\0\nexif\n32\n" + (EXIF + tag(6)).hex().encode())
    ),
    "animated PNG": encode(
        make_photo(2, (97, 61)), "PNG", exif=tag(6), save_all=True, append_images=[Image.new("RGB", (97, 61))]
    ),
    "animated WebP": encode(
        make_photo(2, (97, 61)), "WEBP", exif=tag(6), save_all=True, append_images=[Image.new("RGB", (97, 61))]
    ),
}
NO_TAG = {
    "none": encode(make_photo(4, (97, 61))),
    "0": segments(EXIF + tag(0)),
    "9": segments(EXIF + tag(9)),
    "damaged EXIF": segments(EXIF + b"MM\0*\xff\xff\xff\xff nothing"),
    "of no byte order": segments(EXIF + b"XX" + tag(6)[2:]),
    "PNG with damaged EXIF": chunks(b"IDAT", (b"eXIf", b"MM\0*\xff\xff\xff\xff nothing")),
    "WebP with damaged EXIF": encode(make_photo(4, (97, 61)), "WEBP", exif=b"MM\0*\xff\xff\xff\xff nothing"),
}


@pytest.mark.parametrize("case", [*ODD, *NO_TAG])
def test_odd_tags_mean_what_they_mean_to_pillow(case: str) -> None:
    quiet_decoders()
    data = (ODD | NO_TAG)[case]
    wanted = upright(data)
    assert wanted.size == ((61, 97) if case in ODD else (97, 61))
    assert_seen(data, UPRIGHT, wanted, most=2)


def test_tiffs_tag_is_obeyed_once_either_way() -> None:
    data = encode(make_photo(5, (97, 61)), "TIFF", tiffinfo={274: 6})
    for rendering in (UPRIGHT, Rendering()):
        assert to_decodable(data, rendering).startswith(b"P6\n61 97\n")


def ramp(mode: str) -> Image.Image:
    """A photo that becomes transparent from left to right."""
    photo = make_photo(9, (97, 61)).convert("RGBA")
    photo.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 97).astype(np.uint8), (61, 1))))
    return photo.convert(mode)


def deep() -> bytes:
    """A PNG of four channels of 16 bits."""
    pixels = np.asarray(ramp("RGBA")).astype(">u2") * 256 + 77
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 97, 61, 16, 6, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    made = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


PALETTE = make_photo(9, (97, 61)).convert("P", palette=Image.Palette.ADAPTIVE)
TRANSPARENT = {
    "PNG": encode(ramp("RGBA"), "PNG"),
    "gray PNG": encode(ramp("LA"), "PNG"),
    "PNG of 16 bits": deep(),
    "palette with alpha": encode(PALETTE, "PNG", transparency=bytes(range(256))),
    "palette with one transparent color": encode(PALETTE, "PNG", transparency=17),
    "PNG with a transparent color": encode(Image.new("RGB", (97, 61), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "gray PNG with a transparent gray": encode(Image.new("L", (97, 61), 9), "PNG", transparency=9),
    "PNG of one bit": encode(make_photo(9, (97, 61)).convert("1"), "PNG", transparency=1),
    "animated PNG": encode(ramp("RGBA"), "PNG", save_all=True, append_images=[Image.new("RGBA", (97, 61))]),
    "WebP": encode(ramp("RGBA"), "WEBP"),
    "lossless WebP": encode(ramp("RGBA"), "WEBP", lossless=True),
    "TIFF": encode(ramp("RGBA"), "TIFF"),
    "JPEG 2000": encode(ramp("RGBA"), "JPEG2000"),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_transparent_images_lie_over_the_background(case: str) -> None:
    data = TRANSPARENT[case]
    wanted = composited(data)
    assert_seen(data, OVER, wanted)
    with Image.open(io.BytesIO(data)) as image:
        opaque = image.convert("RGB")
    assert np.abs(np.asarray(wanted).astype(int) - np.asarray(opaque)).max() > 20
    if case not in ("animated PNG", "TIFF", "JPEG 2000"):
        assert to_decodable(data) == data  # by default, DALI drops the alpha channel


def test_a_transparent_gray_of_16_bits(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, 97 * 61).astype(np.uint16).reshape(61, 97)
    gray[:20] = 40_000
    data = chunks(b"IDAT", (b"tRNS", struct.pack(">H", 40_000)), image=Image.fromarray(gray))
    wanted = np.repeat(np.rint(gray / 257).astype(np.uint8)[..., None], 3, axis=2)
    wanted[:20] = COLOR
    assert_seen(data, OVER, Image.fromarray(wanted))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_opaque_images_reach_dali_as_they_are(kind: str) -> None:
    data = encode(make_photo(6), kind)
    assert to_decodable(data, OVER) == data


def test_training_crops_have_the_background(tmp_path: Path) -> None:
    seen, wanted = [], []
    for number, data in enumerate(TRANSPARENT.values()):
        seen.append(tmp_path / f"{number} seen")
        wanted.append(tmp_path / f"{number} wanted")
        seen[-1].write_bytes(data)
        wanted[-1].write_bytes(encode(composited(data), "PNG"))
    np.testing.assert_array_equal(crops(seen, OVER), crops(wanted, Rendering()))


def test_both_at_once() -> None:
    data = encode(ramp("RGBA"), "PNG", exif=tag(8))
    assert_seen(data, Rendering(True, COLOR), composited(data).transpose(Image.Transpose.ROTATE_90))


def test_every_way_to_the_network_follows_the_config(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    phone, logo = encode(make_photo(1, (97, 61)), exif=EXIF + tag(6)), encode(ramp("RGBA"), "PNG")
    for split in ("train", "val"):
        (tmp_path / split / "a" / "0.jpg").write_bytes(phone)
        (tmp_path / split / "a" / "1.png").write_bytes(logo)
    keys = (("data.resize", "40"), ("data.exif_rotation", "true"), ("data.background", str(COLOR)))
    config = make_config(tmp_path, *keys)
    plain = dali_decoders.make_decoder(transform="torchvision", **SIZES, workers=1)
    wanted = [plain(encode(image, "PNG")) for image in (upright(phone), composited(logo))]
    images = open_data(config).val
    (batch,) = eval_data(config, images, make_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(np.asarray(batch["image"])[0, :2], wanted)
    decoded = list(decode_data(config, [Found(file) for file in images.files]))
    np.testing.assert_array_equal([item.image for item in decoded], wanted)
    by_pillow = list(decode_data(config, [Found(file) for file in images.files], by_pillow=True))
    for item, image in zip(by_pillow, (upright(phone), composited(logo)), strict=True):
        np.testing.assert_array_equal(item.image, pillow.decode(encode(image, "PNG"), **SIZES))

    facts, earlier = (
        stream_facts(c, images, make_plan(c, num_images=8, num_devices=1)) for c in (config, make_config(tmp_path))
    )
    saved = json.loads(json.dumps(facts))
    assert changed_fact(saved, facts) is None
    assert changed_fact(json.loads(json.dumps(earlier)), facts).name == "config.data.exif_rotation"
    assert changed_fact(saved, earlier).name == "config.data.exif_rotation"
    other = facts | {"config.data.background": (255, 255, 255)}
    assert changed_fact(saved, other).name == "config.data.background"


def test_the_shorter_side_keeps_its_proportion_to_the_crop(tmp_path: Path) -> None:
    sizes = [(224, 256), (160, 183), (176, 201), (192, 219), (288, 329), (384, 439), (32, 37)]
    assert [(size, eval_resize(size, 0)) for size, _ in sizes] == sizes
    assert eval_resize(160, 256) == 256
    (tmp_path / "val/a").mkdir(parents=True)
    photo = make_photo(2, (97, 61))
    photo.save(tmp_path / "val/a/0.png")
    config = make_config(tmp_path, ("data.image_size", "48"), ("data.resize", "0"))
    plain = dali_decoders.make_decoder(transform="torchvision", image_size=48, resize=55, workers=1)
    wanted = plain(encode(photo, "PNG"))
    (batch,) = eval_data(config, open_data(config, need_train=False).val, make_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(np.asarray(batch["image"])[0, 0], wanted)
