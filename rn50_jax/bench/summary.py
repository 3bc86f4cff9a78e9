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
Cells = list[str]

_FLAGS = "--config.run.xla_flags="
_ENOUGH = 96.0  # top-1 of the quick start in per cent, README.md


def main(argv: Sequence[str]) -> int:
    """Prints the tables; those of one folder it also writes to OUT/summary.md."""
    folders = [Path(word) for word in argv]
    if not folders or not all(folder.is_dir() for folder in folders):
        raise errors.UserError("usage: python -m rn50_jax.bench.summary FOLDER...")
    text = summarise(*folders)
    with telling_of_writes():
        if len(folders) == 1:
            write_whole(folders[0] / "summary.md", text + "\n")
    print(text)
    return 0


def summarise(*folders: Path) -> str:
    """Returns Markdown: for each card, and on it for each day, commit and versions, a table of each kind.

    What there is no result of reads "not measured"; at the end stands what failed, was left out, or cannot be read. Of
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
    parts.append("\n".join(f"- {line}" for line in everything) if everything else "Nothing failed or was left out.")
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
    reasons = {"budget": "left out, its time was over", "stopped": "stopped before it was measured"}
    for entry in result.document.get("not_run", []):
        yield f"{result.name}, {entry['case']}: {reasons.get(entry['why'], entry['why'])}"


def _measured(results: Sequence[Result], mode: str) -> Iterator[tuple[Result, Row]]:
    for result in results:
        for row in result.document.get("results", []):
            if row["mode"] == mode:
                yield result, row


def _plain(results: Sequence[Result], mode: str) -> list[tuple[Result, Row]]:
    """What was timed with the config as it is and no flags of XLA's, by devices, batch size and precision."""
    found = [pair for pair in _measured(results, mode) if not _flags(pair[0]) and not pair[1].get("variant")]
    return sorted(
        found, key=lambda pair: [pair[1][key] for key in ("num_devices", "batch_size_per_device", "precision")]
    )


def _train_table(results: Sequence[Result]) -> str:
    header = ["precision", "devices", "images on each", "img/s", "step, ms: median (quartiles)", "over fp32"]
    header += ["of matmul ceiling", "of copy ceiling", "peak memory, MB", "trace + compile, s", "from"]
    rows = []
    for result, row in _plain(results, "train"):
        cells = [row["precision"], str(row["num_devices"]), str(row["batch_size_per_device"])]
        if "error" in row:
            rows.append([*cells, row["error"], *["-"] * 6, result.name])
            continue
        cells += [f"{row['images_per_second']:,.0f}", _step(row), _over_fp32(row, result)]
        rows.append([*cells, *_use(row), result.name])
    return _table(header, rows)


def _infer_table(results: Sequence[Result]) -> str:
    header = ["precision", "images", "img/s", "latency, ms: median (quartiles)", "95 %", "99 %"]
    header += ["of matmul ceiling", "of copy ceiling", "peak memory, MB", "trace + compile, s", "from"]
    rows = []
    for result, row in _plain(results, "infer"):
        cells = [row["precision"], str(row["batch_size_per_device"])]
        if "error" in row:
            rows.append([*cells, row["error"], *["-"] * 7, result.name])
            continue
        cells += [f"{row['images_per_second']:,.0f}", _step(row)]
        cells += [f"{1000 * row['step_seconds'][key]:.2f}" for key in ("p95", "p99")]
        rows.append([*cells, *_use(row), result.name])
    return _table(header, rows)


def _variant_table(results: Sequence[Result]) -> str:
    """Each key changed alone, over the config as it is in the same process."""
    return _changed(
        (result, row, str(row["variant"]), _find(_rows(result), row, variant=""))
        for mode in ("train", "infer")
        for result, row in _measured(results, mode)
        if row.get("variant")
    )


def _flag_table(results: Sequence[Result]) -> str:
    """Flags of XLA's, over none in another process of the same part."""
    part = [result for result in results if result.name.rpartition("/")[2].startswith("flags-") or _flags(result)]
    without: dict[str, list[Row]] = {}
    for result in part:
        without.setdefault(result.name.rpartition("/")[0], []).extend([] if _flags(result) else _rows(result))
    return _changed(
        (result, row, f"`{_flags(result)}`", _find(without[result.name.rpartition("/")[0]], row))
        for mode in ("train", "infer")
        for result, row in _measured(part, mode)
        if _flags(result)
    )


def _changed(entries: Iterator[tuple[Result, Row, str, Row | None]]) -> str:
    header = ["mode", "precision", "images", "changed", "img/s", "over unchanged", "peak memory, MB", "from"]
    rows = []
    for result, row, what, base in entries:
        cells = [row["mode"], row["precision"], str(row["batch_size_per_device"]), what]
        if "error" in row:
            rows.append([*cells, row["error"], "-", "-", result.name])
            continue
        ratio = f"{row['images_per_second'] / base['images_per_second']:.3f}" if base else "-"
        rows.append([*cells, f"{row['images_per_second']:,.0f}", ratio, _memory(row), result.name])
    return _table(header, rows)


