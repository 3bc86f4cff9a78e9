"""Where the ready configs lie, and what a name given as `--config` means."""

import difflib
import os
from pathlib import Path

from rn50_jax.errors import UserError

# In `configs/` beside this package in the source tree, and inside it where it is installed.
_HOMES = Path(__file__).parents[1:3]
FOLDER = next((home for home in _HOMES if (home / "configs").is_dir()), _HOMES[-1]) / "configs"


def recipe_names() -> list[str]:
    """Returns the names of the ready configs."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def find_config(name: str) -> Path:
    """Returns the file that a name means: itself or, where there is none, the ready NAME, NAME.py or configs/NAME.py.

    Raises:
      UserError: neither exists.
    """
    path = Path(name)
    if os.path.isfile(name):  # noqa: PTH113, False for names that no file can have
        return path
    if os.path.isfile(path / "config.json"):  # noqa: PTH113
        raise UserError(f"--config {name} is the folder of a run; give its config: --config {path / 'config.json'}")
    ready = FOLDER / f"{path.stem}.py"
    if str(path.parent) in (".", "configs") and path.suffix in ("", ".py") and path.stem in recipe_names():
        return ready
    alike = difflib.get_close_matches(path.stem, recipe_names(), 1)
    hint = f"did you mean {alike[0]}?" if alike else f"the ready ones are {', '.join(recipe_names())}"
    raise UserError(f"config file {name!r} does not exist; {hint}")
