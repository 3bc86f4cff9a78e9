"""A benchmark's result as one document: JSON for programs, Markdown for people."""

import shlex
import time
from collections.abc import Sequence
from typing import Any

import jax

from rn50_jax.bench import tables
from rn50_jax.bench.device import describe_hardware
from rn50_jax.io.text import counted
from rn50_jax.runtime.machine import describe_machine, gpu_lines


def make_header(argv: Sequence[str], devices: list[jax.Device]) -> dict[str, Any]:
    """Returns what was run, when and on what."""
    facts = describe_machine(devices)
    drivers = dict.fromkeys(gpu["driver"] for gpu in facts.get("gpus", ()) if gpu["driver"])
    return {
        "command": ["python", "-m", "rn50_jax.benchmark", *argv],
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hardware": describe_hardware(devices) | ({"driver": ", ".join(drivers)} if drivers else {}),
        **facts,
    }


def as_json(document: dict[str, Any], *, single: bool) -> dict[str, Any]:
    """Returns the document for a file; if there is to be a single case, its keys stand at the top too."""
    results = document.get("results", [])
    return document | results[0] if single and results else document


def as_markdown(document: dict[str, Any]) -> str:
    """Returns heading, circumstances, a table for each thing that was measured, and what was not run."""
    if "hardware" not in document:
        return "\n\n".join(["Nothing was measured.", *_not_run(document)])
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
        parts += [f"## Side by side: {what}, {_trials(c)} steps", tables.baseline_table(c)]
    if i := document.get("input"):
        files = f"{i['files']['images']:,} files, {i['files']['mean_bytes'] / 1000:.0f} kB on average"
        what = f"{files}, to {i['image_size']} px, batch size {i['batch_size']}"
        parts += [f"## Input: {what}, {_trials(i)} batches", tables.input_table(i)]
    if e := document.get("end_to_end"):
        what = f"{e['arch']}, {e['image_size']} px, {e['backend']}, {e['workers']} threads per device"
        parts += [f"## End to end: {what}, {_trials(e)} steps", tables.end_to_end_table(e)]
    for result in document.get("results", []):
        if "profile_error" in result:
            parts.append(f"No profile: {result['profile_error']}")
        if p := result.get("profile"):
            parts += [f"## Kernels of {p['steps']} steps, trace in {p['dir']}", tables.kernel_tables(result)]
    return "\n\n".join(parts + _not_run(document))


def _trials(setting: dict[str, Any]) -> str:
    return f"{counted(setting['rounds'], 'trial')} of {setting['steps']}"


def _not_run(document: dict[str, Any]) -> list[str]:
    parts = []
    for why, text in (("budget", f"not run for --budget {document.get('budget', 0):g}"), ("stopped", "not measured")):
        if cases := [one["case"] for one in document.get("not_run", []) if one["why"] == why]:
            parts.append(f"{text}: {'; '.join(cases)}")
    return parts


def _circumstances(document: dict[str, Any]) -> list[str]:
    hardware = document["hardware"]
    lines = [
        f"- hardware: {hardware['devices']} x {hardware['device']}; {hardware['cores']} cores, {hardware['processor']}"
    ]
    lines += [f"- GPUs as read: {line}" for line in gpu_lines(document.get("gpus"))]
    if "nvidia_smi" in document:
        lines.append(f"- nvidia-smi: {document['nvidia_smi']}")
    lines.append(f"- date: {document['date']}")
    lines.append(f"- command: `{shlex.join(document['command'])}`")
    lines += [f"- {name}: `{value}`" for name, value in document["environment"].items()]
    if document.get("commit"):
        lines.append(f"- commit: {document['commit']}")
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()))
    return lines


def _results(results: list[dict[str, Any]]) -> list[str]:
    parts: list[str] = []
    for mode in dict.fromkeys(result["mode"] for result in results):
        every = [result for result in results if result["mode"] == mode]
        of_mode = [result for result in every if not result["variant"]]
        weak = [result for result in of_mode if result["scaling"] == "weak"]
        strong = [result for result in of_mode if result["scaling"] == "strong"]
        first = every[0]
        name = "Training" if mode == "train" else "Inference"
        what = f"{first['arch']}, {first['image_size']} px, synthetic data, {first['steps']} steps"
        parts.append(f"## {name}: {what}")
        if mode == "train":
            parts.append(tables.train_table(weak or strong))
        else:
            for precision in dict.fromkeys(result["precision"] for result in weak):
                rows = [result for result in weak if result["precision"] == precision]
                parts += [f"### {precision} latency", tables.latency_table(rows)]
        for kind, rows in (("Weak", weak), ("Strong", strong)):
            if len({result["num_devices"] for result in rows}) > 1:
                parts += [f"### {kind} scaling", tables.scaling_table(rows)]
        if len(every) > len(of_mode):
            parts += ["### Variants", tables.variant_table(every)]
        parts += ["### Every case", tables.detail_table(every)]
    return parts
