"""The constants of normalization, `data.mean` and `data.std`, from the config to every step, command and export."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import Run
from helpers.damage import make_photo
from helpers.loading import decode_data
from helpers.tiny import OPTIONS, make_batch, make_model, make_state, make_step, place
from helpers.trees import make_config

from rn50_jax import export, features
from rn50_jax.data.normalize import normalize, pixel_normalization
from rn50_jax.inference.image_files import Found
from rn50_jax.inference.predict_step import predict_step
from rn50_jax.inference.trained_model import load_run
from rn50_jax.training.state import variables_of
from rn50_jax.training.validation import eval_step

MEAN, STD = (0.1, 0.2, 0.6), (0.3, 0.5, 0.25)
CONSTANTS = (("data.mean", str(MEAN)), ("data.std", str(STD)))
OPTIONS_OF_COMMANDS = [f"--config.{key}={value}" for key, value in CONSTANTS]


def scaled(images: np.ndarray) -> np.ndarray:
    """As torchvision's ToTensor and Normalize(mean, std) do it, but channels last."""
    return ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def test_mean_and_std_of_the_config_act_in_every_step() -> None:
    config = make_config("data", *CONSTANTS)
    constants = pixel_normalization(config.data.mean, config.data.std)
    model = make_model()
    variables, batch = variables_of(make_state(model))["val"], make_batch(1, 4)
    images = batch["image"][0]
    np.testing.assert_allclose(normalize(images, constants), scaled(images), rtol=1e-5, atol=1e-5)
    logits = model.apply(variables, scaled(images), train=False)
    wanted = -np.asarray(jax.nn.log_softmax(logits))[np.arange(4), batch["label"][0]].sum()

    def run(step: Callable[..., Any]) -> Any:
        bound = partial(step, model=model, axis_name="one", normalization=constants)
        return jax.vmap(bound, in_axes=(None, 0), axis_name="one")(variables, batch)

    np.testing.assert_allclose(run(eval_step)["loss"], [wanted], rtol=1e-5)
    ranked = run(partial(eval_step, top=5))
    np.testing.assert_allclose(ranked["loss"], [wanted], rtol=1e-5)
    best = np.sort(jax.nn.softmax(logits), axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(ranked["probability"][0, 0], best, rtol=1e-4)
    np.testing.assert_allclose(run(predict_step)[0], jax.nn.softmax(logits), rtol=1e-4)


def test_training_sees_the_mean_that_the_config_gives() -> None:
    # Pixels and mean both 30 levels higher: the same step as with ImageNet's mean.
    batch = make_batch(1, 4)
    batch["image"] = batch["image"] % 200
    brighter = batch | {"image": batch["image"] + 30}
    mean = tuple(value + 30 / 255 for value in (0.485, 0.456, 0.406))
    config = make_config("data", ("data.mean", str(mean)))
    model, losses = make_model(), []
    for options, images in (
        (OPTIONS, batch),
        (OPTIONS.replace(normalization=pixel_normalization(config.data.mean, config.data.std)), brighter),
        (OPTIONS, brighter),
    ):
        step, replicate = make_step(model, 1, options)
        losses.append(float(step(replicate(make_state(model)), place(images))[1]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)


def test_commands_follow_mean_and_std(trained: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    for seed in range(2):
        make_photo(seed).save(tmp_path / f"{seed}.png")
    workdir = ("--workdir", str(trained[0]))
    done = call("predict", *workdir, tmp_path, "--json", "--top_k", 10, *OPTIONS_OF_COMMANDS)
    assert done.returncode == 0, done.stderr
    found = [{p["index"]: p["probability"] for p in answer["predictions"]} for answer in json.loads(done.stdout)]
    stored = load_run(trained[0], "best", [*CONSTANTS, ("data.backend", "dali-cpu")])
    files = [Found(str(tmp_path / f"{seed}.png")) for seed in range(2)]
    images = scaled(np.stack([item.image for item in decode_data(stored.config, files) if item.image is not None]))
    variables = stored.load()
    wanted = np.asarray(jax.nn.softmax(stored.model.apply(variables, images, train=False)))
    for p, q in zip(found, wanted, strict=True):
        assert p == pytest.approx(dict(enumerate(q.tolist())), abs=1e-4)
    out = str(tmp_path / "features.npz")
    assert features.main([*workdir, str(tmp_path), "--out", out, *OPTIONS_OF_COMMANDS]) == 0
    with np.load(out) as file:
        pooled = stored.model.apply(variables, images, train=False, head=False)
        np.testing.assert_allclose(file["features"], pooled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["model.onnx", "model.stablehlo"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_exports_have_mean_and_std_in_them(name: str, kind: str, trained: tuple[Path, str], tmp_path: Path) -> None:
    # An export is compared with the trained model before it is kept; the model itself with NumPy above.
    out = tmp_path / name
    assert export.main(["--workdir", str(trained[0]), "--out", str(out), "--input", kind, *OPTIONS_OF_COMMANDS]) == 0
    facts = json.loads((tmp_path / f"{name}.json").read_text())
    assert facts["check"]["largest_difference"] < 1e-4
    assert facts["mean"] == pytest.approx([25.5, 51, 153]) and facts["std"] == pytest.approx([76.5, 127.5, 63.75])
