"""The tables of a benchmark, in Markdown that reads as plain text too."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]  # by heading, what makes a cell of a row


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table with its columns aligned."""
    cells = [list(header), *map(list, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def case_table(rows: Sequence[Row], case: Columns, measured: Columns, after: Columns | None = None) -> str:
    """Returns a table with a line for each case, which has its error instead of what could not be measured.

    Args:
      case: columns of the setting. measured: of what was measured. after: behind these, in every line.
    """
    after = after or {}
    lines = []
    for row in rows:
        failed = "error" in row and measured
        found = [row["error"], *["-"] * (len(measured) - 1)] if failed else [cell(row) for cell in measured.values()]
        lines.append([*(cell(row) for cell in case.values()), *found, *(cell(row) for cell in after.values())])
    return table([*case, *measured, *after], lines)


def value(key: str, form: str = "", scale: float = 1) -> Callable[[Row], str]:
    """Returns what makes a cell of one value: `scale` times it if it is a number, "-" where there is none."""

    def cell(row: Row) -> str:
        found = row.get(key)
        return "-" if found is None else str(found) if not form else f"{scale * found:{form}}"

    return cell


def spread(key: str, form: str) -> Callable[[Row], str]:
    """Returns what makes a cell of a median and its range, which a single trial does not have; "-" without one."""

    def cell(row: Row) -> str:
        if key not in row:
            return "-"
        found = row[key]
        range_ = f" ({found['min']:{form}}-{found['max']:{form}})" if found["min"] != found["max"] else ""
        return f"{found['median']:{form}}{range_}"

    return cell


def step(row: Row) -> str:
    """Returns the cell of a step's median time and quartiles, in ms."""
    median, low, high = (1000 * row["step_seconds"][key] for key in ("median", "p25", "p75"))
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def memory(row: Row) -> str:
    """Returns the cell of the peak memory, in MB."""
    return f"{row['peak_memory_bytes'] / 1e6:,.0f}{'' if row['peak_memory_source'] == 'device' else ' (XLA)'}"


def compilation(row: Row) -> str:
    """Returns the cell of the seconds of tracing and compiling."""
    cached = " (cached)" if row["compiled_from_cache"] else ""
    return f"{row['trace_seconds']:.1f} + {row['compile_seconds']:.1f}{cached}"


def ratio(row: Row | None, base: Row | None, form: str, unit: str = "") -> str:
    """Returns the cell of the speed over another case's; "-" if one of them was not measured."""
    if row is None or base is None or "error" in row or "error" in base:
        return "-"
    return f"{row['images_per_second'] / base['images_per_second']:{form}}{unit}"


PRECISION, DEVICES = value("precision"), value("num_devices")
BATCH = value("batch_size_per_device")
SPEED = value("images_per_second", ",.1f")
MATMUL_SHARE, COPY_SHARE = value("flops_of_ceiling", ".1%"), value("bandwidth_of_ceiling", ".1%")


def train_table(results: Sequence[Row]) -> str:
    """Returns throughput by devices and batch size, a column a precision, and the speed-up of mixed precision.

    The speed-up is over fp32, or where that was not timed over tf32.
    """
    cases = {(r["num_devices"], r["batch_size_per_device"], r["precision"]): r for r in results}
    precisions = list(dict.fromkeys(precision for *_, precision in cases))
    base = next((p for p in ("fp32", "tf32") if p in precisions), "")
    mixed = [p for p in precisions if base and p != base]
    header = ["devices", "batch size per device", *(f"{p}, img/s" for p in precisions)]
    header += [f"speed-up of {p} over {base}" for p in mixed]
    lines = []
    for key in dict.fromkeys(key[:2] for key in cases):
        found = {p: cases.get((*key, p)) for p in precisions}
        speeds = ["-" if row is None else str(row["error"]) if "error" in row else SPEED(row) for row in found.values()]
        lines.append([*map(str, key), *speeds, *(ratio(found[p], found[base], ".2f", "x") for p in mixed)])
    return table(header, lines)


def latency_table(results: Sequence[Row]) -> str:
    """Returns throughput and latency by batch size."""

    def latency(key: str) -> Callable[[Row], str]:
        return lambda row: f"{1000 * row['step_seconds'][key]:.2f} ms"

    measured: Columns = {"throughput": lambda r: f"{r['images_per_second_mean']:,.2f} img/s"}
    names = {"latency avg": "mean", "median": "median", "90 %": "p90", "95 %": "p95", "99 %": "p99"}
    measured |= {name: latency(key) for name, key in names.items()}
    return case_table(results, {"batch size": lambda r: str(r["batch_size_per_device"] * r["num_devices"])}, measured)


def scaling_table(results: Sequence[Row]) -> str:
    """Returns speed by number of devices, over one device, and the share of the ideal that is reached."""

    def over_one(row: Row, form: str, unit: str = "", *, each: bool = False) -> str:
        one = next((r for r in results if (r["precision"], r["num_devices"]) == (row["precision"], 1)), None)
        count = row["num_devices"] if each else 1
        return ratio(row | {"images_per_second": row["images_per_second"] / count}, one, form, unit)

    measured: Columns = {"img/s": SPEED, "over one device": lambda r: over_one(r, ".2f", "x")}
    measured["efficiency"] = lambda r: over_one(r, ".0%", each=True)
    return case_table(results, {"precision": PRECISION, "devices": DEVICES, "batch size per device": BATCH}, measured)


def variant_table(results: Sequence[Row]) -> str:
    """Returns the speed of each variant, over the config as it is."""
    plain = next((r for r in results if not r["variant"]), None)
    measured: Columns = {"img/s": SPEED, "over the config as it is": lambda r: ratio(r, plain, ".3f")}
    measured["step, ms: median (quartiles)"] = step
    return case_table(results, {"variant": lambda r: r["variant"] or "the config as it is"}, measured)


def detail_table(results: Sequence[Row]) -> str:
    """Returns a row for every case: spread, compile time, memory, and how far the device was used."""
    varied = any(r.get("variant") for r in results)
    case: Columns = {"variant": lambda r: r["variant"] or "-"} if varied else {}
    case |= {"precision": PRECISION, "devices": DEVICES, "batch": BATCH}
    measured = {
        "img/s": SPEED,
        "step, ms: median (quartiles)": step,
        "trace + compile, s": compilation,
        "peak memory, MB": memory,
        "TFLOP/s": value("tflops", ".3g"),
        "of matmul ceiling": MATMUL_SHARE,
        "GB/s (XLA's bytes)": value("gbytes_per_second", ",.1f"),
        "of copy ceiling": COPY_SHARE,
        "MB per image": value("megabytes_per_image", ",.1f"),
    }
    if any("mfu" in r for r in results):
        measured["MFU (data sheet)"] = value("mfu", ".1%")
    return case_table(results, case, measured)


def ceiling_table(ceilings: dict[str, dict[str, float]]) -> str:
    """Returns what the device reached at best."""
    measured = {"matrix product, TFLOP/s": value("tflops", ".3g")}
    measured["copy, GB/s read and written"] = value("gbytes_per_second", ",.1f")
    rows = [{"precision": precision, **ceiling} for precision, ceiling in ceilings.items()]
    return case_table(rows, {"precision": PRECISION}, measured)


def baseline_table(comparison: Row) -> str:
    """Returns ours and the baselines: speed over the trials, and ours over each."""
    programs = comparison["programs"]
    columns = {
        "program": value("name"),
        "img/s: median of trials (range)": spread("images_per_second", ",.1f"),
        "ours / it (range)": spread("ours_over_it", ".2f"),
        "precision": PRECISION,
    }
    if any("cpu_ms_per_image" in entry for entry in programs):
        columns["CPU-ms per image"] = spread("cpu_ms_per_image", ".1f")
    starts = list(dict.fromkeys(entry["start"] for entry in programs if "start" in entry))
    first = value("start_seconds", ".1f")
    if len(starts) == 1:
        columns[f"first step, s ({starts[0]})"] = first
    else:
        columns["first step, s"] = lambda r: first(r) + (f" ({r['start']})" if starts else "")
    columns |= {"peak memory, MB": value("peak_memory_bytes", ",.0f", 1e-6), "about": value("about")}
    return _program_table(programs, columns)


def input_table(measured: Row) -> str:
    """Returns the loaders: speed, processor time per image, and ours over each."""
    columns = {
        "loader": value("name"),
        "img/s: median of trials (range)": spread("images_per_second", ",.1f"),
        "CPU-ms per image (range)": spread("cpu_ms_per_image", ".2f"),
        "ours / it, img/s": spread("ours_over_it_images_per_second", ".2f"),
        "ours / it, CPU-ms": spread("ours_over_it_cpu_ms_per_image", ".2f"),
        "about": value("about"),
    }
    return _program_table(measured["programs"], columns)


def _program_table(programs: Sequence[Row], columns: Columns) -> str:
    """The programs that were timed; below the table those that failed or could not be compared, and why."""
    parts = [case_table([entry for entry in programs if "images_per_second" in entry], columns, {})]
    for index, entry in enumerate(programs):
        if "error" in entry:
            counts = "images_per_second" in entry and (not index or any(key.startswith("ours_over") for key in entry))
            parts.append(f"{entry['name']}: {'ended early' if counts else 'not compared'}, {entry['error']}")
    return "\n\n".join(parts)


def end_to_end_table(result: Row) -> str:
    """Returns real beside synthetic steps."""
    case = {"precision": PRECISION, "batch size per device": BATCH}
    measured = {
        "real, img/s": spread("images_per_second", ",.1f"),
        "synthetic, img/s": spread("images_per_second_synthetic", ",.1f"),
        "real / synthetic": spread("ratio", ".3f"),
        "waiting for data": spread("waiting", ".1%"),
    }
    return case_table([result], case, measured)


def kernel_tables(result: Row) -> str:
    """Returns the time of a traced step by group of kernels, the ten that took most of it, and what was traced."""
    profile = result["profile"]
    if "error" in profile:
        return str(profile["error"])
    step = profile["step_seconds"]
    groups = [{"group": name, **g} for name, g in profile["groups"].items()]
    whole = {"group": "step", "seconds": step, "share": 1.0, "kernels": sum(g["kernels"] for g in groups)}
    shown = [g for g in groups if g["kernels"] or g["group"] in ("other", "idle")]
    by_group = {
        "group": value("group"),
        "ms per step": value("seconds", ".3f", 1000),
        "share": value("share", ".1%"),
        "kernels per step": value("kernels", ",.4g"),
    }
    by_kernel = {
        "kernel": _kernel,
        "group": value("group"),
        "per step": value("count", ",.4g"),
        "ms per step": value("seconds", ".3f", 1000),
        "share": value("seconds", ".1%", 1 / step) if step else lambda _: "-",
        "GB/s read and written": value("gbytes_per_second", ",.1f"),
        "of copy ceiling": value("of_copy_ceiling", ".1%"),
    }
    parts = [case_table([*shown, whole], by_group, {}), case_table(profile["kernels"][:10], by_kernel, {})]
    found = result.get("command_buffers", {})
    if "error" in found:
        parts.append(f"Traced with command buffers: XLA does not compile without them ({found['error']}).")
    elif found:
        parts.append(
            f"Traced without command buffers: {found['images_per_second_without']:,.1f} img/s; with them, as timed, "
            f"{found['images_per_second']:,.1f} img/s, {found['ratio']:.3f} times as many."
        )
    return "\n\n".join(parts)


def _kernel(row: Row) -> str:
    """An instruction's name, and its kernel's where that is not named after it, such as cuDNN's."""
    name, kernel = row["name"], row["kernel"]
    own = kernel.replace("_", ".") == name.replace("-", ".").replace("_", ".")
    return name[:60] if own else f"{name[:60]}: {kernel[:60]}"
