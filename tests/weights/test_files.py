"""Weight files: every kind comes in, goes out and comes back with the same bits; what does not fit is told at once."""

import gzip
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import sklearn.datasets
import torch
from conftest import REPO, Run, assert_user_error
from helpers.logs import files_of_at_most
from helpers.networks import make_net, make_torch
from helpers.tar_files import write_tar
from PIL import Image
from torch_reference import ResNet as TorchResNet
from torch_reference import normalize

from rn50_jax.errors import UserError
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY, Variant
from rn50_jax.models.resnet import ResNet
from rn50_jax.weights import files
from rn50_jax.weights.architecture import infer_architecture
from rn50_jax.weights.files import WeightFile, read_weights, write_weights
from rn50_jax.weights.torch_names import common_name, fit, to_torch

State = dict[str, torch.Tensor]


def nvidia_names(state: State, *, prefix: str, layers: bool) -> State:
    """The names of NVIDIA's checkpoints: numbered layers in later ones, a wrapper's prefix."""

    def rename(name: str) -> str:
        name = name.replace(".se.fc1.", ".squeeze.squeeze.").replace(".se.fc2.", ".squeeze.expand.")
        if layers:
            name = re.sub(r"^layer(\d)", lambda match: f"layers.{int(match[1]) - 1}", name)
        return prefix + name

    linear = {name: x[:, :, 0, 0] if ".se." in name and x.ndim == 4 else x for name, x in state.items()}
    return {rename(name): x for name, x in linear.items()}


SAVERS: dict[str, Callable[[State, Path], None]] = {
    "torchvision.pth": lambda state, path: torch.save(state, path),
    "reference.pth": lambda state, path: torch.save({"model": state, "epoch": 3, "lr_scheduler": {}}, path),
    "timm.safetensors": lambda state, path: safetensors.torch.save_file(state, path),
    "nvidia_old.pth.tar": lambda state, path: torch.save(
        {
            "epoch": 90,
            "arch": ("resnet50",),
            "best_prec1": 77.1,
            "state_dict": nvidia_names(state, prefix="module.1.", layers=False),
            "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], 0.1).state_dict(),
        },
        path,
    ),
    "nvidia_new.pth.tar": lambda state, path: torch.save(
        {"epoch": 90, "state_dict": nvidia_names(state, prefix="module.", layers=True)}, path
    ),
    "nvidia_bare.pth": lambda state, path: torch.save(nvidia_names(state, prefix="", layers=True), path),
    "compiled.pt": lambda state, path: torch.save({f"_orig_mod.{name}": x for name, x in state.items()}, path),
    "ours.npz": lambda state, path: np.savez(path, **{name: x.numpy() for name, x in state.items()}),
}


