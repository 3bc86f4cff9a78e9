"""Human names of ImageNet's classes."""

from collections.abc import Sequence
from importlib.resources import files


def _imagenet() -> dict[str, str]:
    """WordNet's words by synset, in the order of ImageNet's labels."""
    text = (files("rn50_jax.data") / "imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def human_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """WordNet's words for each class if all classes are ImageNet synsets ("n01440764"), else the folder names."""
    names = _imagenet()
    if all(name in names for name in class_names):
        return tuple(names[name] for name in class_names)
    return tuple(class_names)


def likely_names(num_classes: int) -> tuple[str, ...]:
    """Class names for a weight file that has none: ImageNet's synsets if their number fits, else numbers from 0."""
    names = tuple(_imagenet())
    return names if len(names) == num_classes else tuple(str(label) for label in range(num_classes))
