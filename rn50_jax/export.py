"""A trained model as a file for other programs: `python -m rn50_jax.export --workdir W --out FILE`."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.errors import UserError
from rn50_jax.exporting import onnx_file, stablehlo
from rn50_jax.exporting.check import TOLERANCES, check, check_images, evenly, outputs
from rn50_jax.exporting.form import INPUTS, LAYOUTS, OUTPUTS, Form, describe, make_exportable
from rn50_jax.exporting.onnx_graph import to_onnx
from rn50_jax.exporting.quantize import compare, find_calibration, quantize
from rn50_jax.inference.image_files import Found, decode_files, found_in
from rn50_jax.inference.trained_model import (
    TrainedModel,
    describe_model,
    load_model,
    open_val,
    save_weights,
    summary,
    warn_assumed,
)
from rn50_jax.io.files import write_whole
from rn50_jax.io.messages import say
from rn50_jax.io.text import first_line
from rn50_jax.weights.metadata import beside, refuse_foreign, write_beside

# Formats, by the ends of their files' names.
FORMATS = {
    "stablehlo": (".stablehlo",),
    "onnx": (".onnx",),
    "saved-npz": (".npz",),
    "safetensors": (".safetensors",),
    "torch": (".pth", ".pth.tar", ".pt"),
}
_GRAPHS = {
    "stablehlo": Form("uint8", "nhwc", "probabilities", True),
    "onnx": Form("uint8", "nchw", "probabilities", True),
}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    args, overrides = configs.parse_args(parser, argv)
    kind = _format(args)
    form = _form(args, kind)
    _check_target(args.out)
    if kind == "onnx":
        onnx_file.need_onnx()
    if args.quantise:
        need_dali()
    # Decoded on the CPU, by all its cores; in float32 unless said otherwise, however the model was trained.
    cores = str(len(os.sched_getaffinity(0)))
    defaults = [("precision", "fp32"), ("data.backend", "dali-cpu"), ("data.workers", cores)]
    trained = load_model(args, [*defaults, *overrides])
    say(f"{trained.name}: {summary(trained)}")
    if form is None:
        facts = {"format": kind, **save_weights(trained, args.out)}
    else:
        if kind == "onnx" and trained.config.precision != "fp32":
            raise UserError("ONNX files compute in float32; leave out --config.precision")
        val = _open_val(trained, needed=args.quantise)
        calibration = find_calibration(args.calibration, args.calibration_images) if args.quantise else []
        facts = export_graph(trained, form, kind, args.out, val, calibration, args.val_images)
    write_beside(args.out, facts)
    warn_assumed(trained)
    say(f"written to {args.out}, what there is to know about it to {beside(args.out)}")
    return 0


def export_graph(
    trained: TrainedModel,
    form: Form,
    kind: str,
    out: Path,
    val: Sequence[tuple[Found, int]],
    calibration: Sequence[Found],
    val_images: int | None,
) -> dict[str, Any]:
    """Writes a StableHLO or ONNX file that was loaded again and checked, or nothing.

    Args:
      kind: "stablehlo" or "onnx".
      val: images to check the file on, if there are any, and their labels.
      calibration: for an ONNX file in 8-bit integers.
      val_images: of `val`, on which its accuracy is measured; None for all.

    Returns:
      What the file says about itself, with `check` and, of 8-bit models, `quantisation`.

    Raises:
      RunStopped: the file does not do what the model does.
      UserError: `out` cannot be written.
    """
    variables, precision = trained.load(), trained.config.precision
    exportable = make_exportable(trained, variables, form)
    decode = partial(decode_files, data=trained.config.data)
    images = check_images(partial(decode, by_pillow=True), [found for found, _ in val])
    facts = {"format": kind, **describe(describe_model(trained), form, onnx_file.LIBRARIES if kind == "onnx" else ())}
    if kind == "onnx":
        data = to_onnx(exportable, facts)
        run = onnx_file.load_onnx(data)
    else:
        facts |= {"platforms": stablehlo.PLATFORMS, "precision": precision}
        data = stablehlo.to_stablehlo(exportable)
        run = stablehlo.load_stablehlo(data)
    wanted = outputs(trained.model, variables, images, exportable.normalization, form.output)
    facts["check"] = check(run, exportable.convert(images), wanted, tolerance=TOLERANCES[precision])
    difference = f"differs by {facts['check']['largest_difference']:.1e} of the largest output"
    say(f"loaded again and checked on {len(images)} real images: {difference}")
    try:
        if calibration:
            how: Any = {
                "decode": decode,
                "convert": exportable.convert,
            }
            data, cost = quantize(data, calibration, **how)
            cost |= compare(run, onnx_file.load_onnx(data), evenly(val, val_images), **how)
            facts["quantisation"] = cost
            say(
                "in 8-bit integers, calibrated with {calibration_images} images: top-1 {top1_after:.2f} %, before "
                "{top1_before:.2f} %, on {val_images} images of val/; {same_class:.2f} % are given the same class; "
                "{0:.1f} MB, before {1:.1f} MB".format(cost["bytes_after"] / 1e6, cost["bytes_before"] / 1e6, **cost)
            )
        write_whole(out, data)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {first_line(error)}") from error
    return facts


def _parser() -> cli.CommandLine:
    parser = cli.CommandLine(
        prog="rn50_jax.export",
        description="Write a trained model to a file that other programs load, and check the file on real images.",
        epilog="docs/export.md says how to load each. FILE.json tells classes, input, source and what was checked. "
        "--config.precision=bf16 makes a StableHLO file compute in bfloat16.",
    )
    cli.add_model_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: by the end of FILE's name")
    graphs = parser.add_argument_group("stablehlo and onnx, functions of images")
    graphs.add_argument("--input", choices=INPUTS, help="RGB pixels (default), or normalized by the caller")
    graphs.add_argument("--layout", choices=LAYOUTS, help="of images (default: nhwc for stablehlo, nchw for onnx)")
    graphs.add_argument("--output", choices=OUTPUTS, help="default: probabilities")
    graphs.add_argument(
        "--fold", action=argparse.BooleanOptionalAction, help="fold BatchNorm into the convolutions (default: yes)"
    )
    onnx = parser.add_argument_group("onnx in 8-bit integers")
    onnx.add_argument("--quantise", action="store_true", help="quantise, and measure top-1 before and after on val/")
    onnx.add_argument("--calibration", type=Path, metavar="DIR", help="a folder of images as the model will see them")
    onnx.add_argument("--calibration_images", type=int, default=256, metavar="N", help="of them (default: 256)")
    onnx.add_argument("--val_images", type=int, metavar="N", help="measure on N of val/, evenly drawn (default: all)")
    return parser


def _format(args: argparse.Namespace) -> str:
    name = args.out.name.lower()
    kind = args.format or next((kind for kind, ends in FORMATS.items() if name.endswith(ends)), "")
    if not kind:
        raise UserError(f"give --format, one of {', '.join(FORMATS)}: the name of {args.out} does not tell it")
    if not name.endswith(FORMATS[kind]):
        raise UserError(f"the name of {args.out} must end in {' or '.join(FORMATS[kind])} for --format {kind}")
    return str(kind)


def _form(args: argparse.Namespace, kind: str) -> Form | None:
    """What a graph takes and gives; None for files with weights alone."""
    given = {key: getattr(args, key) for key in Form._fields if getattr(args, key) is not None}
    if kind not in _GRAPHS and given:
        raise UserError(f"--{next(iter(given))} is for {' and '.join(_GRAPHS)}; --format {kind} holds weights alone")
    if args.quantise and kind != "onnx":
        raise UserError("--quantise needs --format onnx")
    if args.quantise and args.calibration is None:
        raise UserError("--quantise needs --calibration DIR, a folder of images as the model will see them")
    if args.quantise and args.fold is False:
        raise UserError("--quantise needs BatchNorm folded; leave out --no-fold")
    if args.calibration is not None and not args.quantise:
        raise UserError("--calibration is for --quantise; give both")
    for name in ("calibration_images", "val_images"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    return _GRAPHS[kind]._replace(**given) if kind in _GRAPHS else None


def _check_target(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    if not os.access(out.parent, os.W_OK):
        reason = "cannot be written to" if out.parent.exists() else "does not exist"
        raise UserError(f"cannot write {out}: the folder {out.parent} {reason}")
    refuse_foreign(out)


def _open_val(trained: TrainedModel, *, needed: bool) -> list[tuple[Found, int]]:
    """The images of val/ and their labels; none if there are none of the model's classes, unless they are needed."""
    try:
        val = open_val(trained).val
    except UserError:
        if needed:
            raise
        return []
    return list(zip(found_in(val), val.labels.tolist(), strict=False))  # synthetic data have no files


if __name__ == "__main__":
    cli.run(main)
