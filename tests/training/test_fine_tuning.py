"""Fine-tuning by the real commands: a network trained on the digits 0 to 4 goes on to 5 to 9."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import REPO, TINY, Run, Shared
from PIL import Image

from rn50_jax import convert, features, train
from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.errors import UserError

pytestmark = pytest.mark.slow  # all begin with a trained network, most with a probe of it

# All of the tiny network but its classifier, as the recipe does with the full one.
FREEZE = "--config.finetune.freeze=('stem', 'layer1', 'layer2')"


class Halves(NamedTuple):
    """Class folders of the digits 0 to 4 and 5 to 9, and weights trained on the former."""

    low: Path
    high: Path
    weights: Path


def train_on(run: Run, config: str, data: Path, workdir: Path, *args: object) -> subprocess.CompletedProcess[str]:
    done = run(
        "train", "--config", REPO / f"configs/{config}", *TINY, f"--config.data.dir={data}", "--workdir", workdir, *args
    )
    assert done.returncode == 0, done.stderr
    return done


def validations(workdir: Path, metric: str = "top1") -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line[f"val.{metric}"] for line in lines if f"val.{metric}" in line]


@pytest.fixture(scope="session")
def halves(run: Run, digits: Path, shared: Shared) -> Halves:
    def make(root: Path) -> None:
        for name, classes in (("low", "01234"), ("high", "56789")):
            for split in ("train", "val"):
                (root / name / split).mkdir(parents=True)
                for digit in classes:
                    (root / name / split / digit).symlink_to(digits / split / digit)
        train_on(run, "quickstart.py", root / "low", root / "run", "--config.epochs=4")
        assert convert.main([str(root / "run"), str(root / "low.npz")]) == 0

    root = shared("halves", make)
    return Halves(root / "low", root / "high", root / "low.npz")


@pytest.fixture(scope="session")
def probe(run: Run, halves: Halves, shared: Shared) -> Path:
    """A finished linear probe, to be read."""

    def make(folder: Path) -> None:
        options = ("--pretrained_weights", halves.weights, FREEZE)
        train_on(run, "linear_probe.py:digits", halves.high, folder / "run", *options)

    return shared("probe", make) / "run"


def test_a_probe_trains_the_classifier_and_nothing_else(halves: Halves, probe: Path, tmp_path: Path) -> None:
    assert convert.main([str(probe), str(tmp_path / "probe.npz"), "--checkpoint", "latest"]) == 0
    before, after = np.load(halves.weights), np.load(tmp_path / "probe.npz")
    assert set(before.files) == set(after.files)
    changed = {name for name in before.files if not np.array_equal(before[name], after[name])}
    counters = {name for name in changed if name.endswith("num_batches_tracked")}  # made of the step when written
    assert changed - counters - {"rn50_jax"} == {"fc.weight", "fc.bias"}  # running statistics stay as well
    assert validations(probe)[-1] > 35  # of five classes


def test_fine_tuning_beats_a_new_start(call: Run, halves: Halves, tmp_path: Path) -> None:
    tuned, fresh = tmp_path / "tuned", tmp_path / "fresh"
    weights = ("--pretrained_weights", halves.weights, "--config.epochs=2", "--config.recipe.warmup_epochs=0")
    done = train_on(call, "fine_tune.py:digits", halves.high, tuned, *weights)
    assert "its classifier of 5 classes is replaced by a new one of 5" in done.stdout
    train_on(call, "quickstart.py", halves.high, fresh, *weights[2:])
    assert validations(tuned, "loss")[-1] < 0.75 * validations(fresh, "loss")[-1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.optimizer=lamb", "config.recipe.optimizer was 'sgd' and is 'lamb' now"),
        ("finetune.freeze=('stem',)", "config.finetune.freeze was ('stem', 'layer1', 'layer2') and is"),
    ],
)
def test_checkpoints_of_another_optimizer_are_refused(probe: Path, tmp_path: Path, override: str, message: str) -> None:
    probe = shutil.copytree(probe, tmp_path / "probe")
    argv = ["--config", str(probe / "config.json"), "--workdir", str(probe), f"--config.{override}"]
    with pytest.raises(UserError) as error:
        train.main([*argv, "--config.epochs=3"])
    assert message in str(error.value) and "set it back, or choose another --workdir" in str(error.value)


def test_random_weights_and_other_classifiers_are_not_frozen(halves: Halves, tmp_path: Path) -> None:
    argv = ["--config", str(REPO / "configs/linear_probe.py:digits"), *TINY, FREEZE, f"--config.data.dir={halves.high}"]
    argv += ["--workdir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="would hold random weights; give --pretrained_weights FILE"):
        train.main(argv)
    with pytest.raises(UserError, match=r"holds 'fc', but .*low.npz has a classifier of other classes"):
        train.main([*argv, "--pretrained_weights", str(halves.weights), "--config.finetune.freeze=('fc',)"])


def read_features(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_features_of_every_image_once_and_in_order(halves: Halves, tmp_path: Path) -> None:
    # 144 images on eight devices in batches of 5: the last one is filled up.
    out = tmp_path / "high.npz"
    argv = ["--weights", str(halves.weights), str(halves.high / "val"), "--out", str(out), "--config.batch_size=5"]
    assert features.main(argv) == 0
    found = read_features(out)
    names, images = scan_split(halves.high / "val")
    assert found["class_names"].tolist() == list(names) == list("56789")
    assert found["files"].tolist() == [str(Path(file).relative_to(halves.high / "val")) for file in images.files]
    np.testing.assert_array_equal(found["labels"], images.labels)
    assert found["features"].shape == (144, 16) and found["features"].dtype == np.float32
    assert found["labels"].dtype == np.int32
    # Some of the same images, without class folders and in another batch, have the same features.
    flat = tmp_path / "flat"
    flat.mkdir()
    for place in (100, 7, 143):
        (flat / f"{place:03}.jpg").symlink_to(images.files[place])
    (flat / "notes.txt").write_text("no image")
    assert features.main(["--weights", str(halves.weights), str(flat), "--out", str(tmp_path / "flat.npz")]) == 0
    few = read_features(tmp_path / "flat.npz")
    assert few["files"].tolist() == ["007.jpg", "100.jpg", "143.jpg"]
    assert few["labels"].tolist() == [-1, -1, -1] and few["class_names"].tolist() == []
    np.testing.assert_allclose(few["features"], found["features"][[7, 100, 143]], rtol=1e-4, atol=1e-5)


def test_features_are_what_the_classifier_sees(halves: Halves, probe: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    assert features.main(["--workdir", str(probe), str(halves.high / "val"), "--out", str(out)]) == 0
    found = read_features(out)
    assert convert.main([str(probe), str(tmp_path / "weights.npz")]) == 0
    head = np.load(tmp_path / "weights.npz")
    best = np.argmax(found["features"] @ head["fc.weight"].T + head["fc.bias"], axis=1)
    assert 100 * np.mean(best == found["labels"]) == pytest.approx(max(validations(probe)), abs=1e-4)


def test_mistakes_with_features_are_told(halves: Halves, tmp_path: Path) -> None:
    def refused(folder: Path, out: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            features.main(["--weights", str(halves.weights), str(folder), "--out", out])
        assert not Path(out).exists()

    out = str(tmp_path / "out.npz")
    refused(halves.high / "val", str(tmp_path / "out.txt"), "must end in .npz")
    refused(halves.high / "val", str(tmp_path / "none/out.npz"), "none is not a folder")
    refused(tmp_path / "missing", out, "missing is not a folder")
    refused(halves.high, out, "is a data set; give one of its folders, .*train or ")
    (tmp_path / "mixed/a").mkdir(parents=True)
    refused(tmp_path / "mixed/a", out, "holds no images")
    Image.new("RGB", (40, 40)).save(tmp_path / "mixed/b.png")
    refused(tmp_path / "mixed", out, r"holds images, such as .*b.png, beside class folders")
    (tmp_path / "mixed/a/b.jpg").write_bytes(b"\xff\xd8 no image")
    refused(tmp_path / "mixed/a", out, "b.jpg")
