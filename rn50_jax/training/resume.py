"""The start of a run: its newest whole checkpoint, a fresh state, pretrained weights, or NVIDIA's checkpoint."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from rn50_jax.checkpoint.description import Meta, RunDescription, check_description, saved_config
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.checkpoint.selection import score
from rn50_jax.config.derived import Plan
from rn50_jax.config.file_names import METRICS
from rn50_jax.config.schema import Config, affecting, options
from rn50_jax.data.batch import Position
from rn50_jax.data.image_set import check_class_names
from rn50_jax.data.val_share import VAL_IMAGES
from rn50_jax.errors import UserError
from rn50_jax.io.messages import say, warn
from rn50_jax.io.text import counted, shell
from rn50_jax.loggers.history import last_line
from rn50_jax.models.network import Network, parts_of
from rn50_jax.training.build import build_state
from rn50_jax.training.pretrained import list_differences, read_pretrained, start_from
from rn50_jax.training.state import TrainState
from rn50_jax.training.stream_facts import FORM, changed_fact
from rn50_jax.training.torch_checkpoint import differing_settings, read_checkpoint, resume_from

_NEW_RUN = "for a new run give another --workdir"
_WAYS_ON = f"to train longer give a larger {{}}; {_NEW_RUN}"


class Start(NamedTuple):
    """Where a run begins or resumes.

    state: on the host. position: of the next batch. goodput: seconds by phase until the checkpoint; lost: seconds
    after it, whose work must be done again. top1: of the checkpoint's validation, -1 if there was none.
    """

    state: TrainState
    position: Position
    goodput: dict[str, float]
    lost: float
    top1: float = -1.0

    def finished(self, epochs: int, target_top1: float) -> str | None:
        """Returns why the run has nothing left to do, if so."""
        epoch = self.position.epoch
        if epoch > epochs:
            return f"{counted(epoch, 'epoch')} done, and config.epochs={epochs}; {_WAYS_ON.format('--config.epochs')}"
        if epoch == epochs:
            return f"{epoch} of {counted(epochs, 'epoch')} done; {_WAYS_ON.format('--config.epochs')}"
        if 0 < target_top1 <= self.top1:
            done = f"epoch {epoch} reached {self.top1:.3f} % top-1 ({target_top1:g} wanted)"
            return f"{done}; {_WAYS_ON.format('--target_top1')}"
        return None


def find_start(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    *,
    model: Network,
    class_names: tuple[str, ...],
    plan: Plan,
    stream: dict[str, Any],
    local_devices: Sequence[int],
) -> Start:
    """Reads the newest whole checkpoint of the work folder, or makes a fresh start.

    Args:
      class_names: of the data.
      stream: of `stream_facts`.
      local_devices: places in the mesh of this process's devices.

    Raises:
      UserError: checkpoints or weight file cannot be read, are of another model or other classes, or of the middle of
        an epoch that cannot go on in the same way.
    """

    def check(meta: Meta) -> None:
        place = checkpoints.directory / str(meta["step"])
        check_description(meta, RunDescription, place)
        saved = saved_config(meta, place).config
        _check_classes(class_names, config.data.dir, tuple(meta["class_names"]), saved.data.dir, workdir)
        _check_model(config, saved, workdir)
        _check_split(config, saved, workdir)

    found = checkpoints.restore_newest(build_state(config, model, abstract=True), check)
    last = last_line(workdir / METRICS)
    if found is None:
        if last and config.run.save_checkpoints:
            where = f"from {config.run.resume}" if config.run.resume else "at step 0"
            warn(
                f"{workdir} has metrics up to step {last['step']}, but no checkpoints: training starts anew {where}, "
                f"and {METRICS} goes on behind them"
            )
        if config.run.resume:
            return _foreign_start(config, model, plan)
        return Start(_fresh_state(config, model, class_names), Position(0, 0), {}, 0.0)
    state, meta = found
    place = checkpoints.directory / str(meta["step"])
    if 0 < meta["position"]["step"] < meta["steps_per_epoch"]:
        pipelines = 0 if config.data.backend == "synthetic" else plan.num_devices
        position = _in_the_middle(meta, place, plan, stream, pipelines, local_devices)
    else:
        state, position = _at_an_end(meta, place, plan, state)
    lost = max(last["time"] - meta["time"], 0.0) if last and last["step"] > meta["step"] else 0.0
    saved = saved_config(meta, place)
    before, now = saved.config.flat(), config.flat()
    for key in (option.key for option in affecting("start")):
        if now[key] and now[key] != before[key]:
            warn(f"{workdir} goes on from its own checkpoints and not from {now[key]}; for that give a new --workdir")
    if notes := [
        *saved.gone,
        *(f"config.{key}, which it did not have, takes its default {before[key]!r}" for key in saved.lacking),
    ]:
        warn(f"the run in {workdir} is of an earlier version: {'; '.join(notes)}")
    start = Start(state, position, meta["goodput"], lost, score(meta["metrics"]))
    if changed := _changes(before, now, meta["stream"], stream):
        finished = "; none of this takes effect, since the run is finished"  # how to go on, the next line says
        ending = finished if start.finished(config.epochs, config.run.target_top1) else f"; {_NEW_RUN}"
        warn(f"the run in {workdir} was started with other settings: {', '.join(changed)}{ending}")
    return start


def _changes(
    before: dict[str, Any], now: dict[str, Any], stream_before: dict[str, Any], stream_now: dict[str, Any]
) -> list[str]:
    """What is another now than when a run was saved: keys, and the training set."""
    changed = [
        f"config.{key} was {before[key]!r} and is {value!r}"
        for key, value in now.items()
        if "start" not in options()[key].affects and before[key] != value
    ]
    images = [facts.get("the training set") for facts in (stream_before, stream_now)]
    if images[0] != images[1]:
        changed.append(f"the training set had {images[0]} and has {images[1]}")
    return changed


def _check_classes(found: tuple[str, ...], now: str, trained: tuple[str, ...], before: str, workdir: Path) -> None:
    try:
        check_class_names(found, trained, now)
    except UserError as error:
        raise UserError(
            f"{error}; the run in {workdir} is on {before} with {len(trained)} classes, and "
            f"{now} has {len(found)}: {_NEW_RUN}, or --config.data.dir={before} to resume this one"
        ) from None


def _check_model(config: Config, saved: Config, workdir: Path) -> None:
    before, now = saved.flat(), config.flat()
    for option in affecting("arrays"):
        key = option.key
        if option.differs(before[key], now[key]):
            raise UserError(
                f"{workdir} holds checkpoints of another model or optimizer: config.{key} was {before[key]!r} and is "
                f"{now[key]!r} now; set it back, or choose another --workdir"
            )


def _check_split(config: Config, saved: Config, workdir: Path) -> None:
    """Refuses to validate on images that were trained on."""
    before, now = saved.flat(), config.flat()
    for key in (option.key for option in affecting("split")):
        if before[key] != now[key] and (saved.data.val_share or config.data.val_share):
            raise UserError(
                f"{workdir} chose its validation images with config.{key}={before[key]!r}, which is {now[key]!r} now: "
                "it would validate on images that it was trained on; set it back, or choose another --workdir"
            )
    if config.data.val_share and not (workdir / VAL_IMAGES).exists():
        raise UserError(
            f"{workdir / VAL_IMAGES} is missing, which says what images the run validates on; put it back, or choose "
            "another --workdir"
        )


def _in_the_middle(
    meta: Meta, place: Path, plan: Plan, stream: dict[str, Any], pipelines: int, local_devices: Sequence[int]
) -> Position:
    """Returns the position of a checkpoint within an epoch, which resumes with the very same batches or not at all."""
    epoch, step = meta["position"]["epoch"], meta["position"]["step"]
    if found := changed_fact(meta["stream"], stream):
        changed = f"{found.name} was {found.before!s:.200} and is {found.now!s:.200} now; set it back"
        if found.name == FORM:
            changed = "this version of rn50-jax takes the images in another order; use the one that saved it"
        raise UserError(
            f"checkpoint {place} is of step {step} in the middle of epoch {epoch + 1}, which cannot go on: "
            f"{changed} until the epoch has ended, or remove that folder to go on from the one before; {_NEW_RUN}"
        )
    try:
        kept = [base64.b64decode(text, validate=True) for text in meta["position"]["pipelines"]]
    except ValueError as error:
        raise UserError(f"checkpoint {place} has no place in the stream of images: {error}") from None
    if len(kept) != pipelines:
        raise UserError(f"checkpoint {place} has places in the stream of images of {counted(len(kept), 'device')}")
    if meta["step"] != epoch * plan.steps_per_epoch + step:
        raise UserError(f"checkpoint {place} cannot be of step {step} of epoch {epoch + 1}")
    return Position(epoch, step, tuple(kept[device] for device in local_devices) if kept else ())


def _at_an_end(meta: Meta, place: Path, plan: Plan, state: TrainState) -> tuple[TrainState, Position]:
    """Returns state and position of a checkpoint between two epochs, which may have another number of steps now."""
    epoch, step = meta["position"]["epoch"], meta["position"]["step"]
    done = epoch + (step > 0)  # epochs whose training is done, if not yet their validation
    if meta["steps_per_epoch"] != plan.steps_per_epoch:
        now = done * plan.steps_per_epoch
        if now >= 2**31:
            raise UserError(f"checkpoint {place} cannot be of epoch {epoch + 1}")
        warn(f"an epoch has another number of steps now: step {meta['step']} became {now}")
        state = state._replace(step=jnp.asarray(now, jnp.int32))
    return state, Position(epoch, plan.steps_per_epoch if step else 0)


def _foreign_start(config: Config, model: Network, plan: Plan) -> Start:
    """Returns the start from where a training checkpoint of NVIDIA's code ended."""
    source = config.run.resume
    checkpoint = read_checkpoint(Path(source))
    done = checkpoint.epoch
    if done >= config.epochs:
        command = ["python", "-m", "rn50_jax.evaluate", "--weights", Path(source)]
        raise UserError(
            f"{source} has {counted(done, 'epoch')} done, and config.epochs={config.epochs} leaves none to train; give "
            f"a larger --config.epochs, or use its weights: {shell(command)}"
        )
    state = resume_from(build_state(config, model), checkpoint, model, source)
    for note in differing_settings(checkpoint, config.recipe):
        warn(f"{source} was trained with {note}")
    if config.recipe.ema_decay > 0 and not checkpoint.ema:
        warn(f"{source} has no averaged weights: those of config.recipe.ema_decay start from its weights")
    if checkpoint.ema and not config.recipe.ema_decay:
        warn(f"{source} has averaged weights, which config.recipe.ema_decay=0 does without")
    momentum = "with its momentum" if checkpoint.momentum else "without momentum: the file has none"
    say(f"resuming from {source}: {done} of {counted(config.epochs, 'epoch')} done, {momentum}")
    step = jnp.asarray(done * plan.steps_per_epoch, jnp.int32)
    return Start(state._replace(step=step), Position(done, 0), {}, 0.0)


def _fresh_state(config: Config, model: Network, class_names: tuple[str, ...]) -> TrainState:
    """Returns a state with initial values, or with pretrained weights."""
    source = config.model.pretrained_weights
    if not source:
        if config.finetune.freeze:
            raise UserError(
                f"config.finetune.freeze={config.finetune.freeze} would hold random weights; give --pretrained_weights "
                "FILE"
            )
        if config.finetune.lr_decay != 1 or config.finetune.lr_scales:
            warn(
                "training from scratch: there are no --pretrained_weights, and the rates of config.finetune are for "
                "fine-tuning"
            )
        return build_state(config, model)
    source, file = read_pretrained(Path(source), config)
    for note in list_differences(file, config, class_names, source):
        warn(note)
    classes = tuple(file.meta.get("class_names", class_names))
    new_head = config.finetune.new_head or classes != class_names
    if new_head and (head := set(parts_of(model)[-1:]) & set(config.finetune.freeze)):
        raise UserError(
            f"config.finetune.freeze holds {min(head)!r}, but {source} has a classifier of other classes than "
            f"{config.data.dir}; leave {min(head)!r} out"
        )
    state, message = start_from(build_state(config, model), file.arrays, model, source, new_head=new_head)
    say(message)
    return state
