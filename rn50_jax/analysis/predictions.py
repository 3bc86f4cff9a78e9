"""Predictions in numbers: classes, confusions, confident mistakes, calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rn50_jax.data.formats.imagenet_names import human_names
from rn50_jax.data.image_set import ImageSet, names_from_root
from rn50_jax.data.images.transform import AS_STORED, Rendering

BINS = 15  # of confidence, as in Guo et al.


class Calibration(NamedTuple):
    """Confidence against accuracy.

    error: the expected calibration error. counts: int64 [M] images in each bin. accuracy: float64 [M], the bin's share
    of right answers, NaN in an empty one.
    """

    error: float
    counts: np.ndarray
    accuracy: np.ndarray


class ClassResult(NamedTuple):
    """One class: its label and name, images, share of them whose best (or one of the five best) guesses is right, and
    the other class that its images are taken for most often, `mistaken_for` "" if there is none."""

    label: int
    name: str
    images: int
    top1: float
    top5: float
    mistaken_for: str
    mistakes: int


class Predictions(NamedTuple):
    """Best guesses of a model for N images, a row each.

    images: the set that they are of. places: int64 [N], where in it. labels: int32 [N]. classes: int32 [N, k] and
    probabilities: float32 [N, k], best first, k usually 5. class_names: K. rendering: how the images were seen.
    """

    images: ImageSet
    places: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    rendering: Rendering = AS_STORED

    def names(self) -> Sequence[str]:
        """Returns the images' paths from the data's folder, in the set's order; none for synthetic data."""
        return names_from_root(self.images)

    def human_names(self) -> tuple[str, ...]:
        """Returns the names of the classes as people read them, see `imagenet_names.human_names`."""
        return human_names(self.class_names)

    def short_names(self, most: int) -> list[str]:
        """Returns the first of each class's human names, in at most so many characters."""
        return [cut(name.split(",")[0], most) for name in self.human_names()]

    def right(self) -> np.ndarray:
        """Returns whether the best guess is right: bool [N]."""
        found: np.ndarray = self.classes[:, 0] == self.labels
        return found

    def confusion(self) -> np.ndarray:
        """Counts how often images of each class (row) were taken for each class (column): int64 [K, K]."""
        count = len(self.class_names)
        pairs = self.labels.astype(np.int64) * count + self.classes[:, 0]
        return np.bincount(pairs, minlength=count**2).reshape(count, count)

    def calibration(self) -> Calibration:
        """Returns the calibration of the best guesses."""
        return calibration(self.probabilities[:, 0], self.right())

    def per_class(self, names: Sequence[str]) -> list[ClassResult]:
        """Returns each class that has images, the one with the smallest top-1 first; its name is one of `names`."""
        confusion = self.confusion()
        hits = np.diagonal(confusion).copy()
        hits5 = np.bincount(self.labels[(self.classes == self.labels[:, None]).any(axis=1)], minlength=len(names))
        np.fill_diagonal(confusion, 0)
        results = []
        for label in np.flatnonzero(hits + confusion.sum(axis=1)).tolist():
            images, other = int(hits[label] + confusion[label].sum()), int(confusion[label].argmax())
            mistakes = int(confusion[label, other])
            top1, top5 = float(hits[label] / images), float(hits5[label] / images)
            mistaken_for = names[other] if mistakes else ""
            results.append(ClassResult(label, names[label], images, top1, top5, mistaken_for, mistakes))
        return sorted(results, key=lambda result: (result.top1, result.top5))

    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """Returns (true class, predicted class, images) of all mistakes, the most frequent first."""
        confusion = self.confusion()
        np.fill_diagonal(confusion, 0)
        pairs = [(int(true), int(guess), int(confusion[true, guess])) for true, guess in np.argwhere(confusion)]
        return sorted(pairs, key=lambda pair: -pair[2])

    def confident_mistakes(self) -> np.ndarray:
        """Returns the rows of the wrong answers, those with the highest probability first: int64."""
        wrong = np.flatnonzero(~self.right())
        rows: np.ndarray = wrong[np.argsort(-self.probabilities[wrong, 0], kind="stable")]
        return rows


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Computes the expected calibration error of Guo et al. 2017 (arXiv:1706.04599, equations 2 and 3).

    sum_m |B_m| / N * |accuracy(B_m) - confidence(B_m)|, where B_m holds the images whose confidence, the probability of
    the best guess, is in the interval ((m - 1) / M, m / M].

    Args:
      confidence: float [N], of 0 to 1.
      right: bool [N].
    """
    confidence = np.asarray(confidence, np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(place, weights=right, minlength=bins) / counts
        mean = np.bincount(place, weights=confidence, minlength=bins) / counts
    gaps = np.abs(accuracy - mean)
    error = float(np.sum(counts * np.where(counts > 0, gaps, 0.0)) / max(len(confidence), 1))
    return Calibration(error, counts, accuracy)


def cut(name: str, most: int) -> str:
    """Returns a name in at most so many characters."""
    return name if len(name) <= most else name[: most - 1] + "…"
