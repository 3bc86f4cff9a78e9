"""Class folders, tar shards and file lists give the same stream; damaged data trains to the end."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import jax
import numpy as np
import pytest
from helpers.damage import KINDS, write_kinds
from helpers.loading import eval_data, open_data
from helpers.tiny import bits
from helpers.trees import make_config

from rn50_jax.config.derived import make_plan
from rn50_jax.data.formats.file_list import write_list
from rn50_jax.distributed.devices import make_mesh
from rn50_jax.training.stream_facts import stream_facts


def write_shards(root: Path, target: Path) -> None:
    """Packs class folders as other programs do: two tars a split, in the order of the folders."""
    for split in ("train", "val"):
        files = sorted((root / split).glob("*/*"))
        classes = sorted({file.parent.name for file in files})
        (target / split).mkdir(parents=True)
        for half in range(2):
            with tarfile.open(target / split / f"{half}.tar", "w") as archive:
                for number, file in enumerate(files):
                    if (number < len(files) // 2) == (half == 0):
                        label = str(classes.index(file.parent.name)).encode()
                        for suffix, data in ((file.suffix, file.read_bytes()), (".cls", label)):
                            info = tarfile.TarInfo(f"{file.parent.name}_{file.stem}{suffix}")
                            info.size = len(data)
                            archive.addfile(info, io.BytesIO(data))


@pytest.mark.slow
def test_folders_shards_and_lists_give_the_same_stream(digits: Path, tmp_path: Path) -> None:
    wanted = bits(digits)
    assert len(set(wanted)) == len(wanted) == 2 * 5 + 1
    write_shards(digits, tmp_path / "shards")
    assert bits(tmp_path / "shards") == wanted
    assert bits(tmp_path / "shards", ("data.augment", "trivialaugment")) == bits(
        digits, ("data.augment", "trivialaugment")
    )
    for split in ("train", "val"):
        files = sorted((digits / split).glob("*/*"))
        labels = [int(file.parent.name) for file in files]
        names = [str(file.relative_to(digits)) for file in files]
        write_list(tmp_path / f"{split}.tsv", [str(digit) for digit in range(10)], names, labels)
    lists = [(f"data.{split}_list", str(tmp_path / f"{split}.tsv")) for split in ("train", "val")]
    assert bits(digits, *lists) == wanted
    # A run may go on from folders to a list of the same files, in the middle of an epoch.
    config = make_config(digits)
    plan = make_plan(config, num_images=1500, num_devices=2)
    facts = [stream_facts(c, open_data(c).train, plan) for c in (config, make_config(digits, *lists))]
    assert facts[0] == facts[1]


def test_a_shard_that_went_bad_is_left_out_like_files(digits: Path, tmp_path: Path) -> None:
    write_shards(digits, tmp_path)
    config = make_config(tmp_path, ("batch_size", "99"))
    dataset = open_data(config)
    members = dataset.val.members
    assert members is not None
    with (tmp_path / "val/1.tar").open("r+b") as tar:
        for index in (200, 250):
            tar.seek(members.offset[index])
            tar.write(b"no image")
    mesh = make_mesh(jax.devices()[:1])
    weights = np.concatenate([np.asarray(b["weight"])[0] for b in eval_data(config, dataset.val, mesh)])
    assert np.flatnonzero(weights == 0).tolist() == [200, 250]


@pytest.mark.slow
def test_data_with_every_kind_of_damage_trains_to_the_end(
    digits: Path, tmp_path: Path, train_tiny: Callable[..., CompletedProcess[str]]
) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("one", "two"):
            write_kinds(root / split / name, seed=len(split) + len(name))
    damaged = {KINDS[kind].file for kind in KINDS if not KINDS[kind].decodes}
    workdir = tmp_path / "run"
    args = (
        f"--config.data.dir={root}",
        "--config.batch_size=8",
        "--config.epochs=4",
        "--config.run.max_skipped_steps=2",
    )
    done = train_tiny(workdir, *args, devices=2)
    assert done.returncode == 0, done.stderr
    entries = json.loads((workdir / "quarantine.json").read_text())["files"]
    found = {Path(entry["file"]).name for entry in entries}
    assert found <= damaged and len(found) >= 12
    assert ".jpg is left out: no image (it is text)" in done.stderr and "Traceback" not in done.stderr
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    counts = [line["val.images"] for line in lines if "val.images" in line]
    usable = sum(1 for path in (root / "val").glob("*/*") if not path.name.startswith(".") and path.name not in damaged)
    assert counts == [usable] * 4
