"""A newcomer's five commands on real photographs: one folder a class, unbalanced, and some of the files damaged.

The photographs come with packages that are installed anyway: scikit-learn has the pagoda and the dahlia, matplotlib the
portrait of Grace Hopper. Each image is a crop of one of them.
"""

import io
import json
import random
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pytest
import sklearn.datasets
from conftest import REPO, Run, Shared
from helpers.runs import read_lines
from PIL import Image

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
        assert convert.main([str(trained[0]), str(folder / "weights.pth")]) == 0

    folder = shared("own", make)
    return Own(folder / "my photos", folder / "weights.pth", folder)


def readme_commands() -> list[list[str]]:
    """The README's five commands, as words after `python -m rn50_jax.`."""
    (block,) = re.findall(r"^```bash needs=photographs\n(.*?)^```$", (REPO / "README.md").read_text(), re.M | re.S)
    return [shlex.split(line.removeprefix("python -m rn50_jax.")) for line in block.splitlines()]


def test_from_a_folder_of_photographs_to_a_prediction(own: Own, call: Run, tmp_path: Path) -> None:
    """The README's lines as they stand; only training gets a variant, epochs and a size for tiny photographs."""
    (tmp_path / "my_photos").symlink_to(own.photographs)
    for file in (own.weights, own.weights.with_name("weights.pth.json")):
        shutil.copy(file, tmp_path / file.name.replace("weights", "resnet50"))
    shutil.copy(sorted((own.photographs / "dahlia").iterdir())[0], tmp_path / "new_photo.jpg")
    check, train, plot, evaluate, predict = readme_commands()

    # 1. What is wrong with the images.
    checked = call(*check, "--json", "check.json", cwd=tmp_path)
    assert checked.returncode == 1, checked.stderr
    for name, reason in BAD.items():
        assert any(name in line and reason in line for line in checked.stdout.splitlines()), checked.stdout
    assert "from phone.heic" in checked.stdout
    assert "--config.data.exif_rotation=true" in checked.stdout
    assert "data.background" in checked.stdout
    assert "--config.data.val_share=0.2" in checked.stdout
    report = json.loads((tmp_path / "check.json").read_text())
    (split,) = report["splits"].values()
    assert split["classes"] == 3 and sum(split["formats"].values()) >= sum(COUNTS.values())
    notes = {file["file"] for kind in report["notes"].values() for file in kind["files"]}
    assert {"pagoda/on its side.jpg", "pagoda/cut out.png"} <= notes

    # 2. Fine-tuning, a fifth of each class set apart for validation. The architecture is that of the weights.
    assert "configs/fine_tune.py:images1000" in train
    train[train.index("configs/fine_tune.py:images1000")] = f"{REPO / 'configs/fine_tune.py'}:images100"
    tuned = call(*train, "--config.data.image_size=32", "--config.precision=fp32", "--config.epochs=12", cwd=tmp_path)
    workdir = tmp_path / "runs/mine"
    assert tuned.returncode == 0, tuned.stderr
    assert "3 classes" in tuned.stdout and "its classifier of 10 classes is replaced" in tuned.stdout
    assert "resnet18" in tuned.stdout and "1 .heic" in tuned.stdout
    validations = [line for line in read_lines(workdir) if "val.top1" in line]
    # Of 30, 14 and 12 files, 6, 3 and 2; those that cannot be read may be among either.
    assert len(validations) == 12 and 9 <= validations[-1]["val.images"] <= 11
    best = max(validations, key=lambda line: (line["val.top1"], -line["val.loss"]))
    assert best["val.top1"] > 60  # dahlias alone would be 55
    assert f"{best['epoch']:>3}" in next(line for line in tuned.stdout.splitlines() if line.startswith("  best"))

    # 3. The page about the run.
    drawn = call(*plot, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    page = (workdir / "report.html").read_text()
    assert "Grace Hopper" in page and "<script src" not in page

    # 4. Evaluation sees the same images, and finds what training found; weights in a file do too.
    evaluated = call(*evaluate, "--json", "result.json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["val.images"], result["val.top1"]) == (best["val.images"], pytest.approx(best["val.top1"]))
    assert result["epoch"] == best["epoch"]
    assert call("convert", workdir, "mine.pth", cwd=tmp_path).returncode == 0
    words = ("--weights", "mine.pth", "--config.data.dir=my_photos", "--json", "file.json")
    assert call("evaluate", *words, cwd=tmp_path).returncode == 0
    again = json.loads((tmp_path / "file.json").read_text())
    assert again["val.images"] == result["val.images"]
    assert again["val.loss"] == pytest.approx(result["val.loss"], rel=1e-5)

    # 5. Prediction names the classes, and what it cannot read.
    told = call(*predict, cwd=tmp_path)
    assert told.returncode == 0 and "dahlia" in told.stdout
    images = sorted((own.photographs / "dahlia").iterdir())[:10]
    told = call("predict", "--workdir", workdir, "--json", *images, own.photographs / "pagoda/page.jpg", cwd=tmp_path)
    assert told.returncode == 1, told.stderr  # of the page
    *answers, bad = json.loads(told.stdout)
    assert "HTML" in bad["error"] and bad["file"].endswith("page.jpg")
    said = [answer["predictions"][0]["class"] for answer in answers]
    assert said.count("dahlia") >= 7, said
    assert {guess["class"] for guess in answers[0]["predictions"]} == set(COUNTS)
