"""The options of how a run computes, saves, logs and ends."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rn50_jax.config.fields import Count, CountOrZero, NotNegative, Section, option, that
from rn50_jax.config.file_names import is_own_name
from rn50_jax.errors import UserError
from rn50_jax.io.text import printable


class ComputeConfig(Section):
    """How it is computed: the same results but for rounding, at another speed."""

    parallel: Literal["pmap", "shard_map"] = option("pmap", "how the step is spread over devices (same numbers)")
    all_reduce: Literal["fp32", "bf16", "ordered"] = option(
        "fp32", "of gradients, over devices: fp32, bf16 (rounded) or ordered; see docs/precision.md"
    )
    impl: Literal["xla", "plain"] = option(
        "xla", "how convolution and BatchNorm are written: xla, fast; plain, as in the papers"
    )
    fold_batch_norm: Literal["auto", "on", "off"] = option(
        "auto",
        "BatchNorm as part of the convolutions: on, off or auto, in predict and in benchmarks of inference, but not in "
        "evaluate, which repeats the figures of training to the last digit",
    )
    compile_cache: str = option(
        "auto",
        'folder that keeps compiled programs; auto: ~/.cache/rn50-jax; "": none',
        valid="a folder, auto or empty",
        affects="machine",
    )
    xla_flags: Annotated[str, that(lambda v: all(flag.startswith("--xla_") for flag in v.split()))] = option(
        "",
        'flags for XLA, such as "--xla_a=1 --xla_b=2"; those of the environment\'s XLA_FLAGS go before',
        valid="flags such as --xla_name=value with blanks between, or empty",
        affects="machine",
    )


class CheckpointConfig(Section):
    """When the state is saved, and what is kept."""

    every_epochs: Count = option(1, "between checkpoints (the last epoch always has one)", unit="epochs")
    every_minutes: NotNegative = option(15.0, "between checkpoints within an epoch; 0: none", unit="minutes")
    keep: Count = option(2, "newest checkpoints kept, beside the best by val.top1")
    gather: bool = option(
        False, "True: also save and keep the ends of epochs 1 to 11, 21, 31, ..., as NVIDIA's code can"
    )


class LogConfig(Section):
    """What is written about a run, beside metrics.jsonl."""

    print_every: Count = option(20, "between two lines of training metrics", unit="steps")
    tensorboard: bool = option(True, "also write TensorBoard events, to tensorboard/ in the work folder")
    wandb: str = option(
        "", 'project of Weights & Biases that also gets the metrics; "": none', valid="a project, or empty"
    )
    mlflow: str = option(
        "",
        'experiment of MLflow that also gets the metrics (server: MLFLOW_TRACKING_URI); "": none',
        valid="an experiment, or empty",
    )
    dle_json: Annotated[str, that(lambda v: printable(v) == v and not (v and is_own_name(v)))] = option(
        "",
        'also write NVIDIA\'s DLLL lines to this file (relative to the work folder); "": no',
        valid="a file that is none of the run's own, or empty",
    )


class RunConfig(Section):
    """What a run does, and when it ends."""

    resume: str = option(
        "",
        'checkpoint.pth.tar of NVIDIA\'s code that a new run goes on from; "": none (also --resume FILE)',
        valid="a training checkpoint of NVIDIA's code, or empty",
        affects="start",
    )
    prof: CountOrZero = option(
        0, "only so many steps of each epoch and batches of each validation, and no checkpoint; 0: all", unit="steps"
    )
    training_only: bool = option(False, "True: no validation")
    target_top1: Annotated[float, Field(ge=0, le=100)] = option(
        0.0, "stop when validation reaches it; 0: never (also --target_top1 X)", unit="%"
    )
    evaluate: bool = option(
        False, "instead of training, validate a weight file that the command names, or the latest checkpoint"
    )
    save_checkpoints: bool = option(True, "False: nothing to resume from")
    max_skipped_steps: Count = option(50, "so many in a row, skipped for gradients that are not finite, stop the run")
    hang_timeout: Count = option(
        1800, "without a finished step or batch until the run ends itself (the first: 10 times)", unit="seconds"
    )
    heartbeat_timeout: Annotated[int, Field(ge=10, le=2**31 - 1)] = option(
        60, "several processes: until the others end after one has died", unit="seconds"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("evaluate", "target_top1"):
            if self.training_only and getattr(self, name):
                raise UserError(f"config.run.training_only and config.run.{name} exclude each other; set one of them")
        return self
