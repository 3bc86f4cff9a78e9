"""Metrics of runs that never were."""

import json
from pathlib import Path
from typing import Any


def write(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def train_line(step: int, loss: float, epochs_done: float, **more: float) -> dict[str, Any]:
    place = {"time": 1.0, "step": step, "epoch": int(epochs_done - 1e-9) + 1, "epochs_done": epochs_done}
    return place | {"train.loss": loss, "train.top1": 10 * loss, "lr": 0.1, "train.total_ips": 9.0} | more


def val_line(epoch: int, top1: float, **more: float) -> dict[str, Any]:
    place = {"time": 2.0, "step": 10 * epoch, "epoch": epoch, "epochs_done": float(epoch)}
    return place | {"val.loss": 5.0 - epoch, "val.top1": top1, "val.top5": top1 + 1, "val.images": 4} | more


def make_run(folder: Path, epochs: int = 3, **more: float) -> Path:
    lines = []
    for epoch in range(epochs):
        lines += [train_line(10 * epoch + s, 3.0 - epoch - s / 20, epoch + s / 10, **more) for s in (5, 10)]
        lines.append(val_line(epoch + 1, 20.0 * (epoch + 1)))
    write(folder / "metrics.jsonl", lines)
    return folder
