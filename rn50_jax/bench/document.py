"""A benchmark's result as one document: JSON for programs, Markdown for people."""

import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

import jax

from rn50_jax.bench import tables
from rn50_jax.bench.device import describe_hardware
from rn50_jax.workdir import versions

_ENVIRONMENT = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "CUDA_VISIBLE_DEVICES",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "OMP_NUM_THREADS",
    "GLIBC_TUNABLES",
)


def make_header(argv: Sequence[str], devices: list[jax.Device]) -> dict[str, Any]:
    """What was run, when and on what."""
    return {
        "command": ["python", "-m", "rn50_jax.benchmark", *argv],
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hardware": describe_hardware(devices),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if os.environ.get(name)},
        "versions": versions(),
    }


def as_json(document: dict[str, Any]) -> dict[str, Any]:
    """The document for a file; of a single case, its keys stand at the top too."""
    results = document.get("results", [])
    return document | results[0] if len(results) == 1 else document


def as_markdown(document: dict[str, Any]) -> str:
    """Heading, circumstances, and a table for each thing that was measured."""
    hardware = document["hardware"]
    cpu = hardware["platform"] == "cpu"
    title = "CPU" if cpu else f"{hardware['devices']} x {hardware['device']}"
    parts = [f"# Benchmark on {title}", "\n".join(_circumstances(document))]
    if cpu:
        parts.append("These are times of a CPU. They say nothing about the speed on a GPU.")
    if "ceilings" in document:
        parts += ["## Ceilings, measured in this run", tables.ceiling_table(document["ceilings"])]
    parts += _results(document.get("results", []))
    for c in document.get("comparisons", []):
        what = f"{c['mode']}, {c['arch']}, {c['image_size']} px, {c['precision']}, batch size {c['batch_size']}"
        parts += [f"## Side by side: {what}, {c['rounds']} rounds of {c['steps']} steps", tables.peer_table(c)]
    if "input" in document:
        i = document["input"]
        files = f"{i['files']['images']:,} files, {i['files']['mean_bytes'] / 1000:.0f} kB on average"
        what = f"{files}, to {i['image_size']} px, batch size {i['batch_size']}"
        parts += [f"## Input: {what}, {i['rounds']} rounds of {i['steps']} batches", tables.input_table(i)]
    if "end_to_end" in document:
        e = document["end_to_end"]
        what = f"{e['arch']}, {e['image_size']} px, {e['backend']}, {e['workers']} threads per device"
        parts += [f"## End to end: {what}, {e['rounds']} rounds of {e['steps']} steps", tables.end_to_end_table(e)]
    for result in document.get("results", []):
        if "profile" not in result:
            continue
        p = result["profile"]
        parts += [f"## Kernels of {p['steps']} steps, trace in {p['dir']}", tables.kernel_tables(p)]
    return "\n\n".join(parts)


def _circumstances(document: dict[str, Any]) -> list[str]:
    hardware = document["hardware"]
    lines = [
        f"- hardware: {hardware['devices']} x {hardware['device']}; {hardware['cores']} cores, {hardware['processor']}"
    ]
    if "driver" in hardware:
        lines.append(f"- driver: {hardware['driver']}")
    lines.append(f"- date: {document['date']}")
    lines.append(f"- command: `{shlex.join(document['command'])}`")
    lines += [f"- {name}: `{value}`" for name, value in document["environment"].items()]
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()))
    return lines


def _results(results: list[dict[str, Any]]) -> list[str]:
    parts: list[str] = []
    for mode in dict.fromkeys(result["mode"] for result in results):
        of_mode = [result for result in results if result["mode"] == mode]
        weak = [result for result in of_mode if result["scaling"] == "weak"]
        strong = [result for result in of_mode if result["scaling"] == "strong"]
        first = of_mode[0]
        name = "Training" if mode == "train" else "Inference"
        what = f"{first['arch']}, {first['image_size']} px, synthetic data, {first['steps']} steps"
        parts.append(f"## {name}: {what}")
        if mode == "train":
            parts.append(tables.train_table(weak or strong))
        else:
            for precision in dict.fromkeys(result["precision"] for result in weak):
                parts += [
                    f"### {precision} latency",
                    tables.latency_table([r for r in weak if r["precision"] == precision]),
                ]
        for kind, rows in (("Weak", weak), ("Strong", strong)):
            if len({result["num_devices"] for result in rows}) > 1:
                parts += [f"### {kind} scaling", tables.scaling_table(rows)]
        parts += ["### Every case", tables.detail_table(of_mode)]
    return parts
