"""docs/from-nvidia.md has every command and flag of NVIDIA's README, and ours beside them work."""

import hashlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import REPO, Run
from helpers.ilsvrc import EXPECTED, write_archives
from helpers.logs import logged, read_dle
from helpers.project import copy_project
from helpers.runs import PATIENCE
from torch_reference import ResNet as TorchResNet
from torch_reference import decay_groups

from rn50_jax import prepare_imagenet
from rn50_jax.config.schema import options
from rn50_jax.data.prepare import ilsvrc2012

PAGE = (REPO / "docs/from-nvidia.md").read_text()
# The usage text of main.py, and what its README calls of the other scripts.
MAIN = re.findall(
    r"\S+",
    """
    DIR -h --help --data-backend --arch -a --model-config -c -j --workers --epochs -b --batch-size
    --optimizer-batch-size --lr --learning-rate --lr-schedule --warmup --label-smoothing --mixup --momentum
    --weight-decay --wd --bn-weight-decay --nesterov --print-freq -p --resume --pretrained-weights --fp16
    --static-loss-scale --dynamic-loss-scale --prof --amp --local_rank --seed --gather-checkpoints --raport-file
    --evaluate --training-only --no-checkpoints --workspace
    """,
)
MULTIPROC = ["--nproc_per_node", "--nnodes", "--node_rank", "--master_addr", "--master_port"]
CONVERT = ["--checkpoint-path", "--weight-path"]
CLASSIFY = ["--arch", "-c", "--weights", "--precision", "--image"]
BACKENDS = ["pytorch", "syntetic", "dali-gpu", "dali-cpu"]
CONFIGS = ["classic", "fanin", "grp-fanin", "grp-fanout"]
SCHEDULES = ["step", "linear", "cosine"]


def section(title: str) -> str:
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, title
    return match[1]


@pytest.mark.parametrize(
    ("title", "flags"),
    [
        ("`main.py`", MAIN),
        ("Launching", [*MULTIPROC, "multiproc.py"]),
        ("`checkpoint2model.py`", CONVERT),
        ("`classify.py`", CLASSIFY),
    ],
)
def test_every_flag_has_a_row(title: str, flags: list[str]) -> None:
    rows = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    for flag in flags:
        assert any(re.search(rf"`{re.escape(flag)}[` ]", row) for row in rows), flag
    if title == "`main.py`":
        for value in BACKENDS + CONFIGS + SCHEDULES:
            assert re.search(rf"`(--[\w-]+ )?{value}`", section(title)), value


def test_every_shipped_script_has_a_configuration() -> None:
    rows = section("Launching")
    for machine in ("dgx1", "dgx2"):
        for epochs in (50, 90, 250):
            for precision in ("fp16", "fp32"):
                assert f"`configs/{machine}_{epochs}e.py:{precision}`" in rows


def test_keys_and_files_exist() -> None:
    sections = "data|model|recipe|loss_scale|checkpoint|report|run|tune"
    keys = set(re.findall(rf"`((?:{sections})\.\w+)(?:=[\w.-]+)?`", PAGE))
    assert len(keys) > 30
    for key in keys:
        assert key in options(), key
    for config in re.findall(r"configs/(\w+\.py)(?::(\w+))?", PAGE):
        text = (REPO / "configs" / config[0]).read_text()
        assert not config[1] or f'"{config[1]}"' in text or "VARIANTS = dgx" in text, config


def test_options_of_our_commands_exist() -> None:
    options = {"train": ["--pretrained_weights", "--workdir"], "evaluate": ["--workdir", "--checkpoint"]}
    options |= {"predict": ["--weights", "--workdir"]}
    pages = (REPO / "docs/commands.md").read_text()
    for command, names in options.items():
        match = re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", pages, re.MULTILINE | re.DOTALL)
        assert match
        for name in names:
            assert (f"{name} " in match[1] and f"`{name}" in PAGE) or f" {name} " in PAGE, (command, name)
    launcher = (REPO / "scripts/launch.py").read_text()
    for name in ("--processes", "--machines", "--machine", "--coordinator"):
        assert f'"{name}"' in launcher and f"`{name}" in PAGE


