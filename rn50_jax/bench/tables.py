"""The tables of a benchmark, in Markdown."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned, so that it reads as plain text too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def train_table(results: Sequence[Row]) -> str:
    """Throughput by devices and batch size, a column a precision, and the speed-up of mixed precision.

    The speed-up is over fp32, or where that was not timed over tf32.
    """
    precisions = _in_order(r["precision"] for r in results)
    base = next((p for p in ("fp32", "tf32") if p in precisions), None)
    mixed = [p for p in precisions if base and p != base]
    keys = _in_order((r["num_devices"], r["batch_size_per_device"]) for r in results)
    header = ["devices", "batch size per device", *(f"{p}, img/s" for p in precisions)]
    header += [f"speed-up of {p} over {base}" for p in mixed]
    rows = []
    for devices, batch in keys:
        cells = {
            r["precision"]: r for r in results if (r["num_devices"], r["batch_size_per_device"]) == (devices, batch)
        }
        row = [str(devices), str(batch), *(_speed(cells.get(p)) for p in precisions)]
        rows.append(row + [_over(cells.get(p), cells.get(base or "")) for p in mixed])
    return table(header, rows)


def latency_table(results: Sequence[Row]) -> str:
    """Throughput and latency by batch size."""
    header = ["batch size", "throughput", "latency avg", "median", "90 %", "95 %", "99 %"]
    rows = []
    for result in results:
        images = str(result["batch_size_per_device"] * result["num_devices"])
        if "error" in result:
            rows.append([images, result["error"], *["-"] * 5])
            continue
        speed = f"{result['images_per_second_mean']:,.2f} img/s"
        times = (result["step_seconds"][key] for key in ("mean", "median", "p90", "p95", "p99"))
        rows.append([images, speed, *(f"{1000 * seconds:.2f} ms" for seconds in times)])
    return table(header, rows)


def scaling_table(results: Sequence[Row]) -> str:
    """Speed by number of devices, over one device, and the share of the ideal that is reached."""
    header = ["precision", "devices", "batch size per device", "img/s", "over one device", "efficiency"]
    rows = []
    for result in results:
        one = next((r for r in results if r["precision"] == result["precision"] and r["num_devices"] == 1), None)
        count = result["num_devices"]
        row = [result["precision"], str(count), str(result["batch_size_per_device"]), _speed(result)]
        if one is None or "error" in one or "error" in result:
            rows.append([*row, "-", "-"])
            continue
        factor = result["images_per_second"] / one["images_per_second"]
        rows.append([*row, f"{factor:.2f}x", f"{factor / count:.0%}"])
    return table(header, rows)


def variant_table(results: Sequence[Row]) -> str:
    """Returns the speed of each variant, over the config as it is."""
    plain = next((r for r in results if not r["variant"]), None)
    rows = [
        [r["variant"] or "the config as it is", _speed(r), _ratio(r, plain), "-" if "error" in r else _median(r)]
        for r in results
    ]
    return table(["variant", "img/s", "over the config as it is", "step, ms: median (quartiles)"], rows)


def detail_table(results: Sequence[Row]) -> str:
    """Returns a row for every case: spread, compile time, memory, and how far the device was used."""
    known, varied = any("mfu" in r for r in results), any(r.get("variant") for r in results)
    header = ["variant"] if varied else []
    header += ["precision", "devices", "batch", "img/s", "step, ms: median (quartiles)", "trace + compile, s"]
    header += [
        "peak memory, MB",
        "TFLOP/s",
        "of matmul ceiling",
        "GB/s (XLA's bytes)",
        "of copy ceiling",
        "MB per image",
    ]
    header += ["MFU (data sheet)"] if known else []
    rows = []
    for r in results:
        row = [r["variant"] or "-"] if varied else []
        row += [r["precision"], str(r["num_devices"]), str(r["batch_size_per_device"]), _speed(r)]
        if "error" in r:
            rows.append(row + ["-"] * (len(header) - len(row)))
            continue
        source = "" if r["peak_memory_source"] == "device" else " (XLA)"
        row += [
            _median(r),
            f"{r['trace_seconds']:.1f} + {r['compile_seconds']:.1f}{' (cached)' if r['compiled_from_cache'] else ''}",
            f"{r['peak_memory_bytes'] / 1e6:,.0f}{source}",
            f"{r['tflops']:.3g}",
            _share(r.get("flops_of_ceiling")),
            f"{r['gbytes_per_second']:,.1f}",
            _share(r.get("bandwidth_of_ceiling")),
            f"{r['megabytes_per_image']:,.1f}",
        ]
        rows.append(row + ([_share(r.get("mfu"))] if known else []))
    return table(header, rows)


def ceiling_table(ceilings: dict[str, dict[str, float]]) -> str:
    """What the device reached at best."""
    rows = [[p, f"{c['tflops']:.3g}", f"{c['gbytes_per_second']:,.1f}"] for p, c in ceilings.items()]
    return table(["precision", "matrix product, TFLOP/s", "copy, GB/s read and written"], rows)


def baseline_table(comparison: Row) -> str:
    """Ours and the baselines: speed over the rounds and ours over each."""
    header = ["program", "img/s: median of rounds (range)", "ours / it (range)", "precision"]
    cpu = any("cpu_ms_per_image" in entry for entry in comparison["programs"])
    starts = _in_order(entry["start"] for entry in comparison["programs"] if "start" in entry)
    first_step = f"first step, s ({starts[0]})" if len(starts) == 1 else "first step, s"
    header += (["CPU-ms per image"] if cpu else []) + [first_step, "peak memory, MB", "about"]
    rows = []
    for entry in comparison["programs"]:
        if "images_per_second" not in entry:
            continue
        memory = entry["peak_memory_bytes"]
        row = [entry["name"], _range(entry["images_per_second"], ",.1f")]
        row.append(_range(entry["ours_over_it"], ".2f") if "ours_over_it" in entry else "-")
        row.append(entry["precision"])
        row += [_range(entry["cpu_ms_per_image"], ".1f") if "cpu_ms_per_image" in entry else "-"] if cpu else []
        start = f"{entry['start_seconds']:.1f}" + (f" ({entry['start']})" if len(starts) > 1 else "")
        row += [start, f"{memory / 1e6:,.0f}" if memory else "-", entry["about"]]
        rows.append(row)
    return _with_errors(table(header, rows), comparison)


def input_table(measured: Row) -> str:
    """The feeds: speed, processor time per image, and ours over each."""
    header = ["feed", "img/s: median of rounds (range)", "CPU-ms per image (range)", "ours / it, img/s"]
    header += ["ours / it, CPU-ms", "about"]
    rows = []
    for entry in measured["programs"]:
        if "images_per_second" not in entry:
            continue
        row = [entry["name"]]
        row += [_range(entry["images_per_second"], ",.1f"), _range(entry["cpu_ms_per_image"], ".2f")]
        for key in ("ours_over_it_images_per_second", "ours_over_it_cpu_ms_per_image"):
            row.append(_range(entry[key], ".2f") if key in entry else "-")
        rows.append([*row, entry["about"]])
    return _with_errors(table(header, rows), measured)


def _with_errors(text: str, measured: Row) -> str:
    """Those that could not be compared, and why, below the table."""
    errors = []
    for index, entry in enumerate(measured["programs"]):
        if "error" in entry:
            counts = "images_per_second" in entry and (not index or any(key.startswith("ours_over") for key in entry))
            errors.append(f"{entry['name']}: {'ended early' if counts else 'not compared'}, {entry['error']}")
    return "\n\n".join((text, *errors))


def end_to_end_table(result: Row) -> str:
    """Real beside synthetic steps."""
    header = [
        "precision",
        "batch size per device",
        "real, img/s",
        "synthetic, img/s",
        "real / synthetic",
        "waiting for data",
    ]
    waiting = result["waiting"]
    row = [
        result["precision"],
        str(result["batch_size_per_device"]),
        _range(result["images_per_second"], ",.1f"),
        _range(result["images_per_second_synthetic"], ",.1f"),
        _range(result["ratio"], ".3f"),
        _range(waiting, ".1%"),
    ]
    return table(header, [row])


def kernel_tables(profile: Row) -> str:
    """Returns the time of a step by group of kernels, and the ten kernels that took most of it."""
    if "error" in profile:
        return str(profile["error"])
    step = profile["step_seconds"]
    groups = [
        [name, f"{1000 * g['seconds']:.3f}", f"{g['share']:.1%}", f"{g['kernels']:,.4g}"]
        for name, g in profile["groups"].items()
        if g["kernels"] or name in ("other", "idle")
    ]
    number = sum(g["kernels"] for g in profile["groups"].values())
    groups.append(["step", f"{1000 * step:.3f}", "100.0%", f"{number:,.4g}"])
    kernels = [
        [
            _kernel(k["name"], k["kernel"]),
            k["group"],
            f"{k['count']:,.4g}",
            f"{1000 * k['seconds']:.3f}",
            _share(k["seconds"] / step if step else None),
            "-" if k["gbytes_per_second"] is None else f"{k['gbytes_per_second']:,.1f}",
            _share(k["of_copy_ceiling"]),
        ]
        for k in profile["kernels"][:10]
    ]
    header = ["kernel", "group", "per step", "ms per step", "share", "GB/s read and written", "of copy ceiling"]
    return "\n\n".join((table(["group", "ms per step", "share", "kernels per step"], groups), table(header, kernels)))


def _kernel(name: str, kernel: str) -> str:
    """An instruction's name, and its kernel's where that is not named after it, such as cuDNN's."""
    own = kernel.replace("_", ".") == name.replace("-", ".").replace("_", ".")
    return name[:60] if own else f"{name[:60]}: {kernel[:60]}"


def _in_order(items: Any) -> list[Any]:
    return list(dict.fromkeys(items))


def _speed(result: Row | None) -> str:
    if result is None:
        return "-"
    return str(result["error"]) if "error" in result else f"{result['images_per_second']:,.1f}"


def _over(result: Row | None, base: Row | None) -> str:
    text = _ratio(result, base, ".2f")
    return text if text == "-" else f"{text}x"


def _ratio(result: Row | None, base: Row | None, form: str = ".3f") -> str:
    if result is None or base is None or "error" in result or "error" in base:
        return "-"
    return f"{result['images_per_second'] / base['images_per_second']:{form}}"


def _median(result: Row) -> str:
    median, low, high = (1000 * result["step_seconds"][key] for key in ("median", "p25", "p75"))
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _range(spread: dict[str, float], form: str) -> str:
    """The median and the range, which a single round does not have."""
    one = spread["min"] == spread["max"]
    return f"{spread['median']:{form}}" + ("" if one else f" ({spread['min']:{form}}-{spread['max']:{form}})")
