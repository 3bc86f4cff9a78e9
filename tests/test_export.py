"""Exported files against the model and against PyTorch, on real images; every example of docs/export.md."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
import sklearn.datasets
import torch
from conftest import REPO, Run, Shared, assert_user_error
from flax.traverse_util import flatten_dict
from helpers.loading import decode_data
from helpers.networks import make_torch, random_variables
from helpers.runs import PATIENCE
from torch_reference import normalize, to_torch, torch_name

from rn50_jax import export
from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.data.normalize import MEAN, STD
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.exporting import onnx_file
from rn50_jax.exporting.check import check_images
from rn50_jax.exporting.form import LAYOUTS, Exportable, Form, make_exportable
from rn50_jax.exporting.onnx_file import load_onnx
from rn50_jax.exporting.onnx_graph import to_onnx
from rn50_jax.exporting.stablehlo import load_stablehlo, to_stablehlo
from rn50_jax.inference.image_files import decode_files, found_in
from rn50_jax.inference.trained_model import TrainedModel, load_run, load_weights
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY
from rn50_jax.models.resnet import ResNet
from rn50_jax.weights.files import WeightFile, read_weights, write_weights
from rn50_jax.weights.torch_names import to_torch as to_common

FORMS = [Form("uint8", "nchw", "probabilities", True), Form("float32", "nhwc", "logits", False)]
PHOTO = Path(sklearn.datasets.__file__).parent / "images/china.jpg"


def make_trained(arch: str, folder: Path, stages: tuple[int, ...] = ()) -> tuple[TrainedModel, torch.nn.Module]:
    """A narrow network of the family with random weights, through a weight file, and the same in plain PyTorch."""
    variant = FAMILY[arch]._replace(stages=stages or FAMILY[arch].stages)
    width = 16 if variant.groups > 1 else 8
    variables = random_variables(ResNet(variant, 10, PRECISIONS["fp32"], width=width))
    for path, x in flatten_dict(variables["params"]).items():
        if path[-2:] == ("bn3" if variant.bottleneck else "bn2", "scale"):
            x *= 0.2  # many layers: keep the numbers of one size, as in a trained network
    path = folder / "x.npz"
    write_weights(path, WeightFile(to_common(**variables), {"image_size": 64, "resize": 80}))
    net = make_torch(variant, 10, se_units=0, width=width)
    leaves = {path: x for tree in variables.values() for path, x in flatten_dict(tree).items()}
    net.load_state_dict({torch_name(path): to_torch(torch_name(path), x) for path, x in leaves.items()}, strict=False)
    return load_weights(path, []), net.eval()


def exportable(trained: TrainedModel, form: Form) -> Exportable:
    return make_exportable(trained, trained.load(), form)


def wanted(net: torch.nn.Module, images: np.ndarray, form: Form) -> np.ndarray:
    with torch.no_grad():
        logits = net(normalize(images))
    return (logits.softmax(1) if form.output == "probabilities" else logits).numpy()


def as_input(images: np.ndarray, form: Form) -> np.ndarray:
    """What a caller would make of pixels."""
    x = images if form.input == "uint8" else ((images - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)
    return x if form.layout == "nhwc" else np.ascontiguousarray(np.moveaxis(x, -1, 1))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.max(np.abs(found - expected)) < 1e-4 * np.max(np.abs(expected))


@pytest.mark.parametrize("arch", FAMILY)
def test_onnx_does_what_pytorch_does(arch: str, tmp_path: Path) -> None:
    network, net = make_trained(arch, tmp_path, () if arch == "resnet50" else (2, 1, 1, 1))
    images = check_images(partial(decode_files, data=network.config.data, by_pillow=True), [])
    assert images.shape == (4, 64, 64, 3)
    for form in FORMS:
        data = to_onnx(exportable(network, form), {"arch": arch})
        run = load_onnx(data)
        for count in (1, 4):
            assert_close(run(as_input(images[:count], form)), wanted(net, images[:count], form))
    model = onnx.load_from_string(data)
    assert [entry.version for entry in model.opset_import] == [17] and model.ir_version == 8
    assert model.graph.name == network.config.model.arch
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) > 10


@pytest.mark.parametrize("form", [*FORMS, Form("float32", "nchw", "logits", True)])
def test_stablehlo_does_what_pytorch_does(form: Form, tmp_path: Path) -> None:
    network, net = make_trained("resnet50", tmp_path, stages=(1, 1))
    images = check_images(partial(decode_files, data=network.config.data, by_pillow=True), [])
    data = to_stablehlo(exportable(network, form))
    run = load_stablehlo(data)
    for count in (1, 4):
        assert_close(run(as_input(images[:count], form)), wanted(net, images[:count], form))
    exported = jax.export.deserialize(bytearray(data))
    assert exported.platforms == ("cpu", "cuda")
    assert [str(dim) for dim in exported.in_avals[0].shape] == ["batch", *map(str, form.shape(64))]
    assert set(re.findall(r"custom_call @(\w+)", exported.mlir_module())) == {"shape_assertion"}  # no platform's own


def test_folding_removes_batch_norm(tmp_path: Path) -> None:
    network, _ = make_trained("se-resnext101-32x4d", tmp_path, stages=(1, 1))
    for layout in LAYOUTS:
        data = to_onnx(exportable(network, FORMS[0]._replace(layout=layout)), {})
        kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
        assert kinds.count("BatchNormalization") == 0 and kinds.count("Conv") == 1 + 2 * 3 + 2
        assert kinds.count("Gemm") == 2 * 2 + 1
        assert kinds.count("Transpose") == (layout == "nhwc")


@pytest.fixture(scope="session")
def exported(trained: tuple[Path, str], digits: Path, shared: Shared) -> Path:
    """All formats of the tiny run, and an image; to be read."""

    def make(folder: Path) -> None:
        for name in ("stablehlo", "onnx", "npz", "safetensors", "pth"):
            assert export.main(["--workdir", str(trained[0]), "--out", str(folder / f"model.{name}")]) == 0
        shutil.copy(sorted((digits / "val/3").iterdir())[0], folder / "photo.jpg")

    return shared("exported", make)


@pytest.mark.slow
def test_examples_of_the_documentation(
    exported: Path, trained: tuple[Path, str], call: Run, process_env: dict[str, str], tmp_path: Path
) -> None:
    exported = shutil.copytree(exported, tmp_path / "exported")
    done = call("predict", "--workdir", trained[0], exported / "photo.jpg", "--json", "--top_k", 1)
    (best,) = json.loads(done.stdout)[0]["predictions"]
    preparation, *examples = re.findall(
        r"^```python\n(.*?)^```$", (REPO / "docs/export.md").read_text(), re.MULTILINE | re.DOTALL
    )
    # torchvision is no dependency of the tests: an independent network with its names stands for it.
    stand_in = exported / "torchvision/models.py"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f"import sys\n\nsys.path.append({str(REPO / 'scripts')!r})\nfrom torch_reference import ResNet\n\n\n"
        "def resnet50(num_classes):\n    return ResNet((1, 1), False, num_classes, width=8)\n"
    )
    # Those that need nothing of this project run without it.
    without = process_env.copy()
    del without["PYTHONPATH"]
    ours = [example for example in examples if "rn50_jax" in example]
    others = [example for example in examples if "rn50_jax" not in example]
    assert (len(ours), len(others)) == (1, 4)
    for snippets, env in ((ours, process_env), (others, without)):
        code = [sys.executable, "-W", "error", "-c", "\n\n".join([preparation, *snippets])]
        done = subprocess.run(code, cwd=exported, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            name, probability = line.split()
            assert name == best["class"]
            assert float(probability) == pytest.approx(best["probability"], abs=0.02)  # Pillow rounds twice
        assert len(done.stdout.splitlines()) == len(snippets)


def test_files_tell_what_they_are(exported: Path, trained: tuple[Path, str]) -> None:
    for name in ("stablehlo", "onnx", "npz", "safetensors", "pth"):
        facts = json.loads((exported / f"model.{name}.json").read_text())
        assert facts["class_names"] == list("0123456789")
        assert (facts["arch"], facts["image_size"], facts["resize"]) == ("resnet18", 32, 32)
        assert f"of {trained[0]}: step {facts['step']}" in facts["source"] and facts["checkpoint"] == "best"
        assert facts["mean"] == pytest.approx([123.675, 116.28, 103.53]) and len(facts["std"]) == 3
        assert facts["versions"]["jax"] == jax.__version__
    facts = json.loads((exported / "model.onnx.json").read_text())
    assert facts["input"]["shape"] == ["batch", 3, 32, 32] and facts["output"]["shape"] == ["batch", 10]
    assert facts["check"]["images"] == 8 and facts["check"]["largest_difference"] < facts["check"]["tolerance"] == 1e-4
    inside = {entry.key: entry.value for entry in onnx.load(exported / "model.onnx").metadata_props}
    for key, value in inside.items():
        assert facts[key] == (value if isinstance(facts[key], str) else json.loads(value))
    assert {"class_names", "input", "source", "versions"} <= set(inside)
    assert facts["versions"]["onnxruntime"]
    for name in ("npz", "safetensors"):
        meta = read_weights(exported / f"model.{name}").meta
        facts = json.loads((exported / f"model.{name}.json").read_text())
        del facts["file"]
        assert facts == {"format": "saved-npz" if name == "npz" else name, **meta}


def test_8_bit_integers(
    trained: tuple[Path, str], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.onnx"
    calibration = ["--calibration", str(digits / "train"), "--calibration_images", "100"]
    argv = ["--workdir", str(trained[0]), "--out", str(out), "--quantise", *calibration, "--layout", "nhwc"]
    assert export.main(argv) == 0
    facts = json.loads(Path(f"{out}.json").read_text())["quantisation"]
    assert f"top-1 {facts['top1_after']:.2f} %, before {facts['top1_before']:.2f} %" in capsys.readouterr().out
    assert (facts["calibration_images"], facts["val_images"]) == (100, 297)
    metrics = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    best = max(line["val.top1"] for line in metrics if "val.top1" in line)
    assert facts["top1_before"] == pytest.approx(best, abs=0.4)  # one image on the edge
    assert abs(facts["top1_loss"]) < 5
    assert facts["top1_loss"] == pytest.approx(facts["top1_before"] - facts["top1_after"])
    # Counted again, from the file.
    _, val = scan_split(digits / "val")
    config = load_run(trained[0], "best", []).config
    images = [decoded.image for decoded in decode_data(config, found_in(val))]
    found = load_onnx(out.read_bytes())(np.stack(images))
    assert 100 * np.mean(found.argmax(1) == val.labels) == pytest.approx(facts["top1_after"])
    assert export.main(["--workdir", str(trained[0]), "--out", str(tmp_path / "x.onnx"), "--layout", "nhwc"]) == 0
    before = load_onnx((tmp_path / "x.onnx").read_bytes())(np.stack(images))
    same = found.argmax(1) == before.argmax(1)
    assert 100 * np.mean(same) == pytest.approx(facts["same_class"])
    # How many answers the tiny network is unsure of depends on the processor that trained it.
    best_two = np.sort(before, axis=1)[:, -2:]
    sure = best_two[:, 1] - best_two[:, 0] > 0.1
    assert sure.any() and 100 * np.mean(same[sure]) > 90
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    weights = {w.name: w.data_type for w in onnx.load(out).graph.initializer}
    assert weights["layer1.0.conv1.weight_quantized"] == onnx.TensorProto.INT8


def test_a_file_that_does_something_else_is_not_written(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = onnx_file.load_onnx

    def wrong(data: bytes) -> Any:
        run = load(data)
        return lambda images: run(images) * 1.001

    monkeypatch.setattr(onnx_file, "load_onnx", wrong)
    argv = ["--workdir", str(trained[0]), "--out", str(tmp_path / "x.onnx")]
    with pytest.raises(RunStopped, match=r"differs from the trained one by 1\.0e-03 .* nothing was written"):
        export.main(argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x"], "give --format, one of stablehlo, onnx, saved-npz, safetensors, torch: the name of x does not tell it"),
        (["x.onnx", "--format", "torch"], "the name of x.onnx must end in .pth or .pth.tar or .pt for --format torch"),
        (["none/x.onnx"], "cannot write none/x.onnx: the folder none does not exist"),
        (["folder.onnx"], "--out folder.onnx is a folder"),
        (["x.npz", "--input", "uint8"], "--input is for stablehlo and onnx; --format saved-npz holds weights alone"),
        (["x.stablehlo", "--quantise"], "--quantise needs --format onnx"),
        (["x.onnx", "--quantise"], "--quantise needs --calibration DIR"),
        (["x.onnx", "--calibration", "."], "--calibration is for --quantise"),
        (["x.onnx", "--quantise", "--calibration", ".", "--no-fold"], "needs BatchNorm folded"),
        (["x.onnx", "--quantise", "--calibration", ".", "--val_images", "0"], "--val_images 0 must be at least 1"),
        (["x.onnx", "--quantise", "--calibration", "none"], "--calibration none is not a folder"),
        (["x.onnx", "--quantise", "--calibration", "folder.onnx"], "--calibration folder.onnx holds no images"),
        (["x.onnx", "--config.precision=bf16"], "ONNX files compute in float32; leave out --config.precision"),
        (["x.onnx", "--workdir", "y"], "not allowed with argument"),
    ],
)
def test_mistakes(argv: list[str], message: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trained("resnet18", tmp_path, stages=(1,))
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=re.escape(message)):
        export.main(["--weights", "x.npz", f"--config.data.dir={digits}", "--out", *argv])
    assert sorted(tmp_path.iterdir()) == before


def test_without_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=f"{name} is not installed: pip install onnx onnxruntime"):
                export.main(["--weights", "none.npz", "--out", str(tmp_path / "x.onnx")])
    imports = re.compile(r"^\s*(import|from) onnx", re.MULTILINE)
    homes = {path.parent.name for path in (REPO / "rn50_jax").rglob("*.py") if imports.search(path.read_text())}
    assert homes == {"exporting"}


def test_the_command_ends_in_one_line(run: Run, tmp_path: Path) -> None:
    assert_user_error(run("export", "--workdir", tmp_path, "--out", tmp_path / "x.npz"), "has no checkpoints")
