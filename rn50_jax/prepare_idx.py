"""MNIST, Fashion-MNIST and their kin (IDX files) to class folders: `python -m rn50_jax.prepare_idx DIR OUT`."""

import os
from collections.abc import Sequence
from pathlib import Path

from rn50_jax import cli
from rn50_jax.data.prepare.class_names import read_class_names
from rn50_jax.data.prepare.idx_folders import check_new, prepare_idx
from rn50_jax.data.prepare.packing import pack_folder
from rn50_jax.data.process_pool import count_workers
from rn50_jax.errors import UserError
from rn50_jax.io.text import shell


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.prepare_idx",
        description="Turn the IDX files of MNIST, Fashion-MNIST, EMNIST, KMNIST or QMNIST, gzipped or not, into class "
        "folders of PNG files, whose numbers are the positions in the files.",
        epilog="Training counts classes by the sorted names of their folders, which is not always the order of the "
        "files' labels.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder with images and labels of train and t10k or test")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write train/ and val/ to, empty or not there")
    parser.add_argument(
        "--class_names",
        metavar="FILE",
        help="by label, from 0 on: .txt with a name a line, .json, or 'fashion-mnist' (default: the labels as digits, "
        "and Fashion-MNIST's names if the files are that)",
    )
    parser.add_argument("--pad", type=int, default=0, metavar="N", help="black pixels around each image (default: 0)")
    parser.add_argument("--transpose", action="store_true", help="for EMNIST, whose images lie on their side")
    parser.add_argument("--train_images", type=int, metavar="N", help="only the first N of train, for short runs")
    parser.add_argument("--pack", type=Path, metavar="SHARDS", help="then pack OUT into tar shards in SHARDS")
    args = parser.parse_args(argv)
    if args.pad < 0:
        raise UserError(f"--pad {args.pad} must be at least 0")
    if args.train_images is not None and args.train_images < 1:
        raise UserError(f"--train_images {args.train_images} must be at least 1")
    if args.pack is None:
        check_new(args.out)
    else:
        go_on = shell(["python", "-m", "rn50_jax.pack", args.out, args.pack])
        check_new(args.out, f"; to pack what is there: {go_on}")
        check_new(args.pack)
        places = {Path(os.path.realpath(folder)) for folder in (args.out, args.pack)}
        if len(places) == 1 or any(place in other.parents for place in places for other in places):
            raise UserError(f"--pack {args.pack} must not be {args.out}, nor in it or around it; give another folder")
    names = read_class_names(args.class_names) if args.class_names is not None else None
    prepare_idx(
        args.dir,
        args.out,
        class_names=names,
        pad=args.pad,
        transpose=args.transpose,
        train_images=args.train_images,
    )
    if args.pack is not None:
        print(pack_folder(args.out, args.pack, {"train": None, "val": None}, workers=count_workers()))
    return 0


if __name__ == "__main__":
    cli.run(main)
