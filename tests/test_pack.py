"""Packing class folders into shards, and indexing those of others."""

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import REPO, Run, assert_user_error
from helpers.damage import encode, make_photo, write_kinds
from helpers.loading import open_data, train_data
from helpers.runs import PATIENCE
from helpers.tar_files import sample, write_tar
from helpers.tiny import bits
from helpers.trees import make_config

from rn50_jax.config.derived import make_plan
from rn50_jax.data.batch import Position
from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.data.formats.file_list import read_list, write_list
from rn50_jax.data.formats.shards import scan_shards
from rn50_jax.data.formats.tars import idx_text
from rn50_jax.data.image_set import read_image
from rn50_jax.data.prepare.class_names import read_class_names
from rn50_jax.data.prepare.packing import open_splits, pack_folder
from rn50_jax.data.prepare.shard_writer import plan_split
from rn50_jax.distributed.devices import make_mesh
from rn50_jax.errors import UserError
from rn50_jax.pack import main, parse_size
from rn50_jax.training.stream_facts import stream_facts

LISTS: dict[str, Path | None] = {"train": None, "val": None}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with good and bad files of many kinds, under names that need care."""
    root = tmp_path_factory.mktemp("data") / "folders"
    for split, seed in (("train", 1), ("val", 2)):
        for name in ("a b", "ü", "z"):
            kinds = ["grey JPEG", "PNG named JPEG", "WebP", "TIFF", "unicode and spaces", "text", "zero bytes"]
            write_kinds(root / split / name, kinds, seed=seed * 10 + len(name))
            for i in range(8):
                (root / split / name / f"{i}.x-1.jpg").write_bytes(encode(make_photo(seed * 1000 + i)))
    return root


def pack_it(root: Path, out: Path, *, images: int = 10, seed: int | None = None, size: int = 2**40) -> str:
    return pack_folder(root, out, LISTS, workers=2, max_bytes=size, max_images=images, seed=seed)


def contents(out: Path) -> dict[str, bytes]:
    """All files; of an index what it says, but not of when the tars are."""

    def read(path: Path) -> bytes:
        if path.suffix != ".npz":
            return path.read_bytes()
        with np.load(path) as arrays:
            assert set(arrays) == {"tars", "tar_sizes", "tar_times", "shard", "offsets", "sizes", "labels", "names"}
            return b"|".join(arrays[name].tobytes() for name in sorted(arrays) if name != "tar_times")

    return {str(path.relative_to(out)): read(path) for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", [None, 5])
def test_shards_hold_what_the_folders_do_in_the_same_order(folders: Path, tmp_path: Path, seed: int | None) -> None:
    told = pack_it(folders, tmp_path / "out", seed=seed)
    assert "out/train: 45 images in 5 shards" in told and "verified" in told
    for without_index in (False, True):
        for split in ("train", "val"):
            if without_index:
                (tmp_path / "out" / split / "index.npz").unlink()
            class_names, images = scan_shards(tmp_path / "out" / split)
            folder_names, files = scan_split(folders / split)
            assert class_names == folder_names == ("a b", "z", "ü")
            assert [str(folders / name) for name in images.files] == list(files.files)
            assert np.array_equal(images.labels, files.labels)
            for i, file in enumerate(files.files):
                assert read_image(images, i) == Path(file).read_bytes()
            offsets = images.members.offset[images.members.tar == 0]
            ordered = np.array_equal(offsets, np.sort(offsets))
            assert ordered == (seed is None)
    listed = read_list(tmp_path / "out/train.tsv")
    assert listed.class_names == class_names and len(listed.files) == 45


def test_the_same_bytes_each_time(folders: Path, tmp_path: Path) -> None:
    pack_it(folders, tmp_path / "a", seed=1)
    os.utime(folders / "train/z/0.x-1.jpg", (0, 0))
    pack_it(folders, tmp_path / "b", seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    pack_it(folders, tmp_path / "c", seed=2)
    assert contents(tmp_path / "a")["train/train-000000.tar"] != contents(tmp_path / "c")["train/train-000000.tar"]
    with tarfile.open(tmp_path / "a/train/train-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}
        assert all(len(m.name) <= 15 for m in archive)


def test_index_files_are_those_of_dali(folders: Path, tmp_path: Path) -> None:
    from wds2idx import IndexCreator

    pack_it(folders, tmp_path / "out")
    suffixes = set()
    for tar in (tmp_path / "out").rglob("*.tar"):
        with IndexCreator(str(tar), str(tmp_path / "its.idx"), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_bytes() == (tmp_path / "its.idx").read_bytes()
        suffixes |= {line.split()[0] for line in tar.with_suffix(".idx").read_text().splitlines()[1:]}
    assert suffixes == {"jpg", "png", "webp", "tif"}


def test_dali_reads_the_shards(folders: Path, tmp_path: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    pack_it(folders, tmp_path / "out")
    tars = sorted((tmp_path / "out/val").glob("*.tar"))
    _, images = scan_shards(tmp_path / "out/val")

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> Any:
        data, label = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["jpg;png;webp;tif", "cls"],
        )
        return data, label

    pipe = pipeline()
    for i in range(len(images.files)):
        data, label = (np.asarray(output.at(0)) for output in pipe.run())
        assert data.tobytes() == read_image(images, i)
        assert int(label.tobytes()) == images.labels[i]


def test_shards_keep_to_their_size(tmp_path: Path) -> None:
    sizes = [100, 5000, 40_000, 1, 512, 513, 9000, 9000, 30_000]
    files = [f"{i}.jpg" for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        (tmp_path / file).write_bytes(bytes(size))
    labels = np.zeros(len(files), np.int32)
    plan = plan_split(tmp_path, files, labels, max_bytes=40_000, max_images=4, seed=None)
    assert [part.tolist() for part in plan.shards] == [[0, 1], [2], [3, 4, 5, 6], [7], [8]]
    with pytest.raises(UserError, match=r"none.jpg: No such file"):
        plan_split(tmp_path, ["none.jpg"], labels, max_bytes=1, max_images=1, seed=None)
    with pytest.raises(UserError, match="has a tab"):
        plan_split(tmp_path, ["a\tb.jpg"], labels, max_bytes=1, max_images=1, seed=None)


def test_what_training_will_leave_out_is_named(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_it(folders, tmp_path / "out")
    told = capsys.readouterr().err
    for split in ("train", "val"):
        for name in ("a b", "ü", "z"):
            assert f"{folders}/{split}/{name}/text.jpg is packed as it is, but will be left out: no image" in told
            assert f"{folders}/{split}/{name}/zero_bytes.jpg is packed as it is, but will be left out" in told
    assert told.count("left out") == 12


def test_a_list_is_packed(folders: Path, tmp_path: Path) -> None:
    files = ["train/z/0.x-1.jpg", "val/ü/1.x-1.jpg"]
    write_list(tmp_path / "l.tsv", ("odd", "even"), files, [1, 0])
    told = pack_folder(
        folders, tmp_path / "out", {"train": tmp_path / "l.tsv"}, workers=1, max_bytes=2**40, max_images=9, seed=None
    )
    assert told.startswith(f"{tmp_path}/out/train: 2 images in 1 shard,")
    class_names, images = scan_shards(tmp_path / "out/train")
    assert (class_names, images.files, images.labels.tolist()) == (("odd", "even"), tuple(files), [1, 0])


def test_packed_shards_train_like_the_folders(digits: Path, tmp_path: Path) -> None:
    """To the bit, and a run may change from folders to shards within an epoch; shuffled shards change nothing."""
    pack_it(digits, tmp_path / "out", images=400, seed=3)
    assert bits(tmp_path / "out") == bits(digits)
    config = make_config(digits)
    plan = make_plan(config, num_images=1500, num_devices=1)
    facts = [stream_facts(c, open_data(c).train, plan) for c in (config, make_config(tmp_path / "out"))]
    assert facts[0] == facts[1]
    mesh = make_mesh(jax.devices()[:1])
    folders, shards = (open_data(c).train for c in (config, make_config(tmp_path / "out")))
    whole = [np.asarray(b.batch["image"]) for b in train_data(config, folders, plan, mesh, Position(0, 0))]
    begun = list(islice(train_data(config, folders, plan, mesh, Position(0, 0)), 2))
    rest = train_data(config, shards, plan, mesh, Position(0, 2, begun[-1].pipelines))
    assert all(np.array_equal(b.batch["image"], wanted) for b, wanted in zip(rest, whole[2:], strict=True))


def command(root: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "rn50_jax.pack", str(root), str(out), "--images_per_shard", "40"]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    digits: Path, tmp_path: Path, process_env: dict[str, str]
) -> None:
    pack_it(digits, tmp_path / "whole", images=40)
    rng, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(
            command(digits, tmp_path / "out"), env=process_env, cwd=REPO, stdout=subprocess.DEVNULL
        )
        seen = len(list((tmp_path / "out").rglob("*.tar")))
        # Not by time, which differs between machines: after some shards more, of 46.
        wanted = seen + rng.randrange(2, 9)
        while process.poll() is None and kills < 4:
            if len(list((tmp_path / "out").rglob("*.tar"))) >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        code = process.wait(timeout=PATIENCE)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        with pytest.raises(UserError, match=r"is not packed to its end|has no tar shards"):
            scan_shards(tmp_path / "out/train")
    assert kills >= 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_told_and_the_same_command_goes_on(
    digits: Path, tmp_path: Path, process_env: dict[str, str]
) -> None:
    env = process_env | {"PYTHONDONTWRITEBYTECODE": "1"}  # half a module's bytecode must not be kept for others
    args: dict[str, Any] = {"env": env, "cwd": REPO, "capture_output": True, "text": True, "timeout": PATIENCE}
    limited = ["bash", "-c", 'ulimit -f 50 && exec "$@"', "bash", *command(digits, tmp_path / "out")]
    done = subprocess.run(limited, **args)
    assert_user_error(done, "is full", "run the same command again")
    assert not list(tmp_path.rglob("*.tar.unfinished"))
    done = subprocess.run(command(digits, tmp_path / "out"), **args)
    assert done.returncode == 0, done.stderr
    assert len(scan_shards(tmp_path / "out/train")[1].files) == 1500


def test_too_little_room_is_told_in_advance(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"out needs \d+ kB more, and its disk has 1 kB free"):
        pack_it(folders, tmp_path / "out")


def test_a_shard_that_does_not_read_back_is_noticed_and_made_again(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rn50_jax.data.prepare import shard_writer

    whole = shard_writer._write_shard

    def write_badly(root: Path, tar: Path, *args: Any) -> dict[str, Any]:
        facts = whole(root, tar, *args)
        with tar.open("r+b") as file:
            file.seek(700)
            file.write(b"\xff\x00")
        return facts

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "_write_shard", write_badly)
        with pytest.raises(UserError, match=r"train-00000\d.tar does not read back as it was written"):
            pack_it(folders, tmp_path / "out")
    while True:
        try:
            pack_it(folders, tmp_path / "out")
            break
        except UserError as error:
            assert "does not read back" in str(error)  # the next one of those that were written badly
    pack_it(folders, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_finished_and_foreign_folders_stay_as_they_are(folders: Path, tmp_path: Path) -> None:
    pack_it(folders, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert pack_it(folders, tmp_path / "out").endswith("is packed already")
    with pytest.raises(UserError, match="is not empty"):
        pack_it(folders, tmp_path / "out", images=11)
    with pytest.raises(UserError, match="is not empty"):
        pack_it(folders, folders)
    assert contents(tmp_path / "out") == before
    (tmp_path / "half").mkdir()
    (tmp_path / "half/dataset.json.partial").write_text('{"plan": "other", "done": {}}')
    with pytest.raises(UserError, match="unfinished pack of other images or options"):
        pack_it(folders, tmp_path / "half")
    for damaged in ('{"plan"', "[]", "{}", '{"plan": "x", "done": {"train/train-000000.tar": {"bytes": "many"}}}'):
        (tmp_path / "half/dataset.json.partial").write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            pack_it(folders, tmp_path / "half")
    with pytest.raises(UserError, match="holds tar shards already"):
        open_splits(tmp_path / "out", LISTS)


def test_two_packs_into_one_folder(folders: Path, tmp_path: Path) -> None:
    from rn50_jax.data.prepare.output import holding

    with holding(tmp_path / "out"), pytest.raises(UserError, match="another process is writing to"):
        pack_it(folders, tmp_path / "out")


def test_foreign_shards_are_indexed(tmp_path: Path, run: Run) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / split / "x-0.tar", [*sample("a", 0), *sample("b", 2, "png")])
        write_tar(tmp_path / split / "x-1.tar", [*sample("c d", 1)])
    done = run("pack", "--index", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: 3 images in 2 shards, 1 .idx file written" in done.stdout
    assert "x-1.tar has names with spaces" in done.stderr
    assert (tmp_path / "train/x-0.idx").read_text() == "v1.2 2\njpg 512 700 a.jpg cls 2048 1 a.cls\n" + (
        "png 3072 700 b.png cls 4608 1 b.cls\n"
    )
    assert scan_shards(tmp_path / "val")[0] == ("0", "1", "2")
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["splits"]["val"]["shards"][0] == {"file": "x-0.tar", "images": 2, "bytes": 10240}

    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n\n")
    (tmp_path / "train/x-0.idx").write_text("v1.2 1\njpg 512 700 a.jpg cls 2048 1 a.cls\n")  # stale
    assert main(["--index", str(tmp_path), "--class_names", str(tmp_path / "names.txt")]) == 0
    assert scan_shards(tmp_path / "train")[0] == ("ant", "bee", "cat")
    assert (tmp_path / "train/x-0.idx").read_text() == idx_text(tmp_path / "train/x-0.tar")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="labels up to 2, but only 2 class names"):
        main(["--index", str(tmp_path), "--class_names", str(tmp_path / "names.txt")])
    with pytest.raises(UserError, match=r"put \(or link\) them into"):
        main(["--index", str(tmp_path / "train")])


def test_indexing_our_own_shards_keeps_their_description(folders: Path, tmp_path: Path) -> None:
    pack_it(folders, tmp_path / "out")
    before = contents(tmp_path / "out")
    for name in ("train/index.npz", "val/val-000001.idx"):
        (tmp_path / "out" / name).unlink()
    main(["--index", str(tmp_path / "out")])
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["b", "a"]', ["b", "a"]),
        ('{"0": ["n1", "tench"], "1": ["n2", "goldfish"]}', ["n1", "n2"]),
        ('{"b": 0, "a": 1}', ["b", "a"]),
        ('{"1": "a", "0": "b"}', ["b", "a"]),
    ],
)
def test_class_names_of_json(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "n.json").write_text(text)
    assert read_class_names(str(tmp_path / "n.json")) == names


def test_bad_class_names(tmp_path: Path) -> None:
    assert read_class_names("imagenet")[:2] == ["n01440764", "n01443537"]
    for text in ("{", "[]", '["a", "a"]', '{"a": 1}', '{"a": "x"}', "3", '["a", ""]'):
        (tmp_path / "n.json").write_text(text)
        with pytest.raises(UserError, match="--class_names"):
            read_class_names(str(tmp_path / "n.json"))
    with pytest.raises(UserError, match="No such file"):
        read_class_names(str(tmp_path / "none.txt"))


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1GB", "1.5 gb", "500MiB", "20000", "20k")] == [
        10**9,
        15 * 10**8,
        500 * 2**20,
        20_000,
        20_000,
    ]
    for text in ("", "1", "GB", "-1GB", "1TB", "5 parsecs"):
        with pytest.raises(UserError, match="is no size"):
            parse_size(text)


def test_mistakes_are_told_in_one_line(run: Run, tree: Path, tmp_path: Path) -> None:
    assert_user_error(run("pack", tree), "pass DIR and OUT, or --index DIR")
    for args, message in (
        ([tmp_path / "none", tmp_path / "out"], "none is not a folder"),
        ([tree / "val", tmp_path / "out"], "has neither train/ nor val/"),
        ([tree, tmp_path / "out", "--images_per_shard", 0], "at least 1"),
        ([tree, tmp_path / "out", "--class_names", "x"], "belongs to --index"),
        (["--index", tmp_path / "none"], "has no train/ or val/"),
        ([tree, "--index", tree], "takes no other folders"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(arg) for arg in args])
    (tree / "out").touch()
    with pytest.raises(UserError, match="cannot write to"):
        pack_it(tree, tree / "out")
    (tree / "val/bee").rename(tree / "val/wasp")
    with pytest.raises(UserError, match="'bee' is in train/ but not in val/"):
        pack_it(tree, tmp_path / "out")
