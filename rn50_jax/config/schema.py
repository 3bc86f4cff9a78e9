"""The config: every option once, with its type, range, default, meaning, and what a change of it does to a run.

The options stand in `sections/`. On the command line one is `--config.section.name=value`; `--help_config` prints them.
"""

from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rn50_jax.config.fields import Effect, Option, Section, option, read_option
from rn50_jax.config.sections.data import DataConfig
from rn50_jax.config.sections.model import ModelConfig
from rn50_jax.config.sections.recipe import FinetuneConfig, LossScaleConfig, RecipeConfig
from rn50_jax.config.sections.run import CheckpointConfig, ComputeConfig, LogConfig, RunConfig
from rn50_jax.errors import UserError
from rn50_jax.io.text import shell
from rn50_jax.models.parts import part_names


class Config(Section):
    """The whole config; its own options stand outside of the sections."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = option(
        0, "base of every random stream: weights, order, crops, mixup", affects=("stream", "split")
    )
    epochs: Annotated[int, Field(ge=1, le=10**6)] = option(
        90, "passes over the training images, also the length of the schedule"
    )
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = option(256, "images per device in one forward pass")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = option(
        "bf16", "convolutions and activations: fp32, tf32, bf16 or fp16; parameters and loss stay fp32"
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    recipe: RecipeConfig = RecipeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dicts of plain values, as `config.json` and checkpoints hold them."""
        return self.model_dump()

    def flat(self) -> dict[str, Any]:
        """Returns the value of every option by its key, in the order of the schema."""
        return flatten(self.to_dict())

    @model_validator(mode="after")
    def _check_finetune(self) -> Self:
        if self.model.is_own:  # which tells its parts when it is made
            return self
        parts = part_names(len(self.model.num_blocks))
        frozen, scaled = self.finetune.freeze, [part for part, _ in self.finetune.lr_scales]
        for key, names in (("freeze", frozen), ("lr_scales", scaled)):
            for name in names:
                if name not in parts:
                    raise UserError(
                        f"config.finetune.{key} names {name!r}; the parts of the model are {', '.join(parts)}"
                    )
        if len(frozen) == len(parts):
            raise UserError(f"config.finetune.freeze={frozen} leaves nothing to train; leave a part out")
        return self

    @model_validator(mode="after")
    def _check_exact_reference(self) -> Self:
        if not self.recipe.exact_reference:
            return self
        flat = self.flat()
        for key, value in exact_reference().items():
            if flat[key] != value:
                raise UserError(
                    f"config.recipe.exact_reference=True stands for config.{key}={value!r}, which is {flat[key]!r}; "
                    "change one of them"
                )
        return self

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        source, rival = self.run.resume, ""
        if self.model.pretrained_weights:
            rival = "config.model.pretrained_weights"
        elif self.finetune.new_head:
            rival = "config.finetune.new_head"
        if source and rival:
            raise UserError(f"config.run.resume and {rival} exclude each other; set one of them")
        if source and self.recipe.optimizer != "sgd":
            raise UserError(
                f"config.run.resume takes the state of SGD, and config.recipe.optimizer={self.recipe.optimizer!r} has "
                f"another; start from the weights alone with {shell(['--pretrained_weights', source])}"
            )
        return self


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dicts as {"section.key": value}, in their own order."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


@cache
def options() -> dict[str, Option]:
    """Returns every option by its key, "section.name" or the name alone, in the order of the schema."""
    found: dict[str, Option] = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.default, Section):
            fields = type(field.default).model_fields
            found |= {f"{name}.{inner}": read_option(f"{name}.{inner}", below) for inner, below in fields.items()}
        else:
            found[name] = read_option(name, field)
    return found


def sections() -> dict[str, Section]:
    """Returns the sections of the config by name, with the defaults of their options."""
    return {name: value for name, value in Config() if isinstance(value, Section)}


def affecting(effect: Effect) -> list[Option]:
    """Returns the options a change of which has an effect on a run that has begun."""
    return [option for option in options().values() if effect in option.affects]


@cache
def exact_reference() -> dict[str, Any]:
    """Returns what `recipe.exact_reference` stands for: values of NVIDIA's code by key."""
    return {key: option.exact for key, option in options().items() if option.is_exact}
