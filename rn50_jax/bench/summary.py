"""The tables of folders of results: `python -m rn50_jax.bench.summary OUT...`, the end of scripts/measure_gpu.sh."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rn50_jax import cli, errors
from rn50_jax.bench import tables
from rn50_jax.bench.results import CPU, Result, by_source, read_results
from rn50_jax.io.files import telling_of_writes, write_whole

Row = dict[str, Any]

_FLAGS = "--config.run.xla_flags="
_ENOUGH = 96.0  # top-1 of the quick start in per cent, README.md


def main(argv: Sequence[str]) -> int:
    """Prints the tables; those of one folder it also writes to OUT/summary.md."""
    folders = [Path(word) for word in argv]
    if not folders or not all(folder.is_dir() for folder in folders):
        raise errors.UserError("usage: python -m rn50_jax.bench.summary FOLDER...")
    text = summarize(*folders)
    with telling_of_writes():
        if len(folders) == 1:
            write_whole(folders[0] / "summary.md", text + "\n")
    print(text)
    return 0


def summarize(*folders: Path) -> str:
    """Returns Markdown: for each card, and on it for each day, commit and versions, a table of each kind.

    A table without a result reads "not measured". At the end stands what failed, was not run, or cannot be read. Of
    several folders, each result and each line has its folder before its name.
    """
    results: list[Result] = []
    unread: list[str] = []
    lines: list[str] = []
    for folder in folders:
        before = f"{folder.resolve().name}/" if len(folders) > 1 else ""
        found, odd = read_results(folder)
        results += [result._replace(name=before + result.name) for result in found]
        unread += [before + line for line in odd]
        told = folder / "not_measured.txt"
        said = told.read_text(encoding="utf-8", errors="replace") if told.is_file() else ""
        lines += [before + line for line in said.splitlines() if line]
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

    def folder(row: Row) -> str:
        return str(row["from"]).rpartition("/")[0]

    part = [result for result in results if result.name.rpartition("/")[2].startswith("flags-") or _flags(result)]
    rows = _measured(part)
    found = []
    for row in filter(lambda row: row["flags"], rows):
        without = [other for other in rows if not other["flags"] and folder(other) == folder(row)]
        found.append(row | {"changed": f"`{row['flags']}`", "base": _find(row | {"beside": without})})
    return _changed(found)


def _changed(rows: Sequence[Row]) -> str:
    case = {"mode": tables.value("mode"), "precision": tables.PRECISION, "images": tables.BATCH}
    case["changed"] = tables.value("changed")
    measured = {"img/s": _SPEED, "over unchanged": lambda row: tables.ratio(row, row["base"], ".3f")}
    ordered = [row for mode in ("train", "infer") for row in rows if row["mode"] == mode]
    return _case_table(ordered, case, measured | {"peak memory, MB": tables.memory})


def _captioned(
    results: Sequence[Result], key: str, caption: Callable[[Row], str], make: Callable[[Row], str], needs: str = ""
) -> str:
    """The tables of all entries under a key of the documents that have what is needed."""
    parts = []
    for result in results:
        found = result.document.get(key, [])
        for entry in found if isinstance(found, list) else [found]:
            if not needs or needs in entry:
                parts.append(f"{caption(entry)} ({result.name}):\n\n{make(entry)}")
    return "\n\n".join(parts)


def _baseline_tables(results: Sequence[Result]) -> str:
    def caption(c: Row) -> str:
        return f"{c['mode']}, {c['precision']}, {c['batch_size']} images, {c['rounds']} x {c['steps']} steps"

    return _captioned(results, "comparisons", caption, tables.baseline_table)


def _profile_tables(results: Sequence[Result]) -> str:
    def caption(row: Row) -> str:
        return f"{row['mode']}, {row['precision']}, {row['batch_size_per_device']} images"

    return _captioned(results, "results", caption, tables.kernel_tables, needs="profile")


def _input_tables(results: Sequence[Result]) -> str:
    return _captioned(results, "input", lambda i: f"{i['image_size']} px, {i['workers']} workers", tables.input_table)


def _end_to_end_tables(results: Sequence[Result]) -> str:
    def caption(real: Row) -> str:
        return f"{real['backend']}, {real['workers']} threads per device"

    return _captioned(results, "end_to_end", caption, tables.end_to_end_table)


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
    "Beside others": _baseline_tables,
    "Where a step's time goes": _profile_tables,
    "Inference": _infer_table,
    "One key changed": _variant_table,
    "Flags of XLA's": _flag_table,
    "The loader alone": _input_tables,
    "Training on real files": _end_to_end_tables,
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
