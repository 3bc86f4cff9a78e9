"""Batches, and their place in the order of a run."""

from typing import NamedTuple

import jax

Batch = dict[str, jax.Array]


class Position(NamedTuple):
    """A place in the order of training batches: so many steps into an epoch (both from 0).

    pipelines: for each device of this process, where its pipeline stands; empty at the start of an epoch, and for
    synthetic data.
    """

    epoch: int
    step: int
    pipelines: tuple[bytes, ...] = ()


BEGINNING = Position(0, 0)


class TrainBatch(NamedTuple):
    """A batch, and `Position.pipelines` behind it."""

    batch: Batch
    pipelines: tuple[bytes, ...]
