"""Writes the pages that are made from the code: docs/config.md from configs/default.py, docs/commands.md from --help.

`python scripts/make_docs.py` renews them, `python scripts/make_docs.py --check` only says whether they are up to date.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["COLUMNS"] = "110"

from rn50_jax import cli  # noqa: E402, after the path
from rn50_jax.__main__ import find_commands  # noqa: E402

_ASSIGNMENT = re.compile(r"^    (?:config|\w+)\.(?P<name>\w+) = (?P<value>.*?)  # (?P<comment>.*)$")
_SECTION = re.compile(r"^    config\.(?P<name>\w+) = \w+ = ConfigDict\(\)(?:  # (?P<comment>.*))?$")
_MORE = re.compile(r"^    # (?P<comment>.*)$")


def config_page() -> str:
    """A table for each section of the configuration: key, default, meaning."""
    lines = [
        "# Every key of the configuration",
        "",
        "Made from [`configs/default.py`](../configs/default.py) by `scripts/make_docs.py`. On the command line a key",
        "is `--config.key=value`; the recipe's options are explained in [recipe.md](recipe.md).",
        "",
        *_head("General"),
    ]
    for line in (REPO / "configs/default.py").read_text(encoding="utf-8").splitlines():
        if section := _SECTION.match(line):
            prefix = section["name"] + "."
            lines += ["", *_head(f"`{section['name']}.*`" + (f": {section['comment']}" if section["comment"] else ""))]
        elif key := _ASSIGNMENT.match(line):
            prefix_now = "" if line.startswith("    config.") else prefix
            lines.append(f"| `{prefix_now}{key['name']}` | `{key['value']}` | {_cell(key['comment'])} |")
        elif (more := _MORE.match(line)) and lines[-1].endswith(" |"):
            lines[-1] = lines[-1].removesuffix(" |") + f" {_cell(more['comment'])} |"
    return "\n".join(lines) + "\n"


def _head(title: str) -> list[str]:
    return [f"## {title}", "", "| key | default | meaning |", "|---|---|---|"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def commands_page() -> str:
    """Returns what each command's --help says."""
    lines = [
        "# Every command and its options",
        "",
        "Made from each command's `--help` by `scripts/make_docs.py`.",
        f"All end with the same {cli.EXIT_CODES}.",
    ]
    for name in find_commands():
        lines += ["", f"## {name}", "", "```text", _help(name), "```"]
    return "\n".join(lines) + "\n"


def _help(name: str) -> str:
    with io.StringIO() as out:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            importlib.import_module(f"rn50_jax.{name}").main(["--help"])
        return out.getvalue().rpartition("\n\nexit codes: ")[0]


def pages() -> Iterator[tuple[Path, str]]:
    """Each page's file and what it should say."""
    yield REPO / "docs/config.md", config_page()
    yield REPO / "docs/commands.md", commands_page()


def main() -> int:
    """Writes the pages; with --check, returns 1 if one is out of date."""
    stale = [path for path, text in pages() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(REPO)} is out of date; run python scripts/make_docs.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
