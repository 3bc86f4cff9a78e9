"""Decodes whole images one by one with DALI's CPU decoder, as training would, and says what is wrong."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from rn50_jax.data.check.image_file import Verify
from rn50_jax.data.dali import make_decoder
from rn50_jax.data.images.headers import ImageProblem


def make_verify() -> Verify:
    """Returns a function from a file's bytes to what the decoder said of an image that it decoded.

    It raises ImageProblem for others. What a decoder says can only be read off the process's standard error, which is
    therefore taken while it decodes: for worker processes, not for one with other threads. It keeps a file open.
    """
    decode = make_decoder(transform="dali", image_size=32, resize=32, workers=1)
    file = os.memfd_create("standard error")

    def verify(data: bytes) -> str:
        try:
            with _standard_error(file) as said:
                decode(data)
        except ImageProblem as problem:
            raise problem if problem.detail else ImageProblem(problem.kind, _tidy(said[0])) from None
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
    """The last line, without colors and the module's name."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|\[\w+\]\s*", "", line).strip() for line in said.splitlines()]
    lines = [line.split(" - ", 1)[-1] for line in lines if line]
    return lines[-1][:200] if lines else ""
