"""Times training, inference, the feed or all together: `python -m rn50_jax.benchmark --config C --mode train`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from rn50_jax import config as configs
from rn50_jax import errors, runtime
from rn50_jax.bench import document as documents
from rn50_jax.bench.cases import Case, case_config
from rn50_jax.bench.ceiling import Ceiling, measure_ceiling
from rn50_jax.bench.device import find_local_devices
from rn50_jax.bench.end_to_end import measure_end_to_end
from rn50_jax.bench.feed import measure_input
from rn50_jax.bench.jpegs import generated_folder
from rn50_jax.bench.peers import PEERS, compare, parse_peers
from rn50_jax.bench.sweep import make_cases, make_sweep, parse_batch_sizes, parse_precisions, run_sweep
from rn50_jax.errors import UserError
from rn50_jax.workdir import write_file, write_json

MODES = ("train", "infer", "input", "end-to-end")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code: 1 if nothing could be timed for lack of memory or precision."""
    args, overrides = configs.parse_args(_parser(), argv)
    _check(args)
    if args.mode in ("train", "end-to-end"):  # as train does; the peers' processes, which this one starts, too
        runtime.use_huge_pages()
    config, _ = configs.load(args.config)
    if args.generated:
        overrides.append(("data.dir", str(generated_folder(args.generated))))
    config = configs.override(config, overrides)
    configs.validate(config)
    real = args.mode in ("input", "end-to-end")
    if real and config.data.backend == "synthetic":
        raise UserError(f"--mode {args.mode} times real files; use config.data.backend dali-cpu or dali-gpu")
    batch_sizes = parse_batch_sizes(args.batch_sizes or str(config.batch_size))
    precisions = parse_precisions(args.precisions or config.precision)
    peers = parse_peers(args.compare) if args.compare else {}
    rounds = {"steps": args.steps, "warmup": args.warmup, "number": args.rounds}
    backend = config.data.backend if args.mode == "end-to-end" else "synthetic"
    runtime.prepare_runtime(backend, config.run.xla_flags)

    # What runs in processes of its own comes first: until then this one holds no device's memory.
    found: dict[str, Any] = {}
    if args.mode == "input":
        found["input"] = measure_input(config, device=args.device, tell=_tell, **rounds)
    if peers:
        options = {"device": args.device, "tell": _tell, **rounds}
        todo = [Case(args.mode, precision, batch, devices=1) for precision in precisions for batch in batch_sizes]
        found["comparisons"] = [compare(case_config(config, p), args.mode, peers, **options) for p in todo]
    devices = find_local_devices(args.device)
    if args.devices > len(devices):
        raise UserError(f"--devices {args.devices}, but there are {len(devices)}")
    devices = devices[: args.devices or len(devices)]
    document = documents.make_header(argv, devices)
    if not real:
        cases = make_cases(args.mode, precisions, batch_sizes, available=len(devices), scaling=args.scaling)
        if args.profile and len(cases) > 1:
            raise UserError(f"--profile takes one precision, batch size and number of devices, not {len(cases)}")
        sweep = make_sweep(config, cases)
        ceilings = {precision: _ceiling(devices[0], precision) for precision in precisions}
        document["ceilings"] = {precision: ceiling._asdict() for precision, ceiling in ceilings.items()}
        budget = {"steps": args.steps, "warmup": args.warmup, "trace": args.profile, "tell": _tell}
        document["results"] = run_sweep(sweep, ceilings, **budget)
    if args.mode == "end-to-end":
        document["end_to_end"] = measure_end_to_end(config, devices, **rounds)
    return _report(document | found, args)


def _parser() -> argparse.ArgumentParser:
    parser = errors.CommandLine(
        prog="rn50_jax.benchmark",
        description="Times the compiled step on synthetic data (train, infer), the feed (input), or real training "
        "(end-to-end). docs/benchmark.md says what each number means.",
        epilog="Any key of configs/default.py can be changed with --config.key=value, e.g. --config.batch_size=64.",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:VARIANT]", help="a file of configs/")
    add("--mode", choices=MODES, default="train", help="default: train")
    add("--steps", type=int, default=100, help="steps that are timed, in each round (default: 100)")
    add("--warmup", type=int, default=10, help="steps before them (default: 10)")
    add("--batch_sizes", metavar="N,N,...", help="images per device (default: config.batch_size)")
    add("--precisions", metavar="P,P,...", help="of bf16, fp16, tf32, fp32 (default: config.precision)")
    add("--devices", type=int, default=0, metavar="N", help="use the first N local devices (default: all)")
    add("--scaling", choices=("weak", "strong", "both"), help="over 1, 2, 4, ... of them")
    add("--compare", metavar="PEER,...", help=f"time peers beside it: {', '.join(PEERS)} (flax-example=DIR)")
    add("--rounds", type=int, default=3, help="of --compare and of modes input and end-to-end (default: 3)")
    add("--profile", type=Path, metavar="DIR", help="trace ten steps to DIR and print the kernels by group")
    add("--generated", type=int, default=0, metavar="N", help="real data: N generated JPEGs instead of data.dir")
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="what to time (default: what JAX finds)")
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE")
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.steps < 1 or args.warmup < 0 or args.rounds < 1:
        raise UserError("--steps and --rounds must be at least 1 and --warmup at least 0")
    real = args.mode in ("input", "end-to-end")
    only = {"--scaling": args.scaling, "--compare": args.compare, "--profile": args.profile}
    only |= {"--batch_sizes": args.batch_sizes, "--precisions": args.precisions} if real else {}
    for option, value in only.items():
        if real and value:
            raise UserError(f"{option} is for --mode train and infer")
    if args.generated and not real:
        raise UserError("--generated is for --mode input and end-to-end; the others need no files")


def _tell(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def _ceiling(device: jax.Device, precision: str) -> Ceiling:
    _tell(f"ceilings in {precision}")
    return measure_ceiling(device, precision)


def _report(document: dict[str, Any], args: argparse.Namespace) -> int:
    text = documents.as_markdown(document)
    print(text)
    results = document.get("results", [])
    if len(results) == 1 and "error" not in results[0]:
        print(f"\n{results[0]['images_per_second']:.1f} images per second at the median step")
    if args.json:
        write_json(args.json, documents.as_json(document))
    if args.markdown:
        write_file(args.markdown, text + "\n")
    return 1 if results and all("error" in result for result in results) else 0


if __name__ == "__main__":
    errors.run(main)
