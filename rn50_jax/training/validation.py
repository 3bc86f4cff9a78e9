"""The evaluation step, and a validation: exact on any number of images."""

import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rn50_jax.data.batch import Batch
from rn50_jax.data.normalize import IMAGENET, Normalization
from rn50_jax.inference.predict_step import logits_of
from rn50_jax.models.network import Network
from rn50_jax.models.walk import Variables
from rn50_jax.training.losses import cross_entropy, top_k_hits
from rn50_jax.training.step import Metrics, _ordered_sum

EvalStep = Callable[[Variables, Batch], Metrics]


def evaluate(step: EvalStep, variables: dict[str, Variables], batches: Iterator[Batch]) -> dict[str, float]:
    """Runs the compiled `eval_step` over all batches and divides the exact sums once, at the end.

    Args:
      variables: what to evaluate by the prefix of its metrics, see `state.variables_of`; all see the same batches.

    Returns:
      For each prefix, "val" as an example: val.top1 and val.top5 in per cent, val.loss (plain cross-entropy) and
      val.loss_smoothed if the step has it. Then val.images; val.total_ips and val.compute_ips in images per second,
      with and without the time spent waiting for data; val.data_time and val.compute_latency in seconds per batch,
      the latter also at quantiles (_at90, _at95, _at99, _at100). The first batch, which may have to compile, does not
      count in the times unless it is alone.
    """
    sums: list[dict[str, Metrics]] = []
    waited: list[float] = []
    ready = [time.perf_counter()]
    before = ready[0]
    for batch in batches:
        waited.append(time.perf_counter() - before)
        sums.append({prefix: step(weights, batch) for prefix, weights in variables.items()})
        if len(sums) > 1:
            # One batch stays queued: the device never idles, and batches cannot pile up in its memory.
            jax.block_until_ready(sums[-2])
            ready.append(time.perf_counter())
        before = time.perf_counter()
    host = jax.device_get(sums)
    ready.append(time.perf_counter())
    result: dict[str, float] = {}
    for prefix in variables:
        part = [batch_sums[prefix] for batch_sums in host]
        total = {key: float(np.sum([s[key] for s in part], dtype=np.float64)) for key in part[0]}
        images = total.pop("images")
        for key, value in total.items():
            result[f"{prefix}.{key}"] = (100 if key.startswith("top") else 1) * value / images
    per_batch = np.array([next(iter(batch_sums.values()))["images"] for batch_sums in host], np.float64)
    return result | {"val.images": int(images)} | _times(per_batch, np.array(waited), np.array(ready))


def _times(images: np.ndarray, waited: np.ndarray, ready: np.ndarray) -> dict[str, float]:
    """Speeds and latencies from when each batch had arrived and was ready, and how long each was waited for."""
    intervals, waits = np.diff(ready), np.append(waited[1:], 0.0)  # while a batch runs, the next one is waited for
    waits[0] += waited[0]
    if len(images) > 1:
        intervals, waits, images = intervals[1:], waits[1:], images[1:]
    latencies = np.maximum(intervals - waits, 1e-9)
    result = {
        "val.total_ips": float(np.sum(images) / np.sum(intervals)),
        "val.compute_ips": float(np.sum(images) / np.sum(latencies)),
        "val.data_time": float(np.mean(waits)),
        "val.compute_latency": float(np.mean(latencies)),
    }
    for percent in (90, 95, 99, 100):
        at = np.quantile(latencies, percent / 100, method="nearest")
        result[f"val.compute_latency_at{percent}"] = float(at)
    return result


def eval_step(
    variables: Variables,
    batch: Batch,
    *,
    model: Network,
    axis_name: str,
    label_smoothing: float = 0.0,
    flip_tta: bool = False,
    normalization: Normalization = IMAGENET,
    top: int = 0,
) -> Metrics:
    """Sums over the real images of all devices' batches, with the running BatchNorm statistics.

    Args:
      variables: {"params", "batch_stats"}, live or averaged.
      flip_tta: test-time augmentation, the mean of the logits of each image and its mirror image.
      normalization: of pixels.
      top: classes of each image to return; a model of fewer has fewer.

    Returns:
      {"loss", "top1", "top5", "images"}: float32 [], weighted sums; loss is plain cross-entropy. With
      `label_smoothing` also "loss_smoothed". With `top` also {"class": int32 [D, B, top], "probability": float32
      [D, B, top]}, best first, ties to the lower index, and {"weight": float32 [D, B]}, gathered from all devices.
    """
    logits = logits_of(variables, batch["image"], model, normalization, flip_tta)
    top1, top5 = top_k_hits(logits, batch["label"], 5)
    weight = batch["weight"]

    def loss(smoothing: float) -> jax.Array:
        # A padded image may give any loss, infinities included: select, do not multiply.
        return jnp.sum(jnp.where(weight > 0, cross_entropy(logits, batch["label"], smoothing), 0.0))

    sums = {
        "loss": loss(0.0),
        "top1": jnp.sum(weight * top1),
        "top5": jnp.sum(weight * top5),
        "images": jnp.sum(weight),
    }
    if label_smoothing:
        sums["loss_smoothed"] = loss(label_smoothing)
    result: Metrics = _ordered_sum(sums, axis_name)
    if top:
        _, best = lax.top_k(logits, min(top, model.num_classes))
        probability = jnp.take_along_axis(jax.nn.softmax(logits), best, axis=1)
        result |= lax.all_gather({"class": best, "probability": probability, "weight": weight}, axis_name)
    return result
