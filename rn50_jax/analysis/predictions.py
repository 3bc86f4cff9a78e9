"""What a model gets wrong, in numbers: classes, confusions, confident mistakes, calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rn50_jax.data.image_set import ImageSet, names_from_root
from rn50_jax.data.images.transform import AS_STORED, Rendering

BINS = 15  # of confidence, as in Guo et al.


class Calibration(NamedTuple):
    """How far confidence is from accuracy.

    error: the expected calibration error. counts: int64 [M] images in each bin. accuracy, confidence: float64 [M], the
    bin's share of right answers and mean confidence, NaN in an empty one.
    """

    error: float
    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray


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
    """What a model said about N images, a row each.

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

    def file(self, row: int) -> str:
        """The image's file; "" for synthetic data."""
        return self.images.files[self.places[row]] if self.images.files else ""

    def names(self) -> Sequence[str]:
        """Returns the images' paths from the data's folder, in the set's order; none for synthetic data."""
        return names_from_root(self.images)

    def right(self) -> np.ndarray:
        """Whether the best guess is right: bool [N]."""
        found: np.ndarray = self.classes[:, 0] == self.labels
        return found

    def confusion(self) -> np.ndarray:
        """How often images of each class (row) were taken for each class (column): int64 [K, K]."""
        return confusion_matrix(self.labels, self.classes[:, 0], len(self.class_names))

    def calibration(self) -> Calibration:
        """Calibration of the best guesses."""
        return calibration(self.probabilities[:, 0], self.right())

    def per_class(self) -> list[ClassResult]:
        """Each class that has images, the one with the smallest top-1 first."""
        confusion = self.confusion()
        in_top5 = (self.classes == self.labels[:, None]).any(axis=1)
        hits5 = np.bincount(self.labels, weights=in_top5, minlength=len(self.class_names))
        results = []
        for label, name in enumerate(self.class_names):
            images = int(confusion[label].sum())
            if not images:
                continue
            wrong = confusion[label].copy()
            wrong[label] = 0
            other = int(wrong.argmax())
            mistaken_for = self.class_names[other] if wrong[other] else ""
            top1, top5 = confusion[label, label] / images, hits5[label] / images
            results.append(ClassResult(label, name, images, float(top1), float(top5), mistaken_for, int(wrong[other])))
        return sorted(results, key=lambda result: (result.top1, result.top5))

    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """(true class, predicted class, images), the most frequent first, right answers left out."""
        confusion = self.confusion()
        np.fill_diagonal(confusion, 0)
        pairs = [(int(true), int(guess), int(confusion[true, guess])) for true, guess in np.argwhere(confusion)]
        return sorted(pairs, key=lambda pair: -pair[2])

    def confident_mistakes(self) -> np.ndarray:
        """Rows of the wrong answers, those with the highest probability first: int64."""
        wrong = np.flatnonzero(~self.right())
        rows: np.ndarray = wrong[np.argsort(-self.probabilities[wrong, 0], kind="stable")]
        return rows


def confusion_matrix(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of (label, guess): int64 [K, K], a row for each label."""
    pairs = labels.astype(np.int64) * num_classes + guesses
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """The expected calibration error of Guo et al. 2017 (arXiv:1706.04599, equations 2 and 3).

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
    return Calibration(error, counts, accuracy, mean)
