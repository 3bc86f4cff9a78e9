"""What reaches DALI: pixels against Pillow and torchvision's way with rotated files; what is refused, by name."""

import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from helpers.damage import encode, make_photo
from helpers.runs import PATIENCE
from PIL import Image, ImageDraw

from rn50_jax.data.dali_decoders import make_decoder
from rn50_jax.data.images.decodable import read_header, to_decodable
from rn50_jax.data.images.headers import ImageProblem, IncompleteError
from rn50_jax.data.images.parsable import parsable
from rn50_jax.io.file_kinds import sniff

SIZE = 32


@pytest.fixture(scope="module")
def decode() -> Callable[[bytes], np.ndarray]:
    """The middle of an image as evaluation sees it: of images of 32 x 32, the image."""
    return make_decoder(transform="torchvision", image_size=SIZE, resize=SIZE, workers=1)


def photo(mode: str = "RGB") -> Image.Image:
    return make_photo(5, (SIZE, SIZE)).convert(mode)


def tiff(width: int, height: int, planes: list[bytes], **tags: int | tuple[int, ...]) -> bytes:
    """An uncompressed TIFF of 16-bit samples by hand, a strip a plane; tags by number, as t258=(16, 16, 16)."""
    offsets, data = [], b""
    for plane in planes:
        offsets.append(8 + len(data))
        data += plane
    entries: dict[int, tuple[int, ...]] = {256: (width,), 257: (height,), 259: (1,), 273: tuple(offsets)}
    entries |= {277: (3,), 278: (height,), 279: tuple(map(len, planes))}
    entries |= {int(name[1:]): value if isinstance(value, tuple) else (value,) for name, value in tags.items()}
    start = 8 + len(data)
    extra_at, extra, table = start + 2 + 12 * len(entries) + 4, b"", b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        table += struct.pack("<HHI", tag, 4, len(values))
        table += packed if len(values) == 1 else struct.pack("<I", extra_at + len(extra))
        extra += packed if len(values) > 1 else b""
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(entries)) + table + bytes(4) + extra


def bmp(bits: int, coding: int, pixels: bytes, *, width: int = SIZE, height: int = SIZE) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, coding, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + head + pixels


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PPM", "JPEG2000"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_pillow_decodes_keeps_its_pixels(decode: Callable[[bytes], np.ndarray], kind: str, mode: str) -> None:
    data = encode(photo(mode), kind)
    assert not read_header(data).by_dali
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_tiffs_are_turned_as_torchvision_turns_them(
    decode: Callable[[bytes], np.ndarray], mode: str, orientation: int
) -> None:
    compression = "group4" if mode == "1" else "tiff_lzw"
    drawn = photo()
    ImageDraw.Draw(drawn).rectangle((0, 0, 9, 4), fill=(255, 255, 255))
    data = encode(drawn.convert(mode), "TIFF", compression=compression, tiffinfo={274: orientation})
    with Image.open(io.BytesIO(data)) as image:  # which is all that torchvision's loader does
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(data), wanted)


def test_sixteen_bits_become_eight_in_all_formats(decode: Callable[[bytes], np.ndarray]) -> None:
    deep = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    wanted = np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, axis=2)
    pgm = b"P5\n%d %d\n65535\n" % (SIZE, SIZE) + deep.astype(">u2").tobytes()
    for data in (encode(Image.fromarray(deep), "PNG"), encode(Image.fromarray(deep), "TIFF"), pgm):
        assert np.array_equal(decode(data), wanted)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_tiff_of_planes_keeps_its_colours(decode: Callable[[bytes], np.ndarray], compressed: bool) -> None:
    planes = [struct.pack("<H", value) * (SIZE * SIZE) for value in (65535, 0, 0)]
    red, coding = np.broadcast_to(np.uint8([255, 0, 0]), (SIZE, SIZE, 3)), {"t259": 8 if compressed else 1}
    for number, strips in ((2, planes), (1, [struct.pack("<HHH", 65535, 0, 0) * (SIZE * SIZE)])):
        strips = [zlib.compress(strip) for strip in strips] if compressed else strips
        data = tiff(SIZE, SIZE, strips, t258=(16, 16, 16), t262=2, t284=number, **coding)
        assert np.array_equal(decode(data), red)


