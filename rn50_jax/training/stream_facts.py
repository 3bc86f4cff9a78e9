"""What decides the batches of an epoch, by which a checkpoint of its middle can go on exactly."""

import json
from typing import Any, NamedTuple

from rn50_jax.config.derived import Plan
from rn50_jax.config.schema import Config, affecting
from rn50_jax.data.image_set import ImageSet, fingerprint
from rn50_jax.io.json_files import to_json
from rn50_jax.runtime.machine import dali_version

FORM = "the form of the stream"  # another number where a version takes the images in another order


def stream_facts(config: Config, images: ImageSet, plan: Plan) -> dict[str, Any]:
    """Returns what decides the batches of an epoch: a position in it has a meaning only where all of this is the same.

    Takes seconds on a large training set.
    """
    values = config.flat()
    facts = {f"config.{option.key}": values[option.key] for option in affecting("stream")} | {
        "the number of devices": plan.num_devices,
        "the number of images per device and update": plan.device_batch,
        "the training set": fingerprint(images),
    }
    if config.data.backend != "synthetic":
        from rn50_jax.data import dali  # a second to import

        facts["the version of DALI"] = dali_version() or dali.VERSION  # of one that was installed without pip
        facts[FORM] = 3
    return facts


class Change(NamedTuple):
    """A fact that is another now than when a checkpoint was saved."""

    name: str
    before: Any
    now: Any


def changed_fact(saved: dict[str, Any], facts: dict[str, Any]) -> Change | None:
    """Returns the first of `stream_facts` that differs from a checkpoint's, as JSON gives them back, if any does.

    A checkpoint that lacks an option is of before there was one: its batches were those of the default.
    """
    now = json.loads(to_json(facts))
    before = json.loads(to_json({f"config.{option.key}": option.default for option in affecting("stream")})) | saved
    # The form first: versions of other forms have other facts too.
    changes = (Change(name, before.get(name), now.get(name)) for name in {FORM: 0} | now | before)
    return next((change for change in changes if change.before != change.now), None)
