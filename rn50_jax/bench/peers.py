"""Other implementations of the same step beside ours: who they are, and what is asked of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rn50_jax.bench import stats, trials
from rn50_jax.bench.cases import num_classes
from rn50_jax.errors import UserError
from rn50_jax.models.resnet import FAMILY

OURS = "rn50_jax"
PEERS = {
    "torch": "plain PyTorch, eager",
    "torch-compile": "the same through torch.compile",
    "timm": "timm's resnet50, eager",
    "flax-example": "the step of Flax's ImageNet example, from your own checkout of it",
}


def parse_peers(text: str) -> dict[str, str]:
    """Reads `torch,torch-compile,timm,flax-example=DIR`; returns the folder of each by name, "" for those without.

    Raises:
      UserError: unknown name, or the example's folder is missing or no such.
    """
    found: dict[str, str] = {}
    for word in text.split(","):
        name, _, folder = word.strip().partition("=")
        if name not in PEERS:
            raise UserError(f"--compare {word!r} is none of {', '.join(PEERS)}")
        if (name == "flax-example") != bool(folder):
            form = "flax-example=DIR, with DIR your checkout of flax's examples/imagenet" if not folder else name
            raise UserError(f"--compare {word!r}: write {form}")
        if folder and not (Path(folder) / "train.py").is_file():
            raise UserError(
                f"--compare {word!r}: {folder} holds no train.py; name a checkout of flax's examples/imagenet"
            )
        found[name] = str(Path(folder).resolve()) if folder else ""
    return found


def network(config: ConfigDict) -> dict[str, Any]:
    """The config's network in plain numbers, for those who build it without our modules."""
    variant = FAMILY[config.model.arch]
    stages = config.model.stages or variant.stages
    return {
        "arch": config.model.arch,
        "stages": list(stages),
        "widths": list(config.model.widths or (config.model.width * 2**stage for stage in range(len(stages)))),
        "stem": config.model.width,
        "bottleneck": variant.bottleneck,
        "expansion": variant.expansion,
        "groups": variant.groups,
        "inner": variant.inner,
        "se": variant.se,
        "classes": num_classes(config),
    }


def compare(
    config: ConfigDict,
    mode: str,
    peers: dict[str, str],
    *,
    device: str,
    steps: int,
    warmup: int,
    number: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Times ours and the peers on one device, in interleaved rounds, each trial in a process of its own.

    Args:
      config: a case's config, see `cases.case_config`: everybody gets its batch size, image size, network and
        precision, SGD with momentum, label smoothing where the peer has it.
      peers: see `parse_peers`.
      number: of rounds.

    Returns:
      The setting and "programs", each with its images_per_second by round, their median and extremes, and the
      ratios ours / peer by round; or with "error".
    """
    shared = {
        "mode": mode,
        "config": config.to_dict(),
        "network": network(config),
        "device": device,
        "steps": steps,
        "warmup": warmup,
        "one_device": True,
    }
    specs = {OURS: shared | {"kind": "ours"}}
    specs |= {name: shared | {"kind": name, "folder": folder} for name, folder in peers.items()}
    reports = trials.run_trials(specs, rounds=number, timeout=1800, tell=tell)
    setting = {"mode": mode, "precision": config.precision, "batch_size": config.batch_size}
    setting |= {"image_size": config.data.image_size, "arch": config.model.arch, "steps": steps, "rounds": number}
    return setting | {"programs": summarise(reports)}


def summarise(reports: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What `trials.run_trials` found, as speeds and ratios; a peer on another kind of device is not compared."""
    ours = reports[OURS]
    speeds = {name: [_speed(report) for report in found.get("trials", [])] for name, found in reports.items()}
    result = []
    for name, found in reports.items():
        entry: dict[str, Any] = {"name": name}
        if "error" in found:
            result.append(entry | {"error": found["error"]})
            continue
        last = found["trials"][-1]
        entry |= {key: last[key] for key in ("platform", "device", "precision", "about", "peak_memory_bytes")}
        entry["images_per_second"] = {"rounds": speeds[name], **stats.spread_of(speeds[name])}
        if last["platform"] == "cpu":
            entry["cpu_ms_per_image"] = stats.spread_of([_cpu_ms(report) for report in found["trials"]])
        entry["start_seconds"] = found["trials"][0]["start_seconds"]  # later rounds find their programs compiled
        if name != OURS:
            if last["platform"] != ours["trials"][-1]["platform"]:
                entry["error"] = f"it ran on a {last['platform']}, and ours did not"
            else:
                entry["ours_over_it"] = stats.ratios(speeds[OURS], speeds[name])
        result.append(entry)
    return result


def _speed(report: dict[str, Any]) -> float:
    return float(report["images_per_step"] / report["step_seconds"]["median"])


def _cpu_ms(report: dict[str, Any]) -> float:
    return float(1000 * report["cpu_seconds_per_step"] / report["images_per_step"])