@pytest.mark.parametrize("name", SAVERS)
def test_every_kind_of_file_round_trips_bit_for_bit(name: str, tmp_path: Path) -> None:
    net = make_net(groups=2, inner=2, se_units=5)
    source = tmp_path / name
    SAVERS[name](net.state_dict(), source)
    model = ResNet(Variant((1, 1, 1, 1), True, groups=2, inner=2, se=True), 7, PRECISIONS["fp32"], width=8, se_units=5)
    wanted = net.state_dict()
    for suffix in (".pth", ".safetensors", ".npz"):
        file = read_weights(source)
        params, batch_stats = fit(file.arrays, model, name)
        source = tmp_path / f"written{suffix}"
        meta = {"class_names": [*"abcdef", "ü"], "step": 12}
        write_weights(source, WeightFile(to_torch(params, batch_stats), meta))
        again = read_weights(source)
        assert again.meta == meta
        assert Path(f"{source}.json").exists() == (suffix == ".pth")
        assert again.arrays.keys() == {key for key in wanted if "tracked" not in key}
        for key, array in again.arrays.items():
            assert array.tobytes() == wanted[key].numpy().tobytes(), key
    # torch takes them back without being lenient.
    state = torch.load(tmp_path / "written.pth", weights_only=True)
    make_net(groups=2, inner=2, se_units=5).load_state_dict(state, strict=True)
    assert state["bn1.num_batches_tracked"] == 12
    safetensors.torch.load_model(make_net(groups=2, inner=2, se_units=5), tmp_path / "written.safetensors", strict=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_files_are_widened(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = {name: x.to(dtype) if x.is_floating_point() else x for name, x in make_net().state_dict().items()}
    path = tmp_path / f"half{suffix}"
    SAVERS["torchvision.pth" if suffix == ".pth" else "timm.safetensors"](state, path)
    for name, array in read_weights(path).arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[name].float().numpy())


@pytest.mark.parametrize("arch", FAMILY)
def test_architecture_is_read_off_the_tensors(arch: str) -> None:
    with torch.device("meta"):
        net = make_torch(FAMILY[arch], 12)
    arrays = {name: np.broadcast_to(np.float32(0), tuple(x.shape)) for name, x in net.state_dict().items()}
    keys, num_classes = infer_architecture(arrays, "file")
    assert num_classes == 12
    assert keys == {
        "model.arch": arch,
        "model.stages": (),
        "model.width": 64,
        "model.widths": (),
        "model.se_units": 0,
        "model.small_stem": False,
    }


@pytest.mark.parametrize("small_stem", [False, True])
def test_custom_architecture_is_read_off_the_tensors(small_stem: bool) -> None:
    net = make_net((2, 1, 1), widths=(8, 12, 20), se_units=16)
    arrays = {name: x.numpy() for name, x in net.state_dict().items()}
    if small_stem:
        arrays["conv1.weight"] = arrays["conv1.weight"][..., 2:5, 2:5]
    assert infer_architecture(arrays, "file").keys == {
        "model.arch": "se-resnet50",
        "model.stages": (2, 1, 1),
        "model.width": 8,
        "model.widths": (8, 12, 20),
        "model.se_units": 16,
        "model.small_stem": small_stem,
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("module.1.layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("module.layers.3.2.bn3.running_var", "layer4.2.bn3.running_var"),
        ("1.conv1.weight", "conv1.weight"),
        ("_orig_mod.module.fc.bias", "fc.bias"),
        ("layers.0.0.squeeze.expand.bias", "layer1.0.se.fc2.bias"),
        ("layer1.1.conv1.weight", "layer1.1.conv1.weight"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert common_name(theirs) == ours


def test_everything_that_does_not_fit_is_listed_at_once() -> None:
    arrays = {name: x.numpy() for name, x in make_net().state_dict().items() if "tracked" not in name}
    del arrays["layer2.0.conv2.weight"], arrays["bn1.running_var"]
    arrays["layer3.0.bn1.weight"] = np.zeros(5, np.float32)
    arrays["head.weight"] = np.zeros(5, np.float32)
    model = ResNet(Variant((1, 1, 1, 1), True), 7, PRECISIONS["fp32"], width=8)
    with pytest.raises(UserError) as error:
        fit(arrays, model, "x.pth")
    message = str(error.value)
    assert message == (
        "x.pth does not fit the model; missing: layer2.0.conv2.weight, bn1.running_var; superfluous: head.weight; "
        "of another shape: layer3.0.bn1.weight ([5] instead of [32])"
    )


class Attack:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("none.pth", lambda path: None, "does not exist"),
        ("x.h5", lambda path: path.write_text("x"), r"must end in \.pth"),
        ("x.onnx", lambda path: path.write_text("x"), "is an exported function, whose weights are not read back; give"),
        ("attack.pth", lambda path: torch.save({"state_dict": Attack()}, path), "could execute code"),
        ("attack.npz", lambda path: np.savez(path, a=np.array([Attack()], object)), "cannot be read"),
        ("text.pth", lambda path: path.write_text("x" * 100), "cannot be read|could execute code"),
        ("text.npz", lambda path: path.write_text("x"), "cannot be read"),
        ("text.safetensors", lambda path: path.write_text("x"), "cannot be read"),
        ("list.pth", lambda path: torch.save([1], path), "holds a list, not a state_dict"),
        ("empty.pth", lambda path: torch.save({"epoch": 3}, path), "holds no tensors"),
        ("twice.npz", lambda path: np.savez(path, **{"a": np.ones(1), "module.a": np.ones(1)}), "two tensors for a"),
    ],
)
def test_bad_files(name: str, write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        read_weights(tmp_path / name)
    assert "\n" not in str(error.value)


def write_zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "content")


def write_header(path: Path, shape: str) -> None:
    """An .npz whose array is said to be larger than what is there."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(64))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 102530333\n"
CONTENTS = {
    "HTML": lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>404"),
    "a Git LFS pointer, fetch the file with git lfs pull": lambda path: path.write_bytes(LFS),
    "JSON": lambda path: path.write_text('{"a": [1, 2, 3]}'),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not found"),
    "gzip": lambda path: path.write_bytes(gzip.compress(b"x")),
    "of unknown kind": lambda path: path.write_bytes(bytes(100)),
    "tar, unpack it": lambda path: write_tar(path, [("a.pth", b"content")]),
    "NumPy's .npy": lambda path: path.write_bytes(b"\x93NUMPY\x01\0"),
}


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_files_of_another_kind_are_called_what_they_are(suffix: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    CONTENTS[kind](path)
    with pytest.raises(UserError, match=rf"x\{suffix} cannot be read: it is no \S*( .npz)? ?file: {re.escape(kind)}$"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's unfinished parts, while they are made
@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.pth", lambda path: write_zip(path, "readme.txt"), "no PyTorch file: ZIP of readme.txt"),
        ("x.pth", lambda path: write_zip(path, "a.npy"), "no PyTorch file: ZIP of a.npy"),
        ("x.pth", lambda path: path.write_bytes(safetensors.numpy.save({"a": np.ones(1)})), "file: safetensors"),
        ("x.npz", lambda path: path.write_bytes(safetensors.numpy.save({"a": np.ones(1)})), "file: safetensors"),
        ("x.safetensors", lambda path: torch.save({"a": torch.ones(1)}, path), "no safetensors file: ZIP"),
        ("x.npz", lambda path: write_zip(path, "readme.txt"), "readme.txt in it is no array"),
        ("x.npz", lambda path: write_header(path, "(10**18,)"), "cannot be read"),
        ("x.npz", lambda path: write_header(path, "(1000000000000000000,)"), "cannot be read"),
        ("x.npz", lambda path: write_header(path, "(5, 2000000000)"), "cannot be read"),
        ("x.npz", lambda path: np.savez(path, a=np.array(["text"])), "tensor a holds <U4, and no real numbers"),
        ("x.npz", lambda path: np.savez(path, a=np.ones(1, complex)), "tensor a holds complex128, and no real numbers"),
        ("x.pth", lambda path: torch.save({"a": torch.ones(2, 2).to_sparse()}, path), "tensor a in it is sparse"),
        ("x.pth", lambda path: torch.save({"a": torch.ones(2, 2).to_sparse_csr()}, path), "tensor a in it is sparse"),
        ("x.pth", lambda path: torch.save({"a": torch.ones(2, device="meta")}, path), "tensor a in it is without"),
        ("x.pth", lambda path: torch.save({"a": torch.ones(2, dtype=torch.complex64)}, path), "a in it is complex"),
        (
            "x.pth",
            lambda path: torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path),
            "a in it is quantised",
        ),
        (
            "x.pth",
            lambda path: torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path),
            "its tensors have 4000000000000 bytes",
        ),
        ("x.pth", lambda path: path.mkdir(), "it is a folder"),
        ("x.pth", os.mkfifo, "it is no plain file"),
        ("x.npz", lambda path: path.symlink_to("/dev/zero"), "it is no plain file"),
    ],
)
def test_what_cannot_be_weights_is_told(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        read_weights(tmp_path / name)
    assert "\n" not in str(error.value)


def test_what_unpacks_to_many_times_its_size_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SMALL", 2**16)
    np.savez_compressed(tmp_path / "x.npz", weight=np.zeros(2**20, np.float32))
    with pytest.raises(UserError, match=r"it unpacks to \d+ bytes"):
        read_weights(tmp_path / "x.npz")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_that_is_cut_off_is_told(zipped: bool, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(100)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pth").read_bytes()
    for part in (0.3, 0.6, 0.9):
        (tmp_path / "x.pth").write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(UserError, match=r"x\.pth cannot be read: it is damaged or cut off"):
            read_weights(tmp_path / "x.pth")


def test_parameters_are_tensors(tmp_path: Path) -> None:
    """As in dict(model.named_parameters())."""
    torch.save({"a": torch.nn.Parameter(torch.full((2,), 3.0))}, tmp_path / "x.pth")
    np.testing.assert_array_equal(read_weights(tmp_path / "x.pth").arrays["a"], np.full(2, 3, np.float32))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("[1]", "valid dictionary"),
        ("null", "valid dictionary"),
        ("{", "Expecting"),
        ('{"class_names": 5}', "class_names"),
        ('{"class_names": "0123456"}', "class_names"),
        ('{"class_names": [0, 1, 2, 3, 4, 5, 6]}', "class_names.0"),
        ('{"class_names": ["a", "b", "c"]}', "it names 3 classes, and its classifier has 7"),
        ('{"image_size": "224"}', "image_size"),
        ('{"image_size": -5}', "image_size=-5 must be an integer >= 16"),
        ('{"resize": 1000000000}', "resize=1000000000 must be"),
        ('{"transform": "x"}', "transform='x' must be one of 'torchvision', 'dali'"),
        ('{"step": -1}', "step=-1"),
        ('{"step": 1e400}', "too large"),
    ],
)
def test_what_a_file_says_about_itself_is_checked(suffix: str, meta: str, message: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / f"x{suffix}", {"fc.weight": np.ones((7, 2), np.float32)}
    if suffix == ".npz":
        np.savez(path, **tensors, rn50_jax=np.asarray(meta))
    else:
        path.write_bytes(safetensors.numpy.save(tensors, metadata={"rn50_jax": meta}))
    with pytest.raises(UserError, match=rf"x\{suffix}: what it says about itself cannot be right: .*{message}"):
        read_weights(path)


def test_names_and_shapes_cannot_make_a_model_of_any_size() -> None:
    good = {name: x.numpy() for name, x in make_net().state_dict().items() if "tracked" not in name}
    more = good["layer1.0.conv1.weight"]
    for name, missing in (
        ("layer1.999999999999.conv1.weight", "layer1.1"),
        ("layer1.2.conv1.weight", "layer1.1"),
        ("layer999999999999.0.conv3.weight", "layer5.0"),
        ("layer0.0.conv3.weight", "layer5.0"),
    ):
        with pytest.raises(UserError, match=f"among them no '{missing}'"):
            infer_architecture(good | {name: more}, "x")
    odd = ("layer1.\u0661.conv1.weight", "layer1.-1.x", "layer1..x", "", "layer1.1", "layer" + "9" * 10**6 + ".0.x")
    for name in odd:
        found = infer_architecture(good | {name: more}, "x")
        assert found.keys["model.stages"] == (1, 1, 1, 1)
        model = ResNet(Variant((1, 1, 1, 1), True), 7, PRECISIONS["fp32"], width=8)
        with pytest.raises(UserError, match="superfluous") as error:
            fit(good | {common_name(name): more}, model, "x")
        assert len(str(error.value)) < 300
    for name, shape in (("fc.weight", (10**12, 0)), ("layer1.0.conv3.weight", (10**12, 0, 1, 1))):
        with pytest.raises(UserError, match=r"classes|and no values"):
            infer_architecture(good | {name: np.zeros(shape, np.float32)}, "x")


def test_files_of_other_networks_are_told() -> None:
    good = {name: x.numpy() for name, x in make_net().state_dict().items()}
    with pytest.raises(UserError, match=r"conv1.weight of shape \[\] instead of \[8, 3, 7, 7\]"):
        infer_architecture(good | {"conv1.weight": np.zeros((), np.float32)}, "x.pth")
    with pytest.raises(UserError, match=r"does not hold the weights of a ResNet .* known are resnet18"):
        infer_architecture({"features.0.weight": np.zeros((8, 3, 3, 3))}, "vgg.pth")
    net = make_net(groups=4)
    with pytest.raises(
        UserError,
        match=r"closest to resnet50, but for layer1.0.conv2.weight of shape \[8, 2, 3, 3\] instead of \[8, 8, 3, 3\]",
    ):
        infer_architecture({name: x.numpy() for name, x in net.state_dict().items()}, "x.pth")


def test_pth_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(make_net().state_dict(), tmp_path / "x.pth")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match="need PyTorch, which is not installed: pip install torch"):
        read_weights(tmp_path / "x.pth")
    write_weights(tmp_path / "x.npz", WeightFile({"a": np.ones(1, np.float32)}, {}))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.npz").write_text("before")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*x\.npz: No space left on device"):
        write_weights(tmp_path / "x.npz", WeightFile({"a": np.ones(1, np.float32)}, {}))
    assert (tmp_path / "x.npz").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_a_full_disk_is_told_and_nothing_is_left(suffix: str, tmp_path: Path) -> None:
    path, weights = tmp_path / f"x{suffix}", WeightFile({"a": np.ones(10_000, np.float32)}, {})
    with files_of_at_most(4096), pytest.raises(UserError, match=rf"cannot write .*x\{suffix}: File too large"):
        write_weights(path, weights)
    assert not list(tmp_path.iterdir())
    write_weights(path, weights)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


PHOTOS = [Path(sklearn.datasets.__file__).parent / f"images/{name}.jpg" for name in ("china", "flower")]


def pillow_transform(path: Path) -> np.ndarray:
    """The reference's classification of a file: shorter side to 256, centre crop of 224. uint8 [1, 224, 224, 3]."""
    with Image.open(path) as image:
        width, height = image.size
        image = image.convert("RGB").resize((int(width * 256 / height), 256), Image.Resampling.BILINEAR)
        left = round((image.width - 224) / 2)
        return np.array(image.crop((left, 16, left + 224, 240)))[None]


@pytest.mark.slow
def test_a_file_of_plain_pytorch_predicts_what_pytorch_does(run: Run, tmp_path: Path) -> None:
    # The full ResNet-50. As in a trained one, residual blocks are small corrections and statistics are those of images;
    # its classifier is sharpened, so that it has opinions. Pixels differ by one level at most: Pillow rounds twice.
    torch.manual_seed(1)
    net = TorchResNet((3, 4, 6, 3), True, 1000)
    pixels = torch.cat([normalize(pillow_transform(photo)) for photo in PHOTOS])
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
                module.weight.fill_(0.2 if name.endswith("bn3") else 1.0)
        net.train()(torch.cat([pixels, pixels.flip(3), pixels.flip(2)]))
        net.eval().fc.weight *= 4
        logits = net(pixels)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "model.pth.tar")
    done = run("predict", "--weights", tmp_path / "model.pth.tar", *PHOTOS, "--json")
    assert done.returncode == 0, done.stderr
    for answer, wanted in zip(json.loads(done.stdout), torch.softmax(logits, 1), strict=True):
        best = wanted.topk(5)
        assert best.values[0] > 0.01  # of a thousand classes
        assert [p["index"] for p in answer["predictions"]] == best.indices.tolist()
        for p, probability in zip(answer["predictions"], best.values, strict=True):
            assert 100 * p["probability"] == pytest.approx(100 * probability.item(), abs=0.1)
    names = (REPO / "rn50_jax/data/formats/imagenet_classes.txt").read_text().splitlines()
    top = json.loads(done.stdout)[0]["predictions"][0]
    assert top["class"] == names[top["index"]].split("\t")[1]


def test_weights_of_a_run_do_what_the_run_does(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    workdir, _ = trained
    images = sorted((digits / "val/3").iterdir())[:4]
    data = f"--config.data.dir={digits}"
    predictions, evaluations = [], []
    for source in (
        ["--workdir", workdir],
        ["--weights", tmp_path / "w.safetensors"],
        ["--weights", tmp_path / "w.npz"],
        ["--weights", tmp_path / "w.pth"],
    ):
        if source[0] == "--weights":
            done = call("convert", workdir, source[1])
            assert done.returncode == 0, done.stderr
            assert "resnet18, 6,226 parameters, 10 classes" in done.stdout
        predictions.append(json.loads(call("predict", *source, *images, "--json").stdout))
        done = call("evaluate", *source, data, "--config.batch_size=32", "--json", tmp_path / "result.json")
        assert done.returncode == 0, done.stderr
        assert "assuming" not in done.stderr
        result = json.loads((tmp_path / "result.json").read_text())
        evaluations.append({name: result[name] for name in ("val.top1", "val.loss", "val.loss_smoothed", "val.images")})
    assert all(found == predictions[0] for found in predictions) and len(predictions) == 4
    assert all(found == evaluations[0] for found in evaluations)
    # A foreign file does not know names and sizes: what is assumed is told, and can be given.
    assert call("convert", tmp_path / "w.npz", tmp_path / "w.pth").returncode == 0
    assert torch.load(tmp_path / "w.pth", weights_only=True)["bn1.num_batches_tracked"] == 92  # the run's steps
    (tmp_path / "w.pth.json").unlink()
    sizes = ("--config.data.image_size=32", "--config.data.resize=32")
    done = call("evaluate", "--weights", tmp_path / "w.pth", data, *sizes, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["val.top1"] == evaluations[0]["val.top1"]
    assert "assuming mean and std of ImageNet, 10 classes without names, as " in done.stderr


@pytest.mark.slow
def test_fine_tuning(trained: tuple[Path, str], call: Run, call_train: Run, digits: Path, tmp_path: Path) -> None:
    workdir, _ = trained
    weights = tmp_path / "w.safetensors"
    assert call("convert", workdir, weights, "--checkpoint", "latest").returncode == 0
    short = ("--pretrained_weights", weights, "--config.run.prof=10", "--config.recipe.lr=0.001")
    done = call_train(tmp_path / "same", *short)
    assert done.returncode == 0, done.stderr
    assert f"starting from the weights of {weights}\n" in done.stdout
    first = json.loads((tmp_path / "same/metrics.jsonl").read_text().splitlines()[0])
    assert first["train.top1"] > 40  # a new network guesses 10 %

    three = tmp_path / "three"
    for split in ("train", "val"):
        (three / split).mkdir(parents=True)
        for name in "012":
            (three / split / name).symlink_to(digits / split / name)
    options = (*short[:2], f"--config.data.dir={three}", "--config.epochs=1")
    done = call_train(tmp_path / "other", *options)
    assert done.returncode == 0, done.stderr
    assert "its classifier of 10 classes is replaced by a new one of 3" in done.stdout
    done = call_train(tmp_path / "other", *options, "--config.epochs=2")  # resuming, the file is not looked at again
    assert done.returncode == 0 and "resuming after epoch 1" in done.stdout and "starting from" not in done.stdout
    wrong = call_train(tmp_path / "wrong", *short, "--config.model.stages=(2, 4)")
    assert_user_error(wrong, "config.model.stages=(2, 4) is not the architecture of", "'--config.model.stages=(1, 1)'")
    assert_user_error(call_train(tmp_path / "wrong", "--pretrained_weights", tmp_path / "no.npz"), "does not exist")


def test_mistakes_are_told_in_one_line(trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path) -> None:
    assert_user_error(call("convert", tmp_path, tmp_path / "x.npz"), "has no checkpoints")
    assert_user_error(call("convert", trained[0], tmp_path / "x.onnx"), "must end in .pth")
    assert_user_error(call("convert", trained[0], tmp_path / "none/x.npz"), "cannot write", "No such file")
    assert_user_error(call("evaluate"), "one of the arguments --workdir --weights is required")
    assert_user_error(call("predict", "--workdir", "a", "--weights", "b", "c.jpg"), "not allowed with argument")
    torch.save(make_net().state_dict(), tmp_path / "x.pth")
    done = call("evaluate", "--weights", tmp_path / "x.pth", f"--config.data.dir={digits}")
    assert_user_error(done, "has 10 class folders", "7 classes")
    done = call("convert", tmp_path / "x.pth", tmp_path / "x.npz", "--config.model.stages=(2, 1, 1, 1)")
    assert_user_error(done, "does not fit the model", "missing: layer1.1.bn1.bias")
