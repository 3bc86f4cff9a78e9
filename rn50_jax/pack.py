"""Packs class folders into WebDataset tar shards, or indexes such shards: `python -m rn50_jax.pack DIR OUT`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rn50_jax import cli
from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.data.formats.file_list import read_list
from rn50_jax.data.formats.imagenet_names import likely_names
from rn50_jax.data.formats.shards import DATASET_FILE, has_shards, index_tars, list_tars, read_description, write_index
from rn50_jax.data.formats.tars import read_idx, read_members, write_idx
from rn50_jax.data.image_set import check_same_classes
from rn50_jax.data.prepare.output import holding, require_space, size_text, telling_of_the_disk, write_json_whole
from rn50_jax.data.prepare.shard_writer import FORMAT, PackedSplit, bytes_to_write, fingerprint, pack, plan_split
from rn50_jax.data.process_pool import count_workers
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular, parse_json
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted, printable, shell
from rn50_jax.runtime.progress_bar import progress

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_NO_LIMIT = 2**62


def parse_size(text: str) -> int:
    """Bytes of "1GB", "500 MB", "2GiB" or "1000000".

    Raises:
      UserError: it is no size of at least 10 kB.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([KMG]I?)?B?", text.strip(), re.IGNORECASE)
    size = float(found[1]) * _UNITS[(found[2] or "").upper()] if found else 0
    if size < 10_000:
        raise UserError(f"--shard_size {text!r} is no size of at least 10 kB, such as 1GB")
    return int(size)


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


def pack_folder(root: Path, out: Path, lists: dict[str, Path | None], *, workers: int, **plan: Any) -> str:
    """Packs, and says what was done; `plan` is as in `plan_split`."""
    class_names, found = open_splits(root, lists)
    splits: dict[str, PackedSplit] = {}
    for name, (files, labels) in found.items():
        splits[name] = plan_split(root, files, labels, **plan)
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
            counts = np.bincount(images.shard, minlength=len(tars)).tolist()
            sizes = [tar.stat().st_size for tar in tars]
            shards = [{"file": t.name, "images": n, "bytes": b} for t, n, b in zip(tars, counts, sizes, strict=True)]
            splits[split_dir.name] = {"images": len(images.names), "shards": shards}
            most = max(most, int(images.labels.max()))
            lines.append(
                f"{split_dir}: {counted(len(images.names), 'image')} in "
                f"{counted(len(tars), 'shard')}, {counted(new, '.idx file')} written"
            )
        names = list(class_names or described.get("class_names") or map(str, range(most + 1)))
        if most >= len(names):
            raise UserError(f"there are labels up to {most}, but only {len(names)} class names; they count from 0")
        if described.get("format") != FORMAT or class_names:
            ours = described.get("format") == FORMAT
            facts = dict(described) if ours else {"format": "webdataset", "splits": splits}
            write_json_whole(split_dirs[0].parent / DATASET_FILE, facts | {"class_names": names})
    lines.append(f"classes: {len(names):,}, from {names[0]!r} to {names[-1]!r}")
    return "\n".join(map(printable, lines))


def _renew_idx(tar: Path) -> bool:
    """Writes the index file of a tar if it lacks one that fits; returns whether it did."""
    listed = read_idx(tar)
    if listed is not None and [m for sample in listed for m in sample] == read_members(tar):
        return False
    if not write_idx(tar):
        warn(f"{tar} has names with spaces, which DALI's index files cannot hold: it gets none, and needs none here")
        return False
    return True


def read_class_names(source: str) -> list[str]:
    """Names of a text file, one a line; or of JSON: a list, {"name": label} or {"label": "name" or ["name", ...]}.

    Raises:
      UserError: it cannot be read, or two classes have one name or label.
    """
    if source == "imagenet":
        return list(likely_names(1000))
    try:
        with open_regular(source) as file:
            data = file.read()
        is_json = source.endswith(".json")
        found: Any = parse_json(data, object) if is_json else data.decode("utf-8-sig").strip().splitlines()
        if isinstance(found, dict):
            pairs = found.items() if all(key.isdecimal() for key in found) else ((v, k) for k, v in found.items())
            by_label = {int(label): name if isinstance(name, str) else name[0] for label, name in pairs}
            found = [by_label[label] for label in range(len(found))]
        names = [str(name).strip() for name in found]
    except OSError as error:
        raise UserError(f"--class_names {source}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"--class_names {source} is no list of names, nor of names with labels from 0 on") from error
    if not names or "" in names or len(set(names)) < len(names):
        raise UserError(f"--class_names {source} has none, an empty one or one twice")
    return names


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.pack",
        description="Pack class folders into WebDataset tar shards; the same command again goes on where it stopped.",
    )
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="holds train/ and val/ with class folders")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder to write, empty or not there")
    parser.add_argument("--shard_size", default="1GB", metavar="SIZE", help="of a shard, at most (default: 1GB)")
    parser.add_argument("--images_per_shard", type=int, metavar="N", help="at most, instead of a size")
    parser.add_argument("--shuffle_seed", type=int, metavar="S", help="a random order, for programs that read in order")
    parser.add_argument("--train_list", type=Path, metavar="FILE", help="pack the files of a list, see docs/data.md")
    parser.add_argument("--val_list", type=Path, metavar="FILE", help="the same for val")
    parser.add_argument("--workers", type=int, default=count_workers(), help="threads (default: one per processor)")
    parser.add_argument("--index", type=Path, metavar="DIR", help="index the tar shards of DIR instead")
    parser.add_argument(
        "--class_names", metavar="FILE", help="of --index: .txt or .json, or 'imagenet' for its synsets"
    )
    args = parser.parse_args(argv)
    if args.index is not None:
        if args.dir is not None:
            raise UserError("--index DIR takes no other folders")
        print(index_folder(args.index, read_class_names(args.class_names) if args.class_names else None))
        return 0
    if args.out is None:
        raise UserError("pass DIR and OUT, or --index DIR; see python -m rn50_jax.pack --help")
    if args.class_names:
        raise UserError("--class_names belongs to --index; class folders and lists have names")
    by_count = args.images_per_shard is not None
    if args.workers < 1 or (by_count and args.images_per_shard < 1) or (args.shuffle_seed or 0) < 0:
        raise UserError("--workers and --images_per_shard must be at least 1, --shuffle_seed at least 0")
    summary = pack_folder(
        args.dir,
        args.out,
        {"train": args.train_list, "val": args.val_list},
        workers=args.workers,
        max_bytes=_NO_LIMIT if by_count else parse_size(args.shard_size),
        max_images=args.images_per_shard if by_count else _NO_LIMIT,
        seed=args.shuffle_seed,
    )
    print(summary)
    return 0


if __name__ == "__main__":
    cli.run(main)
