#!/usr/bin/env python3
"""Predicts what a training step costs from 1 to 1,024 GPUs: an analytic model, printed as the table of docs/scaling.md.

    python scripts/scaling.py --machine h100 --images_per_second 6000

It predicts; it measures nothing. Put your own measured speed of one GPU into --images_per_second. Needs only Python.
"""

import argparse
import itertools
import math
from typing import NamedTuple

PARAMETERS = 25_557_032
STATISTICS = 53_120
JPEG_BYTES = 110e3  # an average ImageNet file
IMAGES = 1_281_167
BUCKETS = 4  # XLA combines gradients into all-reduces of about 30 MiB
HALF_SPEED_BATCH = 20  # images; see docs/scaling.md
# Epochs to 75.9 % top-1 by global batch, with LARS, from the public logs of MLPerf Training 2.1 to 4.0.
EPOCHS = {3200: 35, 16384: 47, 35840: 58, 40448: 68, 57344: 77, 67456: 86}
LARGEST_BATCH = 32768


class Machine(NamedTuple):
    """A node, with the vendor's figures per GPU and direction, in bytes per second."""

    gpus: int
    nvlink: float
    network: float
    images_per_second: float  # of one GPU at a large batch: assumed, not measured


MACHINES = {
    "v100": Machine(gpus=8, nvlink=150e9, network=12.5e9, images_per_second=1400),
    "a100": Machine(gpus=8, nvlink=300e9, network=25e9, images_per_second=3000),
    "h100": Machine(gpus=8, nvlink=450e9, network=50e9, images_per_second=6000),
}
EFFICIENCY = 0.75  # share of a link's rate that an all-reduce reaches
LATENCY = {"nvlink": 5e-6, "network": 15e-6}  # seconds per hop and bucket


class Step(NamedTuple):
    """The costs of one update."""

    gpus: int
    batch: int
    compute: float
    all_reduce: float
    efficiency: float
    images_per_second: float
    input_bytes: float
    epochs: float
    minutes: float


def all_reduce_seconds(gpus: int, machine: Machine, gradient_bytes: float) -> float:
    """Within a node: reduce-scatter and all-gather over NVLink; between nodes each GPU all-reduces its share."""
    local = min(gpus, machine.gpus)
    nodes = math.ceil(gpus / machine.gpus)
    seconds = 0.0
    if local > 1:
        seconds += 2 * (local - 1) / local * gradient_bytes / (EFFICIENCY * machine.nvlink)
        seconds += BUCKETS * 2 * (local - 1) * LATENCY["nvlink"]
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * gradient_bytes / local / (EFFICIENCY * machine.network)
        seconds += BUCKETS * 2 * math.log2(nodes) * LATENCY["network"]
    return seconds


def epochs_needed(batch: int) -> float:
    """Linear between what was published."""
    known = sorted(EPOCHS.items())
    if batch <= known[0][0]:
        return known[0][1]
    for (low, few), (high, many) in itertools.pairwise(known):
        if batch <= high:
            return few + (many - few) * (batch - low) / (high - low)
    return math.inf


def step(gpus: int, machine: Machine, *, device_batch: int, bytes_per_gradient: int, overlap: float) -> Step:
    """One update with as many images per GPU as the largest useful global batch allows."""
    batch = min(device_batch * gpus, LARGEST_BATCH)
    local = batch // gpus
    compute = (local + HALF_SPEED_BATCH) / machine.images_per_second
    single = device_batch / ((device_batch + HALF_SPEED_BATCH) / machine.images_per_second)
    reduce = all_reduce_seconds(gpus, machine, PARAMETERS * bytes_per_gradient + STATISTICS * 4)
    # Gradients appear during the backward pass, two thirds of the computation; that much can be hidden behind it.
    total = compute + max(reduce - overlap * compute * 2 / 3, 0.0 if overlap else reduce)
    speed = batch / total
    epochs = epochs_needed(batch)
    return Step(
        gpus,
        batch,
        compute,
        reduce,
        speed / gpus / single,
        speed,
        speed / math.ceil(gpus / machine.gpus) * JPEG_BYTES,
        epochs,
        epochs * IMAGES / speed / 60,
    )


def table(machine: Machine, *, device_batch: int, bytes_per_gradient: int, overlap: float) -> str:
    """A Markdown table of 1 to 1,024 GPUs."""
    lines = [
        "| GPUs | global batch | compute, ms | all-reduce, ms | efficiency | images/s | input per host, GB/s "
        "| epochs (LARS) | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for power in range(11):
        s = step(2**power, machine, device_batch=device_batch, bytes_per_gradient=bytes_per_gradient, overlap=overlap)
        lines.append(
            f"| {s.gpus:,} | {s.batch:,} | {1000 * s.compute:.1f} | {1000 * s.all_reduce:.2f} | {s.efficiency:.0%} "
            f"| {s.images_per_second:,.0f} | {s.input_bytes / 1e9:.2f} | {s.epochs:.0f} | {s.minutes:,.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=MACHINES, default="h100", help="default: h100")
    parser.add_argument("--images_per_second", type=float, help="one GPU's speed at a large batch (default: assumed)")
    parser.add_argument("--device_batch", type=int, default=256, help="images per GPU at most (default: 256)")
    parser.add_argument("--all_reduce", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument(
        "--overlap", type=float, default=0.0, help="share of the backward pass that hides the all-reduce"
    )
    args = parser.parse_args()
    machine = MACHINES[args.machine]
    if args.images_per_second:
        machine = machine._replace(images_per_second=args.images_per_second)
    width = 4 if args.all_reduce == "fp32" else 2
    print(table(machine, device_batch=args.device_batch, bytes_per_gradient=width, overlap=args.overlap))


if __name__ == "__main__":
    main()
