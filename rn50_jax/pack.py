"""Packs class folders into WebDataset tar shards, or indexes such shards: `python -m rn50_jax.pack DIR OUT`."""

import re
from collections.abc import Sequence
from pathlib import Path

from rn50_jax import cli
from rn50_jax.data.prepare.class_names import read_class_names
from rn50_jax.data.prepare.packing import NO_LIMIT, index_folder, pack_folder
from rn50_jax.data.process_pool import count_workers
from rn50_jax.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


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
        "--class_names",
        metavar="FILE",
        help="of --index: .txt, .json, 'imagenet' for its synsets, or 'fashion-mnist'",
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
        max_bytes=NO_LIMIT if by_count else parse_size(args.shard_size),
        max_images=args.images_per_shard if by_count else NO_LIMIT,
        seed=args.shuffle_seed,
    )
    print(summary)
    return 0


if __name__ == "__main__":
    cli.run(main)
