"""Class folders and lists packed into tar shards, and tar shards indexed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.data.formats.file_list import read_list
from rn50_jax.data.formats.shards import DATASET_FILE, has_shards, index_tars, list_tars, read_description, write_index
from rn50_jax.data.formats.tars import idx_text, read_idx, write_idx
from rn50_jax.data.image_set import check_same_classes
from rn50_jax.data.prepare.output import holding, require_space, telling_of_the_disk
from rn50_jax.data.prepare.shard_writer import FORMAT, PackedSplit, bytes_to_write, fingerprint, pack, plan_split
from rn50_jax.errors import UserError
from rn50_jax.io.json_files import write_json
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted, printable, shell, size_text
from rn50_jax.runtime.progress_bar import progress

NO_LIMIT = 2**62


def open_splits(root: Path, lists: dict[str, Path | None]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Class names, and files relative to `root` and labels of each split: of its list, or else of its class folders.

    Raises:
      UserError: there is neither, or the splits have different classes.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; pass a folder with train/ and val/")
    splits: dict[str, tuple[Sequence[str], np.ndarray]] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for name, file in lists.items():
        if file is not None:
            listed = read_list(file)
            classes[name], splits[name] = listed.class_names, (listed.files, listed.labels)
        elif (root / name).is_dir():
            if has_shards(root / name):
                command = shell(["python", "-m", "rn50_jax.pack", "--index", root])
                raise UserError(f"{root / name} holds tar shards already; for what they lack: {command}")
            classes[name], images = scan_split(root / name)
            splits[name] = [file.removeprefix(f"{root}/") for file in images.files], images.labels
    if not splits:
        raise UserError(f"{root} has neither train/ nor val/; put images into {root}/train/<class>/<image>")
    if len(classes) == 2:
        check_same_classes(root, classes["train"], classes["val"])
        if classes["train"] != classes["val"]:
            raise UserError("the lists of train and val name the same classes in different orders")
    return next(iter(classes.values())), splits


def pack_folder(
    root: Path,
    out: Path,
    lists: dict[str, Path | None],
    *,
    workers: int,
    max_bytes: int = 10**9,
    max_images: int = NO_LIMIT,
    seed: int | None = None,
) -> str:
    """Packs a data set into tar shards and returns what was done, see `plan_split`."""
    class_names, found = open_splits(root, lists)
    splits: dict[str, PackedSplit] = {}
    for name, (files, labels) in found.items():
        splits[name] = plan_split(root, files, labels, max_bytes=max_bytes, max_images=max_images, seed=seed)
    with holding(out):
        plan_there = read_description(out / "train").get("plan")
        if plan_there == fingerprint(class_names, splits) and not (out / f"{DATASET_FILE}.partial").exists():
            return f"{printable(str(out))} is packed already"
        require_space(out, bytes_to_write(out, splits))
        count = sum(len(split.files) for split in splits.values())
        with progress("packing and verifying", 2 * count) as advance:
            described = pack(root, out, class_names, splits, workers=workers, advance=advance)
    lines = [
        f"{out / name}: {counted(split['images'], 'image')} in {counted(len(split['shards']), 'shard')}, "
        f"{size_text(sum(shard['bytes'] for shard in split['shards']))}, verified"
        for name, split in described["splits"].items()
    ]
    return "\n".join(map(printable, lines))


def index_folder(root: Path, class_names: Sequence[str] | None) -> str:
    """Writes the `.idx` files that tars lack, `index.npz`, and `dataset.json`; says what was done.

    Args:
      root: holds train/ and val/ with tars, or one of them.
      class_names: to be written down; None: those of `dataset.json`, or else the numbers.

    Raises:
      UserError: no tars, damaged ones, or a label without a name.
    """
    split_dirs = [root / name for name in ("train", "val") if (root / name).is_dir() and has_shards(root / name)]
    if not split_dirs:
        raise UserError(
            f"{root} has no train/ or val/ with tar shards in it; put (or link) them into {root}/train/*.tar"
        )
    described = read_description(split_dirs[0])
    lines, counts, splits, most = [], [], {}, 0
    with holding(root), telling_of_the_disk(root):
        for split_dir in split_dirs:
            tars = list_tars(split_dir)
            new = 0
            with progress(f"indexing {split_dir}", len(tars)) as advance:
                for tar in tars:
                    new += _renew_idx(tar)
                    advance(1)
            images = index_tars(split_dir, tars)
            write_index(split_dir, images)
            assert images.members is not None
            counts = np.bincount(images.members.tar, minlength=len(tars)).tolist()
            sizes = [tar.stat().st_size for tar in tars]
            shards = [{"file": t.name, "images": n, "bytes": b} for t, n, b in zip(tars, counts, sizes, strict=True)]
            splits[split_dir.name] = {"images": len(images.files), "shards": shards}
            most = max(most, int(images.labels.max()))
            lines.append(
                f"{split_dir}: {counted(len(images.files), 'image')} in "
                f"{counted(len(tars), 'shard')}, {counted(new, '.idx file')} written"
            )
        names = list(class_names or described.get("class_names") or map(str, range(most + 1)))
        if most >= len(names):
            raise UserError(f"there are labels up to {most}, but only {len(names)} class names; they count from 0")
        if described.get("format") != FORMAT or class_names:
            ours = described.get("format") == FORMAT
            facts = dict(described) if ours else {"format": "webdataset", "splits": splits}
            write_json(split_dirs[0].parent / DATASET_FILE, facts | {"class_names": names})
    lines.append(f"classes: {len(names):,}, from {names[0]!r} to {names[-1]!r}")
    return "\n".join(map(printable, lines))


def _renew_idx(tar: Path) -> bool:
    """Writes the index file of a tar if it lacks one that fits; returns whether it did."""
    text = idx_text(tar)
    if text is None:
        warn(f"{tar} has names with spaces, which DALI's index files cannot hold: it gets none, and needs none here")
    elif text != read_idx(tar):
        write_idx(tar, text)
        return True
    return False
