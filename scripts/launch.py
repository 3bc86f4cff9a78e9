#!/usr/bin/env python3
"""Starts one command as several processes of this machine, and ends them all when one fails.

    python scripts/launch.py --processes 8 -- python -m rn50_jax.train --config configs/dgxa100_90e.py

Each process gets an equal share of the GPUs (of `CUDA_VISIBLE_DEVICES`, if set), its number and where to meet the
others in `JAX_PROCESS_ID`, `JAX_NUM_PROCESSES` and `JAX_COORDINATOR_ADDRESS`. On several machines start it on each,
with `--machines`, `--machine` and `--coordinator`. One process for all GPUs needs no launcher. Needs only Python.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

GRACE = 10  # seconds between asking a process to end and killing it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, help="on this machine, such as one for each GPU")
    parser.add_argument("--machines", type=int, default=1, help="that run this launcher (default: 1)")
    parser.add_argument("--machine", type=int, default=0, help="number of this one, from 0")
    parser.add_argument("--coordinator", help="HOST:PORT, a free port of machine 0 (default: chosen here)")
    parser.add_argument("--gpus", type=int, default=0, help="of this machine (default: those nvidia-smi lists)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command or args.processes < 1 or not 0 <= args.machine < args.machines:
        parser.error("give --processes >= 1, --machine from 0 to --machines - 1, and a command after --")
    if args.machines > 1 and not args.coordinator:
        parser.error("several machines need --coordinator HOST:PORT")
    gpus = visible_gpus(args.gpus)
    if len(gpus) % args.processes:
        parser.error(f"{len(gpus)} GPU(s) cannot be shared equally by --processes {args.processes}")

    children = []
    coordinator = args.coordinator or f"127.0.0.1:{free_port()}"
    for local in range(args.processes):
        env = os.environ | {
            "JAX_COORDINATOR_ADDRESS": coordinator,
            "JAX_NUM_PROCESSES": str(args.machines * args.processes),
            "JAX_PROCESS_ID": str(args.machine * args.processes + local),
        }
        if gpus:
            share = len(gpus) // args.processes
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[local * share : (local + 1) * share])
        children.append(subprocess.Popen(command, env=env))

    def forward(number: int, _: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    return wait(children)


def visible_gpus(count: int) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` names, or the numbers of all GPUs."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    if not count:
        try:
            done = subprocess.run(
                ["nvidia-smi", "--list-gpus"], capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        except FileNotFoundError:
            return []
        count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return [str(number) for number in range(count)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait(children: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all to end; the first that fails decides the exit code, and the others are ended."""
    while True:
        codes = [child.poll() for child in children]
        failed = [number for number, code in enumerate(codes) if code]
        if failed:
            code = codes[failed[0]] or 1
            print(f"launch: process {failed[0]} ended with code {code}; ending the others", file=sys.stderr)
            stop(children)
            return code if code > 0 else 128 - code
        if None not in codes:
            return 0
        time.sleep(0.1)


def stop(children: list[subprocess.Popen[bytes]]) -> None:
    """Lets processes that are ending by themselves finish, then asks, then kills."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        for child in children:
            if number and child.poll() is None:
                child.send_signal(number)
        deadline = time.monotonic() + (1 if number is None else GRACE)
        while time.monotonic() < deadline and any(child.poll() is None for child in children):
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
