"""What a model gets wrong: numbers against scikit-learn and NumPy, and the files that the command writes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, assert_user_error
from PIL import Image
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from rn50_jax.analysis.figures import thumbnail
from rn50_jax.analysis.predictions import Predictions, calibration
from rn50_jax.analysis.tables import tell_mistakes
from rn50_jax.data.image_set import ImageSet


def make_predictions(num_images: int = 500, num_classes: int = 7, seed: int = 0) -> tuple[Predictions, np.ndarray]:
    """Random predictions and the probabilities of all classes behind them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images, np.int32)
    logits = rng.normal(size=(num_images, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    best = np.argsort(-p, axis=1, kind="stable")[:, :5].astype(np.int32)
    images = ImageSet(tuple(f"val/{label}/{i}.png" for i, label in enumerate(labels)), labels)
    names = tuple(f"class {label}" for label in range(num_classes))
    found = Predictions(images, np.arange(num_images), labels, best, np.take_along_axis(p, best, axis=1), names)
    return found, p


def test_confusions_and_classes_are_those_of_scikit_learn() -> None:
    found, p = make_predictions()
    wanted = confusion_matrix(found.labels, p.argmax(axis=1), labels=range(7))
    np.testing.assert_array_equal(found.confusion(), wanted)
    results = found.per_class(found.class_names)
    assert [result.top1 for result in results] == sorted(result.top1 for result in results)
    for result in results:
        mine = found.labels == result.label
        assert result.images == mine.sum() and result.name == f"class {result.label}"
        for k, share in ((1, result.top1), (5, result.top5)):
            assert share == pytest.approx(top_k_accuracy_score(found.labels[mine], p[mine], k=k, labels=range(7)))
        row = np.where(np.arange(7) == result.label, 0, wanted[result.label])
        assert result.mistakes == row.max() and wanted[result.label, int(result.mistaken_for[-1])] == row.max()
    pairs = found.confused_pairs()
    assert sum(count for _, _, count in pairs) == (p.argmax(axis=1) != found.labels).sum()
    assert all(wanted[true, guess] == count and true != guess for true, guess, count in pairs)
    assert [count for _, _, count in pairs] == sorted((count for _, _, count in pairs), reverse=True)


def test_confident_mistakes_come_first() -> None:
    found, p = make_predictions()
    rows = found.confident_mistakes()
    assert set(rows) == set(np.flatnonzero(p.argmax(axis=1) != found.labels))
    assert np.all(np.diff(p.max(axis=1)[rows]) <= 0)


def test_classes_without_images_or_mistakes() -> None:
    images = ImageSet(("a", "b"), np.array([0, 0], np.int32))
    right = np.zeros((2, 2), np.int32) + np.array([0, 2], np.int32)
    found = Predictions(images, np.arange(2), images.labels, right, np.full((2, 2), 0.5, np.float32), ("x", "y", "z"))
    (only,) = found.per_class(found.class_names)
    assert (only.name, only.images, only.top1, only.mistaken_for, only.mistakes) == ("x", 2, 1.0, "", 0)
    assert found.confused_pairs() == [] and len(found.confident_mistakes()) == 0
    assert any("x" in line and line.endswith("-") for line in tell_mistakes(found))


def test_calibration_error_by_its_formula() -> None:
    found, _ = make_predictions(2000)
    confidence, right = found.probabilities[:, 0].astype(np.float64), found.right()
    wanted = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    result = found.calibration()
    assert result.error == pytest.approx(wanted, abs=1e-12) and 0 < wanted < 1
    assert result.counts.sum() == 2000
    # By hand: 0.9 and 0.8 right, 0.8 wrong; two bins of ten: |1 - 0.9| / 3 + |0.5 - 0.8| * 2 / 3.
    by_hand = calibration(np.array([0.9, 0.8, 0.8]), np.array([True, True, False]), bins=10)
    assert by_hand.error == pytest.approx(0.1 / 3 + 0.3 * 2 / 3)
    assert calibration(np.array([1.0, 0.0]), np.array([True, False])).error == 0.0


def test_thumbnails_of_all_sizes(tmp_path: Path) -> None:
    sizes = {"small.png": (8, 8), "middle.png": (120, 60), "large.jpg": (900, 450)}
    for name, size in sizes.items():
        Image.new("RGB", size, (200, 10, 10)).save(tmp_path / name)
    Image.new("CMYK", (300, 300)).save(tmp_path / "cmyk.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    names = (*sizes, "cmyk.jpg", "broken.jpg")
    images = ImageSet(tuple(str(tmp_path / name) for name in names), np.zeros(5, np.int32))
    found = Predictions(images, np.arange(5), images.labels, np.zeros((5, 1), int), np.ones((5, 1)), ("x",))
    shown = [thumbnail(found, row, 100) for row in range(5)]
    assert [picture and picture.size for picture in shown] == [(100, 100), (100, 50), (100, 50), (100, 100), None]
    assert all(picture is None or picture.mode == "RGB" for picture in shown)


@pytest.mark.slow
def test_the_command_looks_at_every_image_once(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet

    workdir, _ = trained
    usual = call("evaluate", "--workdir", workdir, "--json", tmp_path / "usual.json")
    assert usual.returncode == 0, usual.stderr
    results = {}
    for name, devices, batch_size in (("p.csv", 4, 7), ("p.parquet", 1, 32)):
        options = ("--predictions", tmp_path / name, "--per_class", "--out", tmp_path / f"out-{name}")
        options = (*options, f"--config.batch_size={batch_size}", "--json", tmp_path / "r.json")
        done = call("evaluate", "--workdir", workdir, *options, devices=devices)
        assert done.returncode == 0, done.stderr
        assert (
            done.stdout.splitlines()[1].split("  297 images")[0]
            == usual.stdout.splitlines()[1].split("  297 images")[0]
        )
        results[name] = json.loads((tmp_path / "r.json").read_text())
    wanted = json.loads((tmp_path / "usual.json").read_text())
    for result in results.values():
        assert (result["val.top1"], result["val.top5"]) == (wanted["val.top1"], wanted["val.top5"])
        assert result["val.loss"] == pytest.approx(wanted["val.loss"], rel=1e-6)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert len({row["file"] for row in rows}) == 297 and [row["file"] for row in rows] == columns["file"]
    assert all(row["file"].split("/")[-2] == row["label"] for row in rows)
    p = np.array([[float(row[f"probability_{k}"]) for k in range(1, 6)] for row in rows])
    assert np.all(np.diff(p, axis=1) <= 0) and np.all(p.sum(axis=1) <= 1 + 1e-6)
    np.testing.assert_allclose(p[:, 0], columns["probability_1"], rtol=1e-4)
    right = np.array([row["class_1"] == row["label"] for row in rows])
    assert 100 * right.mean() == pytest.approx(wanted["val.top1"])
    in_top5 = [row["label"] in [row[f"class_{k}"] for k in range(1, 6)] for row in rows]
    assert 100 * np.mean(in_top5) == pytest.approx(wanted["val.top5"])
    assert results["p.csv"]["val.ece"] == pytest.approx(calibration(p[:, 0].astype(np.float32), right).error, abs=1e-6)
    folder = tmp_path / "out-p.csv"
    with (folder / "per_class.csv").open() as file:
        assert sum(int(row["images"]) for row in csv.DictReader(file)) == 297
    with (folder / "confusion.csv").open() as file:
        assert sum(int(row["images"]) for row in csv.DictReader(file)) == (~right).sum()
    with (folder / "mistakes.csv").open() as file:
        mistakes = list(csv.DictReader(file))
    by_file = {row["file"]: row for row, is_right in zip(rows, right, strict=True) if not is_right}
    found = {str(digits / row["file"]): row for row in mistakes}
    assert by_file.keys() == found.keys()
    for name, row in found.items():
        assert row["file"].startswith("val/")
        assert (row["class"], row["taken_for"]) == (by_file[name]["label"], by_file[name]["class_1"])
        assert row["probability"] == by_file[name]["probability_1"]
    confidence = [float(row["probability"]) for row in mistakes]
    assert confidence == sorted(confidence, reverse=True)
    for name in ("mistakes.png", "calibration.png"):
        with Image.open(folder / name) as image:
            assert image.width > 500


def test_mistakes_of_the_call(trained: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    workdir, _ = trained
    command = ("evaluate", "--workdir", workdir)
    assert_user_error(call(*command, "--predictions", "p.xlsx"), "p.xlsx must end in .csv or .parquet")
    assert_user_error(call(*command, "--predictions", tmp_path / "none/p.csv"), "none is no folder")
    assert_user_error(call(*command, "--out", tmp_path), "--out is of use with --per_class alone")
    (tmp_path / "file").write_text("")
    assert_user_error(call(*command, "--per_class", "--out", tmp_path / "file"), "cannot write to", "File exists")
