"""A trained model evaluated on a data set."""

from itertools import islice
from typing import Any

import jax
import numpy as np

from rn50_jax.analysis.predictions import Predictions
from rn50_jax.data.batch import Batch
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.images.transform import rendering_of
from rn50_jax.data.loader import eval_batches
from rn50_jax.data.sampler import eval_order
from rn50_jax.distributed.devices import make_mesh, map_over_devices, place
from rn50_jax.inference.trained_model import TrainedModel, load_for_inference, open_val
from rn50_jax.io.messages import say
from rn50_jax.models.walk import Variables
from rn50_jax.training.build import make_eval_step
from rn50_jax.training.step import Metrics
from rn50_jax.training.validation import evaluate


def evaluate_model(
    trained: TrainedModel, *, flip_tta: bool = False, predictions: bool = False
) -> tuple[dict[str, Any], Predictions | None]:
    """Evaluates a model on `val/` of its config's data, or on `run.prof` batches of it.

    Args:
      flip_tta: see `eval_step`; the metrics then say so.
      predictions: also return what the model says of each image.

    Returns:
      The metrics of `evaluate`, named val.* for averaged weights too, and `trained.facts`; with `predictions` also
      val.ece of `Predictions.calibration`, and the predictions for all images that were evaluated.

    Raises:
      UserError: the data's classes are not those of the model, or the state cannot be read.
    """
    config, mesh = trained.config, make_mesh(trained.devices)
    if config.data.backend != "synthetic":
        need_dali()
    dataset = open_val(trained)
    if config.data.val_share:
        say(
            f"on the {config.data.val_share:.3g} of each class of {config.data.dir} that training set apart (for all "
            "images: --config.data.val_share=0)"
        )
    model, loaded = load_for_inference(trained, exact=True)
    variables = place(loaded, mesh)
    step = make_eval_step(config, model, flip_tta=flip_tta, top=5 if predictions else 0)
    compiled = map_over_devices(step, mesh, mode=config.compute.parallel)
    ranked: list[Metrics] = []

    def remembering(weights: Variables, batch: Batch) -> Metrics:
        sums = compiled(weights, batch)
        ranked.append({key: sums.pop(key) for key in ("weight", "class", "probability") if predictions})
        return sums

    every = eval_batches(
        dataset.val,
        config.data,
        mesh,
        device_batch=config.batch_size,
        num_classes=model.num_classes,
        seed=config.seed,
    )
    batches = islice(every, config.run.prof or None)
    result = evaluate(remembering, {"val": variables}, batches) | trained.facts
    if flip_tta:
        result["flip_tta"] = True
    if not predictions:
        return result, None
    arrays = jax.device_get(ranked)
    weights, classes, probabilities = (
        np.concatenate([found[key].reshape(-1, *found[key].shape[2:]) for found in arrays])
        for key in ("weight", "class", "probability")
    )
    order, _ = eval_order(len(dataset.val.labels), num_devices=mesh.devices.size, device_batch=config.batch_size)
    kept = np.flatnonzero(weights)  # neither padding nor images that could not be decoded
    index = order.reshape(-1)[kept]
    found = Predictions(
        images=dataset.val,
        places=index,
        labels=dataset.val.labels[index],
        classes=classes[kept],
        probabilities=probabilities[kept],
        class_names=dataset.class_names,
        rendering=rendering_of(config.data),
    )
    return result | {"val.ece": found.calibration().error}, found
