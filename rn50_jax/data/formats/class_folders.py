"""The images of a class-folder tree: `train/<class>/<image>` and `val/<class>/<image>`."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rn50_jax.data.image_set import ImageSet
from rn50_jax.errors import UserError
from rn50_jax.io.messages import warn

# What DALI or Pillow decodes, by the names that people give such files.
_READ = "jpg jpeg jfif jpe png webp bmp tif tiff ppm pgm pnm jp2"
SUFFIXES = tuple(f".{suffix}" for suffix in _READ.split())
# Pictures too, but not read, or not looked for under this name.
_RAW = "3fr arw cr2 cr3 crw dng iiq nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
RAW = tuple(f".{suffix}" for suffix in _RAW.split())
_OTHERS = "gif avif heic heics heif hif jxl svg psd tga ico j2k j2c jpf jpx pbm apng dib pcx dds eps exr hdr"
OTHER_PICTURES = (*(f".{suffix}" for suffix in _OTHERS.split()), *RAW)

PICTURES = (*SUFFIXES, *OTHER_PICTURES)


def scan_split(split_dir: Path, *, notes: bool = True) -> tuple[tuple[str, ...], ImageSet]:
    """Lists the class folders of a split and the images directly in them.

    Hidden files and folders and files without an image suffix are passed over; classes and images are sorted by name.
    """
    if not is_folder(split_dir):
        raise UserError(f"{split_dir} does not exist; put images into {split_dir}/<class>/<image>")
    class_names = sorted(entry.name for entry in visible_entries(split_dir) if kind_of(entry) == "folder")
    if not class_names:
        raise UserError(f"{split_dir} has no class folders; put images into {split_dir}/<class>/<image>")
    # Network file systems answer slowly, but many questions at a time.
    with ThreadPoolExecutor(16) as pool:
        listed = list(pool.map(_list_images, [split_dir / name for name in class_names]))
    per_class = [files for files, _ in listed]
    not_read = tuple(file for _, files in listed for file in files)
    for name, (found, unread) in zip(class_names, listed, strict=True):
        if not found:
            count = per_class.count([]) - 1
            more = f" (and {count} more)" if count else ""
            why = f" that are read: {not_read_text(unread)}" if unread else "; add some or remove the folder"
            raise UserError(f"class folder {split_dir / name}{more} has no images{why}")
    if not_read and notes:
        warn(f"{split_dir}: {not_read_text(not_read)}; the first is {not_read[0]}")
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(files) for files in per_class])
    files = tuple(file for files in per_class for file in files)
    return tuple(class_names), ImageSet(files, labels, root=str(split_dir.parent), not_read=not_read)


def _list_images(folder: Path) -> tuple[list[str], list[str]]:
    """The images of a class, and pictures that are not read; sorted."""
    found = sorted((entry.path, entry.name.lower(), kind_of(entry) == "file") for entry in visible_entries(folder))
    images = [path for path, name, is_file in found if is_file and name.endswith(SUFFIXES)]
    return images, [path for path, name, is_file in found if is_file and name.endswith(OTHER_PICTURES)]


def count_suffixes(files: Iterable[str]) -> dict[str, int]:
    """Counts names by their suffix in small letters, the most frequent first."""
    return dict(Counter(os.path.splitext(file)[1].lower() for file in files).most_common())  # noqa: PTH122


def suffixes_text(counts: Mapping[str, int]) -> str:
    """Returns counts by suffix to read, such as "12 .heic, 3 .gif"."""
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())


def not_read_text(files: Collection[str]) -> str:
    """Says of pictures that are not read how many there are, by suffix, and what to do."""
    counts = count_suffixes(files)
    pictures, them = ("1 picture is", "it") if len(files) == 1 else (f"{len(files):,} pictures are", "them")
    # As they are written: a shell's patterns do not match .HEIC by .heic.
    patterns = " ".join(dict.fromkeys(f"*{os.path.splitext(file)[1]}" for file in files))  # noqa: PTH122
    return (
        f"{pictures} not read ({suffixes_text(counts)}); convert {them} to JPEG, for example with ImageMagick: "
        f"mogrify -format jpg {patterns}"
    )


def is_folder(path: Path) -> bool:
    """Returns whether there is a folder.

    Raises:
      UserError: that cannot be known.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; see its permissions") from error


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Lists what is in a folder and not hidden.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; see its permissions") from error


def kind_of(entry: os.DirEntry[str]) -> str:
    """Returns what an entry is or points to: "file", "folder", "link" if to nothing, or "pipe or device"."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        entry.stat()
    except OSError:  # a link to itself, or to nothing
        return "link"
    return "pipe or device"
