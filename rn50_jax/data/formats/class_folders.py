"""The index of a class-folder tree: `train/<class>/<image>` and `val/<class>/<image>`."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rn50_jax.data.images.headers import MAX_BYTES, ImageProblem
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted

# What DALI or Pillow decodes, by the names that people give such files.
_READ = "jpg jpeg jfif jpe png webp bmp tif tiff ppm pgm pnm jp2"
SUFFIXES = tuple(f".{suffix}" for suffix in _READ.split())
# Pictures too, but not read, or not looked for under this name.
_RAW = "3fr arw cr2 cr3 crw dng iiq nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
RAW = tuple(f".{suffix}" for suffix in _RAW.split())
_OTHERS = "gif avif heic heics heif hif jxl svg psd tga ico j2k j2c jpf jpx pbm apng dib pcx dds eps exr hdr"
OTHER_PICTURES = (*(f".{suffix}" for suffix in _OTHERS.split()), *RAW)

PICTURES = (*SUFFIXES, *OTHER_PICTURES)


class Members(NamedTuple):
    """Where N images lie inside tar files.

    tars: paths. tar: int32 [N], whose member an image is. offset, size: int64 [N], bytes of it in the tar.
    """

    tars: tuple[str, ...]
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray


class ImageSet(NamedTuple):
    """Images of one split, sorted by class and name.

    files: N paths, or names inside tars (none for synthetic data). labels: int32 [N]. members: None for plain files.
    root: of plain files, the data's folder, as the paths begin with it. not_read: pictures beside them whose format is
    not read.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    members: Members | None = None
    root: str = ""
    not_read: tuple[str, ...] = ()


def root_of(images: ImageSet) -> str:
    """Returns the folder that images are named from: the data's root, or else what their paths have in common."""
    if images.members is not None:
        return ""
    root, files = images.root, images.files
    if root and any(file.startswith(f"{root.rstrip('/')}/") for file in files):
        return root
    if not files or not all(file.startswith("/") for file in files):
        return ""
    return os.path.commonpath([os.path.dirname(min(files)), os.path.dirname(max(files))])  # noqa: PTH120


def names_from_root(images: ImageSet) -> Sequence[str]:
    """Returns the images' paths from their root, by which they are told apart wherever it lies.

    Files outside of it have their whole path. Images in tars have the names that they were packed by.
    """
    root = root_of(images)
    return [file.removeprefix(f"{root.rstrip('/')}/") for file in images.files] if root else images.files


def read_image(images: ImageSet, index: int) -> bytes:
    """Reads the encoded bytes of one image.

    Raises:
      OSError: it cannot be read, or is no plain file.
      ImageProblem: it has more than 600 MB.
    """
    if images.members is None:
        return read_part(images.files[index])
    tars, tar, offset, size = images.members
    return read_part(tars[tar[index]], int(offset[index]), int(size[index]))


def read_part(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Reads `size` bytes of a plain file from `offset` on, or all of it (-1); raises as `read_image`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size if size < 0 else size
        if size > MAX_BYTES:
            raise ImageProblem("too large", f"more than {MAX_BYTES // 10**6} MB")
        return os.pread(file.fileno(), size, offset)


class Dataset(NamedTuple):
    """Both splits and the class names, whose position is the label."""

    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...]


def fingerprint(images: ImageSet, class_names: Sequence[str] = ()) -> str:
    """Returns the number of images and a hash of their order, names and labels, and of the class names."""
    digest = hashlib.sha256()
    for names in (names_from_root(images), class_names):
        # With lengths, so that no character in a name makes two sets equal.
        digest.update(np.fromiter(map(len, names), np.int64, len(names)).tobytes())
        digest.update("".join(names).encode("utf-8", "surrogatepass"))
    digest.update(images.labels.astype(np.int64).tobytes())
    return f"{len(images.labels)} images with names and labels {digest.hexdigest()[:16]}"


def scan_split(split_dir: Path, *, tell: bool = True) -> tuple[tuple[str, ...], ImageSet]:
    """Lists the class folders of a split and the images directly in them.

    Hidden files and folders and files without an image suffix are left out; classes and images are sorted by name.
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
    if not_read and tell:
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
    # As they are written: a shell's patterns tell .heic from .HEIC.
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


def check_same_classes(root: Path, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Refuses splits with different class folders."""
    for name in sorted(set(train) ^ set(val)):
        here, missing = ("train", "val") if name in train else ("val", "train")
        raise UserError(f"{root}: class {name!r} is in {here}/ but not in {missing}/; both need the same class folders")


def check_class_names(found: tuple[str, ...], trained: tuple[str, ...], data_dir: str) -> None:
    """Refuses data whose class folders are not those that a checkpoint was trained on."""
    if found == trained:
        return
    detail = f"{counted(len(found), 'class')} instead of {len(trained)}"
    for name in sorted(set(found) ^ set(trained)):
        detail = f"class {name!r} is " + ("new" if name in found else "missing")
        break
    raise UserError(f"the class folders of {data_dir} are not those that the checkpoint was trained on: {detail}")


def with_classes(dataset: Dataset, trained: tuple[str, ...], data_dir: str) -> Dataset:
    """Returns a data set whose labels are those of a trained model: classes are matched by name.

    The data may have some of the model's classes only, and says so then.

    Raises:
      UserError: it has a class that the model does not know.
    """
    found = dataset.class_names
    if found == trained:
        return dataset
    if set(found) - set(trained):
        check_class_names(found, trained, data_dir)
    label_of = {name: label for label, name in enumerate(trained)}
    labels = np.array([label_of[name] for name in found], np.int32)
    if len(found) < len(trained):
        warn(f"{data_dir} has {len(found)} of the {len(trained)} classes; the model still chooses among all of them")
    train, val = (images._replace(labels=labels[images.labels]) for images in (dataset.train, dataset.val))
    return Dataset(train, val, trained)
