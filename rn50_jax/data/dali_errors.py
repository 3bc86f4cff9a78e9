"""DALI's own failures and its messages, in one line."""

import importlib.util
import re

from rn50_jax.errors import UserError

PACKAGES = "nvidia-dali-cuda130 (nvidia-dali-cuda120 for CUDA 12)"


def need_dali(otherwise: str = "") -> None:
    """Refuses early where DALI is missing; takes no time, as nothing is loaded.

    Args:
      otherwise: what to use instead, if there is something.

    Raises:
      UserError: saying how to install it.
    """
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except (ImportError, ValueError):  # not even a folder `nvidia`
        found = None
    if found is None or found.origin is None:  # without an origin: a folder that was left behind
        raise _missing(otherwise)


def no_dali(error: Exception) -> UserError:
    """Returns the message for an error that importing DALI raised."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("nvidia", "nvidia.dali"):
        return _missing("")
    reason = " ".join(str(error).split())[:200]
    text = f"DALI, which decodes the images, cannot be loaded: {type(error).__name__}: {reason}"
    return UserError(f"{text}; mend that, or install it anew: pip install --force-reinstall {PACKAGES}")


def _missing(otherwise: str) -> UserError:
    text = f"DALI, which decodes the images, is not installed: pip install {PACKAGES}"
    return UserError(f"{text}, or use {otherwise}" if otherwise else text)


def in_words(said: str) -> str:
    """Returns what a message of DALI's says, in one line: without places in its source, stacks and numbers of errors.

    A failure of a decoder is no more than that; what the image is like, `diagnose` tells.
    """
    said = re.split(r"Stacktrace|Current pipeline object", said.split("encountered:")[-1])[0]
    said = re.sub(r"[^\n]*nvImageCodec failure[^\n]*|Failed to decode sample #\d+ *:?", " a decoder failed ", said)
    said = re.sub(r"\[/opt/[^]]*\]|Critical error in pipeline:|Error in thread \d+:", " ", said)
    said = re.sub(r'Assert on "[^\n]*" failed:?', " ", said)
    return " ".join(said.split())[:300] or "a decoder failed"
