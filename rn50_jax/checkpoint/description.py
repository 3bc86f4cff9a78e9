"""What a checkpoint says about itself, in JSON beside its state; read without trust, for it may come from anywhere."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat
from typing_extensions import TypedDict

from rn50_jax.checkpoint.integrity import seal
from rn50_jax.config.loading import Saved, from_saved
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular
from rn50_jax.io.json_files import check_shape, parse_json

FORMAT = 3
Meta = dict[str, Any]

_LARGEST = 1 << 28  # bytes of a description
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Small = Annotated[int, Field(ge=0, lt=2**31)]  # what the state counts in
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Array = Annotated[list[Any], Field(min_length=3, max_length=3)]  # see `integrity.describe_arrays`
_Value = None | bool | int | float | str | list[Any]  # of a config's key


class _Place(TypedDict):
    epoch: _Small
    step: _Small
    pipelines: list[str]


class Description(TypedDict):
    """Of every checkpoint.

    time: Unix seconds. order: how many checkpoints the run had begun; in some folders, later ones have smaller steps.
    """

    format: int
    step: _Count
    epoch: _Count
    time: FiniteFloat
    metrics: dict[str, FiniteFloat]
    arrays: dict[str, _Array]
    order: Annotated[int, Field(ge=0, lt=2**62)]  # others come behind it


class RunDescription(Description):
    """Of those of a training run, see `run_facts.checkpoint_meta`."""

    position: _Place
    steps_per_epoch: Annotated[int, Field(ge=1, lt=2**31)]
    stream: dict[str, Any]
    class_names: Annotated[list[str], Field(min_length=1)]
    config: dict[str, _Value | dict[str, _Value]]
    goodput: dict[str, _Seconds]


def read_description(checkpoint: Path, step: int) -> Meta:
    """Reads what the checkpoint of a step says about itself.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not what was saved.
      UserError: it is what was saved, but not by this version.
    """
    with open_regular(checkpoint / "meta" / "metadata") as file:
        data = file.read(_LARGEST)
    meta = parse_json(data, dict[str, Any])
    sealed = meta.pop("seal", None)
    if sealed != seal(meta) and (sealed is not None or meta.get("format") == FORMAT):
        raise ValueError("its description is not what was saved")
    if meta.get("format") != FORMAT:
        raise UserError(f"checkpoint {checkpoint} has format {meta.get('format')}, this version reads {FORMAT}")
    if meta.get("step") != step:
        raise ValueError("it is of another step")
    check_description(meta, Description, checkpoint)
    return meta


def check_description(meta: Meta, shape: Any, checkpoint: Path) -> None:
    """Refuses a checkpoint whose description has another shape.

    Raises:
      UserError: naming what is wrong.
    """
    try:
        check_shape(meta, shape)
    except ValueError as error:
        raise UserError(
            f"checkpoint {checkpoint} was not saved by this program, or by another version of it: {error}"
        ) from None


def saved_config(meta: Meta, checkpoint: Path) -> Saved:
    """Returns the config of the run that saved a checkpoint, whose description has been checked.

    Raises:
      UserError: it is none.
    """
    return from_saved(meta["config"], source=f"what checkpoint {checkpoint} holds")
