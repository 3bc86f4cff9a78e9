"""Human names of ImageNet's classes."""

from collections.abc import Sequence
from importlib.resources import files


def _imagenet() -> dict[str, str]:
    """WordNet's words by synset, in the order of ImageNet's labels."""
    text = (files("rn50_jax.data.formats") / "imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def human_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns WordNet's words for each class if all are ImageNet synsets ("n01440764"), else the folder names."""
    names = _imagenet()
    if all(name in names for name in class_names):
        return tuple(names[name] for name in class_names)
    return tuple(class_names)


def likely_names(num_classes: int) -> tuple[str, ...]:
    """Returns class names for a weight file without: ImageNet's synsets if their number fits, else numbers from 0."""
    names = tuple(_imagenet())
    return names if len(names) == num_classes else tuple(str(label) for label in range(num_classes))


# The images of ILSVRC2012 that everybody trains and validates on.
IMAGENET_IMAGES = {"train": 1_281_167, "val": 50_000}


def imagenet_notes(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns what is unusual about classes that are, or nearly are, ImageNet's 1,000 in the order of their labels.

    Labels of published weights count the synsets in sorted order. Nothing is said of other data sets, nor of subsets
    of less than 900 synsets, which somebody chose.
    """
    synsets = tuple(_imagenet())
    known = set(synsets).intersection(class_names)
    missing = [name for name in synsets if name not in known]
    others = [name for name in class_names if name not in known]
    notes = []
    if 900 <= len(known) < 1000:
        notes.append(f"{len(known)} of ImageNet's 1,000 classes; missing: {_some(missing)}")
    if len(known) >= 900 and others:
        notes.append(f"besides ImageNet's classes there are others: {_some(others)}")
    if known and not others and list(class_names) != sorted(class_names):
        notes.append(
            "the classes are ImageNet synsets, but not sorted: their labels are not those of published weights"
        )
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
