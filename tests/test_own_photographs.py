"""A newcomer's five commands on real photographs: one folder a class, unbalanced, and some of the files damaged.

The photographs come with packages that are installed anyway: scikit-learn has the pagoda and the dahlia, matplotlib the
portrait of Grace Hopper. Each image is a crop of one of them.
"""

import io
import json
import random
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pytest
import sklearn.datasets
from conftest import REPO, Run, Shared
from PIL import Image
from runs import read_lines

from rn50_jax import convert

SIDE = 96
COUNTS = {"dahlia": 30, "Grace Hopper": 14, "pagoda": 8}
# Of pagoda/, beside its good crops. Two more are no trouble: a photograph on its side, and one with transparency.
BAD = {"cut off.jpg": "cut", "page.jpg": "HTML"}
TINY = ("--config.model.arch=resnet18", "--config.model.stages=(1, 1)", "--config.model.width=8")


class Own(NamedTuple):
    """A folder of photographs, weights that were trained on other images, and the folder that commands run in."""

    photographs: Path
    weights: Path
    home: Path


def photograph(name: str) -> Image.Image:
    scikit = Path(sklearn.datasets.__file__).parent / "images"
    paths = {
        "dahlia": scikit / "flower.jpg",
        "pagoda": scikit / "china.jpg",
        "Grace Hopper": Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    }
    return Image.open(paths[name]).convert("RGB")


def write_photographs(root: Path) -> None:
    """Writes `<class>/<image>` as people have it, with every kind of damage once."""
    draw = random.Random(0)
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        whole = photograph(name)
        for number in range(count):
            left, top = draw.randrange(whole.width - SIDE), draw.randrange(whole.height - SIDE)
            image = whole.crop((left, top, left + SIDE, top + SIDE))
            image.save(root / name / f"IMG {number:04} (copy).JPG", "JPEG", quality=draw.randint(70, 95))
    whole = photograph("pagoda")
    jpeg = io.BytesIO()
    whole.save(jpeg, "JPEG")
    (root / "pagoda/cut off.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 3])
    (root / "pagoda/page.jpg").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    (root / "pagoda/from phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored as the sensor saw it, to be turned clockwise
    whole.transpose(Image.Transpose.ROTATE_90).save(root / "pagoda/on its side.jpg", exif=exif)
    transparent = whole.resize((SIDE, SIDE)).convert("RGBA")
    transparent.putalpha(Image.radial_gradient("L").resize((SIDE, SIDE)))
    transparent.save(root / "pagoda/cut out.png")


@pytest.fixture(scope="session")
def own(trained: tuple[Path, str], shared: Shared) -> Own:
    def make(folder: Path) -> None:
        write_photographs(folder / "my photos")
        assert convert.main([str(trained[0]), str(folder / "weights.safetensors")]) == 0

    folder = shared("own", make)
    return Own(folder / "my photos", folder / "weights.safetensors", folder)


def test_from_a_folder_of_photographs_to_a_prediction(own: Own, call: Run, tmp_path: Path) -> None:
    # 1. What is wrong with the images.
    checked = call("check_data", own.photographs, "--json", "check.json", cwd=tmp_path)
    assert checked.returncode == 1, checked.stderr
    for name, reason in BAD.items():
        assert any(name in line and reason in line for line in checked.stdout.splitlines()), checked.stdout
    assert "from phone.heic" in checked.stdout
    report = json.loads((tmp_path / "check.json").read_text())
    (split,) = report["splits"].values()
    assert split["classes"] == 3 and sum(split["formats"].values()) >= sum(COUNTS.values())
    notes = {file["file"] for kind in report["notes"].values() for file in kind["files"]}
    assert {"pagoda/on its side.jpg", "pagoda/cut out.png"} <= {name.removeprefix("my photos/") for name in notes}

    # 2. Fine-tuning, a fifth of each class set apart for validation.
    workdir = tmp_path / "runs/fine_tune-images100"
    options = (f"--config.data.dir={own.photographs}", "--config.data.val_share=0.2", "--config.data.image_size=32")
    config = ("--config", REPO / "configs/fine_tune.py:images100", *options, *TINY, "--config.precision=fp32")
    tuned = call("train", *config, "--pretrained_weights", own.weights, "--config.epochs=12", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    assert "3 classes" in tuned.stdout and "its classifier of 10 classes is replaced" in tuned.stdout
    validations = [line for line in read_lines(workdir) if "val.top1" in line]
    # Of 30, 14 and 12 files, 6, 3 and 2; those that cannot be read may be among either.
    assert len(validations) == 12 and 9 <= validations[-1]["val.images"] <= 11
    best = max(validations, key=lambda line: (line["val.top1"], -line["val.loss"]))
    assert best["val.top1"] > 60  # dahlias alone would be 55

    # 3. The page about the run.
    drawn = call("plot", workdir, "--html", "report.html", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    page = (tmp_path / "report.html").read_text()
    assert "Grace Hopper" in page and "<script src" not in page

    # 4. Evaluation sees the same images, and finds what training found.
    evaluated = call("evaluate", "--workdir", workdir, "--json", "result.json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["val.images"], result["val.top1"]) == (best["val.images"], pytest.approx(best["val.top1"]))

    # 5. Prediction names the classes, and what it cannot read.
    images = sorted((own.photographs / "dahlia").iterdir())[:10]
    told = call("predict", "--workdir", workdir, "--json", *images, own.photographs / "pagoda/page.jpg", cwd=tmp_path)
    assert told.returncode == 1, told.stderr  # of the page
    *answers, bad = json.loads(told.stdout)
    assert "error" in bad and bad["file"].endswith("page.jpg")
    said = [answer["predictions"][0]["class"] for answer in answers]
    assert said.count("dahlia") >= 7, said
    assert {guess["class"] for guess in answers[0]["predictions"]} == set(COUNTS)
