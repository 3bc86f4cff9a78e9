"""The tables of a folder of results: what stands beside what, and what is said of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest

from rn50_jax.bench import summary
from rn50_jax.bench.results import card_of
from rn50_jax.errors import UserError

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
SPREAD = {"median": 2.0, "min": 1.0, "max": 3.0}
SECONDS = {"median": 0.1, "p25": 0.1, "p75": 0.2, "p95": 0.3, "p99": 0.4}
CASE = {"mode": "train", "precision": "bf16", "batch_size_per_device": 256, "num_devices": 1, "variant": ""}
TIMED = {
    "step_seconds": SECONDS,
    "flops_of_ceiling": 0.5,
    "bandwidth_of_ceiling": 0.25,
    "peak_memory_bytes": 4e9,
    "peak_memory_source": "device",
    "trace_seconds": 1.0,
    "compile_seconds": 2.0,
    "compiled_from_cache": False,
}


def timed(images_per_second: float, **changed: Any) -> dict[str, Any]:
    return CASE | TIMED | {"images_per_second": images_per_second} | changed


def write(path: Path, *, gpu: str = H100, watts: float = 700, date: str = "2026-11-27", **document: Any) -> None:
    facts = {
        "command": ["python", "-m", "rn50_jax.benchmark", *document.pop("options", [])],
        "date": f"{date}T10:00:00+0000",
        "hardware": {"platform": "gpu", "device": gpu, "devices": 1, "processor": "EPYC", "cores": 16},
        "gpus": [{"name": gpu, "driver": "580.1", "power_limit_w": watts}, {"name": "T4", "power_limit_w": 70}],
        "versions": {"jax": "0.11.2"},
        "commit": "abc",
        "environment": {"XLA_FLAGS": "--a --b"},
        "complete": True,
        "not_run": [],
    }
    path.write_text(json.dumps(facts | document))


def sections(text: str, mark: str) -> dict[str, str]:
    parts = [part.split("\n", 1) for part in f"\n{text}".split(f"\n{mark} ")[1:]]
    assert len({name for name, _ in parts}) == len(parts)
    return dict(parts)


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def table(text: str, heading: str) -> list[list[str]]:
    return rows(sections(text, "###")[heading])[1:]


def test_cards_days_and_versions_are_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.json", results=[timed(1000)])
    write(tmp_path / "b.json", results=[timed(2000)], gpu=H200)
    write(tmp_path / "c.json", results=[timed(3000)], watts=350)
    write(tmp_path / "d.json", results=[timed(4000)], date="2026-11-28")
    write(tmp_path / "e.json", results=[timed(5000)], versions={"jax": "0.12"})
    write(tmp_path / "f.json", results=[timed(6000)], commit="abc+changes")
    cpu = {"platform": "cpu", "device": "CPU (EPYC)", "devices": 1, "processor": "EPYC", "cores": 2}
    write(tmp_path / "g.json", results=[timed(7)], hardware=cpu, gpus=[])
    found = {}
    for part in f"\n{summary.summarize(tmp_path)}".split("\n## ")[1:-1]:
        heading, _, rest = part.partition("\n\n")
        source, _, body = rest.partition("\n\n")
        (row,) = table(body, "Training")
        found[row[3]] = (heading, source)
        assert ("times of a CPU" in body) == heading.startswith("CPU")
    card, versions = f"{H100}, 700 W", "16 cores of EPYC, jax 0.11.2"
    assert found == {
        "1,000": (card, f"2026-11-27, commit abc, driver 580.1, {versions}"),
        "2,000": (f"{H200}, 700 W", f"2026-11-27, commit abc, driver 580.1, {versions}"),
        "3,000": (f"{H100}, 350 W", f"2026-11-27, commit abc, driver 580.1, {versions}"),
        "4,000": (card, f"2026-11-28, commit abc, driver 580.1, {versions}"),
        "5,000": (card, "2026-11-27, commit abc, driver 580.1, 16 cores of EPYC, jax 0.12"),
        "6,000": (card, f"2026-11-27, commit abc+changes, driver 580.1, {versions}"),
        "7": ("CPU (EPYC)", "2026-11-27, commit abc, 2 cores of EPYC, jax 0.11.2"),
    }
    assert list(found)[-1] == "7"  # CPUs last


def test_a_run_has_the_card_of_a_benchmark() -> None:
    gpus = [{"name": H100, "driver": "580.1", "power_limit_w": 700.0}]
    hardware = {"platform": "gpu", "device": H100}
    assert card_of({"devices": f"1 x {H100}", "gpus": gpus}) == card_of({"hardware": hardware, "gpus": gpus})
    cpu = {"hardware": {"platform": "cpu", "device": "CPU (EPYC)"}}
    assert card_of({"devices": "1 x CPU", "host": {"cpu": "EPYC"}}) == card_of(cpu)


def test_training_and_inference(tmp_path: Path) -> None:
    precisions = [timed(4000), timed(1600, precision="fp32"), timed(2000, precision="tf32", compiled_from_cache=True)]
    write(tmp_path / "a.json", results=precisions)
    error = CASE | {"batch_size_per_device": 512, "error": "out of memory"}
    write(tmp_path / "b.json", results=[timed(4400), error, timed(9000, mode="infer")])
    text = summary.summarize(tmp_path)
    bf16, fp32, tf32 = (
        ["100.00 (100.00-200.00)", over, "50.0%", "25.0%", "4,000", f"1.0 + 2.0{cached}", "a"]
        for over, cached in (("2.50x", ""), ("-", ""), ("1.25x", " (cached)"))
    )
    assert table(text, "Training") == [
        ["bf16", "1", "256", "4,000", *bf16],
        ["bf16", "1", "256", "4,400", bf16[0], "-", *bf16[2:-1], "b"],  # fp32 was timed in another process
        ["fp32", "1", "256", "1,600", *fp32],
        ["tf32", "1", "256", "2,000", *tf32],
        ["bf16", "1", "512", "out of memory", *["-"] * 6, "b"],
    ]
    assert table(text, "Inference") == [["bf16", "256", "9,000", bf16[0], "300.00", "400.00", *bf16[2:-1], "b"]]


def test_what_was_changed_stands_apart_as_a_ratio(tmp_path: Path) -> None:
    changed = [timed(4000), timed(3000, variant="compute.impl=plain"), CASE | {"variant": "x=y", "error": "no"}]
    write(tmp_path / "variants.json", results=changed)
    write(tmp_path / "flags-train-default.json", results=[timed(2000)])
    write(tmp_path / "flags-train-off.json", results=[timed(1900)], options=["--config.compute.xla_flags=--f="])
    write(tmp_path / "mine.json", results=[timed(5, batch_size_per_device=8)], options=["--config.compute.xla_flags="])
    text = summary.summarize(tmp_path)
    assert [row[3] for row in table(text, "Training")] == ["2,000", "4,000"]
    assert table(text, "One key changed") == [
        ["train", "bf16", "256", "compute.impl=plain", "3,000", "0.750", "4,000", "variants"],
        ["train", "bf16", "256", "x=y", "no", "-", "-", "variants"],
    ]
    assert table(text, "Flags of XLA's") == [
        ["train", "bf16", "256", "`--f=`", "1,900", "0.950", "4,000", "flags-train-off"],
        ["train", "bf16", "8", "`none`", "5", "-", "4,000", "mine"],
    ]


def test_beside_others_real_data_and_profile(tmp_path: Path) -> None:
    groups = {"idle": {"seconds": 0.02, "share": 0.2, "kernels": 0}}
    traced = {"dir": "d", "step_seconds": 0.1, "groups": groups, "kernels": []}
    setting = {"mode": "train", "precision": "bf16", "batch_size": 256, "rounds": 1, "steps": 100}
    entry = {"images_per_second": SPREAD, "precision": "bf16", "start_seconds": 9.0, "peak_memory_bytes": 5e9}
    programs = [entry | {"name": "rn50_jax", "about": "jax"}, {"name": "timm", "error": "no timm"}]
    programs.append(entry | {"name": "torch", "about": "torch", "ours_over_it": SPREAD})
    feed = {"name": "rn50_jax loader", "images_per_second": SPREAD, "cpu_ms_per_image": SPREAD, "about": "dali-gpu"}
    real = {"precision": "bf16", "batch_size_per_device": 256, "waiting": SPREAD, "ratio": SPREAD}
    real |= {"images_per_second": SPREAD, "images_per_second_synthetic": SPREAD, "backend": "dali-gpu", "workers": 8}
    buffers = {"images_per_second": 4000.0, "images_per_second_without": 3900.0, "ratio": 4000 / 3900}
    write(tmp_path / "peers.json", comparisons=[setting | {"programs": programs}])
    write(tmp_path / "feed.json", input={"image_size": 224, "workers": 8, "programs": [feed]})
    write(tmp_path / "real.json", end_to_end=real)
    write(tmp_path / "profile.json", results=[timed(4000, profile=traced, command_buffers=buffers)])
    parts = sections(summary.summarize(tmp_path), "###")
    beside = parts["Beside others"]
    assert "train, bf16, 256 images, 1 x 100 steps (peers):" in beside and "timm: not compared, no timm" in beside
    assert ["torch", "2.0 (1.0-3.0)", "2.00 (1.00-3.00)"] in [row[:3] for row in rows(beside)]
    assert "dali-gpu, 8 threads per device (real):" in parts["Training on real files"]
    assert rows(parts["The loader alone"])[1][:2] == ["rn50_jax loader", "2.0 (1.0-3.0)"]
    profile = parts["Where a step's time goes"]
    assert "train, bf16, 256 images (profile):\n\n| group" in profile
    assert rows(profile)[1] == ["idle", "20.000", "20.0%", "0"]
    assert "3,900.0 img/s; with them, as timed, 4,000.0 img/s, 1.026 times as many" in profile


def test_quick_starts_and_killed_runs(tmp_path: Path) -> None:
    facts = {"devices": f"1 x {H100}", "started": "2026-11-27T11:00:00+0000", "versions": {"jax": "0.11.2"}}
    facts |= {"gpus": [{"name": H100, "driver": "580.1", "power_limit_w": 700}], "commit": "abc"}
    facts |= {"host": {"cpu": "EPYC", "cores": 16}}
    epochs = ({"step": 46, "epoch": 1, "val.top1": 90.0}, {"step": 92, "epoch": 2, "val.top1": 97.25})
    for name, lines in (("quickstart-bf16", epochs), ("slow", epochs[:1]), ("none", ())):
        run = tmp_path / name
        run.mkdir()
        (run / "run.json").write_text(json.dumps(facts))
        (run / "config.json").write_text(json.dumps({"precision": "bf16", "data": {"backend": "dali-gpu"}}))
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    killed = {"kills": 5, "survived": 4, "runs": 2, "problems": ["run 2 ended in another state"]}
    (tmp_path / "resume.json").write_text(json.dumps({"killed": killed, "run": facts}))
    write(tmp_path / "train.json", results=[timed(4000)])  # of the same card, day and versions
    text = summary.summarize(tmp_path)
    assert table(text, "Quick starts") == [
        ["bf16", "dali-gpu", "no epoch was finished", "-", "-"],
        ["bf16", "dali-gpu", "97.25 %", "2", "yes"],
        ["bf16", "dali-gpu", "90.00 %", "1", "no"],
    ]
    assert table(text, "Killed runs that were started again") == [
        ["5", "4", "2", "run 2 ended in another state", "resume"]
    ]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "not_measured.txt").write_text("real: DALI is not installed, which reads real files\n")
    (tmp_path / "half.json").write_text('{"results": [')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "foreign.json").write_text('{"results": [], "a": 1}')
    (tmp_path / "early.json").write_text('{"complete": false, "not_run": [{"case": "c", "why": "stopped"}]}')
    write(tmp_path / "older.json", results=[{"mode": "train"}])
    rest = [{"case": "train, bf16, 512", "why": "budget"}, {"case": "infer", "why": "stopped"}]
    write(tmp_path / "good.json", results=[timed(4000)], complete=False, not_run=rest)
    text = summary.summarize(tmp_path)
    assert [row[3] for row in table(text, "Training")] == ["4,000"]
    assert "\n\nNot measured: Beside others; Where a step's time goes; Inference; One key changed;" in text
    lines = text.partition("## Not measured\n\n")[2].splitlines()
    assert lines[:3] == [
        "- real: DALI is not installed, which reads real files",
        "- good, train, bf16, 512: not run, its time was over",
        "- good, infer: stopped before it was measured",
    ]
    assert [line.partition(":")[0] for line in lines[3:]] == [
        "- early",
        "- foreign.json",
        "- half.json",
        "- list.json",
        "- older",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"precision": "int8"}', '{"a": 1}', None])
def test_a_run_whose_config_is_none_is_told_beside_the_others(tmp_path: Path, text: str | None) -> None:
    run = tmp_path / "damaged"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"devices": f"1 x {H100}", "started": "2026-11-27T11:00:00+0000"}))
    if text is not None:
        (run / "config.json").write_text(text)
    write(tmp_path / "good.json", results=[timed(4000)])
    found = summary.summarize(tmp_path)
    assert [row[3] for row in table(found, "Training")] == ["4,000"]
    assert "- damaged/run.json: " in found


def test_nothing_at_all(tmp_path: Path) -> None:
    assert summary.main([str(tmp_path)]) == 0
    assert (tmp_path / "summary.md").read_text().endswith("\n\nEverything was measured.\n")
    for folders in ([], [str(tmp_path / "none")], [str(tmp_path), str(tmp_path)]):
        with pytest.raises(UserError, match="usage"):
            summary.main(folders)
