"""The start of a model: initial values, and the form for inference, made on the host without a program."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY, Variant
from rn50_jax.models.fold import inference_form
from rn50_jax.models.initial import initial_variables, variable_shapes
from rn50_jax.models.resnet import ResNet

SMALL = ResNet(Variant((2, 1), True), 10, PRECISIONS["bf16"], width=8)


@contextmanager
def compiled() -> Iterator[list[str]]:
    """The programs that are compiled within."""
    found: list[str] = []

    def note(event: str, seconds: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_nothing_is_compiled_before_the_step(setting: str) -> None:
    with compiled() as programs:
        variables = initial_variables(SMALL, 0)
        for platform in ("cpu", "gpu"):
            ready = inference_form(SMALL, variables, setting, platform=platform)
            assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(ready))
    assert programs == []
    with compiled() as programs:
        jax.jit(lambda x: x * 2.5 + len("as in no other test"))(np.ones(3, np.float32))
    assert len(programs) == 1  # else nothing would have been noted above


def test_the_seed_and_the_name_alone_decide_the_values() -> None:
    first, again, other = (flatten_dict(initial_variables(SMALL, seed)["params"]) for seed in (3, 3, 4))
    deeper = flatten_dict(initial_variables(SMALL.clone(variant=Variant((2, 2), True)), 3)["params"])
    drawn = [name for name, value in first.items() if value.ndim > 1 or name[-2] == "fc"]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name], deeper[name])
        assert (name in drawn) != np.array_equal(first[name], other[name])
    kernels = [first[f"layer1_{block}", "conv2", "kernel"].ravel() for block in (0, 1)]
    assert abs(np.corrcoef(kernels)[0, 1]) < 0.15  # 576 numbers: three and a half standard errors


@pytest.mark.parametrize("arch", FAMILY)
def test_shapes_are_those_of_the_variables_that_the_network_uses(arch: str) -> None:
    model = ResNet(FAMILY[arch]._replace(stages=(1, 2, 1, 1)), 10, PRECISIONS["fp32"], width=32)
    variables = variable_shapes(model)
    for pixels in (32, 45):
        image = jax.ShapeDtypeStruct((2, pixels, pixels, 3), np.float32)
        apply = jax.eval_shape(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, image)
        logits, updated = apply
        assert logits.shape == (2, 10)
        assert jax.tree.map(lambda x: x.shape, updated["batch_stats"]) == jax.tree.map(
            lambda x: x.shape, variables["batch_stats"]
        )
