"""All commands under one name: `rn50-jax COMMAND`, or where it is not installed `python -m rn50_jax COMMAND`."""

import difflib
import importlib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rn50_jax import __version__, cli
from rn50_jax.config.recipes import FOLDER, recipe_names
from rn50_jax.errors import UserError
from rn50_jax.io.terminal import fit


def find_commands() -> dict[str, str]:
    """Returns what each command does, by name.

    A command is a module of this package, or a folder's `__main__`, that ends in `cli.run(main)`; the first line of its
    docstring, up to the call in it, says what it does. Nothing is imported.
    """
    found, package = {}, Path(__file__).parent
    for file in (*package.glob("[!_]*.py"), *package.glob("*/__main__.py")):
        text = file.read_text(encoding="utf-8")
        if text.rstrip().endswith("cli.run(main)"):
            line = re.match(r'"""(.*?)(?:: `|[.]? *"""|[.]?\n)', text)
            found[file.parent.name if file.name == "__main__.py" else file.stem] = line[1] if line else ""
    return dict(sorted(found.items()))


def load_command(name: str) -> Callable[[Sequence[str]], int]:
    """Returns the `main` of one of `find_commands`."""
    module = importlib.import_module(f"rn50_jax.{name}")
    if not hasattr(module, "main"):
        module = importlib.import_module(f"rn50_jax.{name}.__main__")
    main: Callable[[Sequence[str]], int] = module.main
    return main


def _help() -> str:
    commands = find_commands()
    lines = "\n".join(f"  {name:<{max(map(len, commands))}}  {what}" for name, what in commands.items())
    return f"""rn50-jax {__version__}: ResNet-50 v1.5 for image classification in JAX.

usage: rn50-jax COMMAND [ARGUMENTS]    (or python -m rn50_jax.COMMAND; --help after a COMMAND tells more)

commands:
{lines}

recipes for --config, in {FOLDER}:
{textwrap.fill(", ".join(recipe_names()), 110, initial_indent="  ", subsequent_indent="  ")}

{textwrap.fill(cli.EXIT_CODES, 110, subsequent_indent=" " * 12)}"""


def main(argv: Sequence[str]) -> int:
    """Runs the command that `argv` starts with; returns its exit code.

    Raises:
      UserError: there is no such command; and what the command raises.
    """
    name, *rest = argv or [""]
    if name in ("-h", "--help", "help"):
        print(fit(_help(), sys.stdout))
        return 0
    if name == "--version":
        print(f"rn50-jax {__version__}")
        return 0
    commands = find_commands()
    if name not in commands:
        alike = difflib.get_close_matches(name, commands, 1)
        hint = f"did you mean {alike[0]}?" if alike else "see rn50-jax --help"
        known = ", ".join(commands)
        raise UserError(f"{name!r} is no command ({hint})" if name else f"give a command, one of {known}; {hint}")
    return load_command(name)(rest)


def run() -> NoReturn:
    """Runs the console command."""
    cli.run(main)


if __name__ == "__main__":
    run()
