"""What decoders in C write to standard error by themselves, and what users are told of files instead."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, Run, Shared, tiny_args
from helpers.damage import encode, make_photo
from helpers.runs import PATIENCE, SMALL

from rn50_jax.data.dali_errors import in_words
from rn50_jax.data.images.decodable import to_rgb
from rn50_jax.data.images.headers import PROBLEMS, ImageProblem

WHOLE = encode(make_photo(1))
ARITHMETIC = WHOLE.replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11")
TWELVE_BITS = WHOLE.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")


def garbled(data: bytes, start: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, 90, np.uint8).tobytes()
    return data[:start] + noise + data[start + len(noise) :]


# Files that cannot be decoded, and words of what is wrong with each.
BAD = {
    "empty.jpg": (b"", "the file is empty"),
    "short.jpg": (WHOLE[: len(WHOLE) // 2], "the file is cut short"),
    "tail.jpg": (WHOLE[:-30], "the file is cut short"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "it is HTML"),
    "text.png": (b"no image\n" * 9, "it is text"),
    "film.jpg": (b"\0\0\0\x20ftypisom" + bytes(90), "it is video"),
    "matroska.jpg": (b"\x1aE\xdf\xa3" + bytes(90), "it is video"),
    "arithmetic.jpg": (ARITHMETIC, "arithmetic-coded"),
    "twelve.jpg": (TWELVE_BITS, "a JPEG of 12 bits"),
    "phone.jpg": (b"\0\0\0\x1cftypheic" + bytes(90), "it is HEIC"),
    "raw.jpg": (b"\0\0\0\x18ftypcrx " + bytes(90), "it is a raw photograph"),
    "half.png": (encode(make_photo(2), "PNG")[:4000], "the file is cut short"),
    "pixels.png": (garbled(encode(make_photo(3), "PNG"), 4000), "a PNG whose pixel data is broken"),
    "half.webp": (encode(make_photo(4), "WEBP")[:900], "the file is cut short"),
    "half.tif": (encode(make_photo(5), "TIFF")[:9000], "the file is cut short"),
    "packed.tif": (garbled(encode(make_photo(6), "TIFF", compression="tiff_lzw"), 300), "pixel data is broken"),
    "zip.tif": (garbled(encode(make_photo(7), "TIFF", compression="tiff_adobe_deflate"), 300), "pixel data is broken"),
}
# Decoded, with a complaint.
ODD = {"odd.jpg": garbled(WHOLE, len(WHOLE) // 2)}

NOT_READ = ("photo.heic", "photo.HEIC", "photo.gif")


def write_bad(folder: Path) -> None:
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    for name, data in ODD.items():
        (folder / name).write_bytes(data)
    for name in NOT_READ:
        (folder / name).touch()


def assert_quiet(said: str) -> None:
    """Holds that there are whole lines of this program alone: none of a decoder, and no escape codes."""
    for unwanted in ("[ERROR]", "[WARNING]", "\x1b", "libpng", "Corrupt JPEG", "tempfile", "nvImageCodec", "/opt/dali"):
        assert unwanted not in said, said
    for line in said.splitlines():
        assert line.startswith(("note: ", "error: ")), said


def assert_named(reasons: dict[str, str], count: int = len(BAD)) -> None:
    """Holds that so many bad files are there, each with words of what is wrong with it."""
    assert len(reasons) == count
    for name, reason in reasons.items():
        assert BAD[name][1] in reason, (name, reason)
        assert_quiet(f"note: {reason}")


@pytest.fixture(scope="module")
def spoilt(shared: Shared, digits: Path) -> Path:
    """The digits, with bad files in a class of each split."""

    def make(folder: Path) -> None:
        shutil.copytree(digits, folder / "digits")
        for split in ("train", "val"):
            write_bad(folder / "digits" / split / "3")

    return shared("spoilt", make) / "digits"


def test_pillow_is_told_in_words(tmp_path: Path) -> None:
    problems = {}
    for name, (data, _) in BAD.items():
        with pytest.raises(ImageProblem) as problem:
            to_rgb(data)
        problems[name] = str(problem.value)
    assert_named(problems)


def test_training_and_evaluation(run: Run, spoilt: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    done = run("train", *tiny_args(spoilt), *SMALL, "--workdir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_quiet(done.stderr)
    assert "\x1b" not in done.stdout
    assert "validation images, 10 classes; not read: 4 .heic, 2 .gif\n" in done.stdout
    assert done.stderr.count("3 pictures are not read (2 .heic, 1 .gif); convert them to JPEG") == 2
    entries = json.loads((tmp_path / "run/quarantine.json").read_text())["files"]
    for split in ("train", "val"):
        reasons = {Path(entry["file"]).name: entry["reason"] for entry in entries if entry["split"] == split}
        # Of 1,455 images for training 31, the rest of a batch, are not seen in an epoch.
        assert_named(reasons, len(BAD) if split == "val" else len(reasons))
        assert len(reasons) > len(BAD) - 5
        assert all(done.stderr.count(f"{split}/3/{name} is left out: ") == 1 for name in reasons)

    done = run("evaluate", "--workdir", trained[0], f"--config.data.dir={spoilt}")
    assert done.returncode == 0, done.stderr
    assert_quiet(done.stderr)
    assert all(done.stderr.count(f"val/3/{name} is left out: ") == 1 for name in BAD)


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_predict(run: Run, trained: tuple[Path, str], tmp_path: Path, decoder: str) -> None:
    write_bad(tmp_path)
    done = run("predict", "--workdir", trained[0], tmp_path, "--json", "--resize", decoder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"note: {tmp_path}: 3 pictures are not read (2 .heic, 1 .gif); convert them to JPEG")
    assert done.stderr.splitlines()[1:] == [f"{len(ODD)} image classified, {len(BAD)} failed"]
    answers = {Path(answer["file"]).name: answer for answer in json.loads(done.stdout)}
    assert set(answers) == {*BAD, *ODD} and all("predictions" in answers[name] for name in ODD)
    assert_named({name: answers[name]["error"] for name in BAD})


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_check_data(run: Run, tmp_path: Path, mode: str) -> None:
    (tmp_path / "data/a").mkdir(parents=True)
    write_bad(tmp_path / "data/a")
    done = run("check_data", tmp_path / "data", "--mode", mode, "--json", tmp_path / "report.json")
    assert (done.returncode, done.stderr) == (1, "")
    assert "\x1b" not in done.stdout and "[ERROR]" not in done.stdout
    problems = json.loads((tmp_path / "report.json").read_text())["problems"]
    found = {
        Path(file["file"]).name: f"{file.get('detail', '')}: {problem['meaning']}"
        for problem in problems.values()
        for file in problem["files"]
    }
    assert {found.pop(name) for name in NOT_READ} == {f": {PROBLEMS['unknown format']}"}
    # What only decoding shows is found by decoding all.
    assert_named({name: BAD[name][1] for name in BAD if mode == "quick" and name not in found} | found)
    assert set(found) == set(BAD) or mode == "quick"


def test_features_go_on(run: Run, trained: tuple[Path, str], tmp_path: Path) -> None:
    write_bad(tmp_path)
    for number in range(3):
        make_photo(90 + number).save(tmp_path / f"photo{number}.png")
    out = tmp_path / "all.npz"
    done = run("features", "--workdir", trained[0], tmp_path, "--out", out, "--config.batch_size=4")
    assert done.returncode == 1
    assert_quiet(done.stderr)
    assert done.stderr.count("3 pictures are not read (2 .heic, 1 .gif); convert them to JPEG") == 1
    notes = re.findall(r"note: \S+/(\S+) is left out: (.*)", done.stderr)
    assert len(notes) == len(BAD)  # each once
    assert_named(dict(notes))
    good = sorted([*ODD, "photo0.png", "photo1.png", "photo2.png"])
    with np.load(out) as found:
        assert found["files"].tolist() == good and found["skipped"].tolist() == sorted(BAD)
        assert len(found["labels"]) == len(good)
        features = found["features"]
    assert done.stdout.splitlines()[-1].endswith(f"written to {out}; {len(BAD)} skipped, see the notes")

    # Those of the others are the ones that they have alone.
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in good:
        (tmp_path / name).rename(alone / name)
    done = run("features", "--workdir", trained[0], alone, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(out) as found:
        assert found["skipped"].tolist() == [] and found["files"].tolist() == good
        np.testing.assert_allclose(features, found["features"], rtol=1e-4, atol=1e-5)

    (alone / "empty.jpg").touch()
    error = "--config.data.max_bad_images=0"
    done = run("features", "--workdir", trained[0], alone, "--out", tmp_path / "none.npz", error)
    assert done.returncode == 2 and not (tmp_path / "none.npz").exists()
    assert re.fullmatch(r"error: \S+/empty.jpg cannot be used: the file is empty .*max_bad_images=100.*\n", done.stderr)


# Everything that decodes starts the filter; then what a C library writes goes through it, whatever ends the process.
PROGRAM = r"""
import faulthandler, os, signal, sys
from rn50_jax import cli
from rn50_jax.runtime import streams

