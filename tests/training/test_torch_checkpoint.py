"""A run goes on from a training checkpoint of NVIDIA's code as plain PyTorch would have gone on itself."""

import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import torch
from conftest import Run, assert_user_error
from helpers.parity import Recipe, Snapshot, by_torch_name, compile_step, distance, make_batches, make_twins
from helpers.runs import final_arrays, read_lines
from helpers.tiny import assert_same_bits
from helpers.trees import make_config
from torch_reference import ResNet as TorchResNet
from torch_reference import learning_rate, normalize, smoothed_loss

from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.config.sections.recipe import RecipeConfig
from rn50_jax.distributed.devices import make_mesh, replicate
from rn50_jax.errors import UserError
from rn50_jax.models.compute import Compute
from rn50_jax.models.family import Variant
from rn50_jax.models.resnet import ResNet
from rn50_jax.training.build import build_state
from rn50_jax.training.resume import Start, find_start
from rn50_jax.training.state import TrainState
from rn50_jax.training.torch_checkpoint import differing_settings, read_checkpoint, resume_from
from rn50_jax.weights.files import read_weights

FLOAT64 = Compute(np.dtype(np.float64), jax.lax.Precision.HIGHEST)
ADDRESS = 139_872_560_123_456  # such numbers parameters have in torch up to 1.4
NVIDIA = Recipe(mask="reference")
Content = dict[str, Any]
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def nvidia_sgd(net: TorchResNet, recipe: Recipe) -> torch.optim.SGD:
    """As get_optimizer of the reference's training.py makes it."""
    parameters = list(net.named_parameters())
    groups: Any = [parameter for _, parameter in parameters]
    if recipe.mask != "all":
        groups = [
            {"params": [p for name, p in parameters if "bn" in name], "weight_decay": 0},
            {"params": [p for name, p in parameters if "bn" not in name]},
        ]
    decay, momentum = recipe.weight_decay, recipe.momentum
    return torch.optim.SGD(groups, 0.1, momentum=momentum, weight_decay=decay, nesterov=recipe.nesterov)


def train_plain(
    net: TorchResNet, optimizer: torch.optim.SGD, recipe: Recipe, batches: list[dict], first: int
) -> Iterator[Snapshot]:
    """Trains on from step `first` (from 0)."""
    net.train()
    for number, batch in enumerate(batches, first):
        epoch = number // recipe.steps_per_epoch
        schedule = {"peak": recipe.peak, "warmup": recipe.warmup, "total": recipe.epochs}
        for group in optimizer.param_groups:
            group["lr"] = np.float64(learning_rate(recipe.schedule, epoch, **schedule))  # as of NumPy's cosine
        optimizer.zero_grad()
        labels = torch.from_numpy(batch["label"][0]).long()
        targets = torch.nn.functional.one_hot(labels, net.fc.out_features).double()
        loss = smoothed_loss(net(normalize(batch["image"][0], torch.float64)), targets, recipe.smoothing)
        loss.backward()
        optimizer.step()
        parameters = dict(net.named_parameters())
        yield Snapshot(
            loss.item(),
            {name: p.detach().clone() for name, p in parameters.items()},
            {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in parameters.items()},
            {name: value.clone() for name, value in net.named_buffers() if "running" in name},
        )


def make_content(net: TorchResNet, optimizer: torch.optim.SGD, epoch: int, prefix: str = "") -> Content:
    """A checkpoint of float32, to which the network and the optimizer are rounded too."""
    with torch.no_grad():
        for tensor in [*net.state_dict().values(), *(s["momentum_buffer"] for s in optimizer.state.values())]:
            if tensor.is_floating_point():
                tensor.copy_(tensor.float())
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry["momentum_buffer"] = entry["momentum_buffer"].float()
    weights = {prefix + name: x.float() if x.is_floating_point() else x for name, x in net.state_dict().items()}
    return {"epoch": epoch, "state_dict": copy.deepcopy(weights), "best_prec1": 12.5, "optimizer": state}


