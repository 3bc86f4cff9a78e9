"""A folder of results, read back and kept apart by what they were measured on, when, and with what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rn50_jax.config.loading import from_saved
from rn50_jax.errors import UserError
from rn50_jax.io.json_files import read_json, read_json_lines

CPU = "CPU"


class Result(NamedTuple):
    """One file of results.

    Attributes:
      name: of the file, without its ending; of a run, of its folder.
      card: the GPU and its power limit, or "CPU (...)": figures of two cards are never compared.
      source: day, commit, driver, host and versions, in one line; what differs in these is not compared either.
      document: what the file holds; of a run that, and "top1", "epochs" and "config".
    """

    name: str
    card: str
    source: str
    document: dict[str, Any]


def read_results(folder: Path) -> tuple[list[Result], list[str]]:
    """Reads every `*.json` of a folder and every run in a folder of it.

    Returns:
      The results by name; and a line for each file that is none, or that cannot be read, such as one half-written.
    """
    found, unread = [], []
    for path in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/run.json"))]:
        try:
            document = read_json(path, dict[str, Any])
            if "not_run" in document and "hardware" not in document:
                unread.append(f"{path.stem}: ended before it had measured anything")
                continue
            if path.name == "run.json":
                found.append(_run(path.parent, document))
                continue
            facts = document.get("run", document)  # of scripts/torture.py, that of its first run
            found.append(Result(path.stem, card_of(facts), _source(facts), document))
        except OSError as error:
            unread.append(f"{path.relative_to(folder)}: {error.strerror}")
        except (ValueError, UserError) as error:  # the latter of a run's config
            unread.append(f"{path.relative_to(folder)}: not read, {error}")
        except (KeyError, TypeError, AttributeError, IndexError):
            unread.append(f"{path.relative_to(folder)}: not read, it is no result of this project")
    return found, unread


def _run(folder: Path, facts: dict[str, Any]) -> Result:
    metrics = folder / "metrics.jsonl"
    lines = read_json_lines(metrics, dict[str, Any]).good if metrics.is_file() else []
    validations = [line for line in lines if "val.top1" in line]
    last = {"top1": float(validations[-1]["val.top1"]), "epochs": validations[-1]["epoch"]} if validations else {}
    path = folder / "config.json"
    config = from_saved(read_json(path, dict[str, Any]), source=path.name).config
    chosen = {"precision": config.precision, "backend": config.data.backend}
    return Result(folder.name, card_of(facts), _source(facts), facts | last | chosen)


def card_of(facts: dict[str, Any]) -> str:
    """Returns GPU and power limit of what a benchmark or a run has written down of its machine; or "CPU (kind)"."""
    hardware = facts.get("hardware", {})
    kind = str(hardware.get("device") or facts["devices"].partition(" x ")[2])
    if hardware.get("platform") == "cpu" or kind == CPU:
        return kind if kind != CPU else f"{CPU} ({facts['host'].get('cpu', 'unknown')})"
    alike = [gpu for gpu in facts.get("gpus", []) if gpu["name"] == kind] or facts.get("gpus", [])
    limits = sorted({gpu["power_limit_w"] for gpu in alike if gpu.get("power_limit_w")})
    return ", ".join([kind, *(f"{limit:,.0f} W" for limit in limits)])


def _source(facts: dict[str, Any]) -> str:
    """In one line, what makes two results incomparable."""
    hardware, host = facts.get("hardware", {}), facts.get("host", {})
    drivers = {str(gpu["driver"]) for gpu in facts.get("gpus", []) if gpu.get("driver")}
    drivers |= {hardware["driver"]} if not drivers and "driver" in hardware else set()
    parts = [(facts.get("date") or facts["started"])[:10]]
    parts += [f"commit {facts['commit']}"] if facts.get("commit") else []
    parts += [f"driver {driver}" for driver in sorted(drivers)]
    parts.append(f"{host.get('cores', hardware.get('cores'))} cores of {host.get('cpu', hardware.get('processor'))}")
    parts += [f"{name} {version}" for name, version in facts["versions"].items()]
    return ", ".join(parts)


def by_source(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Returns the results by card, CPUs last, and then by source, the newest first."""
    cards = sorted({result.card for result in results}, key=lambda card: (card.startswith(CPU), card))
    sources = sorted({result.source for result in results}, reverse=True)
    return {
        card: {s: alike for s in sources if (alike := [r for r in results if (r.card, r.source) == (card, s)])}
        for card in cards
    }
