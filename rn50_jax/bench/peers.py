"""Other implementations of the same step beside ours: who they are, and what is asked of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rn50_jax.bench import rounds, stats
from rn50_jax.bench.points import num_classes
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
    """Times ours and the peers on one device, in interleaved rounds, each visit in a process of its own.

    Args:
      config: a point's config, see `points.point_config`: everybody gets its batch size, image size, network and
        precision, SGD with momentum, label smoothing where the peer has it.
      peers: see `parse_peers`.
      number: of rounds.

    Returns:
      The setting and "contestants", each with its images_per_second by round, their median and extremes, and the
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
    visits = rounds.run_rounds(specs, rounds=number, timeout=1800, tell=tell)
    setting = {"mode": mode, "precision": config.precision, "batch_size": config.batch_size}
    setting |= {"image_size": config.data.image_size, "arch": config.model.arch, "steps": steps, "rounds": number}
    return setting | {"contestants": summarise(visits)}


def summarise(visits: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What `rounds.run_rounds` found, as speeds and ratios; a peer on another kind of device is not compared."""
    ours = visits[OURS]
    speeds = {name: [_speed(visit) for visit in found.get("visits", [])] for name, found in visits.items()}
    result = []
    for name, found in visits.items():
        entry: dict[str, Any] = {"name": name}
        if "error" in found:
            result.append(entry | {"error": found["error"]})
            continue
        last = found["visits"][-1]
        entry |= {key: last[key] for key in ("platform", "device", "precision", "about", "peak_memory_bytes")}
        entry["images_per_second"] = {"rounds": speeds[name], **stats.spread_of(speeds[name])}
        if last["platform"] == "cpu":
            entry["cpu_ms_per_image"] = stats.spread_of([_cpu_ms(visit) for visit in found["visits"]])
        entry["start_seconds"] = found["visits"][0]["start_seconds"]  # later rounds find their programs compiled
        if name != OURS:
            if last["platform"] != ours["visits"][-1]["platform"]:
                entry["error"] = f"it ran on a {last['platform']}, and ours did not"
            else:
                entry["ours_over_it"] = stats.ratios(speeds[OURS], speeds[name])
        result.append(entry)
    return result


def _speed(visit: dict[str, Any]) -> float:
    return float(visit["images_per_step"] / visit["step_seconds"]["median"])


def _cpu_ms(visit: dict[str, Any]) -> float:
    return float(1000 * visit["cpu_seconds_per_step"] / visit["images_per_step"])
