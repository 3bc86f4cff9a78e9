"""The training command in real processes: what it writes, how it resumes, what it refuses."""

import json
import re
from pathlib import Path

import pytest
from conftest import Run, assert_user_error
from helpers.logs import logged, read_dle
from helpers.runs import TRAIN_METRICS, VAL_METRICS, read_lines, read_meta

from rn50_jax.loggers.history import KEYS


def test_a_run_tells_what_it_does_and_writes_it_down(trained: tuple[Path, str], digits: Path) -> None:
    workdir, printed = trained
    for text in (
        "1 x CPU, pmap",
        "1,500 training and 297 validation images, 10 classes",
        "resnet18, 6,226 parameters, 32 px",
        "fp32",
        "32 per device x 1 device x 1 pass = 32 per update",
        "2 epochs x 46 steps = 92 steps, 1 epoch of warm-up, peak learning rate 0.2",
        "metrics.jsonl, tensorboard/",
        "expected   about 0:",
        f"saved      {workdir}/checkpoints (of steps 46, 92 (best))",
        f"report     python -m rn50_jax.plot {workdir} --html {workdir}/report.html",
    ):
        assert text in printed, text
    assert re.search(r"memory     [\d.]+ MB per device, as XLA plans it: [\d.]+ kB state, [\d.]+ kB images, ", printed)
    assert re.search(
        r"epoch +1/2 +step +10/92 +loss +\d+\.\d+ +top-1 +\d+\.\d+ +lr 0.04348 .* img/s .* ETA 0:", printed
    )

    lines = read_lines(workdir)
    train = [line for line in lines if "train.loss" in line]
    val = [line for line in lines if "val.loss" in line]
    assert [line["step"] for line in train] == [10, 20, 30, 40, 46, 50, 60, 70, 80, 90, 92]
    assert [(line["step"], line["epoch"]) for line in val] == [(46, 1), (92, 2)]
    assert all(set(line) == TRAIN_METRICS | set(KEYS) for line in train)
    assert all(set(line) == VAL_METRICS | set(KEYS) for line in val)
    assert train[4]["lr"] == pytest.approx(0.2)
    assert val[-1]["val.images"] == 297
    assert val[-1]["val.top1"] > 40
    assert val[-1]["val.loss"] < val[0]["val.loss"] < val[0]["val.loss_smoothed"]

    assert json.loads((workdir / "config.json").read_text())["data"]["dir"] == str(digits)
    facts = json.loads((workdir / "run.json").read_text())
    assert facts["command"][:3] == ["python", "-m", "rn50_jax.train"]
    assert {"jax", "nvidia-dali-cuda130", "python"} <= set(facts["versions"])
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    best, last = re.findall(r"^  (?:best|last) +(\d) +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
    assert last == ("2", f"{val[-1]['val.top1']:.3f}", f"{val[-1]['val.top5']:.3f}", f"{val[-1]['val.loss']:.5f}")
    assert float(best[1]) == round(max(line["val.top1"] for line in val), 3)
    assert printed.endswith("done\n")
    assert read_meta(workdir)["class_names"] == [str(digit) for digit in range(10)]


def test_a_finished_run_says_so(own_copy: Path, call_train: Run) -> None:
    workdir = own_copy
    before = (workdir / "metrics.jsonl").read_text()
    done = call_train(workdir)
    assert done.returncode == 0
    told = "is finished: 2 of 2 epochs done; to train longer give a larger --config.epochs; for a new run give another"
    assert f"{workdir} {told} --workdir\n" in done.stdout and done.stderr == ""
    done = call_train(workdir, "--config.recipe.lr=0.3", "--config.data.flip=0.25")
    changed = "config.data.flip was 0.0 and is 0.25, config.recipe.lr was 0.2 and is 0.3"
    told = f"note: the run in {workdir} was started with other settings: {changed}; "
    assert done.stderr == told + "none of this takes effect, since the run is finished\n"
    assert done.stdout.count("another --workdir") == 1
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_run_can_be_prolonged(own_copy: Path, call_train: Run) -> None:
    done = call_train(own_copy, "--config.epochs=3")
    assert done.returncode == 0, done.stderr
    changed = (
        f"note: the run in {own_copy} was started with other settings: config.epochs was 2 and is 3; for a new run give"
    )
    assert f"{changed} another --workdir\n" in done.stderr
    assert "resuming after epoch 2, step 92" in done.stdout
    assert [line["step"] for line in read_lines(own_copy) if "val.top1" in line] == [46, 92, 138]


def test_a_file_to_start_from_is_named_if_it_is_not_taken(
    own_copy: Path, call_train: Run, call: Run, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    assert call("convert", own_copy, weights).returncode == 0
    done = call_train(own_copy, "--pretrained_weights", weights, "--config.epochs=3", "--config.run.training_only=true")
    assert done.returncode == 0, done.stderr
    told = f"note: {own_copy} goes on from its own checkpoints and not from {weights}; for that give a new --workdir"
    assert told in done.stderr and "pretrained_weights:" not in done.stderr


@pytest.mark.slow
def test_another_number_of_devices_may_go_on(own_copy: Path, call_train: Run) -> None:
    done = call_train(own_copy, "--config.epochs=3", devices=2)
    assert done.returncode == 0, done.stderr
    assert "note: an epoch has another number of steps now: step 92 became 46" in done.stderr
    assert "32 per device x 2 devices x 1 pass = 64 per update" in done.stdout
    assert read_lines(own_copy)[-1]["step"] == 69


@pytest.mark.parametrize(
    "overrides",
    [
        ("--config.precision=bf16",),
        ("--config.precision=fp16", "--config.loss_scale.mode=dynamic"),
        ("--config.recipe.mixup=0.2", "--config.recipe.optimizer_batch_size=64", "--config.compute.parallel=shard_map"),
        ("--config.data.backend=synthetic", "--config.data.synthetic_images=(320, 100)"),
    ],
    ids=lambda overrides: overrides[0].rpartition("=")[2],
)
def test_short_measuring_runs(call_train: Run, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    done = call_train(tmp_path / "run", "--config.run.prof=3", *overrides)
    assert done.returncode == 0, done.stderr
    assert "schedule   2 epochs x 3 steps = 6 steps, 1 epoch of warm-up" in done.stdout
    lines = read_lines(tmp_path / "run")
    assert [(line["step"], line["epoch"]) for line in lines] == [(3, 1), (3, 1), (6, 2), (6, 2), (6, 2)]
    for train, val in (lines[:2], lines[2:4]):
        assert 0 < train["train.loss"] < 20
        assert val["val.images"] == 96  # three batches of 32
        assert ("train.loss_scale" in train) == ("fp16" in overrides[0])
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def test_training_without_validation(call_train: Run, tmp_path: Path, digits: Path, call: Run) -> None:
    only_train = tmp_path / "data"
    only_train.mkdir()
    (only_train / "train").symlink_to(digits / "train")
    options = ("--config.run.training_only=true", "--config.epochs=1", f"--config.data.dir={only_train}")
    done = call_train(tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert not any("val.loss" in line for line in read_lines(tmp_path / "run"))
    assert_user_error(call("evaluate", "--workdir", tmp_path / "run"), "no validated checkpoint", "--checkpoint latest")
    done = call("evaluate", "--workdir", tmp_path / "run", "--checkpoint", "latest", f"--config.data.dir={digits}")
    assert done.returncode == 0, done.stderr


def test_a_run_without_checkpoints_keeps_off_a_real_run(own_copy: Path, call_train: Run) -> None:
    done = call_train(own_copy, "--config.run.prof=2")
    assert_user_error(done, "holds the checkpoints of a run", "another --workdir")


def test_a_run_shorter_than_its_warm_up_says_where_it_ends(call_train: Run, tmp_path: Path) -> None:
    options = ("--config.epochs=2", "--config.recipe.warmup_epochs=8", "--config.run.training_only=true")
    done = call_train(tmp_path / "run", *options, "--config.run.prof=2", "--config.log.print_every=1")
    assert done.returncode == 0, done.stderr
    told = "8 epochs of warm-up, peak learning rate 0.2, not reached: the run ends within the warm-up, at 0.05\n"
    assert told in done.stdout
    rates = [line["lr"] for line in read_lines(tmp_path / "run") if "lr" in line]
    assert rates == pytest.approx([0.2 * (step + 1) / 16 for step in range(4)])


@pytest.mark.slow
def test_evaluate_only(trained: tuple[Path, str], train_tiny: Run) -> None:
    workdir, printed = trained
    done = train_tiny(workdir, "--config.run.evaluate=true")
    assert done.returncode == 0, done.stderr
    numbers = re.findall(r"top-1 .* images", printed)[-1]
    assert numbers in done.stdout


def test_evaluate_only_without_a_checkpoint(
    trained: tuple[Path, str], call_train: Run, call: Run, tmp_path: Path
) -> None:
    only = ("--config.run.evaluate=true", "--config.log.dle_json=r.json")
    done = call_train(tmp_path / "none", *only)
    assert_user_error(done, f"{tmp_path}/none has no checkpoints to validate", "--config.run.prof=N")
    assert not (tmp_path / "none").exists()

    # Random weights know nothing of the ten classes; three batches of 32 are one line.
    done = call_train(tmp_path / "random", *only, "--config.run.prof=3")
    assert done.returncode == 0, done.stderr
    name, told, logs = done.stdout.splitlines()
    assert (name, logs) == ("random weights of seed 0, on 1 x CPU", f"logs       {tmp_path}/random/r.json")
    assert " 96 images" in told
    (top1,) = re.findall(r"top-1 (\S+) %", told)
    assert float(top1) < 50

    weights = tmp_path / "w.safetensors"
    assert call("convert", trained[0], weights).returncode == 0
    done = call_train(tmp_path / "pretrained", *only, "--pretrained_weights", weights)
    assert done.returncode == 0, done.stderr
    best = call("evaluate", "--workdir", trained[0]).stdout
    assert re.findall(r"top-1 .* images", done.stdout) == re.findall(r"top-1 .* images", best)
    (epoch,) = logged(read_dle(tmp_path / "pretrained/r.json"), 1)
    assert f"top-1 {epoch['data']['val.top1']:.3f} %" in best

    # A folder without a checkpoint in it is none of a run; a file that is named goes before those that are there.
    (tmp_path / "random/checkpoints").mkdir()
    assert call_train(tmp_path / "random", *only, "--config.run.prof=3").stdout.startswith("random weights of seed 0, ")
    done = call_train(trained[0], "--config.run.evaluate=true", "--pretrained_weights", weights)
    assert done.returncode == 0 and done.stdout.startswith(f"{weights}, on 1 x CPU\n"), done.stderr


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--config", "configs/none.py"], ["configs/none.py", "does not exist"]),
        (["--config", "configs/dgx1_90e.py:int8"], ["no variant 'int8'", "fp16, fp32"]),
        (["--config", "configs/quickstart.py", "--config.batchsize=3"], ["no key 'batchsize'", "batch_size"]),
        (["--config", "configs/quickstart.py", "--config.epochs=two"], ["config.epochs=two", "an integer >= 1"]),
        (
            ["--config", "configs/quickstart.py", "--confg=3"],
            ["unknown argument '--confg=3'", "did you mean --config?"],
        ),
        (
            ["--config", "configs/quickstart.py", "--label-smoothing", "0.1"],
            ["unknown argument '--label-smoothing'", "did you mean --config.recipe.label_smoothing=VALUE?"],
        ),
        (["--config", "configs/quickstart.py", "--config.epochs"], ["--config.epochs has no value"]),
        (["--workdir", "runs/x"], ["required: --config", "python -m rn50_jax.train --help"]),
        (["--config", "configs/dgx1_90e.py", "--config.data.dir=/nowhere"], ["config.data.dir='/nowhere'"]),
        (["--config", "configs/dgx2_90e.py"], ["dali-gpu", "needs a GPU", "dali-cpu"]),
        (
            ["--config", "configs/quickstart.py", "--config.batch_size=2000"],
            ["1,500 training images", "batch_size=1500"],
        ),
        (["--config", "configs/quickstart.py", "--config.recipe.optimizer_batch_size=50"], ["use 32 or 64"]),
        (["--config", "configs/quickstart.py", "--workdir", "LICENSE"], ["LICENSE", "it is a file", "--workdir"]),
        (
            ["--config", "configs/quickstart.py", "--workdir", "/proc/run"],
            ["cannot write to", "/proc/run", "--workdir"],
        ),
    ],
    ids=lambda value: value[-1].removeprefix("--config.") if isinstance(value, list) else None,
)
def test_mistakes_are_told_in_one_line(call: Run, digits: Path, args: list[str], parts: list[str]) -> None:
    if "quickstart" in args[1]:
        args = [*args, f"--config.data.dir={digits}"]
    assert_user_error(call("train", *args), *parts)


def test_a_mistake_ends_the_process_with_one_line(run: Run) -> None:
    assert_user_error(run("train", "--config", "configs/none.py"), "configs/none.py", "does not exist")


@pytest.mark.slow
def test_averaged_weights_are_validated_kept_and_used(call_train: Run, call: Run, tmp_path: Path, digits: Path) -> None:
    workdir, weights = tmp_path / "run", tmp_path / "weights.npz"
    options = ("--config.recipe.ema_decay=0.9", "--config.epochs=1")
    done = call_train(workdir, *options)
    assert done.returncode == 0, done.stderr
    line = next(line for line in read_lines(workdir) if "val.top1" in line)
    assert {"val_ema.top1", "val_ema.top5", "val_ema.loss", "val_ema.loss_smoothed"} <= set(line)
    assert f"averaged    top-1 {line['val_ema.top1']:.3f} %" in done.stdout
    results = {}
    for ema, prefix in (("on", "val_ema"), ("off", "val")):
        done = call("evaluate", "--workdir", workdir, "--ema", ema, "--json", tmp_path / "result.json")
        assert done.returncode == 0, done.stderr
        results[ema] = json.loads((tmp_path / "result.json").read_text())
        assert results[ema]["val.loss"] == line[f"{prefix}.loss"], ema
        assert results[ema]["ema"] == (prefix == "val_ema")
    assert results["on"]["val.loss"] != results["off"]["val.loss"]
    converted = call("convert", workdir, weights)  # what validated better
    better = "val_ema" if line["val_ema.top1"] >= line["val.top1"] else "val"
    assert ("averaged weights" if better == "val_ema" else "live weights") in converted.stdout
    done = call("evaluate", "--weights", weights, f"--config.data.dir={digits}", "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["val.loss"] == pytest.approx(line[f"{better}.loss"], rel=1e-5)
    refused = call_train(workdir, "--config.epochs=2")
    assert_user_error(refused, "config.recipe.ema_decay was 0.9 and is 0.0 now")


def test_checkpoints_of_another_run_are_refused(own_copy: Path, call_train: Run, tmp_path: Path) -> None:
    workdir = own_copy
    assert_user_error(call_train(workdir, "--config.model.width=16"), "another model", "config.model.width was 8")
    assert_user_error(call_train(workdir, "--config.model.stages=(1, 2, 2, 2)"), "another model", "stages was (1, 1)")
    for split in ("train", "val"):
        for name in ("0", "1"):
            (tmp_path / split).mkdir(exist_ok=True)
            source = Path(json.loads((workdir / "config.json").read_text())["data"]["dir"])
            (tmp_path / split / name).symlink_to(source / split / name)
    done = call_train(workdir, f"--config.data.dir={tmp_path}")
    assert_user_error(done, "are not those that the checkpoint was trained on", "class '2' is missing")
    assert f"the run in {workdir} is on {source} with 10 classes" in done.stderr
    assert f"{tmp_path} has 2: for a new run give another --workdir, or --config.data.dir={source} to" in done.stderr


def test_help_is_short(call: Run) -> None:
    for module in ("train", "evaluate", "predict", "convert", "benchmark", "plot"):
        done = call(module, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: python -m rn50_jax.{module}")
        assert len(done.stdout.splitlines()) < 60
        assert "exit codes: 0 done;" in done.stdout