# The commands of its README, in their order; what it repeats under "Inference process" is here once.
NON_STANDARD = "./main.py --arch resnet50 -c fanin --label-smoothing 0.1"
TRAINING = "./main.py --arch resnet50 --training-only -p 1 --raport-file benchmark.json"
INFERENCE = "python ./main.py --arch resnet50 -p 1 --raport-file benchmark.json --epochs 1 --prof 100 --evaluate"
FP16, AMP = ("--fp16 --static-loss-scale 256", "--amp --static-loss-scale 256")
SEVERAL = "python ./multiproc.py --nproc_per_node 8"
DATA = "<path to imagenet>"
README = [
    "git clone https://github.com/NVIDIA/DeepLearningExamples",
    "cd DeepLearningExamples/PyTorch/Classification/",
    "mkdir train && mv ILSVRC2012_img_train.tar train/ && cd train",
    "tar -xvf ILSVRC2012_img_train.tar && rm -f ILSVRC2012_img_train.tar",
    'find . -name "*.tar" | while read NAME ; do mkdir -p "${NAME%.tar}"; tar -xvf "${NAME}" -C "${NAME%.tar}"; '
    'rm -f "${NAME}"; done',
    "cd ..",
    "mkdir val && mv ILSVRC2012_img_val.tar val/ && cd val && tar -xvf ILSVRC2012_img_val.tar",
    "wget -qO- https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh | bash",
    "docker build . -t nvidia_rn50",
    f"nvidia-docker run --rm -it -v {DATA}:/data/imagenet --ipc=host nvidia_rn50",
    "bash ./resnet50v1.5/training/DGX1_RN50_FP16_250E.sh <path were to store checkpoints and logs>",
    f"python ./main.py --arch resnet50 --evaluate --epochs 1 --resume <path to checkpoint> -b <batch size> {DATA}",
    "python checkpoint2model.py --checkpoint-path <path to checkpoint> --weight-path "
    "<path where weights will be stored>",
    "python classify.py --arch resnet50 -c fanin --weights <path to weights from previous step> "
    "--precision AMP|FP16|FP32 --image <path to JPEG image>",
    f"python {NON_STANDARD} {DATA}",
    f"python {NON_STANDARD} {AMP} {DATA}",
    f"{SEVERAL} {NON_STANDARD} {DATA}",
    f"{SEVERAL} {NON_STANDARD} {AMP} {DATA}",
    "python ./main.py -h",
    "python main.py -h",
    "python ./main.py --arch resnet50-custom <path to dataset>",
    f"python {TRAINING} --epochs 1 --prof 100 {DATA}",
    f"python {TRAINING} --epochs 1 --prof 100 {FP16} {DATA}",
    f"python {TRAINING} --epochs 1 --prof 100 {AMP} {DATA}",
    f"{SEVERAL} {TRAINING} --epochs 1 --prof 100 {DATA}",
    f"{SEVERAL} {TRAINING} {FP16} --epochs 1 --prof 100 {DATA}",
    f"{SEVERAL} {TRAINING} {AMP} --epochs 1 --prof 100 {DATA}",
    f"{INFERENCE} {DATA}",
    f"{INFERENCE} --fp16 {DATA}",
    f"{INFERENCE} --amp {DATA}",
]
BLOCKS = re.findall(r"^```bash needs=NVIDIA\n(.*?)^```\n(?=\n(.*?)$)", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block, _ in BLOCKS for line in block.splitlines()]
OURS = [line for line in LINES if not line.startswith("# ")]


def test_every_command_of_its_readme_is_there_in_order() -> None:
    assert [line.removeprefix("# ") for line in LINES if line.startswith("# ")] == README
    for block, behind in BLOCKS:
        # Its lines have ours below them, or the text behind says that there is none.
        assert not block.splitlines()[-1].startswith("# ") or behind.startswith("No counterpart: "), block


# What makes a line's run small; a run of its benchmark needs 100 batches.
TINY_RUN = (
    "--config.model.arch=resnet18",
    "--config.model.stages=(1,)",
    "--config.model.width=8",
    "--config.data.image_size=32",
    "--config.data.resize=32",
    "--config.data.workers=2",
    "--config.epochs=1",
)


def made_small(line: str, digits: Path) -> list[str]:
    """The words of one of our lines, for the digits."""
    words = shlex.split(line.replace("/data/imagenet", str(digits)).replace("my_images", str(digits)))
    words = [word for word in words if not word.startswith(("CUDA_VISIBLE_DEVICES=", "REQUIREMENTS="))]
    if "rn50_jax.train" in words and "--help" not in words:
        words += [*TINY_RUN, f"--config.batch_size={2 if '--config.run.prof=100' in words else 32}"]
        words += ["--config.recipe.optimizer_batch_size=64"] if "dgx" in line else []
    return words


