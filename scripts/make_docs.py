"""Writes the pages that are made from the code: docs/config.md from the schema, docs/commands.md from --help.

`python scripts/make_docs.py` renews them, `python scripts/make_docs.py --check` only says whether they are up to date.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["COLUMNS"] = "110"

from rn50_jax import cli  # noqa: E402, after the path
from rn50_jax.__main__ import find_commands, load_command  # noqa: E402
from rn50_jax.config.describe import allowed, in_section, show, title_of  # noqa: E402
from rn50_jax.config.fields import Effect, Option  # noqa: E402
from rn50_jax.config.schema import sections  # noqa: E402

_MARKS: dict[Effect, str] = {
    "stream": "Other batches come: refused in the middle of an epoch, taken over at its end.",
    "arrays": "The state would have other arrays: refused.",
    "split": "The run would validate on other images: refused where `data.val_share` chooses them.",
    "start": "Nothing: it says where a new run starts, and one that has checkpoints goes on from these.",
    "machine": "It is taken over. It belongs to the machine, so no command reads it from a checkpoint.",
}
_INTRODUCTION = """\
# Every option of the configuration

Made from [`rn50_jax/config/`](../rn50_jax/config) by `scripts/make_docs.py`; `--help_config`, of every command that
takes options of the configuration, prints the same, and `--help_config SECTION` or `KEY` a part of it. On the command
line an option is `--config.KEY=VALUE`; a recipe sets `config.KEY`. [recipe.md](recipe.md) explains those of the recipe.

Some keys have a mark behind them. It says what happens when a run goes on with another value:

| mark | what another value does |
|---|---|
"""
_ALSO = """\
In the middle of an epoch, what changes the training set (`data.dir` and the like) or the images per device and update
(`batch_size`, `recipe.optimizer_batch_size`) is refused as well; other classes always are, see
[reliability.md](reliability.md#going-on-with-other-settings).
"""


def config_page() -> str:
    """A table for each section of the configuration: key, default, values, meaning."""
    lines = [*_INTRODUCTION.splitlines(), *(f"| *{mark}* | {what} |" for mark, what in _MARKS.items())]
    lines += ["| none | It is taken over, and a note says what it was. |", "", *_ALSO.splitlines()]
    for name in ("", *sections()):
        lines += ["", f"## `{name}`" if name else "## General", ""]
        if name:
            lines += [f"{_cell(title_of(name))}.", ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|", *map(_row, in_section(name))]
    return "\n".join(lines) + "\n"


def _row(option: Option) -> str:
    mark = f" *{', '.join(option.affects)}*" if option.affects else ""
    mark += " if turned on or off" if option.only_on_or_off else ""
    return f"| `{option.key}`{mark} | `{show(option.default)}` | {_cell(allowed(option))} | {_cell(option.meaning)} |"


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
            load_command(name)(["--help"])
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
