"""One table of a folder of results: `python -m rn50_jax.bench.summary OUT`, the end of scripts/measure_gpu.sh."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rn50_jax import errors
from rn50_jax.bench.tables import table
from rn50_jax.files import read_json
from rn50_jax.history import read_history
from rn50_jax.workdir import write_file

Row = list[str]


def main(argv: Sequence[str]) -> int:
    """Prints the table and writes it to OUT/summary.md."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        raise errors.UserError("usage: python -m rn50_jax.bench.summary FOLDER")
    text = summarise(Path(argv[0]))
    write_file(Path(argv[0]) / "summary.md", text + "\n")
    print(text)
    return 0


def summarise(folder: Path) -> str:
    """The table, under a line on hardware and date, over a list of what failed."""
    rows: list[Row] = []
    about: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        try:
            document = read_json(path, dict[str, Any])
        except (OSError, ValueError) as error:
            raise errors.UserError(f"{path} cannot be read: {error}") from error
        if "hardware" in document:
            hardware = document["hardware"]
            kind = "CPU: " if hardware["platform"] == "cpu" else ""
            driver = f", driver {hardware['driver']}" if "driver" in hardware else ""
            jax = document["versions"]["jax"]
            about.add(f"{kind}{hardware['devices']} x {hardware['device']}{driver}, jax {jax}, {document['date'][:10]}")
        rows += _rows(path.stem, document)
    for metrics in sorted(folder.glob("*/metrics.jsonl")):
        rows.append([metrics.parent.name, "top-1 after the last epoch", _last_top1(metrics), "", "", ""])
    header = ["result", "what", "median", "range or quartiles", "of ceiling", "memory, MB"]
    failures = folder / "failures.txt"
    failed = failures.read_text(encoding="utf-8").strip().splitlines() if failures.is_file() else []
    parts = ["# Measured", "\n".join(f"- {line}" for line in sorted(about)), table(header, rows)]
    parts.append("\n".join(f"- {line}" for line in failed) if failed else "Nothing failed.")
    return "\n\n".join(part for part in parts if part)


def _rows(name: str, document: dict[str, Any]) -> Iterator[Row]:
    for result in document.get("results", []):
        what = f"{result['mode']} {result['precision']}, {result['batch_size_per_device']} x {result['num_devices']}"
        if "error" in result:
            yield [name, what, result["error"], "", "", ""]
            continue
        median, low, high = (1000 * result["step_seconds"][key] for key in ("median", "p25", "p75"))
        speed = f"{result['images_per_second']:,.1f} img/s, {median:.2f} ms"
        ceiling = f"{result['flops_of_ceiling']:.1%} of matmul" if "flops_of_ceiling" in result else ""
        yield [name, what, speed, f"{low:.2f}-{high:.2f} ms", ceiling, f"{result['peak_memory_bytes'] / 1e6:,.0f}"]
    for comparison in document.get("comparisons", []):
        what = f"{comparison['mode']} {comparison['precision']}, {comparison['batch_size']} x 1"
        for entry in comparison["programs"]:
            yield _program(name, f"{what}, {entry['name']}", entry, "images_per_second", "img/s", "ours_over_it")
    for entry in document.get("input", {}).get("programs", []):
        yield _program(name, entry["name"], entry, "images_per_second", "img/s", "ours_over_it_images_per_second")
        if "error" not in entry:
            key = "cpu_ms_per_image"
            yield _program(name, f"{entry['name']}, CPU", entry, key, "ms per image", f"ours_over_it_{key}")
    if "end_to_end" in document:
        real, ratio = document["end_to_end"]["images_per_second"], document["end_to_end"]["ratio"]
        what = f"end to end {document['end_to_end']['precision']}, {document['end_to_end']['backend']}"
        extent = f"{real['min']:,.1f}-{real['max']:,.1f}"
        yield [name, what, f"{real['median']:,.1f} img/s", extent, f"{ratio['median']:.3f} of synthetic", ""]
    if killed := document.get("killed"):
        what = f"{killed['survived']} of {killed['kills']} survived, {len(killed['problems'])} problems"
        yield [name, "killed runs that resumed, to the same bits", what, "", "", ""]


def _program(name: str, what: str, entry: dict[str, Any], key: str, unit: str, ratio: str) -> Row:
    if "error" in entry:
        return [name, what, f"not compared: {entry['error']}", "", "", ""]
    spread = entry[key]
    ours = f"ours / it {entry[ratio]['median']:.2f}" if ratio in entry else ""
    return [name, what, f"{spread['median']:,.2f} {unit}", f"{spread['min']:,.2f}-{spread['max']:,.2f}", ours, ""]


def _last_top1(metrics: Path) -> str:
    found = [line["val.top1"] for line in read_history(metrics).validations()]
    return f"{found[-1]:.2f} %" if found else "none"


if __name__ == "__main__":
    errors.run(main)
