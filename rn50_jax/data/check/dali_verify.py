"""Decodes whole images one by one with DALI's CPU decoder, as training would, and tells what is wrong."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rn50_jax.data.check.image_file import Verify
from rn50_jax.data.dali_errors import no_dali
from rn50_jax.data.images.decodable import diagnose, to_decodable
from rn50_jax.data.images.headers import ImageProblem

try:
    from nvidia.dali import fn, pipeline_def, types
except Exception as error:  # of many kinds, from those of Python to those of the libraries that it loads
    raise no_dali(error) from error


def make_verify() -> Verify:
    """A function from a file's bytes to what the decoder said of an image that it decoded; raises ImageProblem.

    What a decoder says can only be read off the process's standard error, which is therefore taken while it decodes:
    for worker processes, not for one with other threads. It keeps a file open.
    """

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)

    live: list[Any] = []
    file = os.memfd_create("standard error")

    def verify(data: bytes) -> str:
        decoded = False
        with _standard_error(file) as said:
            decodable = to_decodable(data)
            if not live:
                live.append(pipeline())
            try:
                live[0].feed_input("encoded", [np.frombuffer(decodable, np.uint8)])
                live[0].run()
                decoded = True
            except (RuntimeError, MemoryError):
                live.clear()  # an error leaves a pipeline unusable
        if not decoded:
            problem = diagnose(ImageProblem("damaged"), data)
            raise problem if problem.detail else ImageProblem(problem.kind, _tidy(said[0]))
        return _tidy(said[0])

    return verify


@contextmanager
def _standard_error(file: int) -> Iterator[list[str]]:
    """Catches in a file what C libraries print to standard error; the list holds it afterwards."""
    caught: list[str] = []
    kept = os.dup(2)
    os.dup2(file, 2)
    try:
        yield caught
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        caught.append(os.pread(file, 10_000, 0).decode("utf-8", "replace"))
        if caught[0]:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)


def _tidy(said: str) -> str:
    """The last line, without colours and the module's name."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|\[\w+\]\s*", "", line).strip() for line in said.splitlines()]
    lines = [line.split(" - ", 1)[-1] for line in lines if line]
    return lines[-1][:200] if lines else ""
