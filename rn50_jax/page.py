"""One page about a run that needs nothing else: curves, mistakes, time, configuration, hardware."""

import time
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rn50_jax import config as configs
from rn50_jax.console import clock
from rn50_jax.curves import PANELS, Run, kinds_drawn, look, single
from rn50_jax.errors import UserError
from rn50_jax.goodput import PHASES
from rn50_jax.history import History, metrics_file, read_config, read_facts, read_history
from rn50_jax.integrity import score
from rn50_jax.page_mistakes import mistakes_section
from rn50_jax.page_parts import folded, inline_svg, table, themed
from rn50_jax.stored import Overrides, StoredModel, load_run

_PHASE_COLORS = dict(zip(PHASES, ("#999999", *(f"var(--c{number})" for number in (3, 0, 5, 2, 4, 1))), strict=True))


def write_page(run: Path, target: Path, overrides: Overrides) -> None:
    """Writes the page of a work folder; looks at the images of `val/` if they and a checkpoint can be found.

    Raises:
      OSError: `target` cannot be written.
      UserError: `run` is no work folder, or an override is wrong.
    """
    if not run.is_dir():
        raise UserError(f"--html needs the work folder of a run, and {run} is none")
    history = read_history(metrics_file(run))
    configs.override(configs.load(str(configs.DEFAULT))[0], overrides)  # what is wrong in them is told as it is
    title = run.resolve().name
    body = "\n".join(
        [
            *_head(title, run, history),
            *_curves(title, history),
            *mistakes_section(lambda: _load(run, overrides)),
            *_time(history),
            *_epochs(history),
            *_configuration(read_config(run)),
            *_hardware(read_facts(run)),
        ]
    )
    style = (files("rn50_jax") / "page.css").read_text(encoding="utf-8")
    target.write_text(_document(title, style, body), encoding="utf-8", errors="replace")


def _load(run: Path, overrides: Overrides) -> StoredModel:
    try:
        return load_run(run, "best", overrides)
    except UserError as error:
        if "no validated checkpoint" not in str(error):
            raise
        return load_run(run, "latest", overrides)


def _document(title: str, style: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>Made by rn50-jax on {time.strftime('%Y-%m-%d %H:%M')}.</footer>\n</main>\n</body>\n</html>\n"
    )


def _head(title: str, run: Path, history: History) -> Iterator[str]:
    """Name and headline figures."""
    config = read_config(run)
    yield f"<h1>{escape(title)}</h1>"
    if config:
        data = config["data"]
        source = "synthetic data" if data["backend"] == "synthetic" else data["dir"]
        told = f"{config['model']['arch']} on {source}, {data['image_size']} px, {config['precision']}"
        done = history.lines[-1].get("epochs_done", 0) if history.lines else 0
        told += f"; {done:g} of {config['epochs']} epochs, last report "
        told += time.strftime("%Y-%m-%d %H:%M", time.localtime(history.lines[-1].get("time"))) if history.lines else "-"
        yield f'<p class="soft">{escape(told)}</p>'
    tiles: list[tuple[str, str, str]] = []
    if lines := history.validations():
        best, last = max(lines, key=score), lines[-1]
        prefix = "val_ema" if best.get("val_ema.top1", -1.0) > best["val.top1"] else "val"
        averaged = ", averaged weights" if prefix == "val_ema" else ""
        for name, label in (("top1", "best top-1"), ("top5", "its top-5")):
            tiles.append((label, f"{best[f'{prefix}.{name}']:.2f} %", f"epoch {best['epoch']}{averaged}"))
        tiles.append(("last top-1", f"{last['val.top1']:.2f} %", f"epoch {last['epoch']}"))
    speeds = [speed for speed in history.series("train.total_ips").values() if speed > 0]
    if speeds:
        tiles.append(("training", f"{np.median(speeds):,.0f}", "images per second, median"))
    if totals := _seconds(history):
        wall = sum(totals.values())
        tiles.append(("wall time", clock(wall), "all processes of the run"))
        tiles.append(("goodput", f"{totals['train'] / wall:.0%}", "share of the time spent training"))
    cells = (f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in tiles)
    yield f'<dl class="tiles">{"".join(cells)}</dl>'


def _seconds(history: History) -> dict[str, float]:
    line = history.last("goodput.")
    return {phase: line[f"goodput.{phase}"] for phase in PHASES if line.get(f"goodput.{phase}")} if line else {}


