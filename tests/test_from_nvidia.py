"""docs/from-nvidia.md has every flag of NVIDIA's scripts, and names only keys, options and files that exist."""

import re

import pytest
from conftest import REPO

from rn50_jax.rules import RULES

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
        assert key in RULES, key
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
