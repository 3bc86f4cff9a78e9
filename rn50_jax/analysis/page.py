"""One page about a run that needs nothing else: curves, mistakes, time, configuration, hardware."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rn50_jax.analysis.curves import Run, drawable, kinds_drawn, look, single
from rn50_jax.analysis.page_html import THEME, LegendItem, Table, Tile, inline_svg, render
from rn50_jax.analysis.page_mistakes import look_at_mistakes
from rn50_jax.checkpoint.selection import best_validation, better_weights
from rn50_jax.config import loading as configs
from rn50_jax.config.describe import differences
from rn50_jax.config.loading import Overrides
from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import load_best
from rn50_jax.io.files import no_such_run, write_whole
from rn50_jax.io.text import decimal, shell
from rn50_jax.loggers.console import clock
from rn50_jax.loggers.goodput import PHASES
from rn50_jax.loggers.history import History, metrics_file, read_description, read_history
from rn50_jax.runtime.machine import gpu_lines

_PHASE_COLORS = dict(zip(PHASES, ("#999999", *(f"var(--c{number})" for number in (3, 0, 5, 2, 4, 1))), strict=True))
_LONG = 25  # lines of a table from which on it is folded


def write_page(run: Path, target: Path, overrides: Overrides) -> None:
    """Writes the page of a work folder; looks at the images of `val/` if they and a checkpoint can be found.

    Raises:
      OSError: `target` cannot be written.
      UserError: `run` is no work folder, or an override is wrong.
    """
    if not run.is_dir():
        raise UserError(
            f"--html needs the work folder of a run, and {run} is none" if run.exists() else no_such_run(run)
        )
    history = read_history(metrics_file(run))
    configs.override(Config(), overrides)  # a mistake in them ends the command
    title, config = run.resolve().name, None
    with suppress(UserError):  # the run's own config may be none
        config = configs.read_config(run / "config.json")
    changed = [[key, str(x), str(default)] for key, default, x in differences(Config(), config or Config())]
    drawn = Run(title, history)
    with look():
        panels = [
            inline_svg(single(x, [drawn], size=(4.4, 3.0), legend=False), f"{x.label} over the epochs", x.name)
            for x in drawable([drawn])
        ]
    problem, mistakes = None, None
    try:
        mistakes = look_at_mistakes(load_best(run, overrides))
    except UserError as error:
        problem = str(error)
    text = render(
        title=title,
        about=_about(config, history),
        tiles=list(_tiles(history)),
        kinds=[LegendItem(label, THEME[color.lower()]) for label, color in kinds_drawn(drawn)],
        panels=panels,
        problem=problem,
        mistakes=mistakes,
        seconds=list(_shares(history)),
        epochs=_epochs(history),
        longest=_LONG,
        changed=Table(["key", "value", "default"], changed),
        keys=Table(["key", "value"], [[key, str(x)] for key, x in config.flat().items()]) if config else None,
        **_hardware(read_description(run / "run.json")),
        now=time.strftime("%Y-%m-%d %H:%M"),
    )
    write_whole(target, text)


def _about(config: Config | None, history: History) -> str:
    """Says what was trained, and how far; "" without a config."""
    if config is None:
        return ""
    source = "synthetic data" if config.data.backend == "synthetic" else config.data.dir
    what = f"{config.model.arch} on {source}, {config.data.image_size} px, {config.precision}"
    last = history.lines[-1] if history.lines else {}
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(last["time"])) if last else "-"
    return f"{what}; {last.get('epochs_done', 0):g} of {config.epochs} epochs, last report {when}"


def _tiles(history: History) -> Iterator[Tile]:
    """Headline figures."""
    if lines := history.validations():
        best, last = best_validation(lines), lines[-1]
        prefix = better_weights(best)
        averaged = ", averaged weights" if prefix == "val_ema" else ""
        for name, label in (("top1", "best top-1"), ("top5", "its top-5")):
            if name == "top5" and best.get(f"{prefix}.top5") == 100:
                continue  # of five classes or fewer it always is
            yield Tile(label, f"{_number(best, f'{prefix}.{name}', 2)} %", f"epoch {best['epoch']}{averaged}")
        yield Tile("last top-1", f"{last['val.top1']:.2f} %", f"epoch {last['epoch']}")
    speeds = [speed for speed in history.series("train.total_ips").values() if speed > 0]
    if speeds:
        yield Tile("training", f"{np.median(speeds):,.0f}", "images per second, median")
    if totals := _seconds(history):
        wall = sum(totals.values())
        yield Tile("wall time", clock(wall), "all processes of the run")
        yield Tile("goodput", f"{totals.get('train', 0.0) / wall:.0%}", "share of the time spent training")


def _seconds(history: History) -> dict[str, float]:
    line: dict[str, Any] = next((line for line in reversed(history.lines) if "goodput.train" in line), {})
    return {phase: line[f"goodput.{phase}"] for phase in PHASES if (line.get(f"goodput.{phase}") or 0) > 0}


def _shares(history: History) -> Iterator[LegendItem]:
    """Shares of the wall time."""
    totals = _seconds(history)
    wall = sum(totals.values())
    for phase, value in totals.items():
        yield LegendItem(phase, _PHASE_COLORS[phase], f"{value:.1f} s, {value / wall:.1%}", value / wall)


def _epochs(history: History) -> Table | None:
    lines = history.validations()
    if not lines:
        return None
    averaged = any("val_ema.top1" in line for line in lines)
    names = ["val.top1", "val.top5", "val.loss"] + ["val_ema.top1", "val_ema.top5", "val_ema.loss"] * averaged
    header = ["epoch", "training loss", "training top-1 %", "learning rate", "images/s"]
    header += ["top-1 %", "top-5 %", "loss"] + ["averaged top-1 %", "top-5 %", "loss"] * averaged
    best = best_validation(lines)
    trained = {line["epoch"]: line for line in history.lines if "epoch" in line and "train.loss" in line}
    rows = []
    for line in lines:
        last = trained.get(line["epoch"], {})
        cells = [str(line["epoch"]), _number(last, "train.loss", 4), _number(last, "train.top1", 2)]
        cells += [_number(last, "lr", 5), _number(last, "train.total_ips", 0)]
        rows.append(cells + [_number(line, name, 4 if name.endswith("loss") else 2) for name in names])
    return Table(header, rows, range(len(header)), next(i for i, line in enumerate(lines) if line is best))


def _number(line: Mapping[str, Any], name: str, digits: int) -> str:
    value = line.get(name)
    return "-" if value is None else decimal(value, digits)


def _hardware(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of run.json, whatever is in it."""
    command, versions = facts.get("command"), facts.get("versions")
    rows: list[list[str]] = []
    for key, value in facts.items():
        if key == "gpus":
            rows += [["GPUs as read", line] for line in gpu_lines(value)]
        elif isinstance(value, dict) and key != "versions":
            rows += [[name, str(item)] for name, item in value.items()]
        elif value and key not in ("command", "versions"):
            rows.append([key, str(value)])
    packages = versions.items() if isinstance(versions, dict) else ()
    return {
        "facts": bool(facts),
        "command": shell(command) if isinstance(command, list) else "",
        "hardware": Table(["hardware", ""], rows),
        "versions": Table(["package", "version"], [[name, str(version)] for name, version in packages]),
    }
