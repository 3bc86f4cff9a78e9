"""The tables of a folder of results: `python -m rn50_jax.bench.summary OUT`, the end of scripts/measure_gpu.sh."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rn50_jax import cli, errors
from rn50_jax.bench import tables
from rn50_jax.bench.results import CPU, Result, by_source, read_results
from rn50_jax.io.files import telling_of_writes, write_whole

Row = dict[str, Any]

_FLAGS = "--config.compute.xla_flags="
_ENOUGH = 96.0  # top-1 of the quick start in per cent, README.md


def main(argv: Sequence[str]) -> int:
    """Prints the tables, and writes them to OUT/summary.md."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        raise errors.UserError("usage: python -m rn50_jax.bench.summary FOLDER")
    text = summarize(Path(argv[0]))
    with telling_of_writes():
        write_whole(Path(argv[0], "summary.md"), text + "\n")
    print(text)
    return 0


def summarize(folder: Path) -> str:
    """Returns Markdown: for each card, and on it for each day, commit and versions, a table of each kind.

    A table without a result reads "not measured". At the end stands what failed, was not run, or cannot be read.
    """
    results, unread = read_results(folder)
    told = folder / "not_measured.txt"
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    parts = ["# Measured"]
    missed: list[str] = []
    for card, sources in by_source(results).items():
        for source, alike in sources.items():
            parts += [f"## {card}", source]
            if card.startswith(CPU):
                parts.append("These are times of a CPU. They say nothing about the speed on a GPU.")
            good = [result for result in alike if _has_form(result)]
            unread += [f"{r.name}: not read, no result of this version" for r in alike if r not in good]
            made = {heading: make(good) for heading, make in _TABLES.items()}
            parts += [part for heading, text in made.items() if text for part in (f"### {heading}", text)]
            if empty := [heading for heading, text in made.items() if not text]:
                parts.append(f"Not measured: {'; '.join(empty)}.")
            missed += [line for result in good for line in _missed(result)]
    parts.append("## Not measured")
    everything = [*lines, *missed, *unread]
    parts.append("\n".join(f"- {line}" for line in everything) if everything else "Everything was measured.")
    return "\n\n".join(parts)


def _has_form(result: Result) -> bool:
    try:
        for make in _TABLES.values():
            make([result])
        list(_missed(result))
        return True
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False


def _missed(result: Result) -> Iterator[str]:
    reasons = {"budget": "not run, its time was over", "stopped": "stopped before it was measured"}
    for entry in result.document.get("not_run", []):
        yield f"{result.name}, {entry['case']}: {reasons.get(entry['why'], entry['why'])}"


def _measured(results: Sequence[Result]) -> list[Row]:
    """The rows of all results, with "from", a result's name, "flags" and "beside", all rows of the same call."""
    return [
        row | {"from": result.name, "flags": _flags(result), "beside": result.document["results"]}
        for result in results
        for row in result.document.get("results", [])
    ]


def _plain(results: Sequence[Result], mode: str) -> list[Row]:
    """The rows with the config as it is and no flags of XLA's, by devices, batch size and precision."""
    found = [r for r in _measured(results) if r["mode"] == mode and not r["flags"] and not r.get("variant")]
    return sorted(found, key=lambda row: [row[key] for key in ("num_devices", "batch_size_per_device", "precision")])


def _train_table(results: Sequence[Result]) -> str:
    def over_fp32(row: Row) -> str:
        return "-" if row["precision"] == "fp32" else tables.ratio(row, _find(row, precision="fp32"), ".2f", "x")

    case = {"precision": tables.PRECISION, "devices": tables.DEVICES, "images on each": tables.BATCH}
    measured = {"img/s": _SPEED, "step, ms: median (quartiles)": tables.step, "over fp32": over_fp32}
    return _case_table(_plain(results, "train"), case, measured | _USE)


def _infer_table(results: Sequence[Result]) -> str:
    measured = {"img/s": _SPEED, "latency, ms: median (quartiles)": tables.step}
    measured["95 %"] = lambda row: f"{1000 * row['step_seconds']['p95']:.2f}"
    measured["99 %"] = lambda row: f"{1000 * row['step_seconds']['p99']:.2f}"
    case = {"precision": tables.PRECISION, "images": tables.BATCH}
    return _case_table(_plain(results, "infer"), case, measured | _USE)


def _variant_table(results: Sequence[Result]) -> str:
    """Each key changed alone, over the config as it is in the same process."""
    rows = [row for row in _measured(results) if row.get("variant")]
    return _changed([row | {"changed": row["variant"], "base": _find(row, variant="")} for row in rows])


