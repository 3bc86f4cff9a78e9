"""Times training, inference, the loader or all together: `python -m rn50_jax.benchmark --config C --mode train`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rn50_jax import cli
from rn50_jax.bench import report
from rn50_jax.bench.baselines.compare import BASELINES, OURS, compare, parse_baselines
from rn50_jax.bench.cases import Case
from rn50_jax.bench.device import find_local_devices
from rn50_jax.bench.end_to_end import measure_end_to_end
from rn50_jax.bench.input_pipeline import measure_input
from rn50_jax.bench.jpegs import generated_folder
from rn50_jax.bench.record import Record
from rn50_jax.bench.sweep import make_cases, make_sweep, parse_batch_sizes, parse_names, parse_variants, run_sweep
from rn50_jax.bench.trials import Terms, trial_names
from rn50_jax.config import loading as configs
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.errors import UserError
from rn50_jax.io.files import telling_of_writes
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.runtime import jax_setup

_REAL = ("input", "end-to-end")
MODES = ("train", "infer", *_REAL)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 1 if nothing could be timed for lack of time, memory or precision."""
    args, overrides = configs.parse_args(_parser(), argv)
    _check(args)
    if args.generated:
        overrides = [*overrides, ("data.dir", str(generated_folder(args.generated)))]
    config, _ = configs.load(args.config, overrides)
    if args.mode in _REAL and config.data.backend == "synthetic":
        raise UserError(f"--mode {args.mode} times real files; use config.data.backend dali-cpu or dali-gpu")
    if args.mode in _REAL:
        need_dali("--mode train or infer, which need no files")
    batch_sizes = parse_batch_sizes(args.batch_sizes or str(config.batch_size))
    precisions = parse_names("--precisions", args.precisions or config.precision, PRECISIONS)
    baselines = parse_baselines(args.compare) if args.compare else {}
    variants = parse_variants(config, args.vary)
    for option, value in {"--profile": args.profile, "--vary": variants}.items():
        if value and len(precisions) * len(batch_sizes) > 1:
            raise UserError(f"{option} takes one precision and one batch size")
    backend = config.data.backend if args.mode == "end-to-end" else "synthetic"
    jax_setup.prepare_runtime(backend, config.compute.xla_flags)
    if args.profile:
        with telling_of_writes():
            args.profile.mkdir(parents=True, exist_ok=True)
    terms = Terms(tuple(argv), args.device, args.steps, args.warmup, args.rounds)
    record = Record(json=args.json, markdown=args.markdown, seconds=args.budget, tell=_tell)
    with record:
        if args.mode == "input":
            measure_input(config, record, terms)
        elif baselines:
            cases = make_cases(args.mode, precisions, batch_sizes, available=1, scaling=None)
            _compare(make_sweep(config, cases), baselines, record, terms, args.profile)
        elif args.mode == "end-to-end":
            measure_end_to_end(config, _devices(args), record, terms)
        else:
            devices = _devices(args)
            cases = make_cases(args.mode, precisions, batch_sizes, available=len(devices), scaling=args.scaling)
            cases += [cases[0]._replace(variant=variant) for variant in variants]
            _sweep(make_sweep(config, cases), devices, record, terms, args.profile)
    return record.exit_code


def _devices(args: argparse.Namespace) -> list[jax.Device]:
    devices = find_local_devices(args.device)
    if args.devices > len(devices):
        raise UserError(f"--devices {args.devices}, but there are {len(devices)}")
    return devices[: args.devices or len(devices)]


def _compare(
    sweep: list[tuple[Case, ConfigDict]], baselines: dict[str, str], record: Record, terms: Terms, trace: Path | None
) -> None:
    names = [name for case, _ in sweep for name in trial_names(str(case), [OURS, *baselines], terms.trials)]
    record.plan(names, single=len(sweep) == 1)
    for case, config in sweep:
        compare(config, case, baselines, record, terms, trace=trace)


def _sweep(
    sweep: list[tuple[Case, ConfigDict]], devices: list[jax.Device], record: Record, terms: Terms, trace: Path | None
) -> None:
    if trace and len(sweep) > 1:
        raise UserError(f"--profile takes one precision, batch size and number of devices, not {len(sweep)}")
    header = report.make_header(terms.command, devices)
    record.plan([str(case) for case, _ in sweep], single=len(sweep) == 1, **header)
    run_sweep(sweep, devices, record, steps=terms.steps, warmup=terms.warmup, trace=trace)


def _parser() -> argparse.ArgumentParser:
    parser = cli.CommandLine(
        prog="rn50_jax.benchmark",
        description="Times the compiled step on synthetic data (train, infer), the loader (input), or real training "
        "(end-to-end). docs/benchmark.md says what each number means.",
        epilog="Any option of the config can be changed with --config.key=value, e.g. --config.batch_size=64; "
        "--help_config lists them.",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:VARIANT]", help="a file of configs/")
    add("--mode", choices=MODES, default="train", help="what to time (default: train)")
    add("--steps", type=int, default=100, help="steps that are timed, in each trial (default: 100)")
    add("--warmup", type=int, default=10, help="steps before them (default: 10)")
    add("--batch_sizes", metavar="N,N,...", help="images per device (default: config.batch_size)")
    add("--precisions", metavar="P,P,...", help="of bf16, fp16, tf32, fp32 (default: config.precision)")
    add("--devices", type=int, default=0, metavar="N", help="use the first N local devices (default: all)")
    text = "time 1, 2, 4, ... devices: weak keeps the images per device, strong shares them"
    add("--scaling", choices=("weak", "strong", "both"), help=text)
    add("--compare", metavar="BASELINE,...", help=f"baselines to time beside ours: {', '.join(BASELINES)}=DIR")
    add("--rounds", type=int, default=3, help="trials with --compare, and of modes input and end-to-end (default: 3)")
    text = "also time this change of the config; give it again for each further change"
    add("--vary", action="append", default=[], metavar="KEY=VALUE", help=text)
    add("--profile", type=Path, metavar="DIR", help="also trace ten steps to DIR and print the kernels by group")
    text = "modes input and end-to-end: N generated JPEGs, not data.dir"
    add("--generated", type=int, default=0, metavar="N", help=text)
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to time (default: what JAX finds)")
    add("--budget", type=float, metavar="SECONDS", help="begin only what should end within SECONDS of the start")
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE, after each case")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE")
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.steps < 1 or args.warmup < 0 or args.rounds < 1:
        raise UserError("--steps and --rounds must be at least 1 and --warmup at least 0")
    real = args.mode in _REAL
    for name in ("scaling", "compare", "profile", "vary", "batch_sizes", "precisions"):
        if real and getattr(args, name):
            raise UserError(f"--{name} is for --mode train and infer")
    if args.generated and not real:
        raise UserError("--generated is for --mode input and end-to-end; the others need no files")
    if args.compare and (args.scaling or args.devices > 1):
        raise UserError("--compare times one device; leave out --scaling and --devices")
    for name in ("compare", "scaling", "profile"):
        if args.vary and getattr(args, name):
            raise UserError(f"--vary goes without --{name}")
    if args.budget is not None and not args.budget > 0:
        raise UserError(f"--budget {args.budget:g} must be a number of seconds > 0")
    if args.json and args.markdown and os.path.realpath(args.json) == os.path.realpath(args.markdown):
        raise UserError(f"--json and --markdown name the same file {args.json}; give two")


def _tell(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
