"""What a traced program does, counted in its equations: independent of `bench.flops`, which counts over the layers."""

import math
from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a program and of what it calls; of a choice by platform, those of GPUs."""
    for equation in jaxpr.eqns:
        yield equation
        if platforms := equation.params.get("branches_platforms"):
            yield from equations(equation.params["branches"][platforms.index(None)].jaxpr)
            continue
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and not hasattr(value, "call_wrapped"):
                yield from equations(inner)


def operations(jaxpr: Any) -> float:
    """Returns the floating-point operations of convolutions and matrix products, a product and a sum being two.

    Counted by window: what is multiplied with padding counts, the zeros between the pixels of a strided gradient do
    not.
    """
    total = 0.0
    for equation in equations(jaxpr):
        shapes = [x.aval.shape for x in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            window = [shapes[1][axis] for axis in numbers.rhs_spec[1:]]  # input channels, height, width
            total += 2 * math.prod(shapes[2]) * math.prod(window) / math.prod(equation.params["lhs_dilation"])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
    return total