def _flag_table(results: Sequence[Result]) -> str:
    """Flags of XLA's, over none in another process of the same part."""
    rows = _measured([result for result in results if result.name.startswith("flags-") or _flags(result)])
    without = {"beside": [row for row in rows if not row["flags"]]}
    return _changed(
        [row | {"changed": f"`{row['flags']}`", "base": _find(row | without)} for row in rows if row["flags"]]
    )


def _changed(rows: Sequence[Row]) -> str:
    case = {"mode": tables.value("mode"), "precision": tables.PRECISION, "images": tables.BATCH}
    case["changed"] = tables.value("changed")
    measured = {"img/s": _SPEED, "over unchanged": lambda row: tables.ratio(row, row["base"], ".3f")}
    ordered = [row for mode in ("train", "infer") for row in rows if row["mode"] == mode]
    return _case_table(ordered, case, measured | {"peak memory, MB": tables.memory})


def _captioned(
    caption: str, key: str, make: Callable[[Row], str], needs: str = ""
) -> Callable[[Sequence[Result]], str]:
    """Returns what makes the tables of all entries under a key of the documents that have what is needed.

    caption: with the names of the entries' values in braces.
    """

    def tables_of(results: Sequence[Result]) -> str:
        parts = []
        for result in results:
            found = result.document.get(key, [])
            for entry in found if isinstance(found, list) else [found]:
                if not needs or needs in entry:
                    parts.append(f"{caption.format_map(entry)} ({result.name}):\n\n{make(entry)}")
        return "\n\n".join(parts)

    return tables_of


def _quick_start_table(results: Sequence[Result]) -> str:
    runs = [result.document for result in results if "started" in result.document]
    case = {"precision": tables.PRECISION, "decoded by": tables.value("backend")}
    measured = {
        "top-1 after the last epoch": lambda run: f"{run['top1']:.2f} %",
        "epochs": tables.value("epochs"),
        f"{_ENOUGH:.0f} % or more": lambda run: "yes" if run["top1"] >= _ENOUGH else "no",
    }
    rows = [run if "top1" in run else run | {"error": "no epoch was finished"} for run in runs]
    return tables.case_table(rows, case, measured) if rows else ""


def _killed_table(results: Sequence[Result]) -> str:
    rows = [r.document["killed"] | {"from": r.name} for r in results if "killed" in r.document]
    columns = {key: tables.value(key) for key in ("kills", "survived", "runs")}
    columns["ended otherwise than an undisturbed run"] = lambda row: "; ".join(row["problems"]) or "none"
    return _case_table(rows, columns, {})


def _commands(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        facts = result.document.get("run", result.document)
        if command := facts.get("command"):
            set_there = "".join(f"{name}={shlex.quote(value)} " for name, value in facts.get("environment", {}).items())
            lines.append(f"- {result.name}: `{set_there}{shlex.join(command)}`")
    return "\n".join(lines)


_TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    "Training": _train_table,
    "Beside others": _captioned(
        "{mode}, {precision}, {batch_size} images, {rounds} x {steps} steps", "comparisons", tables.baseline_table
    ),
    "Where a step's time goes": _captioned(
        "{mode}, {precision}, {batch_size_per_device} images", "results", tables.kernel_tables, needs="profile"
    ),
    "Inference": _infer_table,
    "One key changed": _variant_table,
    "Flags of XLA's": _flag_table,
    "The loader alone": _captioned("{image_size} px, {workers} workers", "input", tables.input_table),
    "Training on real files": _captioned(
        "{backend}, {workers} threads per device", "end_to_end", tables.end_to_end_table
    ),
    "Quick starts": _quick_start_table,
    "Killed runs that were started again": _killed_table,
    "Commands": _commands,
}


_SPEED = tables.value("images_per_second", ",.0f")
_USE: tables.Columns = {
    "of matmul ceiling": tables.MATMUL_SHARE,
    "of copy ceiling": tables.COPY_SHARE,
    "peak memory, MB": tables.memory,
    "trace + compile, s": tables.compilation,
}


def _case_table(rows: Sequence[Row], case: tables.Columns, measured: tables.Columns) -> str:
    return tables.case_table(rows, case, measured, {"from": tables.value("from")}) if rows else ""


def _flags(result: Result) -> str:
    """The flags of XLA's that its command gives; "" if it does not speak of them."""
    given = [word.removeprefix(_FLAGS) for word in result.document.get("command", []) if word.startswith(_FLAGS)]
    return given[-1] or "none" if given else ""


def _find(like: Row, **changed: Any) -> Row | None:
    """The row beside it of the same case, but for what is changed, if it was timed."""
    keys = ("mode", "precision", "batch_size_per_device", "num_devices", "variant")
    wanted = {key: like.get(key) for key in keys} | changed
    same = (row for row in like["beside"] if all((row.get(key) or "") == (wanted[key] or "") for key in keys))
    return next((row for row in same if "error" not in row), None)


if __name__ == "__main__":
    cli.run(main)