def save_2019(content: Content, net: TorchResNet, path: Path) -> None:
    """torch 1.3 on a GPU: addresses for numbers, the old format, CUDA's storages, the old name of a NumPy number."""
    del net
    optimizer = content["optimizer"]
    optimizer["state"] = {ADDRESS - 64 * number: entry for number, entry in optimizer["state"].items()}
    for group in optimizer["param_groups"]:
        group["params"] = [ADDRESS - 64 * number for number in group["params"]]
    torch.save({"arch": ("resnet50", "fanin"), **content}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for new, old in (
        (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),
        (b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n"),
        (b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0"),
    ):
        assert new in data
        data = data.replace(new, old)
    path.write_bytes(data)


def save_2023(content: Content, net: TorchResNet, path: Path) -> None:
    """Stages counted from 0, linear layers in squeeze and excitation."""
    names = [name for name, _ in net.named_parameters()]
    names = [name for name in names if "bn" in name] + [name for name in names if "bn" not in name]

    def linear(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:, :, 0, 0] if ".se." in name and tensor.ndim == 4 else tensor

    for number, name in enumerate(names):
        entry = content["optimizer"]["state"][number]
        entry["momentum_buffer"] = linear(name, entry["momentum_buffer"])
    renamed = {}
    for name, tensor in content["state_dict"].items():
        theirs = name.replace("se.fc1", "squeeze.squeeze").replace("se.fc2", "squeeze.expand")
        theirs = theirs.replace("layer1", "layers.0").replace("layer2", "layers.1")
        renamed[theirs] = linear(name, tensor)
    torch.save({**content, "state_dict": renamed}, path)


class LossScaler:
    """Stands for apex' own."""

    def __init__(self) -> None:
        self._loss_scale, self._overflow_buf = 128.0, torch.zeros(1, dtype=torch.int32)


def save_fp16(content: Content, net: TorchResNet, path: Path) -> None:
    """apex' FP16_Optimizer: weights but those of BatchNorms in half precision, their float32 masters beside them."""
    norms = {name for name, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    names = [name for name, _ in net.named_parameters()]
    half = {name for name in names if name.rpartition(".")[0] not in norms}
    weights = content["state_dict"]
    groups = [[name for name in names if "bn" in name], [name for name in names if "bn" not in name]]
    masters = [[weights["module.1." + name].clone() for name in group if name in half] for group in groups]
    for name in half:
        weights["module.1." + name] = weights["module.1." + name].half()
    optimizer = {"loss_scaler": LossScaler(), "dynamic_loss_scale": False, "overflow": False}
    optimizer |= {"optimizer_state_dict": content["optimizer"], "fp32_from_fp16": masters}
    modules = {name: ModuleType(name) for name in ("apex", "apex.amp", "apex.amp.scaler")}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(modules["apex.amp.scaler"], "LossScaler", LossScaler, raising=False)
        patch.setattr(LossScaler, "__module__", "apex.amp.scaler")
        torch.save({"arch": ("resnet50", "fanin"), **content, "optimizer": optimizer}, path)


BOTTLENECK, SE = Variant((1, 1), bottleneck=True), Variant((1, 1), True, groups=4, inner=2, se=True)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("variant", "recipe", "prefix", "save"),
    [
        (BOTTLENECK, Recipe(mask="reference"), "module.", save_2019),
        slow(SE, Recipe(mask="reference", nesterov=True, schedule="linear"), "", save_2023),
        slow(BOTTLENECK, Recipe(mask="all"), "module.", lambda content, net, path: torch.save(content, path)),
        (BOTTLENECK, Recipe(mask="reference"), "module.1.", save_fp16),
    ],
    ids=["2019", "2023", "one-group", "fp16"],
)
def test_training_goes_on_as_in_plain_pytorch(
    variant: Variant, recipe: Recipe, prefix: str, save: Callable[[Content, TorchResNet, Path], None], tmp_path: Path
) -> None:
    recipe = recipe._replace(smoothing=0.1, epochs=6)  # the first of them within the warm-up, of two steps each
    model = ResNet(variant, 5, FLOAT64, width=8, se_units=3)
    fresh, net = make_twins(model, recipe, dtype=np.float64)
    net, batches = net.double(), make_batches(recipe, image_size=16, classes=5, steps=14)
    optimizer = nvidia_sgd(net, recipe)
    for _ in train_plain(net, optimizer, recipe, batches[:8], 0):
        pass
    path = tmp_path / "checkpoint.pth.tar"
    save(make_content(net, optimizer, 4, prefix), net, path)

    checkpoint = read_checkpoint(path)
    state = resume_from(fresh, checkpoint, model, str(path))
    assert checkpoint.epoch == 4 and int(state.step) == 0
    wanted = RecipeConfig(momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay)
    assert differing_settings(checkpoint, wanted.replace(decay_mask=recipe.mask)) == []
    state = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
    state = state._replace(step=np.asarray(4 * recipe.steps_per_epoch, np.int32), loss_scale=fresh.loss_scale)
    step = compile_step(model, recipe)
    state = replicate(state, make_mesh(jax.devices()[:1]))
    for number, theirs in enumerate(train_plain(net, optimizer, recipe, batches[8:], 8), 8):
        state, ours = step(state, batches[number])
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-9), number
        for name in ("params", "momentum", "running"):
            worst = distance(getattr(ours, name), getattr(theirs, name))
            assert worst[0] < 1e-9, (number, name, worst)


def nvidia_file(workdir: Path, step: int, path: Path, **more: Any) -> TrainState:
    """Writes a checkpoint of a run of ours, after one epoch, in NVIDIA's layout; returns its state."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.read_meta(str(step))
        config = configs.from_saved(meta["config"], source="it").config
        model = build_model(config, num_classes=10, platform="cpu")
        state = checkpoints.restore(meta, build_state(config, model, abstract=True))
    params, momentum = by_torch_name(state.params), by_torch_name(state.opt_state[1].trace)
    names = [name for name in params if "bn" in name] + [name for name in params if "bn" not in name]
    sizes = sum("bn" in name for name in names)
    settings = {"lr": np.float64(0.2), "momentum": 0.875, "dampening": 0, "nesterov": False}
    groups = [
        {"params": list(range(sizes)), "weight_decay": 0, **settings},
        {"params": list(range(sizes, len(names))), "weight_decay": 1 / 32768, **settings},
    ]
    buffers = {number: {"momentum_buffer": momentum[name]} for number, name in enumerate(names)}
    content = {
        "epoch": 1,
        "arch": ("resnet18", "fanin"),
        "state_dict": {f"module.{name}": x for name, x in (params | by_torch_name(state.batch_stats)).items()},
        "best_prec1": 50.0,
        "optimizer": {"state": buffers, "param_groups": groups},
    }
    torch.save(content | more, path)
    return state


@pytest.mark.slow
def test_a_run_goes_on_to_the_bits_of_the_run_that_was_never_moved(
    trained: tuple[Path, str], train_tiny: Run, call_train: Run, call: Run, tmp_path: Path
) -> None:
    file, workdir = tmp_path / "checkpoint.pth.tar", tmp_path / "run"
    nvidia_file(trained[0], 46, file)
    done = train_tiny(workdir, "--resume", file)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"resuming from {file}: 1 of 2 epochs done, with its momentum\n" in done.stdout
    assert "resuming after epoch 1, step 46" in done.stdout
    ours, theirs = final_arrays(workdir), final_arrays(trained[0])
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == [
        "loss_scale.good_steps"
    ]  # no such file counts them
    lines = read_lines(workdir)
    assert [line["step"] for line in lines if "train.loss" in line] == [50, 60, 70, 80, 90, 92]
    assert [(line["step"], line["epoch"]) for line in lines if "val.top1" in line] == [(92, 2)]

    file.unlink()  # it counted for the start
    done = call_train(workdir, "--resume", file)
    assert done.returncode == 0 and "is finished: 2 of 2 epochs done" in done.stdout
    done = call_train(workdir, "--resume", file, "--config.epochs=3")
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 2, step 92" in done.stdout and "resuming from" not in done.stdout
    done = call("evaluate", "--workdir", workdir)
    assert done.returncode == 0, done.stderr


def test_a_run_that_cannot_go_on_is_refused_before_anything_is_compiled(
    trained: tuple[Path, str], call_train: Run, tree: Path, tmp_path: Path
) -> None:
    file, workdir = tmp_path / "checkpoint.pth.tar", tmp_path / "run"
    done = call_train(workdir, "--resume", file)
    assert_user_error(done, f"weight file {file} does not exist")
    done = call_train(workdir, "--resume", f"{'x' * 300}.pth.tar")
    assert_user_error(done, "cannot be read: File name too long")
    done = call_train(workdir, "--resume", trained[0])
    assert_user_error(done, f"{trained[0]} is a folder", f"with --workdir {trained[0]}")
    nvidia_file(trained[0], 46, file)
    done = call_train(workdir, "--resume", file, "--config.epochs=1")
    assert_user_error(
        done, f"{file} has 1 epoch done, and config.epochs=1 leaves none", "give a larger --config.epochs"
    )
    done = call_train(workdir, "--resume", file, f"--config.data.dir={tree}", "--config.batch_size=4")
    assert_user_error(done, f"{file} has a classifier of 10 classes and the data 3", f"--pretrained_weights {file}")
    done = call_train(workdir, "--resume", file, "--config.model.stages=(2, 1)")
    assert_user_error(done, f"is not the architecture of {file}, which has (1, 1); write ")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        (
            "model.pretrained_weights",
            "w.pth",
            "config.run.resume and config.model.pretrained_weights exclude each other",
        ),
        ("finetune.new_head", "true", "config.run.resume and config.finetune.new_head exclude each other"),
        (
            "recipe.optimizer",
            "lars",
            r"takes the state of SGD, and config.recipe.optimizer='lars' .* --pretrained_weights c",
        ),
        ("recipe.optimizer", "lamb", "takes the state of SGD, and config.recipe.optimizer='lamb'"),
    ],
)
def test_what_excludes_a_checkpoint_of_nvidia(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configs.override(Config(), [("run.resume", "c.pth.tar"), (key, text)])


def small_content(recipe: Recipe = NVIDIA) -> tuple[Content, TorchResNet]:
    """Of a network with 5 classes after one update, as a file of 2023 has it."""
    torch.manual_seed(0)
    net = TorchResNet((1, 1), True, 5, width=8)
    optimizer = nvidia_sgd(net, recipe)
    net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    return make_content(net, optimizer, 4), net


def set_in(*path: Any, to: Any) -> Callable[[Content], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


def drop(*path: Any) -> Callable[[Content], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


BUFFER = ("optimizer", "state", 3, "momentum_buffer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("optimizer"), "is no training checkpoint of NVIDIA's code: it has no usable 'optimizer'; start from its"),
        (drop("state_dict"), "is no training checkpoint of NVIDIA's code: it has no usable 'state_dict'"),
        (drop("epoch"), "is no training checkpoint of NVIDIA's code: it has no usable 'epoch'"),
        (set_in("epoch", to="4"), "it has no usable 'epoch'"),
        (set_in("epoch", to=True), "it has no usable 'epoch'"),
        (set_in("epoch", to=-1), "cannot be of epoch -1"),
        (set_in("epoch", to=2**31), "cannot be of epoch 2147483648"),
        (set_in(*BUFFER, to=torch.zeros(9)), r"its momentum of .*bn.* is \[9\] instead of \[8\]"),
        (set_in(*BUFFER, to=torch.zeros(8).byte().view(torch.bits8)), "weight file .* cannot be read: "),
        (set_in(*BUFFER, to=1.5), "its momentum of .*bn.* is no tensor instead of"),
        (
            set_in(*BUFFER, to=torch.full((8,), np.nan)),
            r"momentum\..*bn.* is not finite; go on from a checkpoint before",
        ),
        (
            set_in("state_dict", "bn1.running_var", to=torch.full((8,), np.inf)),
            "state_dict.bn1.running_var is not finite",
        ),
        (set_in("optimizer", "state", 999, to={}), "momentum of unknown parameters"),
        (set_in("optimizer", "param_groups", 0, "params", to=[0]), r"groups of \[1, 15\] parameters, and the model of"),
        (set_in("optimizer", "param_groups", 0, "params", 0, to=1), "a parameter is in it twice"),
        (set_in("optimizer", "param_groups", to=[]), r"groups of \[\] parameters"),
        (set_in("optimizer", "param_groups", to=3), "the optimizer of .* cannot be used: param_groups: "),
        (set_in("optimizer", "param_groups", 0, "momentum", to="much"), "cannot be used: param_groups.0.momentum: "),
        (set_in("optimizer", "param_groups", to=torch.zeros(3)), "the optimizer of .* cannot be used: param_groups: "),
        (set_in("optimizer", "fp32_from_fp16", to=torch.zeros(3)), "the optimizer of .* cannot be used: "),
        (drop("optimizer", "param_groups", 0, "nesterov"), "cannot be used: it is not torch's SGD; start from its"),
        (
            set_in("optimizer", "fp32_from_fp16", to=[[torch.zeros(3)]]),
            "its float32 weights are not those of the model",
        ),
    ],
)
def test_files_that_cannot_be_gone_on_from(change: Callable[[Content], None], message: str, tmp_path: Path) -> None:
    content, _ = small_content()
    change(content)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_weights_alone_are_no_checkpoint(tmp_path: Path) -> None:
    torch.save(small_content()[1].state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"it has no usable 'state_dict'; start from .* --pretrained_weights .*w\.pth"):
        read_checkpoint(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.npz is no file of PyTorch by its name; it must end in \.pth"):
        read_checkpoint(tmp_path / "w.npz")


def test_weights_are_read_from_real_training_checkpoints_too(tmp_path: Path) -> None:
    content, net = small_content()
    for group in content["optimizer"]["param_groups"]:
        group["lr"] = np.float64(0.1)
    wanted = {name: x.numpy().copy() for name, x in net.state_dict().items() if "num_batches" not in name}
    content["state_dict"] = {"module.1." + name: x for name, x in content["state_dict"].items()}
    for save in (save_2019, save_fp16):
        save(copy.deepcopy(content), net, tmp_path / "checkpoint.pth.tar")
        found = read_weights(tmp_path / "checkpoint.pth.tar").arrays
        assert set(found) == set(wanted)
        for name, array in found.items():
            np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-6)


def small_state(*overrides: tuple[str, str]) -> tuple[TrainState, ResNet]:
    shape = (("model.arch", "resnet50"), ("model.stages", "(1, 1)"), ("model.width", "8"), ("precision", "fp32"))
    config = make_config("/nowhere", *shape, *overrides)
    model = build_model(config, num_classes=5, platform="cpu")
    return build_state(config, model), model


@pytest.mark.parametrize("before_any_step", [False, True])
def test_momentum_that_is_not_there_is_zero(before_any_step: bool, tmp_path: Path) -> None:
    content, net = small_content()
    (set_in("optimizer", "state", to={}) if before_any_step else set_in(*BUFFER, to=None))(content)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    state, model = small_state()
    trace = by_torch_name(resume_from(state, checkpoint, model, "it").opt_state[1].trace)
    batch_norms = [name for name, _ in net.named_parameters() if "bn" in name]
    assert bool(checkpoint.momentum) != before_any_step
    zero = {name for name, x in trace.items() if not x.any()}
    assert zero == (set(trace) if before_any_step else {batch_norms[3]})


def test_every_wrapper_of_sgd_has_the_momentum_of_what_it_trains(tmp_path: Path) -> None:
    content, _ = small_content()
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    state, model = small_state()
    wanted = resume_from(state, checkpoint, model, "it").opt_state[1].trace
    wrapped = (("recipe.clip_norm", "1.0"), ("finetune.lr_decay", "0.5"), ("finetune.freeze", "('stem', 'layer1')"))
    state, model = small_state(*wrapped)
    found = resume_from(state, checkpoint, model, "it").opt_state
    assert jax.tree.structure(found) == jax.tree.structure(state.opt_state)
    assert set(found[1].trace) == {"layer2_0", "fc"}
    assert_same_bits(found[1].trace, {name: wanted[name] for name in found[1].trace})


@pytest.mark.parametrize("averaged", [False, True])
def test_averages_are_those_of_the_file_or_start_from_its_weights(averaged: bool, tmp_path: Path) -> None:
    content, net = small_content()
    if averaged:
        content["state_dict_ema"] = {f"module.{name}": 0.5 * x for name, x in content["state_dict"].items()}
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    state, model = small_state(("recipe.ema_decay", "0.9"))
    state = resume_from(state, read_checkpoint(path), model, "it")
    found = by_torch_name(state.ema["params"]) | by_torch_name(state.ema["batch_stats"])
    for name, average in found.items():
        torch.testing.assert_close(average, (0.5 if averaged else 1) * net.state_dict()[name], rtol=1e-6, atol=0)


def test_what_was_set_otherwise_is_told(tmp_path: Path) -> None:
    content, _ = small_content(Recipe(mask="reference", momentum=0.9, weight_decay=1e-4, nesterov=True))
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    recipe = RecipeConfig()
    assert differing_settings(read_checkpoint(path), recipe) == [
        "momentum 0.9, and config.recipe.momentum is 0.875 here",
        "weight_decay 0.0001, and config.recipe.weight_decay is 3.0517578125e-05 here",
        "nesterov True, and config.recipe.nesterov is False here",
    ]
    same = RecipeConfig(momentum=0.9, weight_decay=1e-4, nesterov=True)
    for mask, told in (
        ("reference", []),
        ("all", ["undecayed BatchNorms, and config.recipe.decay_mask is 'all' here"]),
    ):
        assert differing_settings(read_checkpoint(path), same.replace(decay_mask=mask)) == told
    content, _ = small_content(Recipe(mask="all"))
    torch.save(content, path)
    (told,) = differing_settings(read_checkpoint(path), recipe.replace(weight_decay=1e-3))
    assert told == "decayed BatchNorms, and config.recipe.decay_mask is 'no_bn' here"


def start(tmp_path: Path, content: Content, *overrides: tuple[str, str]) -> Start:
    """Where a run of ten steps an epoch starts from a file."""
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    shape = [("model.arch", "resnet50"), ("model.stages", "(1, 1)"), ("model.width", "8"), ("model.num_classes", "5")]
    data = [("data.backend", "synthetic"), ("data.synthetic_images", "(320, 64)"), ("precision", "fp32")]
    same = [("recipe.momentum", "0.875"), ("recipe.weight_decay", "1e-3"), ("epochs", "6")]
    config = make_config("/nowhere", *shape, *data, *same, ("run.resume", str(path)), *overrides)
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        plan = make_plan(config, num_images=320, num_devices=len(jax.devices()))
        names = tuple(map(str, range(5)))
        model = build_model(config, num_classes=5, platform="cpu")
        run = {"model": model, "class_names": names, "plan": plan, "stream": {}, "local_devices": [0]}
        return find_start(config, tmp_path / "run", checkpoints, **run)


@pytest.mark.parametrize(
    ("averaged", "decay", "notes"),
    [
        (False, "0", []),
        (True, "0", ["has averaged weights, which config.recipe.ema_decay=0 does without"]),
        (False, "0.9", ["has no averaged weights: those of config.recipe.ema_decay start from its weights"]),
        (True, "0.9", []),
    ],
)
def test_where_a_run_starts_and_what_is_said(
    averaged: bool, decay: str, notes: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, _ = small_content()
    if averaged:
        content["state_dict_ema"] = content["state_dict"]
    found = start(tmp_path, content, ("recipe.ema_decay", decay))
    assert (found.position.epoch, found.position.step, int(found.state.step)) == (4, 0, 40)
    assert bool(found.state.ema) == (decay != "0")
    file = tmp_path / "checkpoint.pth.tar"
    out, err = capfd.readouterr()
    assert out == f"resuming from {file}: 4 of 6 epochs done, with its momentum\n"
    assert err.splitlines() == [f"note: {file} {note}" for note in notes]


def test_notes_of_other_settings_and_no_momentum(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, _ = small_content()
    content["optimizer"]["state"] = {}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text(
        '{"time": 1.0, "step": 7, "epoch": 1, "epochs_done": 0.5, "train.loss": 2.0}\n'
    )
    start(tmp_path, content, ("recipe.momentum", "0.9"))
    out, err = capfd.readouterr()
    file = tmp_path / "checkpoint.pth.tar"
    assert out == f"resuming from {file}: 4 of 6 epochs done, without momentum: the file has none\n"
    anew, other = err.splitlines()
    assert f"has metrics up to step 7, but no checkpoints: training starts anew from {file}, and metrics.jsonl" in anew
    assert other == f"note: {file} was trained with momentum 0.875, and config.recipe.momentum is 0.9 here"
