"""Looking through data sets of every kind of damage."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO, Run, assert_user_error
from helpers.damage import KINDS, encode, make_photo, write_kinds
from helpers.deadly import double
from helpers.runs import PATIENCE
from helpers.tar_files import write_tar
from PIL import Image

from rn50_jax.check_data import check, main, report_text, write_clean_lists
from rn50_jax.data.check import findings as health
from rn50_jax.data.check.image_file import examine
from rn50_jax.data.check.listing import Split, list_dataset
from rn50_jax.data.check.scan import look_at
from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.data.formats.file_list import read_list
from rn50_jax.data.formats.imagenet_names import IMAGENET_IMAGES, human_names, imagenet_notes, likely_names
from rn50_jax.data.formats.shards import has_shards
from rn50_jax.data.image_set import ImageSet, Source, read_source
from rn50_jax.data.images.headers import ImageProblem
from rn50_jax.data.process_pool import map_in_processes
from rn50_jax.errors import UserError

Checked = tuple[dict[str, Any], dict[str, Split], set[health.Place], set[health.Place]]

# The kind of problem that each kind of damage is; all others of KINDS are good.
EXPECTED = {
    "zero bytes": "empty",
    "two bytes": "cut off",
    "header only": "cut off",
    "truncated half": "cut off",
    "last 20 bytes missing": "cut off",
    "all zeros": "no image",
    "truncated PNG": "cut off",
    "text": "no image",
    "HTML": "no image",
    "SVG": "unknown format",
    "GIF": "unknown format",
    "image bomb": "too large",
    "PNG with damaged data": "damaged",
    "dangling link": "dangling link",
    "link to itself": "dangling link",
    "folder named like an image": "no plain file",
    "pipe named like an image": "no plain file",
}
ODD = {
    "garbled middle": "decoder complains",
    "RGBA PNG": "transparent",
    "1x1": "tiny",
    "very wide": "tiny",
    "EXIF rotated": "on its side",
    "two frames": "several frames",
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with everything that can be wrong with one."""
    root = tmp_path_factory.mktemp("data") / "damaged ü"
    seed = iter(range(10_000, 20_000))
    for split, count in (("train", 6), ("val", 3)):
        for name in ("ant", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.jpg").write_bytes(encode(make_photo(next(seed))))
    write_kinds(root / "train/bee")
    train, val = root / "train", root / "val"
    shutil.copy(train / "ant/0.jpg", val / "ant/copy.jpg")
    shutil.copy(train / "ant/1.jpg", train / "bee/copy.jpg")
    shutil.copy(train / "ant/2.jpg", train / "ant/again.jpg")
    for name in ("Ant", "empty", ".git", "cat/below", "cat/.cache"):
        (train / name).mkdir()
    shutil.copy(train / "ant/3.jpg", train / "cat/below/3.jpg")
    shutil.copy(train / "ant/4.jpg", train / "cat/4.image")
    shutil.copy(train / "ant/4.jpg", train / "loose.jpg")
    (train / "cat/Thumbs.db").write_bytes(b"\0\1")
    (train / "notes.txt").write_text("notes")
    Path(os.fsdecode(os.fsencode(train / "ant") + b"/latin\xfc.jpg")).write_bytes(encode(make_photo(1)))
    return root


@pytest.fixture(scope="module")
def checked(damaged: Path) -> Checked:
    return check(damaged, full=True, workers=2)


def files_of(kinds: dict[str, Any], kind: str) -> list[str]:
    return [Path(entry["file"]).name for entry in kinds.get(kind, {"files": []})["files"]]


@pytest.mark.slow
def test_every_kind_of_damage_is_found_by_both_modes(damaged: Path, checked: Checked) -> None:
    for full in (True, False):
        report, splits, bad, _ = checked if full else check(damaged, workers=2)
        problems, notes = report["problems"], report["notes"]
        for name, kind in EXPECTED.items():
            # A PNG whose ends are right shows its damage only when it is decoded.
            if full or name != "PNG with damaged data":
                assert KINDS[name].file in files_of(problems, kind), (name, full)
        for name, kind in ODD.items():
            if full or name != "garbled middle":
                assert KINDS[name].file in files_of(notes, kind), (name, full)
        blamed = {Path(splits[split].names[i]).name for split, i in bad}
        fine = {KINDS[name].file for name in KINDS if name not in EXPECTED}
        assert not blamed & fine
        assert len(bad) == len(EXPECTED) - 4 - (not full)  # links and folders are no images to begin with
        for kind, names in (
            ("empty class", ["Ant", "empty"]),
            ("class in one split only", ["Ant", "empty"]),
            ("class names alike", ["ant"]),
            ("image in no class", ["loose.jpg"]),
            ("image in a subfolder", ["below"]),
            ("image of unknown suffix", ["4.image"]),
            ("name not UTF-8", ["latin\udcfc.jpg"]),
            ("in train and val", ["0.jpg"]),
            ("in several classes", ["1.jpg"]),
        ):
            assert files_of(problems, kind) == names, kind
        assert files_of(notes, "twice in a class") == ["2.jpg"]
        assert sorted(files_of(notes, "stray file")) == ["Thumbs.db", "notes.txt"]
        text = report_text(report)
        assert "train/bee/zero_bytes.jpg" in text and "Premature end of JPEG data" in text
        json.dumps(report)


def test_the_verdicts_are_those_of_the_training_decoder(tmp_path: Path) -> None:
    """What check_data calls good is what the training pipeline decodes, and nothing else."""
    from rn50_jax.data.check.scan import make_verify
    from rn50_jax.data.dali_decoders import make_decoder

    decode = make_decoder(transform="torchvision", image_size=32, resize=32, workers=1)
    verify = make_verify()
    for name, path in write_kinds(tmp_path / "kinds").items():
        if path.is_file():
            try:
                decode(path.read_bytes())
                decodes = True
            except ValueError:
                decodes = False
            with path.open("rb") as file:
                assert (examine(file, verify, full=True).problem is None) == decodes, name
            assert decodes == KINDS[name].decodes, name


def test_statistics(tmp_path: Path) -> None:
    sizes = {"a": [(40, 30), (80, 30), (60, 30)], "b": [(100, 100)]}
    for name, images in sizes.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for i, size in enumerate(images):
            make_photo(i, size).convert("L" if i else "RGB").save(tmp_path / "train" / name / f"{i}.png")
    report, _, bad, _ = check(tmp_path, workers=1)
    assert not bad and not report["problems"]
    facts = report["splits"]["train"]
    assert (facts["kind"], facts["classes"], facts["images"]) == ("class folders", 2, 4)
    counts = {"min": 1, "median": 2.0, "max": 3, "smallest": "b", "largest": "a", "imbalance": 3.0}
    assert facts["images_per_class"] == counts
    assert facts["formats"] == {"PNG": 4} and facts["colours"] == {"RGB": 2, "L": 2}
    assert (facts["width"]["min"], facts["width"]["median"], facts["width"]["max"]) == (40, 70, 100)
    assert facts["bytes"]["total"] == sum(path.stat().st_size for path in tmp_path.rglob("*.png"))
    assert report["imagenet"] is False


def test_the_listing_is_that_of_training(tree: Path) -> None:
    splits, findings = list_dataset(tree)
    assert findings == []
    for name in ("train", "val"):
        class_names, images = scan_split(tree / name)
        assert splits[name].class_names == class_names
        assert splits[name].images.files == images.files
        assert np.array_equal(splits[name].labels, images.labels)


def test_clean_lists(damaged: Path, checked: Checked, tmp_path: Path) -> None:
    _, splits, bad, twice = checked
    told = write_clean_lists(tmp_path / "clean.tsv", damaged, splits, bad)
    train, val = read_list(tmp_path / "clean.train.tsv"), read_list(tmp_path / "clean.val.tsv")
    assert train.class_names == val.class_names == ("ant", "bee", "cat")
    assert (len(val.files), len(told)) == (10, 2)
    assert all((damaged / file).is_file() for file in train.files)
    kinds = {KINDS[name].file for name in KINDS if name not in EXPECTED}
    assert {Path(file).name for file in train.files} == kinds | {f"{i}.jpg" for i in range(6)} | {
        "copy.jpg",
        "again.jpg",
    }
    again, _, bad_again, _ = check(damaged, lists=[tmp_path / "clean.train.tsv"], workers=1)
    assert not bad_again and list(again["problems"]) == ["in several classes"]
    assert again["splits"]["clean.train"]["kind"] == "file list"

    write_clean_lists(tmp_path / "once.tsv", damaged, splits, bad | twice)
    once = read_list(tmp_path / "once.train.tsv")
    gone = {"train/ant/0.jpg", "train/ant/1.jpg", "train/bee/copy.jpg", "train/ant/again.jpg"}
    assert set(train.files) - set(once.files) == gone
    assert read_list(tmp_path / "once.val.tsv").files == val.files


def test_lists_with_missing_and_repeated_files(tree: Path) -> None:
    os.mkfifo(tree / "pipe.png")
    names = ("train/ant/0.png", "train/ant/0.png", "none.png", "pipe.png", "train")
    (tree / "l.tsv").write_text("".join(f"{name}\tant\n" for name in names))
    report, _, bad, _ = check(tree, lists=[tree / "l.tsv"], workers=1)
    assert files_of(report["problems"], "listed twice") == ["0.png"]
    assert [(found["file"], found["detail"]) for found in report["problems"]["unreadable"]["files"]] == [
        ("none.png", "No such file or directory"),
        ("pipe.png", "it is no plain file"),
        ("train", "it is a folder"),
    ]
    assert bad == {("l", 2), ("l", 3), ("l", 4)}


def test_tar_shards(tmp_path: Path) -> None:
    good, cut = encode(make_photo(1)), encode(make_photo(2))[:-30]
    members = [("a.jpg", good), ("a.cls", b"0"), ("b.jpg", cut), ("b.cls", b"1"), ("c.png", good), ("c.cls", b"1")]
    write_tar(tmp_path / "train/s.tar", members)
    report, splits, bad, _ = check(tmp_path, workers=1)
    assert report["splits"]["train"]["kind"] == "tar shards"
    assert files_of(report["problems"], "cut off") == ["b.jpg"] and bad == {("train", 1)}
    assert files_of(report["problems"], "in several classes") == ["a.jpg"]
    with pytest.raises(UserError, match="holds tar shards"):
        write_clean_lists(tmp_path / "l.tsv", tmp_path, splits, bad)


def test_damaged_shards_do_not_hide_the_others(tmp_path: Path) -> None:
    cut = encode(make_photo(2))[:-30]
    write_tar(tmp_path / "train/a.tar", [("a.jpg", encode(make_photo(1))), ("a.cls", b"0")])
    write_tar(tmp_path / "train/b.tar", [("b.jpg", cut), ("b.cls", b"1")])
    os.truncate(tmp_path / "train/a.tar", 900)
    (tmp_path / "train/c.tar").symlink_to("nowhere")
    report, _, bad, _ = check(tmp_path, workers=1)
    assert files_of(report["problems"], "bad shards") == ["train", "a.tar", "c.tar"]
    assert files_of(report["problems"], "cut off") == ["b.jpg"] and bad == {("train", 0)}


def test_tars_left_beside_class_folders_are_no_shards(tree: Path) -> None:
    """As after extracting ImageNet's archive of archives."""
    write_tar(tree / "train/ant.tar", [("1.png", b"")])
    assert not has_shards(tree / "train")
    splits, findings = list_dataset(tree)
    assert splits["train"].kind == "class folders" and [f.kind for f in findings] == ["stray file"]


def test_workers_end_with_their_parent(damaged: Path, process_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "rn50_jax.check_data", str(damaged), "--mode", "full"]
    process = subprocess.Popen(command, env=process_env, cwd=REPO, stdout=subprocess.DEVNULL)
    children: set[int] = set()
    while len(children) < 2 and process.poll() is None:
        children = {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
    process.kill()
    process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_jpeg_bomb_is_not_decoded() -> None:
    data = bytearray(encode(make_photo(3)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500 pixels

    def verify(data: bytes) -> str:
        raise AssertionError("decoded")

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        found = examine(io.BytesIO(bytes(data)), verify, full=True)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    assert (found.problem, found.detail) == ("too large", "65500 x 65500")
    assert examine(io.BytesIO(bytes(data)), verify, full=True).problem == "too large"


def test_random_damage_never_raises() -> None:
    rng = random.Random(0)
    originals = [encode(make_photo(0)), encode(make_photo(0), "PNG"), encode(make_photo(0), "TIFF")]
    originals += [encode(make_photo(0), "WEBP"), encode(make_photo(0), "BMP")]
    for _ in range(600):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(min(len(data), rng.choice((40, 400, 10**6))))] = rng.randrange(256)
        del data[rng.randrange(len(data)) if rng.random() < 0.3 else len(data) :]
        examine(io.BytesIO(bytes(data)), lambda data: "", full=False)


def test_a_process_that_dies_loses_only_the_item_that_killed_it() -> None:
    found = dict(map_in_processes(double, range(60), chunk=8, workers=2, crashed=lambda item: [-1]))
    assert [x for start in sorted(found) for x in found[start]] == [-1 if i == 13 else 2 * i for i in range(60)]


@pytest.mark.slow
def test_the_command(damaged: Path, tree: Path, run: Run, tmp_path: Path) -> None:
    done = run("check_data", damaged, "--json", tmp_path / "r.json", "--write_list", tmp_path / "c.tsv", "--workers", 2)
    assert done.returncode == 1 and done.stderr == ""
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["problems"]["empty"]["count"] == 1
    assert "c.train.tsv: " in done.stdout and r"latin\xfc.jpg" in done.stdout
    clean = tree / "clean"
    for split in ("train", "val"):
        write_kinds(clean / split / "a", ["grey JPEG", "progressive"], seed=len(split))
        write_kinds(clean / split / "b", ["BMP"], seed=len(split) + 7)
    done = run("check_data", clean)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Problems: none" in done.stdout and "--mode full decodes all" in done.stdout


def test_mistakes_are_told_in_one_line(run: Run, tree: Path, tmp_path: Path) -> None:
    assert_user_error(run("check_data", tmp_path / "none"), "none is not a folder")
    (tmp_path / "nothing").mkdir()
    for args, message in (
        ([tmp_path / "nothing"], "holds no class folders and no tar shards"),
        ([tree, "--workers", 0], "--workers 0 must be at least 1"),
        ([tree, "--drop_duplicates"], "--write_list FILE and --split SHARE write"),
        ([tree, "--list", tmp_path / "l"], "cannot be read: No such file"),
        ([tree, "--json", tmp_path / "no/r.json"], "cannot write"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(arg) for arg in args])


def test_imagenet_order_and_counts() -> None:
    synsets = likely_names(1000)
    assert human_names(synsets)[0] == "tench, Tinca tinca" and list(synsets) == sorted(synsets)
    assert imagenet_notes(synsets) == imagenet_notes(("cat", "dog")) == imagenet_notes(synsets[:10]) == ()
    assert imagenet_notes(synsets[1:]) == ("999 of ImageNet's 1,000 classes; missing: n01440764",)
    assert imagenet_notes(synsets[5:])[0].endswith("n01440764, n01443537, n01484850 and 2 more")
    assert imagenet_notes((*synsets, "lost+found")) == ("besides ImageNet's classes there are others: lost+found",)
    assert "not sorted" in imagenet_notes(synsets[::-1])[0]

    def findings(names: Sequence[str], images: int) -> list[str]:
        files = ("x",) * images
        split = Split("class folders", tuple(names), files, ImageSet(files, np.zeros(images, np.int32)))
        return [finding.detail for finding in health.imagenet_findings({"val": split})]

    assert IMAGENET_IMAGES == {"train": 1_281_167, "val": 50_000}
    assert findings(synsets, 50_000) == findings(synsets[:100], 5000) == []
    assert findings(synsets, 49_999) == ["49,999 images instead of 50,000"]
    assert findings(synsets[1:], 49_950) == ["999 of ImageNet's 1,000 classes; missing: n01440764"]


def test_training_notes_an_incomplete_imagenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from helpers.loading import open_data
    from helpers.trees import make_config

    photo = encode(make_photo(0))
    for name in likely_names(1000)[:-1]:
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.jpg").write_bytes(photo)
    open_data(make_config(tmp_path))
    assert "note: 999 of ImageNet's 1,000 classes; missing: n15075141" in capsys.readouterr().err


def test_files_and_members_of_more_bytes_than_memory_holds(tree: Path) -> None:
    image, size = encode(make_photo(0, (32, 32)), "JPEG"), 10**13
    file = tree / "train/ant/huge.jpg"
    file.write_bytes(image)
    os.truncate(file, 10**13)
    for full in (False, True):
        found = check(tree / "train", full=full)[0]["problems"]["too large"]["files"]
        assert found == [{"file": "ant/huge.jpg", "detail": "more than 600 MB"}]
    source = Source(str(file), 0, size)  # as of a member of a sparse tar
    seen = look_at([source], full=True, workers=1, advance=lambda _: None)
    assert seen.problems == {0: ("too large", "more than 600 MB")}
    with pytest.raises(ImageProblem, match="more than 600 MB"):
        read_source(source)


def test_pictures_that_are_not_read_and_those_on_their_side(call: Run, tmp_path: Path) -> None:
    photo = make_photo(1)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i, suffix in enumerate(("jpg", "jfif", "jpe")):
            (tmp_path / name / f"{i}.{suffix}").write_bytes(encode(make_photo(10 * len(list(tmp_path.rglob("*.j*"))))))
    for orientation in range(9):
        exif = Image.Exif()
        exif[0x112] = orientation
        data = encode(make_photo(200 + orientation), exif=exif)
        (tmp_path / ("ant" if orientation < 8 else "bee") / f"{orientation}.turned.jpg").write_bytes(data)
    heic, tiff = b"\0\0\0\x1cftypheic" + bytes(90), encode(photo, "TIFF")
    files = {"ant/a.heic": heic, "ant/b.HEIC": heic, "bee/c.heif": heic, "bee/d.gif": encode(photo, "GIF")}
    files |= {"bee/e.nef": tiff, "bee/f.dng": tiff, "bee/notes.txt": b"notes"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = call("check_data", tmp_path, "--json", tmp_path.parent / "report.json")
    assert done.returncode == 1
    assert "not read         2 .heic, 1 .heif, 1 .gif, 1 .nef, 1 .dng; convert them to JPEG" in done.stdout
    turned = "on their side    4 of 15 images (ant 3, bee 1), unless --config.data.exif_rotation=true"
    assert turned in done.stdout

    report = json.loads((tmp_path.parent / "report.json").read_text())
    (facts,) = report["splits"].values()
    assert facts["not_read"] == {".heic": 2, ".heif": 1, ".gif": 1, ".nef": 1, ".dng": 1}
    assert facts["on_their_side"] == {"images": 4, "images_per_class": {"ant": 3, "bee": 1}}
    assert set(report["problems"]) == {"unknown format"}
    details = {entry["file"]: entry["detail"] for entry in report["problems"]["unknown format"]["files"]}
    raw = "it is a raw photograph"
    wanted = {
        "ant/a.heic": "it is HEIC",
        "ant/b.HEIC": "it is HEIC",
        "bee/c.heif": "it is HEIC",
        "bee/d.gif": "it is GIF",
    }
    assert details == wanted | {"bee/e.nef": raw, "bee/f.dng": raw}
    assert files_of(report["notes"], "on its side") == ["5.turned.jpg", "6.turned.jpg", "7.turned.jpg", "8.turned.jpg"]
    assert files_of(report["notes"], "EXIF rotation") == ["2.turned.jpg", "3.turned.jpg", "4.turned.jpg"]
    assert set(facts["formats"]) == {"JPEG"}
