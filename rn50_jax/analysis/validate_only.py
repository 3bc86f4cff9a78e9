"""What `run.evaluate` does: one validation instead of a training."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from ml_collections import ConfigDict

from rn50_jax.analysis.evaluation import evaluate_stored
from rn50_jax.config import tree
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.options import dataset_options
from rn50_jax.distributed import processes
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import MACHINE, StoredModel, load_run
from rn50_jax.io.files import no_such_run
from rn50_jax.io.messages import say
from rn50_jax.loggers.console import print_rows, validation_text
from rn50_jax.loggers.dllogger import dle_parameters, open_dle
from rn50_jax.runtime.run_folder import describe_devices, make_workdir
from rn50_jax.training.pretrained import load_start, take_architecture


def validate_only(config: ConfigDict, workdir: Path, overrides: Sequence[tuple[str, str]]) -> None:
    """Validates the latest checkpoint of a work folder, or else the weights that a new run would start with.

    With `run.prof`, so many batches alone; with `report.dle_json`, NVIDIA's lines about it too.

    Args:
      overrides: of the command line. They alone change the config of a checkpoint, and a file that they name to start
        from goes before it.

    Raises:
      UserError: there is nothing to validate, or it does not fit the data.
    """
    stored = _find_model(config, workdir, overrides)
    with ExitStack() as stack:
        log = None
        if config.report.dle_json and processes.is_first():
            make_workdir(workdir)
            parameters = dle_parameters(config, workdir, lr=config.recipe.lr, num_devices=len(stored.devices))
            log = stack.enter_context(closing(open_dle(config, workdir, parameters, steps_per_epoch=1)))
        result = evaluate_stored(stored)
        if processes.is_first():
            say(f"{stored.name}, on {describe_devices(stored.devices)}")
            say(validation_text(result, classes=stored.model.num_classes))
        if log:
            log.epoch(max(stored.facts.get("epoch", 1) - 1, 0), result)
            log.summary()
            print_rows({"logs": str(workdir / config.report.dle_json)})


def _find_model(config: ConfigDict, workdir: Path, overrides: Sequence[tuple[str, str]]) -> StoredModel:
    named = any(key in ("run.resume", "model.pretrained_weights") and text for key, text in overrides)
    if not named and _is_filled(workdir / "checkpoints"):
        machine = [(key, tree.flatten(config)[key]) for key in MACHINE]
        return load_run(workdir, "latest", [*overrides, *machine])
    if not (config.run.resume or config.model.pretrained_weights or config.run.prof):
        if not workdir.exists() and "did you mean" in (told := no_such_run(workdir)):
            raise UserError(told)
        raise UserError(
            f"{workdir} has no checkpoints to validate; give the --workdir of a training run, --pretrained_weights "
            "FILE, or --config.run.prof=N to time N batches with random weights"
        )
    config, told = take_architecture(config, overrides)
    if told and processes.is_first():
        say(told)
    return load_start(config, open_dataset(dataset_options(config), need_train=False).class_names)


def _is_filled(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except FileNotFoundError:
        return False
    except OSError:  # whoever reads it says what is wrong
        return True
