"""Other implementations of the same step beside ours: who they are, and what is asked of them."""

from pathlib import Path
from typing import Any

from rn50_jax.bench import stats
from rn50_jax.bench.cases import Case
from rn50_jax.bench.compiled import num_classes
from rn50_jax.bench.record import Record
from rn50_jax.bench.trials import Found, Terms, describe, run_trials
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.layers import Linear
from rn50_jax.models.network import Network
from rn50_jax.models.walk import LAYERS, Layer, walk
from rn50_jax.weights.torch_names import module_name

OURS = "rn50_jax"
BASELINES = ("torch", "torch-compile", "timm", "flax-example")  # docs/benchmark.md says what they are


def parse_baselines(text: str) -> dict[str, str]:
    """Reads `torch,torch-compile,timm,flax-example=DIR`; returns the folder of each by name, "" for those without.

    Raises:
      UserError: unknown name, or the example's folder is missing or no such.
    """
    found: dict[str, str] = {}
    for word in text.split(","):
        name, _, folder = word.strip().partition("=")
        if name not in BASELINES:
            raise UserError(f"--compare {word!r} is none of {', '.join(BASELINES)}")
        if (name == "flax-example") != bool(folder):
            form = "flax-example=DIR, with DIR your checkout of flax's examples/imagenet" if not folder else name
            raise UserError(f"--compare {word!r}: write {form}")
        if folder and not (Path(folder) / "train.py").is_file():
            raise UserError(
                f"--compare {word!r}: {folder} holds no train.py; name a checkout of flax's examples/imagenet"
            )
        found[name] = str(Path(folder).resolve()) if folder else ""
    return found


def network(config: Config) -> dict[str, Any]:
    """Returns the config's network in plain numbers, for those who build it without our modules; touches no device.

    Returns:
      "classes", and what `layers_of` returns.
    """
    classes = num_classes(config)
    model = build_model(config, num_classes=classes, platform="cpu")
    return {"classes": classes} | layers_of(model)


def layers_of(model: Network) -> dict[str, Any]:
    """Returns the layers of a network, in the order of their calls, as JSON has them.

    Returns:
      "layers": of each its "kind", the name of its class (of one that is not of `walk.LAYERS` with the module),
      "name", torch's, and "inputs" as in `walk.Layer`; with the fields of a `ConvNorm` or `Linear` and its
      "in_channels". "output": number of the layer that makes the logits, see `walk.Structure`.
    """
    structure = walk(model)
    return {"layers": [_plain(layer) for layer in structure.layers], "output": structure.output}


def _plain(layer: Layer) -> dict[str, Any]:
    module, kind = layer.module, type(layer.module)
    plain: dict[str, Any] = {"kind": kind.__name__, "name": module_name(layer.path), "inputs": layer.inputs}
    if kind not in LAYERS:
        plain["kind"] = f"{kind.__module__}.{kind.__qualname__}"
    elif isinstance(module, ConvNorm):
        plain |= {"norm": module_name(layer.norm), "in_channels": layer.kernel[2] * module.groups}
        plain |= {key: getattr(module, key) for key in ("features", "size", "stride", "groups", "relu", "pool")}
    elif isinstance(module, Linear):
        plain |= {"in_channels": layer.kernel[0], "features": module.features, "activation": module.activation}
    return plain


def compare(
    config: Config,
    case: Case,
    baselines: dict[str, str],
    record: Record,
    terms: Terms,
    *,
    trace: Path | None,
) -> None:
    """Times ours and the baselines on one device, in turns, each trial in a process of its own.

    Into the record go "comparisons": the setting and "programs", each with its images_per_second by trial, their
    median and extremes, and the ratios ours / baseline by trial; and from the first trial of ours "results", "ceilings"
    and what its process knows of the machine. This process touches no device.

    Args:
      config: a case's config, see `cases.case_config`: everybody gets its batch size, image size, network and
        precision, SGD with momentum, label smoothing where the baseline has it.
      baselines: names of `BASELINES`.
      record: has the trials in its plan, see `trials.trial_names`.
      trace: a folder for a trace of ours, which is made after its first trial's timing.

    Raises:
      UserError: the first trial of ours failed.
    """
    ceilings = record.get("ceilings", {})
    comparisons, results = record.get("comparisons", []), record.get("results", [])
    shared = terms._asdict() | {
        "mode": case.mode,
        "config": config.to_dict(),
        "network": network(config),
        "one_device": True,
    }
    first = {"ceiling": ceilings.get(config.precision), "profile": str(trace.resolve()) if trace else ""}
    specs = {OURS: shared | {"kind": "ours"} | first}
    specs |= {name: shared | {"kind": name, "folder": folder} for name, folder in baselines.items()}
    setting = {"mode": case.mode, "precision": config.precision, "batch_size": config.batch_size}
    setting |= {"image_size": config.data.image_size, "arch": config.model.arch}
    setting |= {"steps": terms.steps, "rounds": terms.trials}

    def parts(found: Found) -> dict[str, Any]:
        made: dict[str, Any] = {"comparisons": [*comparisons, setting | {"programs": summarize(found)}]}
        report = next(iter(found[OURS]["trials"]), found[OURS])
        if "result" in report:
            cut_short = {"profile_error": report["cut_short"]} if "cut_short" in report else {}
            made["results"] = [*results, report["result"] | cut_short]
            made["ceilings"] = ceilings | {config.precision: report["ceiling"]}
            made |= report["header"]
        return made

    run_trials(str(case), specs, record, terms, parts=parts)


def summarize(found: Found) -> list[dict[str, Any]]:
    """Returns what `trials.run_trials` found, as speeds and ratios; not over a baseline on another kind of device."""
    ours = found[OURS]["trials"]
    result = []
    for entry, reports in describe(found):
        result.append(entry)
        if not reports:
            continue
        first, last = reports[0], reports[-1]
        entry |= {key: last[key] for key in ("platform", "device", "precision", "about", "peak_memory_bytes")}
        entry |= {key: first[key] for key in ("start_seconds", "start")}  # later trials find their programs compiled
        speeds = [_speed(report) for report in reports]
        entry["images_per_second"] = {"rounds": speeds, **stats.spread_of(speeds)}
        if last["platform"] == "cpu":
            entry["cpu_ms_per_image"] = stats.spread_of([_cpu_ms(report) for report in reports])
        if entry["name"] != OURS and ours:
            if last["platform"] != ours[-1]["platform"]:
                entry["error"] = f"it ran on a {last['platform']}, and ours did not"
            else:
                entry["ours_over_it"] = stats.ratios([_speed(report) for report in ours], speeds)
    return result


def _speed(report: dict[str, Any]) -> float:
    return float(report["images_per_step"] / report["step_seconds"]["median"])


def _cpu_ms(report: dict[str, Any]) -> float:
    return float(1000 * report["cpu_seconds_per_step"] / report["images_per_step"])
