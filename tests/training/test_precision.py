"""Which tensor has which type where: docs/precision.md against the program itself."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest
from conftest import REPO
from helpers.tiny import CLASSES, OPTIONS, STATIC, make_batch, make_model, make_optimizer, make_state, place

from rn50_jax.data.normalize import normalize
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, replicate
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY
from rn50_jax.models.resnet import ResNet
from rn50_jax.training.losses import cross_entropy
from rn50_jax.training.state import abstract_state
from rn50_jax.training.step import train_step

BATCH = 6


def rows(heading: str) -> dict[str, list[str]]:
    """The documentation's table whose first heading starts so, by the names of its rows."""
    text = (REPO / "docs/precision.md").read_text()
    table = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    return {row[0]: row[1:] for row in cells}


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def kept(model: ResNet, size: int, batch: int) -> list[Any]:
    """What the forward pass hands to the backward pass, each array once."""

    def forward(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            all_variables = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, updated = model.apply(all_variables, normalize(images), train=True, mutable=["batch_stats"])
            return jnp.mean(cross_entropy(logits, labels, 0.1)), updated

        return jax.vjp(loss, variables["params"], has_aux=True)[1]

    image = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    results = jax.make_jaxpr(forward)(variables, images, labels).jaxpr.outvars
    return [x.aval for x in dict.fromkeys(x for x in results if isinstance(x, jax.extend.core.Var))]


def one(types: set[Any]) -> str:
    (only,) = {str(jnp.dtype(t)) for t in types}
    return only


@pytest.mark.parametrize(("column", "precision"), list(enumerate(PRECISIONS)))
def test_types_are_those_of_the_documentation(column: int, precision: str) -> None:
    model = make_model(precision)
    options = OPTIONS.replace(ema_decay=0.9, scaling=STATIC if precision == "fp16" else None)
    step = partial(
        train_step,
        model=model,
        optimizer=make_optimizer(),
        learning_rate=lambda step: jnp.float32(0.1),
        **options._asdict(),
        axis_name=AXIS,
    )
    mesh = make_mesh(jax.devices()[:2])
    state = replicate(make_state(model, ema=True), mesh)
    batch = place(make_batch(2, BATCH))
    compiled = map_over_devices(step, mesh, mode="shard_map")
    program = list(equations(jax.make_jaxpr(compiled)(state, batch).jaxpr))
    after, metrics = jax.eval_shape(compiled, state, batch)

    def types(name: str) -> set[Any]:
        found = [e for e in program if e.primitive.name == name]
        assert found, name
        return {x.aval.dtype for e in found for x in (*e.invars, *e.outvars)}

    residuals = kept(model, 32, BATCH)
    images = [x for x in residuals if x.ndim == 4 and x.shape[0] == BATCH and jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(images) > 10
    dots = [x.aval for e in program if e.primitive.name == "dot_general" for x in (*e.invars, *e.outvars)]
    assert (BATCH, CLASSES) in {x.shape for x in dots}
    reduced = [x.aval for e in program if e.primitive.name.startswith("psum") for x in e.invars]
    channels = {e.outvars[0].aval.dtype for e in program if e.primitive.name == "rsqrt"}
    rounding = {e.params["precision"] for e in program if e.primitive.name == "conv_general_dilated"}
    trees = {
        "parameters": after.params,
        "momentum": after.opt_state,
        "running statistics of BatchNorm": after.batch_stats,
        "averaged weights (`recipe.ema_decay`)": after.ema,
    }
    found = {name: one({x.dtype for x in jax.tree.leaves(tree)}) for name, tree in trees.items()} | {
        "images on their way to the device": one({batch["image"].dtype}),
        "convolutions, inputs and outputs": one(types("conv_general_dilated")),
        "activations kept for the backward pass": one({x.dtype for x in images}),
        "batch statistics of BatchNorm": one(channels),
        "pooled features, classifier, logits": one({x.dtype for x in dots}),
        "loss": one({metrics["loss"].dtype}),
        "gradients of parameters, their average over devices": one({x.dtype for x in reduced}),
        "matrix units may round inputs": "no" if "HIGHEST" in str(rounding) else "yes",
    }
    assert found == {name: cells[column] for name, cells in rows("tensor").items()}


def test_memory_is_that_of_the_documentation() -> None:
    found: dict[str, float] = {}
    image = 32 * 7  # pixels
    # In bf16 on GPUs, the image's fourth channel comes on top: 0.1 MB.
    for precision, label in (("fp16", "`bf16` or `fp16`"), ("fp32", "`fp32` or `tf32`")):
        model = ResNet(FAMILY["resnet50"], 1000, PRECISIONS[precision]._replace(platform="gpu"))
        residuals = kept(model, image, 2)
        pixels = [x for x in residuals if x.ndim == 4 and x.shape[0] == 2]
        assert {x.dtype for x in pixels} == {PRECISIONS[precision].dtype, jnp.dtype(jnp.uint8)}
        total = sum(x.size * x.dtype.itemsize for x in pixels) / 2
        found[f"activations kept, per image of 224 px, {label}"] = total
    model = ResNet(FAMILY["resnet50"], 1000, PRECISIONS["fp32"])
    state = abstract_state(model, make_optimizer(), loss_scale=1.0, ema=True)
    trees = {"parameters": state.params, "momentum": state.opt_state, "gradients": state.params}
    trees |= {"running statistics": state.batch_stats, "averaged weights, if any": state.ema}
    found |= {name: sum(x.size * 4 for x in jax.tree.leaves(tree)) for name, tree in trees.items()}
    assert {name: f"{value / 1e6:.1f}" for name, value in found.items()} == {
        name: cell for name, (cell,) in rows("what").items()
    }
