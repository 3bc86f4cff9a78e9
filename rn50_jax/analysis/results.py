"""The end of a training: where its results are."""

from pathlib import Path

from rn50_jax.checkpoint.folder import CheckpointFolder
from rn50_jax.checkpoint.step_folders import find_steps
from rn50_jax.errors import UserError
from rn50_jax.io.messages import say, warn
from rn50_jax.io.text import shell
from rn50_jax.loggers.console import print_rows
from rn50_jax.loggers.history import read_history


def saved_text(folder: Path) -> str:
    """Names the checkpoints of a folder and marks the best; "" without any."""
    steps = find_steps(folder)
    if not steps:
        return ""
    best = CheckpointFolder(folder).readable().best()
    names = ", ".join(f"{step} (best)" if step == best else str(step) for step in steps)
    return f"{folder} (of {'step' if len(steps) == 1 else 'steps'} {names})"


def tell_where(workdir: Path, metrics: Path) -> None:
    """Draws the curves of a finished run from its metrics file, and says where everything lies."""
    curves = workdir / "curves.png"
    rows = {"metrics": str(metrics), "curves": str(curves)}
    try:
        from rn50_jax.analysis.curves import Run, look, overview, save  # takes a second to import

        with look():
            save(overview([Run(workdir.name, read_history(metrics))]), curves, own=True)
    except ModuleNotFoundError as error:
        warn(f"{curves} is not drawn, as {error.name} is not installed: pip install matplotlib")
        del rows["curves"]
    except (OSError, UserError) as error:
        warn(f"{curves} cannot be written: {getattr(error, 'strerror', None) or error}")
    if saved := saved_text(workdir / "checkpoints"):
        rows = {"saved": saved} | rows
    print_rows(rows)
    page = shell(["python", "-m", "rn50_jax.plot", workdir, "--html", workdir / "report.html"])
    say(f"{'report':<10} {page}")
    say("done")
