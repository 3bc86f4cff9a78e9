"""ImageNet's preparation, on miniature archives of the same structure."""

import gzip
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, Run, assert_user_error
from helpers.ilsvrc import EXPECTED, NUMBERS, SYNSETS, TRAIN_IMAGES, add, write_archives, write_devkit
from helpers.runs import PATIENCE
from helpers.tar_files import HUGE, NEGATIVE, OCTAL, header

from rn50_jax import prepare_imagenet
from rn50_jax.data.formats.imagenet_names import likely_names
from rn50_jax.data.formats.shards import scan_shards
from rn50_jax.data.prepare import ilsvrc2012, imagenet
from rn50_jax.data.prepare.imagenet import prepare
from rn50_jax.errors import UserError


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    write_archives(tmp_path / "archives")
    return tmp_path / "archives"


def rewrite(file: Path, change: Any) -> None:
    """Copies a tar, with each member passed through `change(name, data) -> (name, data, attributes) or None`."""
    with tarfile.open(file) as old:
        members = [(m.name, old.extractfile(m).read()) for m in old]  # type: ignore[union-attr]
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as new:
        for name, data in members:
            if (changed := change(name, data)) is not None:
                add(new, changed[0], changed[1], **changed[2])


def check_tree(out: Path) -> None:
    train = {str(p.relative_to(out / "train")): p.read_bytes() for p in (out / "train").rglob("*") if p.is_file()}
    assert train == {
        f"{synset}/{synset}_{10 * i}.JPEG": f"{synset} {i} ".encode() * (50 + i)
        for synset, count in zip(SYNSETS, TRAIN_IMAGES, strict=True)
        for i in range(count)
    }
    synset_of = dict(zip(NUMBERS, SYNSETS, strict=True))
    val = {str(p.relative_to(out / "val")): p.read_bytes() for p in (out / "val").rglob("*") if p.is_file()}
    assert val == {
        f"{synset_of[1 + (3 * (i - 1)) % 5]}/ILSVRC2012_val_{i:08d}.JPEG": f"val {i} ".encode() * 60
        for i in range(1, 61)
    }


def test_class_folders_and_validation_labels(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(archives, tmp_path / "out", EXPECTED, workers=2)
    check_tree(tmp_path / "out")
    assert "136 + 60 images of 5 classes, complete" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    prepare(archives, tmp_path / "out", EXPECTED)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert "0 images to extract" in capsys.readouterr().out


def count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))  # minds no folder that is being renamed


