"""Reading the index of tar shards, and file lists."""

import gzip
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.loading import open_data
from helpers.tar_files import HUGE, NEGATIVE, OCTAL, header, sample, write_tar
from helpers.trees import make_config

from rn50_jax.data import image_set
from rn50_jax.data.formats import shards
from rn50_jax.data.formats.file_list import read_list, write_list
from rn50_jax.data.formats.shards import (
    has_shards,
    index_tar,
    read_description,
    scan_shards,
    write_index,
)
from rn50_jax.data.formats.tars import idx_text, read_members, split_name
from rn50_jax.data.image_set import ImageSet, read_image
from rn50_jax.data.prepare.shard_writer import plan_split
from rn50_jax.errors import UserError


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two tars as other programs write them: extra members, folders, hidden files, long and spaced names."""
    place = tmp_path / "foreign/train"
    extra = [("a/x.json", b"{}"), ("a/.hidden", b"no"), ("__about__.txt", b"about")]
    write_tar(place / "b.tar", [*sample("k2", 0, "png"), *sample("k1", 2, "JPEG"), *sample("k3", 1, "seg.jpg")])
    long = "n" * 130
    write_tar(
        place / "a.tar", [*sample("a/x", 1), *extra[:2], *sample(long, 0), *sample("b c ü", 1)], tarfile.GNU_FORMAT
    )
    return place


def check(folder: Path) -> ImageSet:
    class_names, images = scan_shards(folder)
    assert class_names == ("0", "1", "2")
    assert images.labels.tolist() == [1, 0, 1, 0, 2, 1]
    assert images.labels.dtype == images.members.tar.dtype == np.int32
    assert images.members.offset.dtype == images.members.size.dtype == np.int64
    assert images.members.tars == (f"{folder}/a.tar", f"{folder}/b.tar")
    keys = ["a/x", "n" * 130, "b c ü", "k2", "k1", "k3"]
    assert [read_image(images, i) for i in range(6)] == [f"image {key}".encode() * 100 for key in keys]
    assert images.files[0] == "a.tar/a/x.jpg" and images.files[4] == "b.tar/k1.JPEG"
    return images


def test_foreign_shards_are_read_from_headers_and_cache(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wds2idx import IndexCreator  # DALI's own

    assert has_shards(foreign) and not has_shards(foreign.parent)
    images = check(foreign)
    (foreign / ".hidden.tar").write_bytes(b"no tar")
    with IndexCreator(str(foreign / "b.tar"), str(foreign / "b.idx"), verbose=False) as creator:
        creator.create_index()
    assert (foreign / "b.idx").read_text() == idx_text(foreign / "b.tar")
    check(foreign)
    write_index(foreign, images)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "index_tar", None)  # the cache needs no look into the tars
        check(foreign)
    os.utime(foreign / "b.tar", (1, 1))  # as after a copy
    check(foreign)
    assert "does not belong to the tars beside it" in capsys.readouterr().err


def test_stale_indices_are_not_used(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = check(foreign)
    write_index(foreign, images)
    (foreign / "b.idx").write_text("v1.2 1\njpg 512 10 k9.jpg cls 1536 1 k9.cls\n")
    with (foreign / "b.tar").open("ab") as file:
        file.write(bytes(10240))
    check(foreign)
    assert "index.npz does not belong to the tars beside it" in capsys.readouterr().err
    (foreign / "index.npz").write_bytes(b"PK\x03\x04 no archive")
    check(foreign)
    for index in (b"\xff\x00", b"v1.2 2\njpg 512 10 k9.jpg cls 1536 1 k9.cls\njpg x"):
        (foreign / "b.idx").write_bytes(index)
        check(foreign)


def rewrite_index(folder: Path, **changes: Any) -> None:
    with np.load(folder / "index.npz") as stored:
        arrays = {**stored, **changes}
    with (folder / "index.npz").open("wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def test_a_tar_that_was_written_again_at_the_same_size_is_noticed(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_index(foreign, check(foreign))
    size, time = (foreign / "b.tar").stat().st_size, (foreign / "b.tar").stat().st_mtime_ns
    write_tar(foreign / "b.tar", [*sample("k2", 2, "png"), *sample("k1", 0, "JPEG"), *sample("k3", 2, "seg.jpg")])
    assert (foreign / "b.tar").stat().st_size == size
    os.utime(foreign / "b.tar", ns=(time + 1, time + 1))  # as it is anyway, but not on every file system
    assert scan_shards(foreign)[1].labels.tolist() == [1, 0, 1, 2, 0, 2]
    assert "index.npz does not belong to the tars beside it and is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.int32(3)},
        {"labels": np.full(6, -1, np.int32)},
        {"labels": np.zeros(6)},
        {"labels": np.full(6, 2**40)},
        {"labels": np.full(6, 2_000_000, np.int32)},
        {"labels": np.array(list("abcdef"))},
        {"labels": np.zeros((6, 1), np.int32)},
        {"labels": np.zeros(5, np.int32)},
        {"labels": None},
        {"shard": np.full(6, 2, np.int32)},
        {"shard": np.full(6, -1, np.int32)},
        {"offsets": np.full(6, 2**62)},
        {"offsets": np.full(6, -512)},
        {"sizes": np.full(6, 2**62)},
        {"sizes": np.full(6, -1)},
        {"names": np.zeros(0, np.uint8)},
        {"names": np.frombuffer(b"\n" * 6, np.uint8)},
        {"tars": np.array(["a.tar", "b.tar"])},
        {"tar_sizes": np.array("x")},
        {"tar_times": np.zeros((3, 3))},
    ],
)
def test_an_index_that_cannot_be_true_is_not_used(
    foreign: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_index(foreign, check(foreign))
    rewrite_index(foreign, **changes)
    check(foreign)
    assert "index.npz does not belong to the tars beside it and is not used" in capsys.readouterr().err


def test_an_index_that_claims_more_than_memory_holds_is_not_used(foreign: Path) -> None:
    write_index(foreign, check(foreign))
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(foreign / "index.npz", "w") as archive:
        archive.writestr("labels.npy", b"\x93NUMPY\x01\x00v\x00" + header)
    check(foreign)


def test_an_index_file_that_is_wrong_in_its_middle_changes_nothing(foreign: Path) -> None:
    """What `.idx` files say is not relied upon."""
    (foreign / "b.idx").write_text(
        "v1.2 3\npng 512 800 k2.png cls 2048 1 k2.cls\nJPEG 512 800 k1.JPEG cls 2048 1 k1.cls\n"
        "seg.jpg 5632 800 k3.seg.jpg cls 7168 1 k3.cls\n"
    )
    check(foreign)


@pytest.mark.parametrize(
    "content",
    [
        header("a.jpg", NEGATIVE),
        header("a.jpg", b"\xff" * 12),
        header("a.jpg", b"-0000000001\0"),
        header("a.jpg", HUGE),
        header("a.jpg", OCTAL % 10**9),
        header("a", HUGE, b"L"),
        header("a", NEGATIVE, b"L"),
        header("a", OCTAL % (2 << 20), b"L") + bytes(3 << 20),
        header("a", HUGE, b"x"),
        header("a", NEGATIVE, b"x"),
        header("a", OCTAL % 27, b"x") + b"27 GNU.sparse.map=a,b,c,d,e\n".ljust(512, b"\0") + header("a", OCTAL % 0),
        (header("a", OCTAL % 20, b"x") + b"20 comment=aaaaaaaa\n".ljust(512, b"\0")) * 3000,
        header("a", OCTAL % 0, b"g") * 3000,
    ],
)
def test_headers_of_tars_can_neither_hang_nor_fill_the_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content + bytes(1024))
    with pytest.raises(UserError, match=r"x\.tar is damaged or cut off .*; copy it again"):
        read_members(tmp_path / "x.tar")


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, tar_format: int) -> None:
    names = ["a.jpg", f"{'d' * 80}/{'e' * 60}.jpg", "ü ä.jpg", "caf\udce9.jpg", ".hidden"]
    names += [] if tar_format == tarfile.USTAR_FORMAT else ["n" * 200, f"{'k' * 90}/{'l' * 150}.cls"]
    write_tar(tmp_path / "x.tar", [(name, name.encode("utf-8", "replace")) for name in names], tar_format)
    with tarfile.open(tmp_path / "x.tar", "a", format=tar_format) as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc"
            archive.addfile(info)
    with tarfile.open(tmp_path / "x.tar") as archive:
        wanted = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    assert [(m.name, m.offset, m.size) for m in read_members(tmp_path / "x.tar")] == wanted
    refused: list[str] = []
    read_members(tmp_path / "x.tar", refuse=refused.append)
    assert refused == ["folder", "link", "pipe"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: [p.unlink() for p in d.glob("*.tar")], "has no tar shards"),
        (lambda d: (d / "c.tar.unfinished").touch(), "is not packed to its end; run the same"),
        (lambda d: (d.parent / "dataset.json.partial").touch(), "is not packed to its end"),
        (lambda d: os.truncate(d / "a.tar", 3000), "a.tar is damaged or cut off"),
        (lambda d: (d / "b.tar").write_text("text " * 1000), "b.tar is damaged or cut off"),
        (lambda d: (d / "b.tar").write_bytes(b""), "b.tar is damaged or cut off"),
        (lambda d: (d / "b.tar").write_bytes(gzip.compress((d / "a.tar").read_bytes())), "b.tar is compressed (gzip)"),
        (lambda d: write_tar(d / "b.tar", [("x.jpg", b"")]), "sample 'x' has no label (.cls)"),
        (lambda d: write_tar(d / "b.tar", [("x.cls", b"1")]), "sample 'x' has no image"),
        (lambda d: write_tar(d / "b.tar", [("x.HEIC", b""), ("x.cls", b"1")]), "x.HEIC is none; convert it to JPEG"),
        (lambda d: write_tar(d / "b.tar", [("x.jpg", b""), ("x.cls", b"one")]), "x.cls holds b'one'"),
        (lambda d: write_tar(d / "b.tar", [("x.jpg", b""), ("x.cls", b"2147483646")]), "no number of a class"),
        (lambda d: write_tar(d / "b.tar", [("x.jpg", b""), ("x.cls", b"1000000")]), "those are 0 to 999,999"),
        (lambda d: write_tar(d / "b.tar", [("x.jpg", b""), ("x.cls", b"-1")]), "x.cls holds b'-1'"),
        (lambda d: write_tar(d / "b.tar", []), "b.tar holds no samples"),
        (lambda d: (d.parent / "dataset.json").write_text('{"class_names": ["a"]}'), "names only 1 classes"),
        (lambda d: (d.parent / "dataset.json").write_text("["), "dataset.json is damaged"),
        (lambda d: (d.parent / "dataset.json").write_text("[]"), "dataset.json is damaged"),
        (
            lambda d: (d.parent / "dataset.json").write_text('{"splits": {"train": {"shards": [{"file": "z.tar"}]}}}'),
            "z.tar is missing",
        ),
        *(
            (lambda d, text=text: (d.parent / "dataset.json").write_text(text), "dataset.json is damaged")
            for text in (
                '{"splits": []}',
                '{"splits": {"train": [1]}}',
                '{"splits": {"train": {"shards": null}}}',
                '{"splits": {"train": {"shards": [{}]}}}',
                '{"splits": {"train": {"shards": [{"file": 3}]}}}',
                '{"class_names": "abc"}',
                '{"class_names": [1, 2, 3]}',
                '{"class_names": []}',
                '{"class_names": ["a", "", "c"]}',
                '{"class_names": ["a", "b", "a"]}',
                "[" * 5000,
            )
        ),
    ],
)
def test_bad_shards_are_refused(foreign: Path, spoil: Any, message: str) -> None:
    spoil(foreign)
    with pytest.raises(UserError) as error:
        scan_shards(foreign)
    assert message in str(error.value)


def test_class_names_of_the_description(foreign: Path) -> None:
    (foreign.parent / "dataset.json").write_text(json.dumps({"class_names": ["a", "b", "c", "d"]}))
    assert scan_shards(foreign)[0] == ("a", "b", "c", "d")
    assert read_description(foreign) == {"class_names": ["a", "b", "c", "d"]}


def test_names_are_split_as_webdataset_does() -> None:
    assert split_name("a.b/c.d.jpg") == ("a.b/c", "d.jpg")
    assert split_name(".x") == ("", "x")
    assert split_name("none") == ("none", "")


def test_a_list_is_read_back(tmp_path: Path) -> None:
    names, files = ("2", "10", "b b"), ("train/2/#1.jpg", "#a.jpg", "ü\u2009x.jpg", "/abs.jpg")
    write_list(tmp_path / "l.tsv", names, files, [0, 1, 2, 0])
    found = read_list(tmp_path / "l.tsv")
    assert (found.class_names, found.files) == (names, ("train/2/#1.jpg", "./#a.jpg", "ü\u2009x.jpg", "/abs.jpg"))
    assert found.labels.tolist() == [0, 1, 2, 0] and found.labels.dtype == np.int32
    for bad in ("a\tb", "a\nb", "a\rb", "", "a\u2028b", "\udcff"):
        with pytest.raises(UserError, match="has a tab"):
            write_list(tmp_path / "bad.tsv", names, [bad], [0])
    assert not (tmp_path / "bad.tsv").exists()


@pytest.mark.parametrize(
    ("text", "class_names", "labels"),
    [
        ("a.jpg\t0\nb.jpg\t2\n", ("0", "1", "2"), [0, 2]),
        ("\ufeffa.jpg\tdog\r\n\r\n# comment\r\nb.jpg\tcat", ("cat", "dog"), [1, 0]),
        ("#class\tdog\n#class\tcat\na.jpg\tdog\nb.jpg\t1\n", ("dog", "cat"), [0, 1]),
        ("#class\t1\n#class\t0\na.jpg\t1\n", ("1", "0"), [0]),
        ("a.jpg\t0\nb.jpg\tcat\n", ("0", "cat"), [0, 1]),
        ("#class\t-1\n#class\t2.0\na.jpg\t2.0\nb.jpg\t-1\n", ("-1", "2.0"), [1, 0]),
    ],
)
def test_classes_of_a_list(tmp_path: Path, text: str, class_names: tuple[str, ...], labels: list[int]) -> None:
    (tmp_path / "l.tsv").write_bytes(text.encode())
    found = read_list(tmp_path / "l.tsv")
    assert (found.class_names, found.labels.tolist()) == (class_names, labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a.jpg 0\n", "line 1: expected a path, one tab and a class, got 'a.jpg 0'"),
        (b"\na.jpg\t0\t1\n", "line 2: expected a path"),
        (b"a.jpg\t\n", "line 1: expected a path"),
        (b"# nothing\n", "names no images"),
        (b"\xff\n", "is not UTF-8 (byte 0)"),
        (b"#class\ta\nx.jpg\tb\n", "class 'b' is not one of its 1 #class lines"),
        (b"#class\ta\nx.jpg\t1\n", "class '1' is not one of"),
        (b"#class\ta\n#class\ta\nx.jpg\ta\n", "names class 'a' twice"),
        (b"x.jpg\t99999999999\n", "99999999999 is no label"),
        (b"x.jpg\t1000000\n", "1000000 is no label"),
        (b"x.jpg\t0\ny.jpg\t-1\n", "'-1' is no label, which are whole numbers from 0"),
        (b"x.jpg\t1.0\ny.jpg\t10.0\n", "'1.0' is no label"),
        (b"x.jpg\t1\ny.jpg\t 1\n", "' 1' is no label"),
        (b"x.jpg\t" + b"9" * 5000, "'99999999999999999999' is no label"),
        (b"#class\t\nx.jpg\t0\n", "has a #class line without a name"),
        ("x.jpg\t0\n".encode("utf-16-le"), "has a NUL character (1 characters in)"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "l.tsv").write_bytes(text)
    with pytest.raises(UserError) as error:
        read_list(tmp_path / "l.tsv")
    assert message in str(error.value)


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_list(tmp_path / "none.tsv")


def test_pipes_devices_and_folders_are_neither_waited_for_nor_read(tree: Path) -> None:
    """Whether one is the list itself, or listed."""
    os.mkfifo(tree / "pipe.png")
    (tree / "zero.png").symlink_to("/dev/zero")
    (tree / "loop.png").symlink_to("loop.png")
    (tree / "nothing.png").symlink_to("none")
    (tree / "link.png").symlink_to("train/ant/0.png")
    for name, problem in (("pipe.png", "no plain file"), ("zero.png", "no plain file"), ("train", "a folder")):
        with pytest.raises(UserError, match=f"{name} cannot be read: it is {problem}"):
            read_list(tree / name)

    def open_listed(*names: str) -> Any:
        lines = "".join(f"{name}\t{i % 2}\n" for i, name in enumerate(names))
        (tree / "l.tsv").write_text(lines)
        return open_data(make_config(tree, ("data.train_list", "l.tsv"), ("data.val_list", "l.tsv")))

    good = ("train/ant/0.png", "link.png", "none.png", "loop.png", "nothing.png", "none/none.png", "train/ant/0.png")
    assert len(open_listed(*good).train.files) == 7  # those that are missing are left out when their turn comes
    images = open_listed(*good, "pipe.png", "zero.png", "train/ant", "/dev/zero").train
    for index in range(7, 11):
        with pytest.raises(OSError, match="it is"):
            image_set.read_image(images, index)
    with pytest.raises(UserError, match=r"pipe\.png is a folder, pipe or device"):
        plan_split(tree, ["pipe.png"], np.zeros(1, np.int32), max_bytes=1, max_images=1, seed=None)


def test_other_names_of_jpeg_in_tars(tmp_path: Path) -> None:
    names = ["0.jfif", "0.cls", "1.JPE", "1.cls", "2.seg.jpe", "2.cls"]
    write_tar(tmp_path / "a.tar", [(name, b"1" if name.endswith("cls") else b"x") for name in names])
    assert index_tar(tmp_path / "a.tar")[1] == ["0.jfif", "1.JPE", "2.seg.jpe"]
