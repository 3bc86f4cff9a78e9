"""scripts/twin.py: PyTorch's side is the same recipe, nothing else is let through, and what is printed is true."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import seeds
import torch
import torch_train
import twin
from conftest import REPO, TINY, assert_user_error
from helpers.parity import Recipe, by_torch_name, distance, load, make_batches
from helpers.runs import PATIENCE, read_lines
from helpers.tiny import place
from scipy import stats

from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config, options
from rn50_jax.distributed.devices import make_mesh, replicate
from rn50_jax.errors import UserError
from rn50_jax.models.compute import Compute
from rn50_jax.models.initial import initial_variables
from rn50_jax.training.build import build_schedule, build_state, compile_steps

FLOAT64 = Compute(np.dtype(np.float64), jax.lax.Precision.HIGHEST)
STEPS, EPOCHS = 3, 4  # of 8 images each


def make_config(*overrides: str) -> Config:
    """A network of two narrow blocks, in float32, that is trained for a few steps."""
    small = ["precision=fp32", "model.stages=(1, 1)", "model.width=8", "batch_size=8", f"epochs={EPOCHS}"]
    small += ["recipe.warmup_epochs=1", "recipe.lr_batch_size=0", "recipe.lr=0.02", "recipe.weight_decay=0.001"]
    split = [text.partition("=")[::2] for text in (*small, *overrides)]
    return configs.override(Config(), split)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.small_stem=True", "recipe.nesterov=True", "recipe.schedule=linear", "recipe.decay_mask=reference"),
        ("recipe.lr_update=epoch", "recipe.schedule=step", "recipe.milestones=(2,)", "recipe.decay_mask=no_bn_bias"),
        ("model.arch=se-resnet50", "model.se_units=3", "recipe.label_smoothing=0", "data.mean=(0.1, 0.2, 0.3)"),
        ("model.arch=resnet18", "model.widths=(8, 24)", "recipe.decay_mask=all", "data.std=(0.1, 0.2, 0.3)"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_config_trains_in_pytorch_as_in_our_step(overrides: tuple[str, ...]) -> None:
    """In float64, where nothing but another recipe could tell them apart, from our initial values."""
    config = make_config(*overrides)
    plan = make_plan(config, num_images=8 * STEPS, num_devices=1)
    batches = make_batches(Recipe(), image_size=16, classes=5, steps=plan.total_steps)
    batches[1]["weight"][0, :3] = 0  # images that stand for bad ones
    with jax.enable_x64(True):
        model = build_model(config, num_classes=5, platform="cpu").clone(compute=FLOAT64)
        mesh = make_mesh(jax.devices()[:1])
        state = jax.tree.map(lambda x: np.asarray(x, float) if x.dtype == np.float32 else x, build_state(config, model))
        net = torch_train.build_net(config.model, 5).double()
        load(net, state.params, state.batch_stats)
        optimizer = torch_train.build_optimizer(config, net)
        step, _ = compile_steps(config, model, plan, mesh)
        state = replicate(state, mesh)
        for number, batch in enumerate(batches):
            state, metrics = step(state, place(batch))
            rate = torch_train.rate_at(config, plan, number)
            mine = {name: value[0] for name, value in batch.items()}
            loss = torch_train.train_step(net, optimizer, config, rate, mine)
            assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-9), number
        ours = by_torch_name(jax.device_get(state.params)) | by_torch_name(jax.device_get(state.batch_stats))
    theirs = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    worst = distance(ours, theirs)
    assert worst[0] < 1e-8, worst


@pytest.mark.parametrize("lr_update", ["step", "epoch"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "poly"])
def test_the_schedule_is_that_of_the_config(schedule: str, lr_update: str) -> None:
    config = make_config(
        f"recipe.schedule={schedule}", f"recipe.lr_update={lr_update}", "recipe.lr_batch_size=4", "recipe.end_lr=0.001",
        "recipe.milestones=(2, 3)", "recipe.milestone_factor=0.3", "recipe.poly_power=1.5",
    )  # fmt: skip
    plan = make_plan(config, num_images=8 * STEPS + 5, num_devices=1)
    theirs = [torch_train.rate_at(config, plan, step) for step in range(STEPS * EPOCHS)]
    assert max(theirs) == pytest.approx(0.04)
    np.testing.assert_allclose(jax.vmap(build_schedule(config, plan))(np.arange(STEPS * EPOCHS)), theirs, rtol=1e-5)


@pytest.mark.parametrize("init", ["fanin", "classic"])
def test_initial_values_are_drawn_as_ours(init: str) -> None:
    """Other numbers of the same distributions, the tails included."""
    config = make_config("model.arch=se-resnet50", "model.width=32", f"model.init={init}")
    config = configs.override(config, [("model.zero_init_last_gamma", "True")])
    torch.manual_seed(1)
    theirs = dict(torch_train.build_net(config.model, 5).named_parameters())
    variables = initial_variables(build_model(config, num_classes=5, platform="cpu"), seed=1)
    ours = by_torch_name(variables["params"])
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if (value.ndim == 1 and "bn" in name) or "downsample.1" in name:
            assert torch.equal(value, ours[name]), name
        elif value.numel() > 1000:
            assert not torch.equal(value, ours[name])
            assert stats.ks_2samp(value.detach().flatten(), ours[name].flatten()).pvalue > 1e-4, name
            assert 0.8 < value.abs().max() / ours[name].abs().max() < 1.25, name
    assert not theirs["layer1.0.bn3.weight"].any()


def test_validation_counts_every_image_once() -> None:
    config = make_config()
    (batch,) = make_batches(Recipe(), image_size=16, classes=5, steps=1)
    whole = {name: value[0] for name, value in batch.items()}
    net = torch_train.build_net(config.model, 5)
    parts = [{name: value[index] for name, value in whole.items()} for index in (np.arange(5), [5, 6, 7, 7, 7])]
    parts[1]["weight"] = np.array([1, 1, 1, 0, 0], np.float32)
    with torch.no_grad():
        logits = net.eval()(torch_train.normalize(whole["image"])).numpy()
    top1, loss = torch_train.validate(net, config, parts)
    assert net.training and top1 == 100 * np.mean(logits.argmax(1) == whole["label"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert loss == pytest.approx(-log_p[np.arange(8), whole["label"]].mean(), rel=1e-5)


def test_mixup_learns_both_labels() -> None:
    """With a share of nearly one half, the loss of a step is that of targets with two labels each."""
    config = make_config("recipe.mixup=100000", "recipe.label_smoothing=0")
    (batch,) = make_batches(Recipe(), image_size=16, classes=5, steps=1)
    batch = {name: value[0] for name, value in batch.items()}
    net = torch_train.build_net(config.model, 5)
    with torch.no_grad():
        net.fc.weight.zero_()  # so that the loss tells of the targets alone
        net.fc.bias.copy_(torch.log(torch.arange(1.0, 6)))
    batch["label"] = np.array([0, 4] * 4, np.int32)
    loss = torch_train.train_step(net, torch_train.build_optimizer(config, net), config, 0.0, batch)
    assert loss == pytest.approx(np.log(15) - np.log(5) / 2, rel=1e-2)


@pytest.mark.parametrize(
    "override",
    [
        "precision=bf16",
        "model.pretrained_weights=x.npz",
        "data.backend=synthetic",
        "recipe.optimizer=lars",
        "recipe.clip_norm=1",
        "recipe.optimizer_batch_size=16",
        "recipe.loss=bce",
        "recipe.cutmix=0.5",
        "recipe.random_erasing=0.1",
        "recipe.ema_decay=0.9",
        "finetune.freeze=('stem',)",
        "run.prof=3",
        "model.arch=mine.py:net",
    ],
)
def test_what_pytorch_would_train_otherwise_is_refused(override: str) -> None:
    torch_train.refuse_unread(make_config())
    with pytest.raises(UserError, match=re.escape(f"config.{override.partition('=')[0]}=")):
        torch_train.refuse_unread(make_config(override))


def test_what_is_read_are_options_of_the_config() -> None:
    assert options().keys() >= torch_train.READ
    assert {key.partition(".")[0] for key in options()} >= set(torch_train.SECTIONS)


def test_the_difference_is_welchs() -> None:
    a, b = np.array([96.1, 95.4, 96.9, 96.3]), np.array([95.2, 94.9, 95.6])
    ours, theirs = ([seeds.Outcome(float(x), 1.0, 2.0) for x in group] for group in (a, b))
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = sum(parts) ** 0.5
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    gap = a.mean() - b.mean()
    half, p = stats.t.ppf(0.975, freedom) * error, 2 * stats.t.sf(gap / error, freedom)
    assert seeds.difference(ours, theirs) == pytest.approx((gap, gap - half, gap + half, p))
    text = f"{gap:+.2f} ({gap - half:+.2f} to {gap + half:+.2f}), p = {p:.2g}"
    assert seeds.difference_text(ours, theirs) == text == "+0.94 (-0.02 to +1.90), p = 0.053"
    assert seeds.group_text(theirs) == "95.23 ± 0.35"
    assert seeds.difference_text(ours[:1], theirs) == f"{96.1 - b.mean():+.2f}"  # of one seed nothing is known
    assert seeds.difference_text(ours[:1] * 2, ours[1:2] * 2) == "+0.70"  # nor without spread


def test_the_verdict_follows_from_p() -> None:
    low, high, both = ([seeds.Outcome(x, 1.0, 2.0) for x in group] for group in ((90, 91), (98, 99), (90, 99)))
    assert twin.verdict(low, high).startswith("They differ by more than chance, and rn50-jax is better")
    assert twin.verdict(high, low).startswith("They differ by more than chance, and PyTorch is better")
    assert twin.verdict(low, both).startswith("They do not differ by more than chance")
    assert twin.verdict(low[:1], high[:1]).startswith("Whether they differ by more than chance cannot be said")


@pytest.fixture
def counted_run(tmp_path: Path) -> Callable[..., list[str]]:
    """Makes a command that notes each of its runs in tmp_path/runs, and trains to 50 % or fails."""

    def command(*args: str) -> list[str]:
        program = (
            "import os, signal, sys; open('runs', 'a').write('x')\n"
            "if os.path.exists('die'): os.remove('die'); os.kill(os.getpid(), signal.SIGKILL)\n"
            "open(sys.argv[1] + '/metrics.jsonl', 'a').write('{\"val.top1\": 50.0}\\n{\"train.loss\": 1}\\n')"
        )
        return [sys.executable, "-c", program, *args]

    return command


def test_what_has_finished_is_kept_and_what_has_not_begun_anew(
    counted_run: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("die").touch()
    with pytest.raises(SystemExit) as ended:
        seeds.outcome(counted_run("a"), Path("a"))
    assert ended.value.code == 137 and "exit code -9 of" in capsys.readouterr().err
    first = seeds.outcome(counted_run("a"), Path("a"))
    assert first.top1 == 50 and first.seconds > 0 and first.processor_seconds > 0
    assert seeds.outcome(counted_run("a"), Path("a")) == first
    assert Path("runs").read_text() == "xx"
    seeds.outcome(counted_run("b"), Path("b"))
    assert Path("runs").read_text() == "xxx"
    with pytest.raises(SystemExit) as ended:  # it would be taken for what it is not
        seeds.outcome(counted_run("a", "--more"), Path("a"))
    assert ended.value.code == 2 and "a has the outcome of another command" in capsys.readouterr().err


def run_twin(env: dict[str, str], *args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "scripts/twin.py"), *map(str, args)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def test_without_pytorch_one_line_says_so(process_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    paths = os.pathsep.join([str(tmp_path), str(REPO)])
    assert_user_error(run_twin(process_env | {"PYTHONPATH": paths}, cwd=tmp_path), "pip install torch")


@pytest.mark.slow
def test_both_learn_the_digits(
    process_env: dict[str, str],
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--config", "quickstart", f"--config.data.dir={digits}", *TINY, "--config.epochs=6"]
    args += ["--config.log.tensorboard=False", "--seeds", "2", "--out", "out"]
    done = run_twin(process_env, *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, _, *rows, empty, verdict = done.stdout.splitlines()
    assert head.startswith("| program | top-1 of each seed") and not empty and "chance" in verdict
    groups = []
    for row, (name, folder) in zip(rows, (("PyTorch", "torch"), ("rn50-jax", "jax")), strict=True):
        program, accuracies, *_ = row.strip("| ").split(" | ")
        runs = [read_lines(tmp_path / f"out/{folder}-seed{seed}") for seed in range(2)]
        validations = [[line for line in run if "val.top1" in line] for run in runs]
        assert [line["epoch"] for run in validations for line in run] == [*range(1, 7)] * 2
        assert program == name and accuracies == " ".join(f"{run[-1]['val.top1']:.2f}" for run in validations)
        assert all(run[-1]["val.top1"] > 80 and run[-1]["val.loss"] < 1 for run in validations)
        groups.append([seeds.Outcome(run[-1]["val.top1"], 0.0, 0.0) for run in validations])
    assert f"| {seeds.difference_text(groups[1], groups[0])} |" in rows[1]

    # The same command goes on: of a finished comparison nothing runs again, and one seed alone tells nothing.
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert twin.main(args) == 0
    assert capsys.readouterr().out == done.stdout
    assert twin.main([*args, "--seeds", "1"]) == 0
    assert "one seed has no spread" in capsys.readouterr().out
