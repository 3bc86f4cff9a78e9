"""Looks through a data set before training: `python -m rn50_jax.check_data DIR`."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rn50_jax import cli
from rn50_jax.data.check.findings import (
    Place,
    duplicate_findings,
    image_findings,
    imagenet_findings,
    is_imagenet,
    keep_one,
    split_facts,
    summarise,
)
from rn50_jax.data.check.listing import Split, list_dataset
from rn50_jax.data.check.scan import Looked, find_duplicates, look_at
from rn50_jax.data.check.write_split import LIST_SUFFIX, check_new, write_lists, write_split
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.formats.class_folders import suffixes_text
from rn50_jax.data.formats.file_list import listable
from rn50_jax.data.image_set import sources_of
from rn50_jax.data.process_pool import count_workers
from rn50_jax.errors import UserError
from rn50_jax.io.files import telling_of_writes
from rn50_jax.io.json_files import write_json
from rn50_jax.io.terminal import fit
from rn50_jax.io.text import counted, printable, shell, size_text
from rn50_jax.runtime.progress_bar import progress

_EXAMPLES = 3  # of each kind, that are printed
_CLASSES = 5  # with most images on their side


def check(
    root: Path, *, lists: Sequence[Path] = (), full: bool = False, workers: int = 1
) -> tuple[dict[str, Any], dict[str, Split], set[Place], set[Place]]:
    """Looks at everything in a data set.

    Args:
      root: holds train/ and val/, or is one split, of class folders or tar shards; never written to.
      lists: file lists of splits, used instead.
      full: decode every image; otherwise ends and header, and only what leaves a doubt is decoded.

    Returns:
      The report (see docs/data.md); the splits; the bad images; and those to leave out for no content to be twice.

    Raises:
      UserError: there is no data set of any kind at `root`.
    """
    started = time.monotonic()
    splits, findings = list_dataset(root, lists)
    seen: dict[str, Looked] = {}
    for name, split in splits.items():
        with progress(f"{name}: {'decoding' if full else 'looking at'} images", len(split.names)) as advance:
            seen[name] = look_at(sources_of(split.images), full=full, workers=workers, advance=advance)
    looked_for = time.monotonic() - started
    groups = _find_duplicates(splits, seen, workers)
    for name, split in splits.items():
        findings += image_findings(split, seen[name])
    findings += duplicate_findings(splits, groups) + imagenet_findings(splits)
    problems, notes = summarise(findings)
    images = sum(len(split.names) for split in splits.values())
    report = {
        "dir": str(root),
        "mode": "full" if full else "quick",
        "images": images,
        "seconds": round(time.monotonic() - started, 2),
        "images_per_second": round(images / looked_for, 1),
        "imagenet": bool(splits) and all(is_imagenet(split) for split in splits.values()),
        "splits": {name: split_facts(split, seen[name]) for name, split in splits.items()},
        "problems": problems,
        "notes": notes,
    }
    bad = {(name, i) for name in splits for i in seen[name].problems}
    return report, splits, bad, keep_one(splits, groups)


def _find_duplicates(splits: dict[str, Split], seen: dict[str, Looked], workers: int) -> list[list[Place]]:
    """Groups of good images of the same content, within and across splits."""
    good = {name: np.delete(np.arange(len(split.names)), list(seen[name].problems)) for name, split in splits.items()}
    sources = {name: sources_of(split.images) for name, split in splits.items()}
    good_sources = [sources[name][i] for name, numbers in good.items() for i in numbers.tolist()]
    keys = np.concatenate([seen[name].keys[numbers] for name, numbers in good.items()])
    with progress("comparing images that look the same", None) as advance:
        groups = find_duplicates(good_sources, keys, workers=workers, advance=advance)
    names = [name for name, numbers in good.items() for _ in numbers]
    places = np.concatenate(list(good.values()))
    return [[(names[i], places[i].item()) for i in group] for group in groups]


def report_text(report: dict[str, Any]) -> str:
    """The report as a page to read."""
    lines = [
        f"{report['dir']}: {report['mode']} check of {counted(report['images'], 'image')} in {report['seconds']:.1f} s "
        f"({report['images_per_second']:,.0f} images per second)"
    ]
    for name, facts in report["splits"].items():
        lines += [
            "",
            f"{name}: {counted(facts['images'], 'image')} of {counted(facts['classes'], 'class')}, {facts['kind']}",
        ]
        lines += [f"  {label:<17}{text}" for label, text in _split_rows(facts)]
    if report["imagenet"]:
        lines += ["", "The classes are ImageNet's 1,000 synsets, in the order of their labels."]
    for title, kinds in (("Problems", report["problems"]), ("Notes", report["notes"])):
        lines += ["", f"{title}:" if kinds else f"{title}: none"]
        for kind, found in kinds.items():
            lines.append(f"  {found['count']:>7,}  {kind}: {found['meaning']}")
            examples = found["files"][:_EXAMPLES]
            lines += [f"             {f['file']}" + (f" ({f['detail']})" if "detail" in f else "") for f in examples]
            if found["count"] > len(examples):
                lines.append(f"             and {found['count'] - len(examples):,} more")
    if report["mode"] == "quick":
        lines += ["", "Only images whose beginning or end left a doubt were decoded; --mode full decodes all."]
    return "\n".join(map(printable, lines))


def _split_rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if counts := facts.get("images_per_class"):
        smallest, largest = f"{counts['min']:,} ({counts['smallest']})", f"{counts['max']:,} ({counts['largest']})"
        yield "images per class", f"{smallest} to {largest}, median {counts['median']:,.10g}"
        yield "imbalance", f"{counts['imbalance']:.3g} times as many in the largest as in the smallest class with any"
    if size := facts.get("bytes"):
        total, median, most = (size_text(size[key]) for key in ("total", "median", "max"))
        yield "bytes", f"{total}; median {median}, largest {most}"
    for key in ("formats", "colours"):
        yield key, ", ".join(f"{name} {count:,}" for name, count in facts[key].items())
    for key, unit in (("width", " pixels"), ("height", " pixels"), ("aspect", "")):
        if span := facts.get(key):
            middle = f"nine in ten {span['p5']:g} to {span['p95']:g}, median {span['median']:g}"
            yield key, f"{span['min']:g} to {span['max']:g}{unit}; {middle}"
    if counts := facts["not_read"]:
        patterns = " ".join(f"*{suffix}" for suffix in counts)
        how = f"convert them to JPEG, for example with ImageMagick: mogrify -format jpg {patterns}"
        yield "not read", f"{suffixes_text(counts)}; {how}"
    if count := facts["on_their_side"]["images"]:
        per_class = [f"{name} {count:,}" for name, count in facts["on_their_side"]["images_per_class"].items()]
        most = ", ".join(per_class[:_CLASSES]) + (", ..." if len(per_class) > _CLASSES else "")
        yield (
            "on their side",
            f"{count:,} of {facts['images']:,} images ({most}), unless --config.data.exif_rotation=true",
        )


def write_clean_lists(file: Path, root: Path, splits: dict[str, Split], left_out: set[Place]) -> list[str]:
    """Writes a list of the images to keep, per split: FILE, or FILE.train.tsv and FILE.val.tsv for train and val.

    Returns:
      What was written, a line for each.
    """
    if any(split.kind == "tar shards" for split in splits.values()):
        raise UserError(f"--write_list is for files; {root} holds tar shards")
    kept = {
        name: [i for i, path in enumerate(split.names) if (name, i) not in left_out and listable(path)]
        for name, split in splits.items()
    }
    try:
        written = write_lists(file, _classes_of(splits, kept), {name: (splits[name], kept[name]) for name in splits})
    except OSError as error:
        raise UserError(f"cannot write {error.filename or file}: {error.strerror}") from error
    told = []
    for (target, count), split in zip(written.items(), splits.values(), strict=True):
        unlisted = sum(not listable(path) for path in split.names)
        because = f", {unlisted:,} of them for names that a list cannot hold" if unlisted else ""
        told.append(printable(f"{target}: {counted(count, 'image')}, {len(split.names) - count:,} left out{because}"))
    return told


def _classes_of(splits: dict[str, Split], kept: dict[str, list[int]]) -> list[str]:
    """Classes with images, in the order that all splits agree on, or sorted."""
    orders = {split.class_names for split in splits.values()}
    names = next(iter(orders)) if len(orders) == 1 else sorted(set().union(*orders))
    used = {split.class_names[label] for name, split in splits.items() for label in set(split.labels[kept[name]])}
    return [name for name in names if name in used]


def _is_unsplit(root: Path, splits: dict[str, Split]) -> bool:
    only = next(iter(splits)) if len(splits) == 1 else ""
    return only != "" and (root.name, only) not in (("train", "train"), ("val", "val"))


def _split_target(args: argparse.Namespace) -> Path:
    root = args.dir.resolve()
    return args.out or root.with_name(f"{root.name}_split")


def _write_split(args: argparse.Namespace, splits: dict[str, Split], drop: set[Place]) -> str:
    """Writes the split that was asked for; returns what to say about it."""
    if len(splits) != 1:
        raise UserError(f"{args.dir} is split already, into {' and '.join(splits)}; leave out --split")
    (split,) = splits.values()
    indices, out = {index for _, index in drop}, _split_target(args)
    written = write_split(args.dir, split, share=args.split, seed=args.seed, drop=indices, out=out)
    told = [f"{place}: {count:,} images" for place, count in written.items()]
    told += [f"bad or duplicate images, in neither: {len(drop):,}"] if drop else []
    data = {"dir": out} if out.suffix != LIST_SUFFIX else {"dir": args.dir}
    if out.suffix == LIST_SUFFIX:
        data |= {f"{place.stem.rpartition('.')[2]}_list": place.absolute() for place in written}
    keys = shell(f"--config.data.{key}={value}" for key, value in data.items())
    told.append(f"Train with: python -m rn50_jax.train --config configs/fine_tune.py {keys} --pretrained_weights FILE")
    return "\n".join(map(printable, told))


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code: 1 if there are problems."""
    parser = cli.CommandLine(
        prog="rn50_jax.check_data",
        description="Look through a data set before training: what is in it, and what is wrong with it.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="holds train/ and val/, or is one split; or tar shards")
    parser.add_argument("--list", type=Path, action="append", default=[], help="check the images of a file list of DIR")
    parser.add_argument("--mode", choices=("quick", "full"), default="quick", help="full: decode every image")
    parser.add_argument("--workers", type=int, default=count_workers(), help="processes (default: one per processor)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything found to FILE")
    parser.add_argument("--write_list", type=Path, metavar="FILE", help="write the good images to a file list")
    parser.add_argument("--drop_duplicates", action="store_true", help="and no content twice, see docs/data.md")
    split = parser.add_argument_group("data without a split into train/ and val/")
    split.add_argument(
        "--split", type=float, metavar="SHARE", help="set this share of each class apart for validation, such as 0.2"
    )
    split.add_argument(
        "--out", type=Path, help="new folder of links to the good images (default: DIR_split), or NAME.tsv for lists"
    )
    split.add_argument("--seed", type=int, default=0, help="draws them, as the key seed does (default: 0)")
    args = parser.parse_args(argv)
    if args.split is not None and not 0 < args.split < 1:
        raise UserError(f"--split {args.split:g} must be between 0 and 1, such as 0.2")
    if args.split is None and args.out:
        raise UserError("--out is of use with --split alone")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")
    if args.drop_duplicates and not (args.write_list or args.split):
        raise UserError("--drop_duplicates changes what --write_list FILE and --split SHARE write; give one of them")
    if args.split:
        check_new(_split_target(args), args.dir)
    full = args.mode == "full"
    if full:
        need_dali("--mode quick")
    report, splits, bad, twice = check(args.dir, lists=args.list, full=full, workers=args.workers)
    text = report_text(report)
    if args.json:
        with telling_of_writes():
            write_json(args.json, report)
    if args.write_list:
        left_out = bad | twice if args.drop_duplicates else bad
        text += "\n\n" + "\n".join(write_clean_lists(args.write_list, args.dir, splits, left_out))
    if args.split:
        text += "\n\n" + _write_split(args, splits, bad | twice if args.drop_duplicates else bad)
    elif _is_unsplit(args.dir, splits):
        text += (
            "\n\nThere is no split into train/ and val/ yet. Train with --config.data.val_share=0.2, which sets a "
            "fifth of each class apart, or let --split 0.2 write both folders."
        )
    print(fit(text, sys.stdout), flush=True)
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    cli.run(main)