def test_killed_again_and_again_it_ends_in_the_same_files(
    archives: Path, tmp_path: Path, process_env: dict[str, str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from rn50_jax.data.prepare.imagenet import Expected, prepare\n"
        f"prepare(Path({str(archives)!r}), Path({str(tmp_path / 'out')!r}), Expected({SYNSETS}, 136, 60))\n"
    )
    rng, kills = random.Random(1), 0
    while True:
        process = subprocess.Popen([sys.executable, str(script)], env=process_env, cwd=REPO, stdout=subprocess.DEVNULL)
        wanted = count_files(tmp_path / "out") + rng.randrange(1, 40)
        while process.poll() is None and kills < 4:
            if count_files(tmp_path / "out") >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        code = process.wait(timeout=PATIENCE)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        # A class that has its name is whole, whenever the kill came.
        for synset, count in zip(SYNSETS, TRAIN_IMAGES, strict=True):
            folder = tmp_path / "out/train" / synset
            assert not folder.exists() or len(list(folder.iterdir())) == count
    assert kills >= 1
    check_tree(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "data", "changes"),
    [
        ("../../escaped.JPEG", b"x", {}),
        ("/tmp/escaped.JPEG", b"x", {}),
        ("n01440764_1.JPEG", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("n01440764_1.JPEG", b"", {"type": tarfile.DIRTYPE}),
        ("n01440764_1.exe", b"x", {}),
        ("n01440764_1.JPEG", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("n01440764_1.JPEG", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
        ("n01440764_1.JPEG", b"", {"type": tarfile.FIFOTYPE}),
        ("N01440764_0.jpeg", b"x", {}),
        ("n\u0660\u0661440764_1.JPEG", b"x", {}),
        ("n01440764_" + "1" * 300 + ".JPEG", b"x", {}),
        ("caf\udce9.JPEG", b"x", {}),
        ("a\n\x1b[31mb.JPEG", b"x", {}),
        ("", b"x", {}),
    ],
)
def test_only_images_are_written(
    archives: Path, tmp_path: Path, name: str, data: bytes, changes: dict[str, Any]
) -> None:
    def spoil(member: str, content: bytes) -> tuple[str, bytes, dict[str, Any]]:
        if member == f"{SYNSETS[0]}.tar":
            inner = io.BytesIO(content)
            with tarfile.open(fileobj=inner, mode="a") as archive:
                add(archive, name, data, **changes)
            content = inner.getvalue()
        return member, content, {}

    rewrite(archives / ilsvrc2012.TRAIN, spoil)
    with pytest.raises(UserError) as error:
        prepare(archives, tmp_path / "out", EXPECTED)
    assert f"n01440764.tar holds {name[:200]!r}, which is no image of ILSVRC2012" in str(error.value)
    assert not list(tmp_path.rglob("escaped*")) and not Path("/tmp/escaped.JPEG").exists()
    assert not (tmp_path / "out/train" / SYNSETS[0]).exists()


def spoil_class(folder: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes the bytes of the first class's archive."""
    rewrite(folder / ilsvrc2012.TRAIN, lambda n, d: (n, change(d) if SYNSETS[0] in n else d, {}))


def write_large(archive: Path) -> None:
    """An archive, mostly of nothing on the disk, with one image that is no image by its size."""
    with archive.open("wb") as file:
        file.write(header("ILSVRC2012_val_00000001.JPEG", OCTAL % 200_000_000))
        file.truncate(200_000_000 + 20 * 512)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: (a / ilsvrc2012.VAL).unlink(), "img_val.tar is missing; get it from image-net.org"),
        (lambda a: os.truncate(a / ilsvrc2012.TRAIN, 100_000), "img_train.tar is damaged or cut off"),
        (lambda a: os.truncate(a / ilsvrc2012.VAL, 30_100), "img_val.tar is damaged or cut off"),
        (lambda a: os.truncate(a / ilsvrc2012.DEVKIT, 500), "devkit_t12.tar.gz cannot be read"),
        (lambda a: (a / ilsvrc2012.DEVKIT).write_text("<html>"), "devkit_t12.tar.gz cannot be read"),
        (
            lambda a: rewrite(a / ilsvrc2012.DEVKIT, lambda n, d: None if "truth" in n else (n, d, {})),
            "has no 'data/ILSVRC2012_validation_ground_truth.txt'",
        ),
        (
            lambda a: rewrite(a / ilsvrc2012.DEVKIT, lambda n, d: (n, d[:200] if n.endswith("mat") else d, {})),
            "devkit_t12.tar.gz cannot be read",
        ),
        (lambda a: write_devkit(a / ilsvrc2012.DEVKIT, [1] * 59), "has 60 images, and the devkit labels of 59"),
        (lambda a: write_devkit(a / ilsvrc2012.DEVKIT, [9] * 60), "has no 9"),
        (
            lambda a: rewrite(a / ilsvrc2012.TRAIN, lambda n, d: None if "n07873807" in n else (n, d, {})),
            "does not have the devkit's classes (see 'n07873807' and 0 more)",
        ),
        (
            lambda a: rewrite(a / ilsvrc2012.VAL, lambda n, d: (n.replace("_00000007", "_00000099"), d, {})),
            "lacks image number 7",
        ),
        (
            lambda a: rewrite(a / ilsvrc2012.TRAIN, lambda n, d: (n, d[: len(d) // 2] if "n0205" in n else d, {})),
            "n02056570.tar is damaged",
        ),
        (lambda a: spoil_class(a, lambda d: d[: -len(d) % 512 or -10240]), "n01440764.tar is damaged or cut off"),
        (lambda a: spoil_class(a, lambda d: d[:1536] + d), "holds 'n01440764_0.JPEG' twice"),
        (lambda a: spoil_class(a, lambda d: header("n01440764_1.JPEG", HUGE) + d), "the end of n01440764_1.JPEG"),
        (lambda a: spoil_class(a, lambda d: header("n01440764_1.JPEG", NEGATIVE) + d), "n01440764.tar is damaged"),
        (lambda a: spoil_class(a, lambda d: header("x", HUGE, b"L") + d), "n01440764.tar is damaged"),
        (lambda a: spoil_class(a, lambda d: b""), "n01440764.tar is damaged or cut off"),
        (
            lambda a: rewrite(a / ilsvrc2012.TRAIN, lambda n, d: (n.replace(SYNSETS[0], SYNSETS[1]), d, {})),
            "img_train.tar holds 'n01443537.tar' twice",
        ),
        (
            lambda a: rewrite(a / ilsvrc2012.TRAIN, lambda n, d: (f"../../{n}", d, {})),
            "does not have the devkit's classes (see '../../n01440764'",
        ),
        (
            lambda a: rewrite(a / ilsvrc2012.VAL, lambda n, d: (f"/tmp/{n}", d, {})),
            "img_val.tar holds '/tmp/ILSVRC2012_val_00000001.JPEG', which is no image",
        ),
        (
            lambda a: rewrite(a / ilsvrc2012.VAL, lambda n, d: (n.replace("0007", "0008"), d, {})),
            "lacks image number 7",
        ),
        (
            lambda a: write_large(a / ilsvrc2012.VAL),
            "ILSVRC2012_val_00000001.JPEG has 200000000 bytes, which is no image",
        ),
        (lambda a: (a / ilsvrc2012.DEVKIT).write_bytes(gzip.compress(bytes(101_000_000), 1)), "more than 100 MB"),
        (
            lambda a: (a / ilsvrc2012.DEVKIT).write_bytes(gzip.compress(header("data/meta.mat", NEGATIVE) * 3)),
            "devkit_t12.tar.gz cannot be read",
        ),
        (
            lambda a: rewrite(a / ilsvrc2012.DEVKIT, lambda n, d: (n, b"1 x 2" if "truth" in n else d, {})),
            "devkit_t12.tar.gz cannot be read",
        ),
    ],
)
def test_archives_that_are_not_right(archives: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(archives)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        prepare(archives, tmp_path / "out", EXPECTED)
    assert message in str(error.value)
    assert set(tmp_path.iterdir()) <= {*before, tmp_path / "out"}
    assert all(path.suffix == ".JPEG" for path in (tmp_path / "out").rglob("*") if not path.is_dir())


def test_an_incomplete_result_is_told(archives: Path, tmp_path: Path) -> None:
    prepare(archives, tmp_path / "out", EXPECTED)
    (tmp_path / "out/train/n07873807/n07873807_0.JPEG").unlink()
    message = r"train has 135 images instead of 136; remove the folders of incomplete classes \(n07873807\)"
    with pytest.raises(UserError, match=message):
        prepare(archives, tmp_path / "out", EXPECTED)
    (tmp_path / "out/train/other").mkdir()
    (tmp_path / "out/train/other/a.jpg").touch()
    with pytest.raises(UserError, match="other class folders than ImageNet's classes, such as other"):
        prepare(archives, tmp_path / "out", EXPECTED)


def test_a_full_disk_is_told_and_the_same_call_goes_on(
    archives: Path, tmp_path: Path, process_env: dict[str, str]
) -> None:
    script = (
        "import sys; from pathlib import Path; from rn50_jax import cli\n"
        "from rn50_jax.data.prepare.imagenet import Expected, prepare\n"
        f"arguments = Path({str(archives)!r}), Path({str(tmp_path / 'out')!r}), Expected({SYNSETS}, 136, 60)\n"
        "cli.run(lambda argv: prepare(*arguments) or 0)\n"
    )
    env = process_env | {"PYTHONDONTWRITEBYTECODE": "1"}  # half a module's bytecode must not be kept for others
    args: dict[str, Any] = {"env": env, "cwd": REPO, "capture_output": True, "text": True, "timeout": 120}
    limited = ["bash", "-c", 'ulimit -f 1 && exec "$@"', "bash", sys.executable, "-c", script]
    done = subprocess.run(limited, **args)
    assert_user_error(done, "is full", "run the same command again")
    done = subprocess.run([sys.executable, "-c", script], **args)
    assert done.returncode == 0, done.stderr
    check_tree(tmp_path / "out")


def test_md5_sums(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"devkit_t12.tar.gz has MD5 [0-9a-f]{32} instead of fa75699e90414af0"):
        prepare(archives, tmp_path / "out", EXPECTED, check=True)
    sums = {name: hashlib.md5((archives / name).read_bytes()).hexdigest() for name in ilsvrc2012.MD5}
    monkeypatch.setattr(ilsvrc2012, "MD5", sums)
    prepare(archives, tmp_path / "out", EXPECTED, check=True)


def test_room_is_looked_for_in_advance(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 5000}))
    with pytest.raises(UserError, match=r"out needs \d+ kB more, and its disk has 5 kB free"):
        prepare(archives, tmp_path / "out", EXPECTED)
    assert not list((tmp_path / "out").iterdir())


def test_the_script(archives: Path, tmp_path: Path, process_env: dict[str, str]) -> None:
    """The script as users call it, from another folder; miniature archives are not ImageNet."""
    project = tmp_path / "project"
    for name in ("scripts", "rn50_jax", "constraints.txt", *(path.name for path in REPO.glob("requirements*.txt"))):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).symlink_to(REPO / name)
    # setup.sh goes to the folder above its own, which must be the copy: no link.
    (project / "scripts").unlink()
    (project / "scripts").mkdir()
    for name in ("setup.sh", "find_python.sh", "prepare_imagenet.sh"):
        (project / "scripts" / name).write_bytes((REPO / "scripts" / name).read_bytes())
        (project / "scripts" / name).chmod(0o755)
    wanted = subprocess.run(["bash", "-c", "cat constraints.txt requirements*.txt | cksum"], cwd=project, stdout=-1)
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to(sys.executable)
    (project / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    (project / ".venv/installed-requirements.txt").write_bytes(wanted.stdout)
    done = subprocess.run(
        [project / "scripts/prepare_imagenet.sh", "archives", "out"],
        env={k: v for k, v in process_env.items() if k != "PYTHONPATH"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert_user_error(done, "archives/ILSVRC2012_devkit_t12.tar.gz: its 5 classes are not ImageNet's 1,000")


def test_the_whole_way_to_shards(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_imagenet, "imagenet", lambda: EXPECTED)
    args = [str(archives), str(tmp_path / "out"), "--pack", str(tmp_path / "shards"), "--workers", "2"]
    assert prepare_imagenet.main(args) == 0
    class_names, images = scan_shards(tmp_path / "shards/train")
    assert class_names == SYNSETS and len(images.files) == 136
    assert json.loads((tmp_path / "shards/dataset.json").read_text())["splits"]["val"]["images"] == 60


def test_what_is_expected_of_the_real_one() -> None:
    expected = imagenet.imagenet()
    assert (len(expected.synsets), expected.train, expected.val) == (1000, 1_281_167, 50_000)
    assert expected.synsets == likely_names(1000)


def test_mistakes_are_told_in_one_line(run: Run, tmp_path: Path) -> None:
    assert_user_error(run("prepare_imagenet", tmp_path, tmp_path / "out"), "devkit_t12.tar.gz is missing")
    with pytest.raises(UserError, match="--workers 0 must be at least 1"):
        prepare_imagenet.main([str(tmp_path), str(tmp_path / "out"), "--workers", "0"])