def main(argv):
    streams.without_decoders()
    streams.without_decoders()  # it is the same one
    os.write(2, b"\x1b[0;31m[ERROR] \x1b[0m[libjpeg_turbo_decoder] Could not decode jpeg code stream - bad\n")
    os.write(2, b"libpng error: IDAT: incorrect data check\nE0000 xla.cc:1] the device is gone\n\x1b[31mred\x1b[0m\n")
    os.write(2, b"Corrupt JPEG data: 290 extraneous bytes before marker 0xd9\n\xff of no encoding\n")
    print("note: Python's own \x1b[1mline\x1b[0m", file=sys.stderr)
    os.write(2, b"tempfile.tif: Using code not yet in table.\nZIPDecode: Decoding error at scanline 0, bad.\n")
    os.write(2, b"last words")
    if sys.argv[1] == "crash":
        faulthandler.enable()
        os.kill(os.getpid(), signal.SIGSEGV)
    if sys.argv[1] == "abort":
        os.abort()
    if sys.argv[1] == "exit":
        os._exit(7)
    return 5

cli.run(main)
"""
THROUGH = b"E0000 xla.cc:1] the device is gone\nred\n\xff of no encoding\nlast words"


@pytest.mark.parametrize(("end", "code"), [("crash", -11), ("abort", -6), ("exit", 7), ("return", 5)])
def test_what_is_no_decoders_line_comes_through(process_env: dict[str, str], end: str, code: int) -> None:
    line = [sys.executable, "-c", PROGRAM, end]
    done = subprocess.run(line, env=process_env, cwd=REPO, capture_output=True, timeout=PATIENCE)
    assert done.returncode == code
    said = done.stderr
    own = b"note: Python's own \x1b[1mline\x1b[0m\n"
    assert own in said
    said = said.replace(own, b"")
    if end == "crash":
        said, trace = re.subn(rb"Fatal Python error: Segmentation fault\n(.|\n)*?(?=E0000|red\n|last|\Z)", b"", said)
        assert trace == 1
    assert said == THROUGH


def test_who_asks_for_the_decoders_lines_gets_them(process_env: dict[str, str]) -> None:
    env = process_env | {"DALI_NVIMGCODEC_LOG_LEVEL": "5"}
    line = [sys.executable, "-c", PROGRAM, "return"]
    done = subprocess.run(line, env=env, cwd=REPO, capture_output=True, timeout=PATIENCE)
    assert done.stderr.startswith(b"\x1b[0;31m[ERROR] \x1b[0m[libjpeg_turbo_decoder]") and b"libpng" in done.stderr


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", ">&- 2>&-"])
def test_a_standard_error_that_cannot_be_written(process_env: dict[str, str], redirect: str) -> None:
    line = ["bash", "-c", f'"$@" {redirect}', "-", sys.executable, "-c", PROGRAM, "return"]
    done = subprocess.run(line, env=process_env, cwd=REPO, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (5, b"")


SAID = """Critical error in pipeline:
Error in CPU operator `nvidia.dali.fn.decoders.image_random_crop`,
which was used in the pipeline definition with the following traceback:

  File "x.py", line 10, in p

encountered:

"""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (f"{SAID}nvImageCodec failure: '#2'\nCurrent pipeline object is no longer valid.", "a decoder failed"),
        (f"{SAID}Failed to decode sample #0 : \nCurrent pipeline object is no longer valid.", "a decoder failed"),
        (
            'Error in thread 0: [/opt/dali/a/b.cc:12] Assert on "x < y" failed: Out of memory\nStacktrace (2 entries):',
            "Out of memory",
        ),
        ("", "a decoder failed"),
    ],
)
def test_dali_in_words(said: str, words: str) -> None:
    assert in_words(said) == words
