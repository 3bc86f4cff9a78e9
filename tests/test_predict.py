"""The predict command on real files of every kind."""

import json
import shutil
from pathlib import Path

import pytest
import sklearn.datasets
from conftest import Run, assert_user_error
from PIL import Image

from rn50_jax.data.folder import scan_split


def test_it_names_held_back_digits(trained: tuple[Path, str], run: Run, digits: Path) -> None:
    workdir, _ = trained
    _, val = scan_split(digits / "val")
    done = run("predict", "--workdir", workdir, *val.files[::5], "--json", "--top_k", 3)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [entry["file"] for entry in answers] == list(val.files[::5])
    right = 0
    for entry, label in zip(answers, val.labels[::5], strict=True):
        assert len(entry["predictions"]) == 3
        probabilities = [p["probability"] for p in entry["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert min(probabilities) >= 0 and sum(probabilities) <= 1.0001
        assert all(p["class"] == str(p["index"]) for p in entry["predictions"])
        right += entry["predictions"][0]["index"] == label
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    best = max(line["val.top1"] for line in metrics if "val.top1" in line)
    assert right / len(answers) == pytest.approx(best / 100, abs=0.15)


def test_every_kind_of_image_and_a_bad_one(trained: tuple[Path, str], run: Run, digits: Path, tmp_path: Path) -> None:
    workdir, _ = trained
    with Image.open(scan_split(digits / "val")[1].files[0]) as image:
        grey = image.convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    grey.convert("RGBA").save(tmp_path / "alpha with space ü.png")
    grey.convert("RGB").save(tmp_path / "image.webp", lossless=True)
    photo = Path(sklearn.datasets.__file__).parent / "images/china.jpg"  # 640 x 427 pixels
    shutil.copy(photo, tmp_path / "photo.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    names = ["grey.png", "cmyk.jpg", "text.jpg", "alpha with space ü.png", "none.jpg", "image.webp", "photo.jpg"]
    files = [tmp_path / name for name in names]
    done = run("predict", "--workdir", workdir, *files, "--json")
    assert done.returncode == 1, done.stderr
    answers = json.loads(done.stdout)
    assert [Path(entry["file"]).name for entry in answers] == names
    assert "not an image that can be decoded" in answers[2]["error"]
    assert "No such file" in answers[4]["error"]
    predictions = {Path(a["file"]).name: a["predictions"] for a in answers if "predictions" in a}
    assert len(predictions) == 5
    for name in ("cmyk.jpg", "alpha with space ü.png", "image.webp"):
        assert predictions[name][0]["index"] == predictions["grey.png"][0]["index"]
        assert predictions[name][0]["probability"] == pytest.approx(predictions["grey.png"][0]["probability"], abs=0.05)


def test_text_output(trained: tuple[Path, str], run: Run, digits: Path, tmp_path: Path) -> None:
    image = scan_split(digits / "val")[1].files[0]
    done = run("predict", "--workdir", trained[0], image, tmp_path / "none.jpg", "--top_k", 2)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == image
    assert len(lines) == 4 and lines[1].split()[0].endswith("%")
    assert lines[3] == f"{tmp_path / 'none.jpg'}: cannot be read: No such file or directory"


def test_only_bad_images(trained: tuple[Path, str], run: Run, tmp_path: Path) -> None:
    done = run("predict", "--workdir", trained[0], tmp_path / "a.jpg", "--json")
    assert done.returncode == 1
    assert list(json.loads(done.stdout)[0]) == ["file", "error"]


def test_mistakes_are_told_in_one_line(trained: tuple[Path, str], run: Run, tmp_path: Path) -> None:
    assert_user_error(run("predict", "--workdir", tmp_path, "a.jpg"), "has no checkpoints")
    assert_user_error(run("predict", "--workdir", trained[0], "a.jpg", "--top_k", 0), "--top_k 0 must be at least 1")
    assert_user_error(run("predict", "--workdir", trained[0], "a.jpg", "--checkpoint", "9"), "'9'")