def test_an_animated_png_is_its_default_image(decode: Callable[[bytes], np.ndarray]) -> None:
    still, others = photo(), [Image.new("RGB", (SIZE, SIZE), color) for color in ("red", "blue")]
    data = encode(still, "PNG", save_all=True, append_images=others, default_image=True)
    assert b"acTL" in data
    assert np.array_equal(decode(data), np.asarray(still))
    first = encode(others[0], "PNG", save_all=True, append_images=others[1:])
    assert np.array_equal(decode(first), np.asarray(others[0]))


def test_an_animated_webp_is_its_first_frame(decode: Callable[[bytes], np.ndarray]) -> None:
    data = encode(photo(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (SIZE, SIZE), "red")])
    assert np.array_equal(decode(data), np.asarray(photo()))


def test_bmps_of_16_bits(decode: Callable[[bytes], np.ndarray]) -> None:
    """Five bits a color, red in the upper ones."""
    red, blue = (np.full((SIZE, SIZE), value << shift, np.uint16) for value, shift in ((31, 10), (31, 0)))
    assert [decode(bmp(16, 0, color.tobytes()))[0, 0].tolist() for color in (red, blue)] == [[255, 0, 0], [0, 0, 255]]


def test_bmps_of_32_bits(decode: Callable[[bytes], np.ndarray]) -> None:
    pixels = np.asarray(photo())
    blue_first = np.dstack([pixels[::-1, :, ::-1], np.full((SIZE, SIZE), 7, np.uint8)])
    assert np.array_equal(decode(bmp(32, 0, blue_first.tobytes())), pixels)


def jpeg(change: Callable[[bytearray, int], None]) -> bytes:
    """A JPEG whose frame header, at the given place, is changed."""
    data = bytearray(encode(photo()))
    change(data, data.index(b"\xff\xc0"))
    return bytes(data)


def put(offset: int, *values: int) -> Callable[[bytearray, int], None]:
    def change(data: bytearray, at: int) -> None:
        data[at + offset : at + offset + len(values)] = bytes(values)

    return change


