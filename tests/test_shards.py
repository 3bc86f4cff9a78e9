"""Reading the index of tar shards, and file lists."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rn50_jax.data.filelist import read_list, write_list
from rn50_jax.data.shards import ShardedImages, has_shards, read_description, scan_shards, write_index
from rn50_jax.data.tars import read_idx, read_members, split_name
from rn50_jax.errors import UserError


def write_tar(path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample(key: str, label: int, suffix: str = "jpg") -> list[tuple[str, bytes]]:
    return [(f"{key}.{suffix}", f"image {key}".encode() * 100), (f"{key}.cls", str(label).encode())]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two tars as other programs write them: extra members, folders, hidden files, long and spaced names."""
    folder = tmp_path / "foreign/train"
    extra = [("a/x.json", b"{}"), ("a/.hidden", b"no"), ("__about__.txt", b"about")]
    write_tar(folder / "b.tar", [*sample("k2", 0, "png"), *sample("k1", 2, "JPEG"), *sample("k3", 1, "seg.jpg")])
    long = "n" * 130
    write_tar(
        folder / "a.tar", [*sample("a/x", 1), *extra[:2], *sample(long, 0), *sample("b c ü", 1)], tarfile.GNU_FORMAT
    )
    return folder


def read_image(images: ShardedImages, i: int) -> bytes:
    with open(images.tars[images.shard[i]], "rb") as file:  # noqa: PTH123
        return os.pread(file.fileno(), int(images.sizes[i]), int(images.offsets[i]))


def check(folder: Path) -> ShardedImages:
    class_names, images = scan_shards(folder)
    assert class_names == ("0", "1", "2")
    assert images.labels.tolist() == [1, 0, 1, 0, 2, 1]
    assert images.labels.dtype == images.shard.dtype == np.int32
    assert images.offsets.dtype == images.sizes.dtype == np.int64
    assert images.tars == (f"{folder}/a.tar", f"{folder}/b.tar")
    keys = ["a/x", "n" * 130, "b c ü", "k2", "k1", "k3"]
    assert [read_image(images, i) for i in range(6)] == [f"image {key}".encode() * 100 for key in keys]
    assert images.names[0] == "a.tar/a/x.jpg" and images.names[4] == "b.tar/k1.JPEG"
    return images


def test_foreign_shards_are_read_from_headers_index_files_and_cache(foreign: Path) -> None:
    from wds2idx import IndexCreator  # DALI's own

    assert has_shards(foreign) and not has_shards(foreign.parent)
    images = check(foreign)
    (foreign / ".hidden.tar").write_bytes(b"no tar")
    with IndexCreator(str(foreign / "b.tar"), str(foreign / "b.idx"), verbose=False) as creator:
        creator.create_index()
    listed = read_idx(foreign / "b.tar")
    assert listed is not None and [m for s in listed for m in s] == read_members(foreign / "b.tar")
    check(foreign)
    write_index(foreign, images)
    os.utime(foreign / "b.tar", (1, 1))  # as after a copy
    for path in foreign.glob("*.tar"):
        path.chmod(0)  # the cache needs no look into the tars
    assert all(np.array_equal(a, b) for a, b in zip(images, scan_shards(foreign)[1], strict=True))


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
    (foreign / "b.idx").write_bytes(b"\xff\x00")
    check(foreign)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: [p.unlink() for p in d.glob("*.tar")], "has no tar shards"),
        (lambda d: (d / "c.tar.partial").touch(), "is not packed to its end; run the same"),
        (lambda d: (d.parent / "dataset.json.partial").touch(), "is not packed to its end"),
        (lambda d: os.truncate(d / "a.tar", 3000), "a.tar is damaged or cut off"),
        (lambda d: (d / "b.tar").write_text("text " * 1000), "b.tar is damaged or cut off"),
        (lambda d: (d / "b.tar").write_bytes(b""), "b.tar is damaged or cut off"),
        (lambda d: write_tar(d / "b.tar", [("x.jpg", b"")]), "sample 'x' has no label (.cls)"),
        (lambda d: write_tar(d / "b.tar", [("x.cls", b"1")]), "sample 'x' has no image"),
        (lambda d: write_tar(d / "b.tar", [("x.jpg", b""), ("x.cls", b"one")]), "x.cls holds b'one'"),
        (lambda d: write_tar(d / "b.tar", []), "b.tar holds no samples"),
        (lambda d: (d.parent / "dataset.json").write_text('{"class_names": ["a"]}'), "names only 1 classes"),
        (lambda d: (d.parent / "dataset.json").write_text("["), "dataset.json is damaged"),
        (lambda d: (d.parent / "dataset.json").write_text("[]"), "dataset.json is damaged"),
        (
            lambda d: (d.parent / "dataset.json").write_text('{"splits": {"train": {"shards": [{"file": "z.tar"}]}}}'),
            "z.tar is missing",
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
        with pytest.raises(ValueError, match="cannot be in a list"):
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
