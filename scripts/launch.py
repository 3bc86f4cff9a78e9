#!/usr/bin/env python3
"""Starts one command as several processes of this machine, and ends them all when one fails.

    python scripts/launch.py --processes 8 -- python -m rn50_jax.train --config configs/dgxa100_90e.py

Each process gets an equal share of the GPUs (of `CUDA_VISIBLE_DEVICES`, if set), its number and where to meet the
others in `JAX_PROCESS_ID`, `JAX_NUM_PROCESSES` and `JAX_COORDINATOR_ADDRESS`. On several machines start it on each,
with `--machines`, `--machine` and `--coordinator`. One process for all GPUs needs no launcher. Needs only Python.

SIGINT, SIGTERM, SIGHUP and SIGUSR1 are passed on to all processes, which end when this one is killed.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType

GRACE = 10  # seconds between asking a process to end and killing it
COPIES = 1.0  # seconds within which copies of one signal come, as from `timeout`
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORWARDED = "RN50_JAX_FORWARDED"  # tells a process where it sees what was passed on, see rn50_jax/runtime/signals.py
PR_SET_PDEATHSIG = 1


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
        parser.error(f"{len(gpus)} GPUs cannot be shared equally by --processes {args.processes}")

    numbers = {*STOPS, signal.SIGUSR1}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup
        numbers.remove(signal.SIGHUP)
    launcher = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def begin() -> None:
        """In a new process: ends with the launcher, however that ends."""
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    children: list[subprocess.Popen[bytes]] = []
    asked: list[tuple[int, float]] = []
    # A signal to the whole group (by a terminal, systemd, SLURM) reaches a process twice: itself, and passed on. So
    # that it can tell, this file grows by a byte for each that is passed on.
    told = os.memfd_create("forwarded")
    coordinator = args.coordinator or f"127.0.0.1:{free_port()}"
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for local in range(args.processes):
        env = os.environ | {
            "JAX_COORDINATOR_ADDRESS": coordinator,
            "JAX_NUM_PROCESSES": str(args.machines * args.processes),
            "JAX_PROCESS_ID": str(args.machine * args.processes + local),
            FORWARDED: f"{told}:{os.fstat(told).st_ino}",
        }
        if gpus:
            share = len(gpus) // args.processes
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[local * share : (local + 1) * share])
        try:
            children.append(subprocess.Popen(command, env=env, pass_fds=[told], preexec_fn=begin))
        except OSError as error:
            parser.error(f"cannot run {command[0]}: {error.strerror}")

    def forward(number: int, _: FrameType | None) -> None:
        if number in STOPS:
            asked.append((number, time.monotonic()))
            os.write(told, b".")
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in numbers:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    return wait(children, asked)


def visible_gpus(count: int) -> list[str]:
    """Returns what `CUDA_VISIBLE_DEVICES` names, or the numbers of all GPUs."""
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


def wait(children: list[subprocess.Popen[bytes]], asked: list[tuple[int, float]]) -> int:
    """Waits for all to end; the first that fails decides the exit code, and the others are ended.

    Args:
      asked: the signals by which all have been asked to end, and when, as they come. One that ends by it has not
        failed: the others are given the time to end as well, until they are asked again.
    """
    while True:
        codes = [child.poll() for child in children]
        in_order = {code for number, _ in asked for code in (128 + number, -number)}
        failed = [number for number, code in enumerate(codes) if code and code not in in_order]
        again = len(asked) > 1 and asked[-1][1] - asked[0][1] > COPIES
        if failed or (again and any(codes)):
            first = failed[0] if failed else next(number for number, code in enumerate(codes) if code)
            if failed:
                text = f"launch: process {first} ended with code {codes[first]}; ending the others"
                with suppress(OSError):  # a terminal that is gone
                    print(text, file=sys.stderr, flush=True)
            stop(children)
            return exit_code(codes[first])
        if None not in codes:
            return exit_code(next(filter(None, codes), 0))
        time.sleep(0.1)


def exit_code(code: int | None) -> int:
    """A process's exit code as a shell gives it."""
    return 128 - code if code and code < 0 else code or 0


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
