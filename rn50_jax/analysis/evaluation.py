"""A trained model evaluated on a data set."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax.analysis.predictions import Predictions
from rn50_jax.data.batch import Batch
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.image_set import Dataset, with_classes
from rn50_jax.data.loader import eval_batches
from rn50_jax.data.options import dataset_options, loader_options
from rn50_jax.data.sampler import eval_order
from rn50_jax.distributed.devices import AXIS, make_mesh, place, spread
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import StoredModel, load_for_inference
from rn50_jax.io.messages import say
from rn50_jax.io.text import counted
from rn50_jax.models.resnet import Variables
from rn50_jax.training.build import eval_options, make_eval_step
from rn50_jax.training.step import Metrics
from rn50_jax.training.validation import evaluate, examine_step


def evaluate_stored(stored: StoredModel, *, flip_tta: bool = False) -> dict[str, Any]:
    """Evaluates a run's checkpoint or a weight file on `val/` of its config's data, or on `run.prof` batches of it.

    Args:
      flip_tta: see `step.eval_step`; the result then says so.

    Returns:
      The metrics of `evaluate`, named val.* for averaged weights too, and `stored.facts`.

    Raises:
      UserError: the data's classes are not those of the model, or the state cannot be read.
    """
    config, dataset = stored.config, _open_dataset(stored)
    mesh = make_mesh(stored.devices)
    model, loaded = load_for_inference(stored, exact=True)
    variables = place(loaded, mesh)
    compiled = spread(make_eval_step(config, model, flip_tta=flip_tta), mesh, mode=config.parallel)
    result = evaluate(compiled, {"val": variables}, _batches(config, dataset, mesh))
    return result | stored.facts | ({"flip_tta": True} if flip_tta else {})


def examine_stored(stored: StoredModel, *, flip_tta: bool = False) -> tuple[dict[str, Any], Predictions]:
    """`evaluate_stored`, and what the model said about each image.

    Returns:
      The same metrics, with val.ece of `analysis.calibration`, and the predictions for all images that were evaluated.
    """
    config, dataset = stored.config, _open_dataset(stored)
    mesh = make_mesh(stored.devices)
    model, loaded = load_for_inference(stored, exact=True)
    variables = place(loaded, mesh)
    step = partial(examine_step, model=model, axis_name=AXIS, **eval_options(config, flip_tta=flip_tta))
    compiled = spread(step, mesh, mode=config.parallel)
    ranked: list[Metrics] = []

    def remembering(weights: Variables, batch: Batch) -> Metrics:
        sums, found = compiled(weights, batch)
        ranked.append(found)
        return sums

    result = evaluate(remembering, {"val": variables}, _batches(config, dataset, mesh))
    arrays = [jax.device_get(found) for found in ranked]
    order, _ = eval_order(len(dataset.val.labels), num_devices=mesh.devices.size, device_batch=config.batch_size)
    weights, classes, probabilities = (
        np.concatenate([found[key].reshape(-1, *found[key].shape[2:]) for found in arrays])
        for key in ("weight", "class", "probability")
    )
    kept = np.flatnonzero(weights)  # neither padding nor images that could not be decoded
    index = order.reshape(-1)[kept]
    labels = dataset.val.labels[index]
    found = classes[kept], probabilities[kept]
    rendering = loader_options(config).rendering
    predictions = Predictions(dataset.val, index, labels, *found, dataset.class_names, rendering)
    named = {"flip_tta": True} if flip_tta else {}
    return result | {"val.ece": predictions.calibration().error} | stored.facts | named, predictions


def _batches(config: ConfigDict, dataset: Dataset, mesh: Mesh) -> Iterator[Batch]:
    batches = eval_batches(dataset.val, loader_options(config), mesh, device_batch=config.batch_size)
    return islice(batches, config.run.prof or None)


def _open_dataset(stored: StoredModel) -> Dataset:
    """The data set of a model's config, whose classes must be the model's."""
    config = stored.config
    if config.data.backend != "synthetic":
        need_dali()
    dataset = open_dataset(dataset_options(config), need_train=False, val_images=stored.val_images)
    if config.data.val_share:
        say(
            f"on the {config.data.val_share:.3g} of each class of {config.data.dir} that training set apart (for all "
            "images: --config.data.val_share=0)"
        )
    if stored.class_names:
        return with_classes(dataset, stored.class_names, config.data.dir)
    if len(dataset.class_names) != stored.model.num_classes:
        raise UserError(
            f"{config.data.dir} has {counted(len(dataset.class_names), 'class folder')}, and {stored.name} is "
            f"of a model with {counted(stored.model.num_classes, 'class')}; pass --config.data.dir=DIR"
        )
    return dataset
