"""Tars of samples (WebDataset) and their index files, those of DALI's `wds2idx`."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rn50_jax.data.output import write_whole
from rn50_jax.errors import UserError

BLOCK = 512  # bytes


class Member(NamedTuple):
    """A file in a tar: its sample's key, its suffix (all after the first dot, as in WebDataset), and its bytes."""

    key: str
    suffix: str
    offset: int
    size: int
    name: str


def group_members(members: Iterable[Member]) -> list[list[Member]]:
    """Samples: neighbours of the same key, without hidden files, as DALI's `wds2idx` sees them."""
    samples: list[list[Member]] = []
    for member in members:
        if not member.key or member.key.endswith("/"):
            continue
        if samples and samples[-1][0].key == member.key:
            samples[-1].append(member)
        else:
            samples.append([member])
    return samples


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: a suffix begins at the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return folder + slash + key, suffix


def read_members(tar: Path) -> Iterator[Member]:
    """The plain files of a tar, from its headers.

    Raises:
      UserError: it is no tar, or cut off.
      OSError: it cannot be read.
    """
    try:
        with tarfile.open(tar, "r:") as archive:
            end = 0
            while (info := archive.next()) is not None:
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    yield Member(*split_name(info.name), info.offset_data, info.size, info.name)
        with tar.open("rb") as file:  # tarfile takes a header that is cut off for the end
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("no mark of its end")
    except tarfile.TarError as error:
        raise UserError(f"{tar} is damaged or cut off ({error}); copy it again") from error


def read_idx(tar: Path) -> list[list[Member]] | None:
    """The samples that the `wds2idx` index of a tar lists, or None without one that can be used."""
    try:
        head, *lines = tar.with_suffix(".idx").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        version, count = head.split()
        if version not in ("v1.1", "v1.2") or int(count) != len(lines):
            return None
        return [list(_read_idx_line(line.split(" "), named=version == "v1.2")) for line in lines]
    except (OSError, ValueError):
        return None


def _read_idx_line(words: list[str], *, named: bool) -> Iterator[Member]:
    # A name with a space in it makes a line unreadable, and then the tar's own headers are used.
    each = 4 if named else 3
    if not words or len(words) % each:
        raise ValueError(words)
    for at in range(0, len(words), each):
        name = words[at + 3] if named else words[at]
        yield Member(split_name(name)[0], words[at], int(words[at + 1]), int(words[at + 2]), name)


def fits(file: int, samples: list[list[Member]]) -> bool:
    """Whether the tar's headers are where an index says, looked up for its first and last member."""
    for member in (samples[0][0], samples[-1][-1]):
        try:
            info = tarfile.TarInfo.frombuf(os.pread(file, BLOCK, member.offset - BLOCK), "utf-8", "surrogateescape")
        except (tarfile.TarError, OSError):
            return False
        if (info.name, info.size) != (member.name, member.size):
            return False
    return True


def write_idx(tar: Path) -> bool:
    """Writes the index file of a tar as DALI's `wds2idx` does; returns whether it could.

    It cannot hold member names with spaces or line breaks, see the format in DALI's `wds2idx`, version v1.2.
    """
    samples = group_members(read_members(tar))
    if any(len(member.name.split()) != 1 or member.name.split()[0] != member.name for s in samples for member in s):
        return False
    lines = [" ".join(f"{m.suffix} {m.offset} {m.size} {m.name}" for m in sample) for sample in samples]
    text = "".join(f"{line}\n" for line in [f"v1.2 {len(samples)}", *lines])

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")

    write_whole(tar.with_suffix(".idx"), write)
    return True
