"""The statistics and problems of a checked data set, as one dictionary."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rn50_jax.data.check import image_file, listing
from rn50_jax.data.check.image_file import ON_ITS_SIDE
from rn50_jax.data.check.listing import Finding, Split
from rn50_jax.data.check.scan import Looked
from rn50_jax.data.formats.class_folders import count_suffixes
from rn50_jax.data.formats.imagenet_names import IMAGENET_IMAGES, imagenet_notes
from rn50_jax.data.images import headers

PROBLEMS = {
    **headers.PROBLEMS,
    **listing.PROBLEMS,
    "listed twice": "the list names it more than once; it would be seen more often than others",
    "in train and val": "the same bytes are in both splits; validation is too good",
    "in several classes": "the same bytes are in several classes of a split; at most one is right",
    "ImageNet incomplete": "the number of images is not that of ILSVRC2012",
    "ImageNet classes": "see docs/data.md",
}
NOTES = {**image_file.NOTES, **listing.NOTES, "twice in a class": "the same bytes are in one class more than once"}
_MOST_NOTES = 1000  # of a kind, that a report lists by name


def split_facts(split: Split, seen: Looked) -> dict[str, Any]:
    """Returns counts and distributions of one split: classes, bytes, formats, colors and sizes in pixels."""
    counts = np.bincount(split.labels, minlength=len(split.class_names))
    facts: dict[str, Any] = {"kind": split.kind, "classes": len(split.class_names), "images": len(split.names)}
    if len(counts) and len(split.names):
        least, most = int(counts.argmin()), int(counts.argmax())
        facts["images_per_class"] = {
            "min": int(counts[least]),
            "median": float(np.median(counts)),
            "max": int(counts[most]),
            "smallest": split.class_names[least],
            "largest": split.class_names[most],
            "imbalance": float(counts[most] / counts[counts > 0].min()),
        }
        facts["bytes"] = {"total": int(seen.sizes.sum()), **_quantiles(seen.sizes)}
    facts["formats"] = _sum_up((kind, count) for (kind, _), count in seen.kinds.items())
    facts["colours"] = _sum_up((mode, count) for (_, mode), count in seen.kinds.items())
    known = seen.widths > 0
    known[list(seen.problems)] = False
    if known.any():
        width, height = seen.widths[known], seen.heights[known]
        facts["width"], facts["height"] = _quantiles(width), _quantiles(height)
        facts["aspect"] = _quantiles(width / height)
    facts["bad_images"] = len(seen.problems)
    facts["not_read"] = count_suffixes(split.images.not_read)
    on_side = Counter(split.class_names[split.labels[i]] for i, note, _ in seen.notes if note == ON_ITS_SIDE)
    facts["on_their_side"] = {"images": on_side.total(), "images_per_class": dict(on_side.most_common())}
    return facts


def _sum_up(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in counts:
        total[name or "unknown"] += count
    return dict(total.most_common())


def _quantiles(values: np.ndarray) -> dict[str, float]:
    levels = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
    return {name: round(float(np.percentile(values, level)), 3) for name, level in levels.items()}


def image_findings(split: Split, seen: Looked) -> list[Finding]:
    """Lists what is wrong with or odd about single images."""
    bad = [Finding(kind, split.names[i], detail) for i, (kind, detail) in sorted(seen.problems.items())]
    return bad + [Finding(kind, split.names[i], detail) for i, kind, detail in seen.notes]


# An image of a data set: its split and its number in it.
Place = tuple[str, int]


def duplicate_findings(splits: dict[str, Split], groups: Iterable[Sequence[Place]]) -> list[Finding]:
    """Lists what each group of images of the same content means."""
    findings = []
    for group in groups:
        names = [splits[split].names[i] for split, i in group]
        classes = {(split, splits[split].labels[i].item()) for split, i in group}
        in_splits = {split for split, _ in group}
        kind = "in train and val" if len(in_splits) > 1 else "twice in a class"
        if len(classes) > len(in_splits):
            kind = "in several classes"
        findings.append(Finding(kind, names[0], "= " + ", ".join(names[1:4]) + (", ..." if len(names) > 4 else "")))
    return findings


def keep_one(splits: dict[str, Split], groups: Iterable[Sequence[Place]]) -> set[Place]:
    """Returns the images to drop so that no content is left twice.

    The one in val stays, or else the first; of those in several classes of a split, none does.
    """
    out: set[Place] = set()
    for group in groups:
        for split in dict.fromkeys(split for split, _ in group):
            if len({splits[split].labels[i].item() for s, i in group if s == split}) > 1:
                out.update(place for place in group if place[0] == split)
        left = sorted((place for place in group if place not in out), key=lambda place: (place[0] != "val", place))
        out.update(left[1:])
    return out


def imagenet_findings(splits: dict[str, Split]) -> list[Finding]:
    """Lists differences from ILSVRC2012 of data sets that are, or nearly are, it."""
    findings = []
    for name, split in splits.items():
        notes = imagenet_notes(split.class_names)
        findings += [Finding("ImageNet classes", name, note) for note in notes]
        wanted = IMAGENET_IMAGES.get(name)
        if is_imagenet(split) and wanted and len(split.names) != wanted:
            findings.append(Finding("ImageNet incomplete", name, f"{len(split.names):,} images instead of {wanted:,}"))
    return findings


def is_imagenet(split: Split) -> bool:
    """Returns whether the classes are exactly ImageNet's 1,000 synsets, in order."""
    names = split.class_names
    return len(names) == 1000 and not imagenet_notes(names) and (names[0], names[-1]) == ("n01440764", "n15075141")


def summarise(findings: Iterable[Finding]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns problems and notes by kind: {"count", "meaning", "files": [{"file", "detail"}]}; long lists are cut."""
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding)

    def entries(meanings: dict[str, str], most: int | None) -> dict[str, Any]:
        return {
            kind: {
                "count": len(by_kind[kind]),
                "meaning": meaning,
                "files": [{"file": f.path, **({"detail": f.detail} if f.detail else {})} for f in by_kind[kind][:most]],
            }
            for kind, meaning in meanings.items()
            if kind in by_kind
        }

    return entries(PROBLEMS, None), entries(NOTES, _MOST_NOTES)
