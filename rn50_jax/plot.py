"""Curves of a run: `python -m rn50_jax.plot W` draws `W/curves.png` from `W/metrics.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rn50_jax import errors
from rn50_jax.errors import UserError

Points = dict[int, float]


def read_metrics(path: Path) -> dict[str, Points]:
    """{metric: {step: value}}; where a resumed run repeated a step, the later line counts.

    Raises:
      UserError: no such file, or a line that is not JSON.
    """
    series: dict[str, Points] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train first") from None
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number == len(lines):
                break  # a killed run may leave half a line
            raise UserError(f"{path}, line {number} is not JSON; remove it") from None
        for name, value in line.items():
            if value is not None:  # not finite
                series.setdefault(name, {})[line["step"]] = value
    return series


def plot_run(metrics_file: Path, target: Path) -> None:
    """Draws loss, top-1 and top-5, learning rate and speed over the epochs as a PNG."""
    series = read_metrics(metrics_file)
    epochs = _epoch_of(series)
    figure = Figure(figsize=(11, 7), layout="constrained")
    loss, accuracy, rate, speed = figure.subplots(2, 2).flat
    _draw(
        loss,
        series,
        epochs,
        {"train.loss": "training", "val.loss": "validation", "val_ema.loss": "averaged weights"},
        "loss",
    )
    losses = [*series.get("train.loss", {}).values(), *series.get("val.loss", {}).values()]
    if losses and max(losses) > 10 * sorted(losses)[len(losses) // 2] and min(losses) > 0:
        loss.set_yscale("log")  # one early validation must not flatten the rest
    _draw(
        accuracy,
        series,
        epochs,
        {
            "train.top1": "training top-1",
            "val.top1": "validation top-1",
            "val.top5": "validation top-5",
            "val_ema.top1": "averaged weights top-1",
        },
        "accuracy, %",
    )
    _draw(rate, series, epochs, {"lr": "learning rate"}, "learning rate")
    _draw(speed, series, epochs, {"train.total_ips": "training", "val.total_ips": "validation"}, "images per second")
    speed.set_ylim(bottom=0)
    figure.savefig(target, dpi=120)


def _epoch_of(series: dict[str, Points]) -> Points:
    """Epochs done at each step; the validations say how many steps an epoch has."""
    lengths = [step / epoch for step, epoch in series.get("epoch", {}).items() if step in series.get("val.top1", {})]
    if lengths:
        return {step: step / lengths[-1] for step in series["epoch"]}
    return {step: float(step) for step in series.get("epoch", {})}


def _draw(axes: Axes, series: dict[str, Points], epochs: Points, labels: dict[str, str], title: str) -> None:
    for name, label in labels.items():
        points = sorted(series.get(name, {}).items())
        if not points and name.startswith("val_ema."):
            continue
        marker = "o" if name.startswith("val") else ""
        axes.plot([epochs[step] for step, _ in points], [value for _, value in points], marker=marker, label=label)
    axes.set_xlabel("epoch" if series.get("val.top1") else "step")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    axes.legend()


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = errors.CommandLine(prog="rn50_jax.plot", description="Draw the curves of a run.")
    parser.add_argument("workdir", type=Path, help="folder of the run; curves.png is written there")
    args = parser.parse_args(argv)
    plot_run(args.workdir / "metrics.jsonl", args.workdir / "curves.png")
    print(args.workdir / "curves.png")
    return 0


if __name__ == "__main__":
    errors.run(main)
