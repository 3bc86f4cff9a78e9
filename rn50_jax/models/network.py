"""What training, evaluation and prediction need of a network. `resnet.ResNet` is one; a module of yours may be."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax


class Network(Protocol):
    """A Flax module with `num_classes`, called as below. Its variables are "params" and, if it has some, "batch_stats".

    No variable's shape may depend on the image's size, and nothing is drawn at random in a call.

    Optional: `frozen`, a field with the names of parts that are not trained, whose BatchNorms are to leave their
    running statistics alone; `parts`, all names in the order from the input to the output, of which the last is the
    classifier; `part_of(module)`, the part that a top-level module belongs to, by default the one of its name.
    """

    @property
    def num_classes(self) -> int:
        """Number of logits."""

    def __call__(self, x: jax.Array, *, train: bool, head: bool = True) -> jax.Array:
        """Returns logits, float32 [B, num_classes], of normalized images [B, H, W, 3]; without `head`, the features."""

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Makes the variables, see `flax.linen.Module`."""

    def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
        """Makes the variables and calls the module."""

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module with variables."""


def parts_of(model: Network) -> tuple[str, ...]:
    """Returns the names of a network's parts from the input to the output; () if it does not tell them."""
    return tuple(getattr(model, "parts", ()))


def part_of(model: Network, module: str) -> str:
    """Returns the part that a top-level module belongs to."""
    own = getattr(model, "part_of", None)
    return str(own(module)) if own else module


def computed_by(impl: str, model: Network) -> Network:
    """Returns a network computed by another of `conv_norm.IMPLS`; one that has no field `compute` as it is."""
    module: Any = model
    return module.clone(compute=module.compute._replace(impl=impl)) if hasattr(module, "compute") else model


def split_frozen(tree: Mapping[str, Any], model: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters or running statistics into those of the parts that are trained, and of the frozen ones.

    `trained | frozen` is the tree again.
    """
    names = set(getattr(model, "frozen", ()))
    fixed = {module: value for module, value in tree.items() if part_of(model, module) in names}
    return {module: value for module, value in tree.items() if module not in fixed}, fixed
