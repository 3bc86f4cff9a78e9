"""The steps that are timed, compiled, with their data on the devices."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rn50_jax.bench import timing
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.data.normalize import pixel_normalization
from rn50_jax.data.synthetic import synthetic_batch
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, place, replicate
from rn50_jax.inference.predict_step import predict_step
from rn50_jax.models.fold import inference_form
from rn50_jax.models.initial import initial_variables
from rn50_jax.training.build import build_state, compile_steps

Run = Callable[[int], list[float]]  # seconds of each of so many steps


class Program(NamedTuple):
    """A compiled step with its data on the devices.

    images: per step, over all devices. again: compiles the same step with XLA's options, by name, and returns how it
    is run, on the same data, and the compiled program.
    """

    run: Run
    images: int
    compilation: timing.Compilation
    again: Callable[[dict[str, str]], tuple[Run, Any]]


def make_program(config: Config, mode: str, devices: list[jax.Device]) -> Program:
    """Compiles the step of training ("train", two steps queued) or prediction ("infer", one after the other)."""
    mesh = make_mesh(devices)
    model = build_model(config, num_classes=num_classes(config), platform=devices[0].platform)
    if mode == "train":
        plan = make_plan(config, num_images=config.data.synthetic_images[0], num_devices=len(devices))
        device_batch = plan.device_batch
        step, _ = compile_steps(config, model, plan, mesh)
        state: Any = replicate(build_state(config, model), mesh)
    else:
        device_batch = config.batch_size
        step, state = _infer_step(config, model, mesh)
    shape = {"device_batch": device_batch, "image_size": config.data.image_size}
    batch = synthetic_batch(mesh, **shape, num_classes=num_classes(config), seed=config.seed)
    compilation = timing.compile_program(step, state, batch)

    def runs(call: Any) -> Run:
        def train_step() -> Any:
            nonlocal state  # each step uses up the state that it is given
            state, metrics = call(state, batch)
            return metrics

        if mode == "train":
            return partial(timing.time_queued, train_step)
        return partial(timing.time_single, lambda: call(state, batch))

    def again(options: dict[str, str]) -> tuple[Run, Any]:
        other = compilation.lowered.compile(compiler_options=options)
        return runs(other), other

    return Program(runs(step), device_batch * len(devices), compilation, again)


def num_classes(config: Config) -> int:
    """Returns the number of classes of synthetic data."""
    return config.model.num_classes or 1000


def _infer_step(config: Config, model: Any, mesh: Mesh) -> tuple[Any, Any]:
    """The step and the variables, as `predict` has them."""
    platform = mesh.devices.flat[0].platform
    variables = initial_variables(model, config.seed)
    variables = inference_form(model, variables, config.compute.fold_batch_norm, platform=platform)
    normalization = pixel_normalization(config.data.mean, config.data.std)
    one_step = partial(predict_step, model=model, axis_name=AXIS, normalization=normalization)
    return map_over_devices(one_step, mesh, mode=config.compute.parallel, stacked=True), place(variables, mesh)
