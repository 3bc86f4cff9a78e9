"""How much memory a device has used."""

import jax


def megabytes(size: float) -> str:
    """For example "123 MB" or "12.3 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def peak_text() -> str:
    """The most that a device of this process has used so far; "" where it does not tell."""
    used = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not used:
        return ""
    peak = max(used, key=lambda stats: stats["peak_bytes_in_use"])
    return f"{megabytes(peak['peak_bytes_in_use'])} of {megabytes(peak['bytes_limit'])} device memory at most"
