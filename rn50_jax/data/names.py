"""Human names of ImageNet's classes."""

from collections.abc import Sequence
from importlib.resources import files


def human_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """WordNet's words for each class if all classes are ImageNet synsets ("n01440764"), else the folder names."""
    text = (files("rn50_jax.data") / "imagenet_classes.txt").read_text(encoding="utf-8")
    names = dict(line.split("\t") for line in text.splitlines())
    if all(name in names for name in class_names):
        return tuple(names[name] for name in class_names)
    return tuple(class_names)
