"""ONNX files: run by onnxruntime, and the two libraries missing."""

import importlib
import os

import numpy as np

from rn50_jax.errors import UserError
from rn50_jax.exporting.check import Run

LIBRARIES = ("onnx", "onnxruntime")


def need_onnx() -> None:
    """Refuses early where a library is missing.

    Raises:
      UserError: saying how to install it.
    """
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"--format onnx needs {' and '.join(LIBRARIES)}, and {name} is not installed: "
                f"pip install {' '.join(LIBRARIES)}"
            ) from None


def load_onnx(data: bytes) -> Run:
    """Loads the model in a file's content on this machine's CPU, with as many threads as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        (output,) = session.run(None, {"image": images})
        return np.asarray(output)

    return run
