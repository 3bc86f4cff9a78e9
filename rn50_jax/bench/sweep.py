"""The cases of a sweep, and their measurement one after the other."""

import gc
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from rn50_jax.bench.cases import Case, case_config, measure
from rn50_jax.bench.record import Record
from rn50_jax.bench.roofline import Ceiling, measure_ceiling
from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.schema import Config, options
from rn50_jax.errors import UserError


def parse_batch_sizes(text: str) -> list[int]:
    """Reads "1,2,4"; what is named twice counts once.

    Raises:
      UserError: not integers >= 1.
    """
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise UserError(f"--batch_sizes {text!r} must be integers >= 1 with commas between, such as 1,2,4")
    return list(dict.fromkeys(sizes))


def parse_names(option: str, text: str, known: Collection[str]) -> list[str]:
    """Reads an option's names, such as "bf16,fp32"; what is named twice counts once.

    Raises:
      UserError: unknown name.
    """
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"{option} {text!r}: {name!r} is none of {', '.join(known)}")
    return list(dict.fromkeys(names))


def device_counts(available: int) -> list[int]:
    """Returns 1, 2, 4, ... and all."""
    counts = [2**power for power in range(available.bit_length()) if 2**power <= available]
    return counts if counts[-1] == available else [*counts, available]


def make_cases(
    mode: str, precisions: list[str], batch_sizes: list[int], *, available: int, scaling: str | None
) -> list[Case]:
    """Returns all cases of a sweep, small batches first, so that a device's peak memory is that of each.

    Args:
      batch_sizes: per device; in strong scaling, of all devices together.
      available: devices, all of which are used unless there is a scaling.
      scaling: None, "weak", "strong" or "both".

    Raises:
      UserError: a batch that cannot be shared equally.
    """
    cases = []
    for precision in precisions:
        for batch in sorted(batch_sizes):
            if scaling is None:
                cases.append(Case(mode, precision, batch, available))
            if scaling in ("weak", "both"):
                cases += [Case(mode, precision, batch, count) for count in device_counts(available)]
            if scaling in ("strong", "both"):
                for count in device_counts(available):
                    if batch % count:
                        raise UserError(f"a batch of {batch} cannot be shared by {count} devices; change --batch_sizes")
                    cases.append(Case(mode, precision, batch // count, count, global_batch=batch))
    return cases


def make_sweep(config: Config, cases: list[Case]) -> list[tuple[Case, Config]]:
    """Returns each case with its config.

    Raises:
      UserError: a case does not fit the config.
    """
    sweep = [(case, case_config(config, case)) for case in cases]
    for case, one in sweep:
        if case.mode == "train":
            make_plan(one, num_images=one.data.synthetic_images[0], num_devices=case.devices)
    return sweep


# Keys that say how to report, save or load, or for how long to train; nothing of it is in a step on synthetic data.
_NOT_IN_A_STEP = ("checkpoint.", "log.", "run.", "data.", "epochs", "seed")
_OPTIONS_FOR = {"precision": "--precisions", "batch_size": "--batch_sizes"}


def parse_variants(config: Config, texts: Sequence[str]) -> list[str]:
    """Reads each KEY=VALUE of --vary; what is named twice counts once.

    Raises:
      UserError: no such key or value, or one that changes nothing of the step.
    """
    variants = []
    for text in texts:
        key, given, value = text.partition("=")
        key = key.strip().removeprefix("config.")
        if not given:
            raise UserError(f"--vary {text!r} must be KEY=VALUE, such as compute.impl=plain")
        if key in _OPTIONS_FOR:
            raise UserError(f"--vary {key}: use {_OPTIONS_FOR[key]}, without --vary")
        changed = configs.override(config, [(key, value)])
        if "machine" in options()[key].affects:
            raise UserError(f"--vary {key} acts on the whole process; use --config.{key} in a call of its own")
        if key.startswith(_NOT_IN_A_STEP) and key != "data.image_size":
            raise UserError(f"--vary {key}: it changes nothing of a step on synthetic data; name another key")
        if changed == config:
            raise UserError(f"--vary {text!r} is what the config says already; name another value")
        variants.append(f"{key}={value}")
    return list(dict.fromkeys(variants))


def run_sweep(
    sweep: list[tuple[Case, Config]],
    devices: list[jax.Device],
    record: Record,
    *,
    steps: int,
    warmup: int,
    trace: Path | None,
) -> None:
    """Measures every case for which there is time, into the record's "ceilings" and "results".

    One for which the memory does not suffice is written down, and the next is measured.

    Args:
      record: has the cases, as texts, in its plan.
    """
    ceilings: dict[str, Ceiling] = {}
    results: list[dict[str, Any]] = []
    for case, config in sweep:
        if not record.begins(str(case)):
            continue
        if case.precision not in ceilings:
            record.tell(f"ceilings in {case.precision}")
            ceilings[case.precision] = measure_ceiling(devices[0], case.precision)
            record.put(ceilings={precision: ceiling._asdict() for precision, ceiling in ceilings.items()})
        record.tell(str(case))

        def timed(result: dict[str, Any]) -> None:
            record.put(results=[*results, result])

        ceiling = ceilings[case.precision]
        results.append(measure(config, case, steps=steps, warmup=warmup, ceiling=ceiling, trace=trace, timed=timed))
        record.done(str(case), results=list(results))
        if "error" in results[-1]:
            record.tell(results[-1]["error"])
        gc.collect()
        jax.clear_caches()
