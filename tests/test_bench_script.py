"""scripts/measure_gpu.sh as it runs on a GPU, with tiny networks on the CPU."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK_COMPILE, REPO
from runs import PATIENCE

from rn50_jax.bench import summary
from rn50_jax.errors import UserError

ENV = {"SMALL": "1", "XLA_FLAGS": QUICK_COMPILE}


def measure(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(REPO / "scripts/measure_gpu.sh"), *map(str, args)]
    return subprocess.run(
        command, env=os.environ | ENV | env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.slow
def test_a_part_runs_and_is_summed_up(tmp_path: Path) -> None:
    done = measure(tmp_path / "out", "profile")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out/profile-train.json").read_text())
    assert (result["mode"], result["precision"], result["steps"]) == ("train", "bf16", 2)
    text = (tmp_path / "out/summary.md").read_text()
    assert text.strip() in done.stdout
    assert "profile-train" in text and "profile-infer" in text and "- CPU: 1 x CPU" in text
    assert text.rstrip().endswith("Nothing failed.")


def test_what_fails_or_does_not_fit_is_told_at_the_end(tmp_path: Path) -> None:
    done = measure(tmp_path / "out", "profile", BUDGET="0")
    assert done.returncode == 1
    failed = (tmp_path / "out/failures.txt").read_text().splitlines()
    assert failed == [f"profile-{mode}: not begun, the 0 s of its part were over" for mode in ("train", "infer")]
    assert f"- {failed[0]}" in (tmp_path / "out/summary.md").read_text()
    done = measure(tmp_path / "out", "end-to-end", DATA=str(tmp_path))
    assert done.returncode == 1
    assert (tmp_path / "out/failures.txt").read_text() == "end-to-end: exit code 2, see end-to-end.log\n"
    assert f"{tmp_path}/train does not exist" in (tmp_path / "out/end-to-end.log").read_text()


def test_unknown_part(tmp_path: Path) -> None:
    done = measure(tmp_path / "out", "trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no part trian; there are: train infer infer-more variants flags")
    assert not (tmp_path / "out").exists()


def test_summary_of_every_kind_of_result(tmp_path: Path) -> None:
    def write(name: str, **document: Any) -> None:
        (tmp_path / name).write_text(json.dumps(document))

    spread = {"median": 2.0, "min": 1.0, "max": 3.0}
    program = {"name": "torch", "images_per_second": spread, "ours_over_it": spread}
    case = {"mode": "train", "precision": "bf16", "batch_size_per_device": 512, "num_devices": 1}
    write("a.json", results=[case | {"error": "out of memory"}])
    setting = {"mode": "train", "precision": "bf16", "batch_size": 256}
    write("b.json", comparisons=[setting | {"programs": [program, {"name": "timm", "error": "no timm"}]}])
    killed = {"kills": 5, "survived": 5, "runs": 1, "problems": []}
    write("c.json", killed=killed, damaged={}, seed=0, seconds=1)
    (tmp_path / "quickstart-bf16").mkdir()
    (tmp_path / "quickstart-bf16/metrics.jsonl").write_text(
        '{"step": 46, "epoch": 1, "val.top1": 90.0}\n{"step": 92, "epoch": 2, "val.top1": 97.25}\n'
    )
    lines = summary.summarise(tmp_path).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines if line.startswith("|")][2:]
    assert rows == [
        ["a", "train bf16, 512 x 1", "out of memory", ""],
        ["b", "train bf16, 256 x 1, torch", "2.00 img/s", "1.00-3.00"],
        ["b", "train bf16, 256 x 1, timm", "not compared: no timm", ""],
        ["c", "killed runs that resumed, to the same bits", "5 of 5 survived, 0 problems", ""],
        ["quickstart-bf16", "top-1 after the last epoch", "97.25 %", ""],
    ]
    with pytest.raises(UserError, match="usage"):
        summary.main([str(tmp_path / "none")])