def png(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


REFUSED = {
    "nothing": (b"", "empty"),
    "text": (b"no image at all", "no image (it is text)"),
    "GIF": (encode(photo("P"), "GIF"), "unknown format (it is GIF)"),
    "AVIF": (b"\0\0\0\x1cftypavif" + bytes(40), "unknown format (it is AVIF)"),
    "HEIC": (b"\0\0\0\x1cftypheic" + bytes(40), "unknown format (it is HEIC)"),
    "JPEG XL": (b"\xff\x0a" + bytes(40), "unknown format (it is JPEG XL)"),
    "JPEG of two components": (jpeg(put(9, 2)), "unknown format (it is a JPEG of 2 components)"),
    "JPEG of 12 bits": (jpeg(put(4, 12)), "unknown format (it is a JPEG of 12 bits)"),
    "lossless JPEG": (jpeg(put(1, 0xC3)), "unknown format (it is a JPEG of an unusual kind, lossless)"),
    "arithmetic JPEG": (jpeg(put(1, 0xC9)), "unknown format (it is a JPEG of an unusual kind, arithmetic-coded)"),
    "JPEG without height": (jpeg(put(5, 0, 0)), "damaged (a JPEG of 32 x 0 pixels)"),
    "JPEG with junk": (jpeg(lambda data, at: data.insert(at, 0)), "damaged (a JPEG with bytes between"),
    "JPEG without end of header": (encode(photo())[:100], "cut off"),
    "JPEG of 28,000 x 28,000": (jpeg(put(5, *(28_000).to_bytes(2) * 2)), "too large (28000 x 28000)"),
    "PNG of 28,000 x 28,000": (png(28_000, 28_000), "too large (28000 x 28000)"),
    "PNG of no width": (png(0, 32), "damaged (a PNG of 0 x 32 pixels)"),
    "PNG of impossible depth": (png(32, 32, 16, 3), "damaged (a PNG whose header"),
    "BMP, run lengths that end early": (bmp(8, 1, bytes(100)), "cut off"),
    "BMP of negative width": (bmp(24, 0, bytes(4), width=-1, height=1), "too large"),
    "BMP of huge size": (bmp(24, 0, bytes(4), width=2**31 - 1, height=-(2**31) + 1), "too large"),
    "TIFF of floats": (encode(photo("F"), "TIFF"), "unknown format (it is a TIFF of an unusual kind, F)"),
    "TIFF cut off": (encode(photo(), "TIFF")[:200], "the file is cut short"),
    "PNG of a strip": (encode(Image.new("L", (3001, 1)), "PNG"), "too large (3001 x 1)"),
    "PNG that is too high": (encode(Image.new("1", (64, 40_001)), "PNG"), "too large (64 x 40001)"),
    "PNM of huge size": (b"P6 99999 99999 255\n" + bytes(9), "too large (99999 x 99999)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_never_reaches_dali(kind: str, decode: Callable[[bytes], np.ndarray]) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(ImageProblem) as caught:
        to_decodable(data)
    assert str(caught.value).startswith(reason) or caught.value.kind == reason
    with pytest.raises(ImageProblem):
        decode(data)
    assert np.array_equal(decode(encode(photo(), "PNG")), np.asarray(photo()))  # and it goes on


def test_headers_tell_the_size(tmp_path: Path) -> None:
    image = make_photo(1, (57, 33))
    options = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]
    options += [("WEBP", {"exif": b"Exif\0\0II*\0"}), ("TIFF", {}), ("BMP", {}), ("PPM", {}), ("JPEG2000", {})]
    options += [("JPEG", {"exif": b"Exif\0\0" + bytes(60_000), "icc_profile": bytes(200_000)})]
    for kind, given in options:
        data = encode(image, kind, **given)
        assert read_header(data)[1:3] == (57, 33), kind
        if read_header(data).by_dali:
            with pytest.raises(IncompleteError):
                read_header(data[:25])


def test_random_bytes_in_headers_raise_nothing_else() -> None:
    rng = random.Random(0)
    originals = [encode(photo(), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")]
    originals.append(encode(photo("1"), "TIFF", compression="group4", tiffinfo={274: 6}))
    for _ in range(2000):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.randrange(1, 12)):
            data[rng.randrange(2, min(len(data), rng.choice((40, 300, 10**6))))] = rng.randrange(256)
        try:
            if read_header(bytes(data)).width < 2000:
                to_decodable(bytes(data))
        except ImageProblem:
            continue


def test_four_inks_are_inverted_with_and_without_the_mark_of_adobe(decode: Callable[[bytes], np.ndarray]) -> None:
    marked = encode(photo("CMYK"), "JPEG", quality=100)
    at = marked.index(b"Adobe") - 4
    for data in (marked, marked[:at] + marked[at + 16 :]):
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_allclose(decode(data).astype(int), np.asarray(image.convert("RGB")), atol=2)


def test_sixteen_bits_whose_zero_is_white(decode: Callable[[bytes], np.ndarray]) -> None:
    deep = np.linspace(0, 65535, SIZE * SIZE).astype("<u2").reshape(SIZE, SIZE)
    black, white = (tiff(SIZE, SIZE, [deep.tobytes()], t258=16, t262=zero_is, t277=1) for zero_is in (1, 0))
    assert np.array_equal(decode(white), 255 - decode(black))


PLAIN, PNG = encode(photo(), "JPEG"), encode(photo(), "PNG")
FRAME, SCAN = PLAIN.index(b"\xff\xc0"), PLAIN.index(b"\xff\xda")
HUGE_FRAME = PLAIN[FRAME : FRAME + 5] + b"\xff\xff\xff\xff" + PLAIN[FRAME + 9 : FRAME + 19]
EXIF = b"Exif\0\0II*\0"
WEBP = encode(photo(), "WEBP", exif=EXIF)
# Whole files that nvImageCodec's parsers give up on, or take for an image of another size, though their headers are
# fine; and what is wrong with them, if anything.
UNPARSABLE = {
    "PNG without its end": (PNG[:-12], ""),
    "PNG cut off": (PNG[: len(PNG) // 2], "cut off"),
    "PNG of a chunk beyond its end": (PNG[:33] + b"\xff\xff\xff\xfctEXt" + PNG[33:], "cut off"),
    "JPEG cut off behind its frame": (PLAIN[: FRAME + 19], "cut off"),
    "JPEG cut off before its scan": (PLAIN[: SCAN + 4], "cut off"),
    "JPEG of two frames": (PLAIN[:SCAN] + PLAIN[FRAME : FRAME + 19] + PLAIN[SCAN:], "damaged"),
    "JPEG of a second, huge frame": (PLAIN[:SCAN] + HUGE_FRAME + PLAIN[SCAN:], "too large"),
    "JPEG with a restart in its header": (PLAIN[:SCAN] + b"\xff\xd0" + PLAIN[SCAN:], ""),
    "JPEG with a short EXIF": (PLAIN[:SCAN] + b"\xff\xe1\0\5Exif\0\0" + PLAIN[SCAN:], ""),
    "WebP with EXIF behind a filled up profile": (encode(photo(), "WEBP", exif=EXIF, icc_profile=bytes(131)), ""),
    "WebP without the EXIF it announces": (WEBP[: WEBP.index(b"EXIF")], "cut off"),
}


@pytest.mark.parametrize("kind", UNPARSABLE)
def test_what_dali_cannot_take_apart_goes_to_pillow(kind: str, decode: Callable[[bytes], np.ndarray]) -> None:
    data, problem = UNPARSABLE[kind]
    assert not parsable(data, sniff(data))
    if problem:
        with pytest.raises(ImageProblem) as caught:
            to_decodable(data)
        assert caught.value.kind == problem
        return
    assert to_decodable(data).startswith(b"P6\n32 32\n")
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode(data), np.asarray(image.convert("RGB")))


def test_what_dali_can_take_apart_goes_to_it() -> None:
    originals = [PLAIN, PNG, encode(photo("CMYK"), "JPEG"), encode(photo(), "JPEG", progressive=True, exif=EXIF), WEBP]
    originals += [encode(photo(mode), "PNG", exif=EXIF) for mode in ("P", "RGBA", "1", "LA")]
    originals += [encode(photo("RGBA"), "WEBP", lossless=lossless) for lossless in (False, True)]
    for data in originals:
        assert parsable(data, sniff(data)) and to_decodable(data) == data


BATCHES = """
import sys
from test_decodable import PLAIN, UNPARSABLE
from rn50_jax.data.dali_decoders import make_batch_decoder
from rn50_jax.data.images.headers import ImageProblem
decode = make_batch_decoder(transform="torchvision", image_size=32, resize=32, workers=2, batch_size=64)
for kind, (data, problem) in UNPARSABLE.items():
    for _ in range(5):
        try:
            decode([data if i % 8 == 3 else PLAIN for i in range(64)])
            told = ""
        except ImageProblem as error:
            told = error.kind
        assert told == problem, (kind, told)
print("went on")
"""


@pytest.mark.slow
def test_no_batch_of_them_ends_the_process(process_env: dict[str, str]) -> None:
    # From 32 images on DALI takes them apart in several threads, which an error in one of them used to end.
    env = process_env | {"PYTHONPATH": f"{REPO}:{Path(__file__).parent}:{REPO / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", BATCHES], env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
