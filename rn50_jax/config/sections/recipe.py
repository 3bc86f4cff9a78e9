"""The options of the recipe: what decides how a network learns, whatever the data and the machine."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rn50_jax.config.fields import Count, CountOrZero, Fraction, NotNegative, Positive, Probability, Section, option
from rn50_jax.errors import UserError

_Epochs = Annotated[int, Field(ge=0, le=10**6)]
_Factor = Annotated[float, Field(gt=0, le=1)]


class RecipeConfig(Section):
    """The recipe: learning rate, optimizer, loss, mixing and averages; see docs/recipe.md."""

    lr: Positive = option(0.256, "peak learning rate for a global batch of recipe.lr_batch_size images")
    lr_batch_size: CountOrZero = option(
        256, "the peak is lr * global batch / this (linear scaling); 0: recipe.lr as it stands", unit="images"
    )
    schedule: Literal["cosine", "linear", "step", "poly"] = option(
        "cosine", "after the warm-up: cosine, linear or poly to the end, or step down at the milestones"
    )
    lr_update: Literal["step", "epoch"] = option(
        "step", "the rate moves every step, or every epoch as in NVIDIA's code", exact="epoch"
    )
    warmup_epochs: _Epochs = option(
        8, "time in which the rate rises linearly to its peak; a shorter run ends below it", unit="epochs"
    )
    end_lr: NotNegative = option(0.0, "where the cosine and poly schedules end")
    milestones: Annotated[tuple[Annotated[int, Field(ge=1, le=10**6)], ...], Field(max_length=1000)] = option(
        (30, 60, 80),
        "step schedule: epochs after which the rate falls",
        valid="integers >= 1, such as (30, 60, 80); at most 1000, and none above 1000000",
    )
    milestone_factor: _Factor = option(0.1, "step schedule: factor at each milestone")
    poly_power: Positive = option(2.0, "poly schedule: the rate falls as this power of the time that is left")

    optimizer: Literal["sgd", "lars", "lamb"] = option(
        "sgd", "sgd, lars or lamb (the latter two for batches of thousands)", affects="arrays"
    )
    momentum: Fraction = option(0.875, "of SGD and LARS")
    nesterov: bool = option(False, "Nesterov's momentum")
    lars_trust: Positive = option(0.001, "of LARS: rate of a tensor by its norms")
    beta1: Fraction = option(0.9, "of LAMB: decay of the average of gradients")
    beta2: Fraction = option(0.999, "of LAMB: decay of the average of squared gradients")
    eps: Positive = option(1e-6, "of LAMB: added to the root of the latter")
    clip_norm: NotNegative = option(0.0, "gradients of a larger global norm are scaled down to it; 0: never")
    weight_decay: NotNegative = option(1 / 32768, "coupled L2 (NVIDIA's: 1 / 32768)")
    decay_mask: Literal["no_bn", "no_bn_bias", "reference", "all"] = option(
        "no_bn",
        "not decayed are: no_bn, BatchNorms; no_bn_bias, these and biases; reference, as in NVIDIA's code; all, none",
        exact="reference",
    )
    optimizer_batch_size: CountOrZero = option(
        0, "global batch of one update, reached by accumulating gradients; 0: no accumulation", unit="images"
    )

    loss: Literal["cross_entropy", "bce"] = option(
        "cross_entropy", "cross_entropy, or bce: binary cross-entropy of each class, averaged over them"
    )
    bce_threshold: Fraction = option(
        0.0, "bce: a (mixed) target above it counts as 1, any other as 0; 0: targets as they are"
    )
    label_smoothing: Fraction = option(0.1, "probability spread evenly over all classes; 0: none")
    mixup: NotNegative = option(
        0.0, "alpha of mixup's Beta(alpha, alpha); 0: off; with cutmix too, each forward pass draws one of them"
    )
    cutmix: NotNegative = option(0.0, "alpha of CutMix's Beta(alpha, alpha); 0: off")
    random_erasing: Probability = option(0.0, "probability that a box of an image is set to the mean color")

    running_average: Literal["mean", "first"] = option(
        "mean",
        "of BatchNorm: mean of the devices' running statistics, or those of the first",
        exact="first",
    )
    bn_group: CountOrZero = option(
        1, "devices that share BatchNorm's batch statistics: 1, each its own; G, neighbors; 0, all", unit="devices"
    )
    ema_decay: Fraction = option(
        0.0,
        "of moving averages of weights and running statistics, such as 0.9999; 0: none",
        affects="arrays",
        only_on_or_off=True,
    )
    exact_reference: bool = option(
        False, "True: all departures of NVIDIA's code from its documentation, see docs/recipe.md"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bce_threshold and self.loss != "bce":
            raise UserError(f"config.recipe.bce_threshold is of no use with config.recipe.loss={self.loss!r}")
        return self


class FinetuneConfig(Section):
    """Fine-tuning of model.pretrained_weights, see docs/fine-tuning.md."""

    freeze: tuple[str, ...] = option(
        (),
        'parts that are not trained; all but ("fc",): a linear probe',
        valid="names of parts, such as ('stem', 'layer1')",
        affects="arrays",
    )
    lr_decay: _Factor = option(1.0, "factor of the learning rate from each part to the one before it, 1 for fc")
    lr_scales: tuple[tuple[str, Positive], ...] = option(
        (),
        "factors for single parts; they go before lr_decay",
        valid="pairs of a part and a factor > 0, such as (('layer4', 0.1),)",
    )
    new_head: bool = option(False, "True: a new classifier even if that of the weight file fits")

    @model_validator(mode="after")
    def _check(self) -> Self:
        scaled = [part for part, _ in self.lr_scales]
        for key, names, value in (("freeze", self.freeze, self.freeze), ("lr_scales", scaled, self.lr_scales)):
            if len(set(names)) < len(names):
                raise UserError(f"config.finetune.{key}={value} names a part twice")
        for name in set(self.freeze) & set(scaled):
            raise UserError(
                f"config.finetune.lr_scales has a rate for {name!r}, which config.finetune.freeze holds; drop one"
            )
        return self


class LossScaleConfig(Section):
    """The loss scale, only read with precision fp16. A step whose gradients overflow changes nothing else."""

    mode: Literal["static", "dynamic"] = option("static", "static: always loss_scale.init; dynamic: it moves")
    init: Annotated[float, Field(ge=1, le=2**24)] = option(
        128.0, "the scale, or the first one if dynamic", valid="a number from 1 to 2**24"
    )
    growth_interval: Count = option(
        2000, "dynamic: good steps in a row before the scale doubles; an overflow halves it, down to 1", unit="steps"
    )
