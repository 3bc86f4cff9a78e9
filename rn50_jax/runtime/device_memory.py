"""How much memory a device has used."""

import jax

from rn50_jax.io.text import size_text


def peak_text() -> str:
    """Returns the most that a device of this process has used so far; "" where it does not tell."""
    used = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not used:
        return ""
    peak = max(used, key=lambda stats: stats["peak_bytes_in_use"])
    return f"{size_text(peak['peak_bytes_in_use'])} of {size_text(peak['bytes_limit'])} device memory at most"