def _curves(title: str, history: History) -> Iterator[str]:
    run = Run(title, history)
    yield "<h2>Curves</h2>"
    yield _legend((label, themed(color), "") for label, color in kinds_drawn(run))
    yield '<div class="panels">'
    for panel in PANELS:
        if any(history.series(name) for name, _ in panel.series):
            with look():
                figure = single(panel, [run], size=(4.4, 3.0), legend=False)
            yield inline_svg(figure, f"{panel.label} over the epochs", panel.name)
    yield "</div>"
    yield (
        '<p class="soft">The training loss is what is minimised, with label smoothing and mixing if there are any; the '
        "validation loss is plain cross-entropy.</p>"
    )


def _legend(items: Iterator[tuple[str, str, str]]) -> str:
    cells = (f'<li><i style="background:{color}"></i>{escape(label)}{more}</li>' for label, color, more in items)
    return f'<ul class="legend">{"".join(cells)}</ul>'


def _time(history: History) -> Iterator[str]:
    totals = _seconds(history)
    if not totals:
        return
    wall = sum(totals.values())
    yield "<h2>Where the time went</h2>"
    bars = (
        f'<span style="flex:{value / wall:.4f};background:{_PHASE_COLORS[key]}"></span>'
        for key, value in totals.items()
    )
    yield f'<div class="bar" role="img" aria-label="Shares of the wall time">{"".join(bars)}</div>'
    yield _legend(
        (key, _PHASE_COLORS[key], f"&nbsp; {value:.1f} s, {value / wall:.1%}") for key, value in totals.items()
    )


def _epochs(history: History) -> Iterator[str]:
    lines = history.validations()
    if not lines:
        return
    averaged = any("val_ema.top1" in line for line in lines)
    names = ["val.top1", "val.top5", "val.loss"] + ["val_ema.top1", "val_ema.top5", "val_ema.loss"] * averaged
    header = ["epoch", "training loss", "training top-1 %", "learning rate", "images/s"]
    header += ["top-1 %", "top-5 %", "loss"] + ["averaged top-1 %", "top-5 %", "loss"] * averaged
    best = max(lines, key=score)
    rows, classes = [], []
    for line in lines:
        training = [other for other in history.lines if other.get("epoch") == line["epoch"] and "train.loss" in other]
        last: Mapping[str, Any] = training[-1] if training else {}
        cells = [str(line["epoch"]), _number(last, "train.loss", 4), _number(last, "train.top1", 2)]
        cells += [_number(last, "lr", 5), _number(last, "train.total_ips", 0)]
        rows.append(cells + [_number(line, name, 4 if name.endswith("loss") else 2) for name in names])
        classes.append("best" if line is best else "")
    yield "<h2>Epochs</h2>"
    yield from folded(table(header, rows, numbers=range(len(header)), classes=classes), len(rows), "epochs")
    yield '<p class="soft">Training figures are those of the last lines of each epoch; the best epoch is bold.</p>'


def _number(line: Mapping[str, Any], name: str, digits: int) -> str:
    value = line.get(name)
    return "-" if value is None else f"{value:.{digits}f}"


def _configuration(config: dict[str, Any]) -> Iterator[str]:
    if not config:
        return
    flat = configs.flatten(configs.from_tree(config))
    default = configs.flatten(configs.load(str(configs.DEFAULT))[0])
    changed = {key: value for key, value in flat.items() if default.get(key) != value}
    yield "<h2>Configuration</h2>"
    rows = [[key, str(value), str(default.get(key, "-"))] for key, value in changed.items()]
    if rows:
        yield "<p>What differs from <code>configs/default.py</code>:</p>"
        yield table(["key", "value", "default"], rows, numbers=())
    every = table(["key", "value"], [[key, str(value)] for key, value in flat.items()], numbers=())
    yield f"<details><summary>All {len(flat)} keys</summary>{every}</details>"


def _hardware(facts: dict[str, Any]) -> Iterator[str]:
    if not facts:
        return
    host = facts.get("host", {})
    rows = [
        ["devices", facts.get("devices", "-")],
        ["CPU", host.get("cpu", "-")],
        ["cores", str(host.get("cores", "-"))],
    ]
    rows += [["memory", f"{host.get('memory_gb', '-')} GB"], ["system", host.get("system", "-")]]
    rows.append(["last process started", facts.get("started", "-")])
    versions = [[name, version] for name, version in facts.get("versions", {}).items()]
    yield "<h2>Hardware and software</h2>"
    if facts.get("command"):
        yield f"<p><code>{escape(' '.join(facts['command']))}</code></p>"
    yield f'<div class="columns"><div>{table(["hardware", ""], rows, numbers=())}</div>'
    yield f"<div>{table(['package', 'version'], versions, numbers=())}</div></div>"
