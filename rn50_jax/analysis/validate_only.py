"""`run.evaluate`: one validation instead of a training."""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from rn50_jax.analysis.evaluation import evaluate_model
from rn50_jax.config.schema import Config, affecting
from rn50_jax.data.dataset import open_dataset
from rn50_jax.distributed import processes
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import TrainedModel, load_run
from rn50_jax.io.messages import say
from rn50_jax.loggers.base import RunFacts
from rn50_jax.loggers.console import print_rows, validation_text
from rn50_jax.loggers.dllogger import open_dle
from rn50_jax.runtime.run_folder import describe_devices, make_workdir
from rn50_jax.training.pretrained import load_start, take_architecture


def validate_only(config: Config, workdir: Path, overrides: Sequence[tuple[str, str]]) -> None:
    """Validates the latest checkpoint of a work folder, or else the weights that a new run would start with.

    With `run.prof`, so many batches alone; with `log.dle_json`, NVIDIA's lines about it too.

    Args:
      overrides: of the command line. They alone change the config of a checkpoint, and a file that they name to start
        from goes before it.

    Raises:
      UserError: there is nothing to validate, or it does not fit the data.
    """
    trained = _find_model(config, workdir, overrides)
    log = None
    if config.log.dle_json and processes.is_first():
        make_workdir(workdir)
        facts = RunFacts(workdir, config, len(trained.devices), config.recipe.lr)
        log = open_dle(facts, config.log.dle_json)
    with closing(log) if log else nullcontext():
        result, _ = evaluate_model(trained)
        if processes.is_first():
            say(f"{trained.name}, on {describe_devices(trained.devices)}")
            say(validation_text(result, classes=trained.model.num_classes))
        if log:
            log.epoch(max(trained.facts.get("epoch", 1) - 1, 0), result)
            log.summary()
            print_rows({"logs": str(workdir / config.log.dle_json)})


def _find_model(config: Config, workdir: Path, overrides: Sequence[tuple[str, str]]) -> TrainedModel:
    named = any(key in ("run.resume", "model.pretrained_weights") and text for key, text in overrides)
    if not named and _is_filled(workdir / "checkpoints"):
        machine = [(option.key, str(config.flat()[option.key])) for option in affecting("machine")]
        return load_run(workdir, "latest", [*overrides, *machine])
    if not (config.run.resume or config.model.pretrained_weights or config.run.prof):
        raise UserError(
            f"{workdir} has no checkpoints to validate; give the --workdir of a training run, --pretrained_weights "
            "FILE, or --config.run.prof=N to time N batches with random weights"
        )
    config, message = take_architecture(config, overrides)
    if message and processes.is_first():
        say(message)
    return load_start(config, open_dataset(config, need_train=False).class_names)


def _is_filled(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except FileNotFoundError:
        return False
    except OSError:  # whoever reads it says what is wrong
        return True