def write_checkpoint(path: Path) -> None:
    """As its training saves it, of the tiny network."""
    net = TorchResNet((1,), False, 10, width=8)
    optimizer = torch.optim.SGD(decay_groups(net, "reference", 1e-4), lr=0.1, momentum=0.9)
    state = {"epoch": 3, "arch": ("resnet18", "fanin"), "best_prec1": 70.0}
    torch.save(state | {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, path)


SEVERAL_PROCESSES = [line for line in OURS if line.startswith("python scripts/launch.py ")]


@pytest.mark.slow
def test_our_lines_run(
    call: Run, digits: Path, tmp_path: Path, process_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_imagenet, "imagenet", lambda: EXPECTED)
    copy_project(tmp_path)
    write_archives(tmp_path / "archives")
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in (tmp_path / "archives").iterdir()}
    monkeypatch.setattr(ilsvrc2012, "MD5", {name: sums[name] for name in ilsvrc2012.MD5})
    write_checkpoint(tmp_path / "checkpoint.pth.tar")
    shutil.copy(next((digits / "val/3").iterdir()), tmp_path / "photo.jpg")
    printed = {}
    for line in OURS:
        words = made_small(line, digits)
        if line in SEVERAL_PROCESSES:
            continue
        if words[0] in ("source", "bash"):
            done = bash(line.replace("-cuda13", ""), tmp_path, process_env)
        elif words[0] == "./scripts/prepare_imagenet.sh":
            done = call("prepare_imagenet", tmp_path / "archives", tmp_path / "imagenet", *words[3:])
        else:
            assert words[:2] == ["python", "-m"], line
            done = call(words[2].removeprefix("rn50_jax."), *words[3:], cwd=tmp_path)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        printed[line] = done.stdout
    runs = tmp_path / "runs"
    check_training_report(runs / "train-fp32", world=1, scale=1)
    check_training_report(runs / "train-fp16", world=1, scale=256)
    check_inference_report(runs / "infer-fp32")
    check_inference_report(runs / "infer-fp16")
    # What its scripts and its flags' defaults call the report.
    assert read_dle(runs / "dgx1_250e/raport.json") and read_dle(runs / "fp32/experiment_raport.json")
    (said,) = [text for line, text in printed.items() if "precision=fp32 photo.jpg" in line]
    assert re.fullmatch(r"photo\.jpg\n(\d: \d+\.\d%\n){5}", said)
    assert len(list((tmp_path / "imagenet/val").iterdir())) == 5


@pytest.mark.slow
@pytest.mark.parametrize("line", SEVERAL_PROCESSES, ids=lambda line: re.findall(r"runs/(\S+)", line)[0])
def test_our_lines_run_in_several_processes(
    line: str, digits: Path, tmp_path: Path, process_env: dict[str, str]
) -> None:
    words = made_small(line, digits)
    assert words[2:5] == ["--processes", "8", "--"]
    (tmp_path / "scripts").symlink_to(REPO / "scripts")
    done = bash(shlex.join([*words[:3], "2", *words[4:]]), tmp_path, process_env)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "devices    2 x CPU, pmap" in done.stdout
    workdir = tmp_path / words[words.index("--workdir") + 1]
    if "--config.run.prof=100" in words:
        check_training_report(workdir, world=2, scale=256 if "16" in workdir.name else 1)
    else:
        assert logged(read_dle(workdir / "experiment_raport.json"), 1)


def bash(line: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # `source` and activated environments are bash's.
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def check_training_report(workdir: Path, *, world: int, scale: int) -> None:
    """Its benchmark's report: 100 iterations, and the metrics that its README names."""
    lines = read_dle(workdir / "benchmark.json")
    assert [line["step"] for line in logged(lines, 2)] == [[0, i] for i in range(1, 101)]
    (summary,) = logged(lines, 0)
    wanted = {f"train.{name}" for name in ("loss", "total_ips", "compute_ips", "data_time", "compute_time")}
    assert wanted <= summary["data"].keys()
    assert "val.top1" not in summary["data"]
    assert (lines[0]["data"]["world_size"], lines[0]["data"]["static_loss_scale"]) == (world, scale)


def check_inference_report(workdir: Path) -> None:
    (summary,) = logged(read_dle(workdir / "benchmark.json"), 0)
    wanted = ("loss", "top1", "top5", "total_ips", "compute_ips", "data_time", "compute_time")
    latencies = [f"compute_latency{at}" for at in ("", "_at90", "_at95", "_at99", "_at100")]
    assert {f"val.{name}" for name in (*wanted, *latencies)} <= summary["data"].keys()
