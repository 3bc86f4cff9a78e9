"""What a weight file says besides its tensors survives every format, and is never that of another file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, assert_user_error
from helpers.networks import make_net

from rn50_jax.convert import main as convert
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import describe_model, load_weights, warn_assumed
from rn50_jax.weights.files import WeightFile, read_weights, write_weights
from rn50_jax.weights.metadata import Facts, beside, config_values, read_beside, to_pixels

KEYS = {
    "seed": 7,
    "data.image_size": 96,
    "data.resize": 100,
    "data.transform": "dali",
    "data.mean": (0.5, 0.25, 0.123456),
    "data.std": (0.2, 0.3, 0.4),
    "data.exif_rotation": True,
    "data.background": (255, 254, 0),
    "data.val_share": 0.2,
}
FACTS = {"class_names": [*"abcdef", "gnü"], "step": 12}


def write_bare(path: Path) -> Path:
    """As PyTorch's users do."""
    torch.save(make_net().state_dict(), path)
    return path


def write_known(path: Path, facts: Facts = FACTS) -> Path:
    """As this program does."""
    arrays = {name: x.numpy() for name, x in make_net().state_dict().items()}
    write_weights(path, WeightFile(arrays, facts))
    return path


def test_all_facts_survive_a_chain_through_all_formats(tmp_path: Path) -> None:
    source = write_known(tmp_path / "0.npz")
    options = [f"--config.{key}={value}" for key, value in KEYS.items()]
    for number, suffix in enumerate((".pth", ".safetensors", ".npz", ".pth.tar", ".pt"), 1):
        target = tmp_path / f"{number}{suffix}"
        assert convert([str(source), str(target), *options]) == 0
        source, options = target, []
        stored = load_weights(target, [])
        flat = stored.config.flat()
        assert {key: flat[key] for key in KEYS} == KEYS
        assert stored.class_names == (*"abcdef", "gnü") and stored.facts["step"] == 12
        assert stored.assumed == ()
        assert beside(target).exists() == (suffix not in (".safetensors", ".npz"))
        facts = describe_model(stored)
        np.testing.assert_allclose(facts["mean"], [127.5, 63.75, 31.48128], rtol=1e-12)  # times 255
        np.testing.assert_allclose(facts["std"], [51, 76.5, 102], rtol=1e-12)


def test_mean_and_std_come_back_from_the_scale_of_files() -> None:
    rng = np.random.default_rng(0)
    for values in [(0.485, 0.456, 0.406), (0.229, 0.224, 0.225), *np.round(rng.uniform(0, 1, (50, 3)), 6)]:
        values = tuple(float(value) for value in values)
        np.testing.assert_allclose(to_pixels(values), 255 * np.array(values), rtol=1e-11)
        assert config_values({"mean": to_pixels(values)})["data.mean"] == values


def test_an_image_size_of_the_command_line_keeps_the_proportion(tmp_path: Path) -> None:
    write_known(tmp_path / "x.pth", {"image_size": 224, "resize": 256})
    assert describe_model(load_weights(tmp_path / "x.pth", []))["resize"] == 256
    facts = describe_model(load_weights(tmp_path / "x.pth", [("data.image_size", "160")]))
    assert facts["resize"] == 183  # 160 * 256 / 224


def test_what_is_assumed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*given: tuple[str, str]) -> str:
        warn_assumed(load_weights(path, given))
        return capsys.readouterr().err

    path = write_bare(tmp_path / "x.pth")
    assert told() == (
        f"note: assuming image_size=224, resize=256, mean and std of ImageNet, 7 classes without names, as {path} does "
        "not say; to change: --config.data.image_size, --config.data.resize, --config.data.mean, --config.data.std\n"
    )
    some = told(("data.image_size", "64"), ("data.mean", "(0.5, 0.5, 0.5)"))
    assert some.startswith("note: assuming resize=73, std of ImageNet, 7 classes without names, as ")
    torch.save(make_net(classes=1000).state_dict(), path)
    assert "ImageNet's 1,000 classes" in told() and "stem" not in told()
    # Stride and pooling have no tensors.
    state = make_net().state_dict()
    torch.save(state | {"conv1.weight": state["conv1.weight"][:, :, 2:5, 2:5].clone()}, path)
    assert "mean and std of ImageNet, a 3x3 stem of stride 1 without pooling, 7 classes without names" in told()
    # It does not become what a file says.
    write_bare(path)
    assert convert([str(path), str(tmp_path / "x.npz")]) == 0
    meta = read_weights(tmp_path / "x.npz").meta
    assert not meta.keys() & {"image_size", "resize", "mean", "std", "transform", "class_names", "exif_rotation"}
    assert load_weights(tmp_path / "x.npz", []).assumed == load_weights(path, []).assumed
    write_known(path, {**FACTS, "image_size": 64, "resize": 64, "mean": [1, 2, 3], "std": [1, 1, 1]})
    assert told() == ""


