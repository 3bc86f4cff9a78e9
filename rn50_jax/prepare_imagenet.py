"""ImageNet's official archives to class folders: `python -m rn50_jax.prepare_imagenet ARCHIVES OUT`."""

from collections.abc import Sequence
from pathlib import Path

from rn50_jax import cli
from rn50_jax.data.prepare import ilsvrc2012
from rn50_jax.data.prepare.imagenet import imagenet, prepare
from rn50_jax.data.prepare.packing import pack_folder
from rn50_jax.data.process_pool import count_workers
from rn50_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.prepare_imagenet",
        description="Extract ImageNet's official archives (ILSVRC2012, tasks 1 and 2) to class folders, without any "
        "network. The same command again goes on where it stopped.",
    )
    parser.add_argument("archives", type=Path, metavar="ARCHIVES", help=f"folder with {', '.join(ilsvrc2012.MD5)}")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write train/ and val/ to")
    parser.add_argument("--check", action="store_true", help="compare the archives with their published MD5 sums first")
    parser.add_argument("--pack", type=Path, metavar="SHARDS", help="then pack OUT into tar shards in SHARDS")
    parser.add_argument("--workers", type=int, default=count_workers(), help="threads (default: one per processor)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")
    spare = 0
    if args.pack is not None:
        there = sum(tar.stat().st_size for tar in args.pack.glob("*/*.tar"))
        tars = [args.archives / name for name in (ilsvrc2012.TRAIN, ilsvrc2012.VAL)]
        spare = max(0, sum(tar.stat().st_size for tar in tars if tar.is_file()) - there)
    prepare(args.archives, args.out, imagenet(), check=args.check, workers=args.workers, spare=spare)
    if args.pack is not None:
        print(pack_folder(args.out, args.pack, {"train": None, "val": None}, workers=args.workers))
    return 0


if __name__ == "__main__":
    cli.run(main)
