"""Tar files, sound and damaged."""

import io
import tarfile
from pathlib import Path


def write_tar(path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample(key: str, label: int, suffix: str = "jpg") -> list[tuple[str, bytes]]:
    return [(f"{key}.{suffix}", f"image {key}".encode() * 100), (f"{key}.cls", str(label).encode())]


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """Of a member whose size is written in 12 bytes of any kind."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    return bytes(block)


HUGE, NEGATIVE, OCTAL = b"\x80\x7f" + b"\xff" * 10, b"\xff" * 11 + b"\0", b"%011o\0"