def test_facts_of_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert convert([str(write_known(tmp_path / "0.npz")), str(path)]) == 0
    facts = beside(path).read_text()
    data = path.read_bytes()
    for changed in (data[:-1] + bytes([data[-1] ^ 1]), data + b"0"):  # of the same size, and of another
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"x\.pth\.json was written for another x\.pth than this one: remove it"):
            read_beside(path)
    write_bare(path)
    with pytest.raises(UserError, match="was written for another"):
        read_weights(path)
    # If the rest still holds, that can be said.
    rest = json.loads(facts)
    del rest["file"]
    beside(path).write_text(json.dumps(rest))
    assert read_weights(path).meta["class_names"] == FACTS["class_names"]
    # Writing again mends it.
    beside(path).write_text(facts)
    assert convert([str(tmp_path / "0.npz"), str(path), "--config.data.image_size=64"]) == 0
    assert read_weights(path).meta["image_size"] == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "Expecting|Unterminated"),
        (lambda text: "", "Expecting"),
        (lambda text: text.replace('"gn\\u00fc"', '"gn", "\\u00fc"'), "it names 8 classes, and its classifier has 7"),
        (lambda text: text.replace('"step": 12', '"step": "12"'), "step: Input should be a valid integer"),
        (lambda text: text.replace('"step": 12', '"mean": [0.5, 0.5, 300]'), "mean=.*times 255"),
        (lambda text: text.replace('"step": 12', '"std": [0, 1, 1]'), r"std=\[0, 1, 1\] must be three numbers > 0"),
        (lambda text: text.replace('"step": 12', '"background": [1, 2]'), "background="),
        (lambda text: text.replace('"step": 12', '"val_share": 1.5, "seed": 3'), "val_share=1.5 must be"),
        (lambda text: text.replace('"step": 12', '"val_share": 0.5, "seed": -3'), "seed=-3 must be"),
        (lambda text: text.replace('"step": 12', '"exif_rotation": 1'), "exif_rotation: Input should be a valid bool"),
        (lambda text: text.replace('"bytes"', '"size"'), "bytes: Field required"),
    ],
)
def test_damaged_facts_are_named(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = write_known(tmp_path / "x.pth")
    text = beside(path).read_text()
    assert change(text) != text
    beside(path).write_text(change(text))
    with pytest.raises(UserError, match=rf"x\.pth\.json says what .*, and cannot be used: .*({message})") as error:
        read_weights(path)
    assert "\n" not in str(error.value) and "remove x.pth.json to use x.pth without it" in str(error.value)


@pytest.mark.parametrize("foreign", ["[1, 2]", '"text"', '{"class_names": ["a"], "image_size": -5}', '{"file": "x"}'])
def test_json_files_of_other_programs_are_left_alone(foreign: str, tmp_path: Path) -> None:
    path = write_bare(tmp_path / "x.pth")
    beside(path).write_text(foreign)
    assert read_weights(path).meta == {}
    with pytest.raises(UserError, match=r"cannot write .*x\.pth: .* goes to .*x\.pth\.json, which is another"):
        write_known(path)
    assert beside(path).read_text() == foreign
    assert read_weights(path).meta == {}


def test_a_run_and_its_pth_have_the_same_accuracy(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    # Its images are of 32 pixels: seen at 224, as ImageNet's, the same weights know next to nothing.
    path = tmp_path / "w.pth"
    done = call("convert", trained[0], path)
    assert f"written to {path} and {path}.json" in done.stdout
    results = []
    for source in (("--workdir", trained[0]), ("--weights", path)):
        done = call("evaluate", *source, f"--config.data.dir={digits}", "--json", tmp_path / "result.json")
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / "result.json").read_text())["val.top1"])
    assert results[0] == results[1] > 50
    beside(path).unlink()
    done = call(
        "features", "--weights", path, digits / "val", "--out", tmp_path / "f.npz", "--config.data.image_size=32"
    )
    assert done.returncode == 0 and "note: assuming resize=37, mean and std of ImageNet, 10 classes" in done.stderr
    beside(path).write_text("{")
    done = call("predict", "--weights", path, digits / "val/3")
    assert_user_error(done, f"{path}.json says what there is to know about w.pth, and cannot be used")
