"""What decides the batches of an epoch, by which a checkpoint of its middle can go on exactly."""

import json
from typing import Any

from ml_collections import ConfigDict

from rn50_jax.config.derived import Plan
from rn50_jax.data.image_set import ImageSet, fingerprint
from rn50_jax.data.options import loader_options
from rn50_jax.io.json_files import to_json
from rn50_jax.runtime.machine import dali_version

FORM = "the form of the stream"  # another number where a version takes the images in another order


def stream_facts(config: ConfigDict, images: ImageSet, plan: Plan) -> dict[str, Any]:
    """Returns what decides the batches of an epoch: a position in it has a meaning only where all of this is the same.

    Takes seconds on a large training set.
    """
    keys = ("backend", "image_size", "image_sizes", "crop_area", "crop_aspect", "transform", "flip", "augment")
    facts = {f"config.data.{key}": config.data[key] for key in (*keys, "randaugment")} | {
        "config.seed": config.seed,
        "the number of devices": plan.num_devices,
        "the number of images per device and update": plan.device_batch,
        "the training set": fingerprint(images),
    }
    if config.data.backend != "synthetic":
        from rn50_jax.data import dali  # a second to import

        facts["the version of DALI"] = dali_version() or dali.VERSION  # of one that was installed without pip
        facts[FORM] = 3
        # Only where they are not the defaults, so that checkpoints of before these keys can go on.
        rendering = loader_options(config).rendering._asdict()
        facts |= {f"config.data.{key}": value for key, value in rendering.items() if value}
    return facts


def changed_fact(saved: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Returns the first of `stream_facts` that differs from a checkpoint's, as JSON gives them back, if any does."""
    now = json.loads(to_json(facts))
    # The form first: versions of other forms have other facts too.
    return next((name for name in {FORM: 0} | now | saved if saved.get(name) != now.get(name)), None)