def _peer_tables(results: Sequence[Result]) -> str:
    return _captioned(
        (
            f"{c['mode']}, {c['precision']}, {c['batch_size']} images, {c['rounds']} x {c['steps']} steps",
            result,
            tables.peer_table(c),
        )
        for result in results
        for c in result.document.get("comparisons", [])
    )


def _profile_tables(results: Sequence[Result]) -> str:
    return _captioned(
        (
            f"{row['mode']}, {row['precision']}, {row['batch_size_per_device']} images",
            result,
            "\n\n".join((tables.kernel_tables(row["profile"]), *_command_buffers(row))),
        )
        for result in results
        for row in _rows(result)
        if "profile" in row
    )


def _command_buffers(row: Row) -> Iterator[str]:
    found = row.get("command_buffers", {})
    if "ratio" in found:
        with_them, without = found["images_per_second"], found["images_per_second_without"]
        yield (
            f"Traced without command buffers, {without:,.0f} img/s; with them, as timed, {with_them:,.0f} img/s, "
            f"{found['ratio']:.3f} times as many."
        )


def _feed_tables(results: Sequence[Result]) -> str:
    return _captioned(
        (f"{feed['image_size']} px, {feed['workers']} workers", result, tables.input_table(feed))
        for result in results
        if (feed := result.document.get("input"))
    )


def _end_to_end_tables(results: Sequence[Result]) -> str:
    return _captioned(
        (f"{real['backend']}, {real['workers']} threads per device", result, tables.end_to_end_table(real))
        for result in results
        if (real := result.document.get("end_to_end"))
    )


def _quick_start_table(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        run = result.document
        if "top1" in run:
            reached = "yes" if run["top1"] >= _ENOUGH else "no"
            rows.append([run["precision"], run["backend"], f"{run['top1']:.2f} %", str(run["epochs"]), reached])
        elif "started" in run:
            rows.append([run["precision"], run["backend"], "no epoch was finished", "-", "-"])
    return _table(["precision", "decoded by", "top-1 after the last epoch", "epochs", f"{_ENOUGH:.0f} % or more"], rows)


def _killed_table(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        if killed := result.document.get("killed"):
            problems = "; ".join(killed["problems"]) or "none"
            rows.append([str(killed["kills"]), str(killed["survived"]), str(killed["runs"]), problems, result.name])
    return _table(["kills", "survived", "runs", "ended otherwise than an undisturbed run", "from"], rows)


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
    "Beside others": _peer_tables,
    "Where a step's time goes": _profile_tables,
    "Inference": _infer_table,
    "One key changed": _variant_table,
    "Flags of XLA's": _flag_table,
    "The feed alone": _feed_tables,
    "Training on real files": _end_to_end_tables,
    "Quick starts": _quick_start_table,
    "Killed runs that were started again": _killed_table,
    "Commands": _commands,
}


def _table(header: Sequence[str], rows: Sequence[Cells]) -> str:
    return tables.table(header, rows) if rows else ""


def _captioned(found: Iterator[tuple[str, Result, str]]) -> str:
    return "\n\n".join(f"{caption} ({result.name}):\n\n{text}" for caption, result, text in found)


def _rows(result: Result) -> list[Row]:
    rows: list[Row] = result.document.get("results", [])
    return rows


def _flags(result: Result) -> str:
    """The flags of XLA's that its command gives; "" if it does not speak of them."""
    given = [word.removeprefix(_FLAGS) for word in result.document.get("command", []) if word.startswith(_FLAGS)]
    return given[-1] or "none" if given else ""


def _find(rows: Sequence[Row], like: Row, **changed: Any) -> Row | None:
    """The row of the same case, but for what is changed, if it was timed."""
    keys = ("mode", "precision", "batch_size_per_device", "num_devices", "variant")
    wanted = {key: like.get(key) for key in keys} | changed
    found = (row for row in rows if all((row.get(key) or "") == (value or "") for key, value in wanted.items()))
    return next((row for row in found if "error" not in row), None)


def _over_fp32(row: Row, result: Result) -> str:
    base = _find(_rows(result), row, precision="fp32")
    if base is None or row["precision"] == "fp32":
        return "-"
    return f"{row['images_per_second'] / base['images_per_second']:.2f}x"


def _step(row: Row) -> str:
    median, low, high = (1000 * row["step_seconds"][key] for key in ("median", "p25", "p75"))
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _use(row: Row) -> Cells:
    shares = [f"{row[key]:.1%}" if key in row else "-" for key in ("flops_of_ceiling", "bandwidth_of_ceiling")]
    kept = " (cached)" if row["compiled_from_cache"] else ""
    return [*shares, _memory(row), f"{row['trace_seconds']:.1f} + {row['compile_seconds']:.1f}{kept}"]


def _memory(row: Row) -> str:
    return f"{row['peak_memory_bytes'] / 1e6:,.0f}{'' if row['peak_memory_source'] == 'device' else ' (XLA)'}"


if __name__ == "__main__":
    cli.run(main)
