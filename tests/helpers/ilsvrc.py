"""Small archives in the form of ILSVRC2012."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from rn50_jax.data.prepare import ilsvrc2012
from rn50_jax.data.prepare.imagenet import Expected

SYNSETS = ("n01440764", "n01443537", "n02056570", "n07873807", "n15075141")
TRAIN_IMAGES = (30, 25, 41, 7, 33)
NUMBERS = (4, 1, 5, 3, 2)
EXPECTED = Expected(SYNSETS, sum(TRAIN_IMAGES), 60)


def write_archives(folder: Path) -> None:
    """The three archives, of the classes and counts of `EXPECTED`."""
    folder.mkdir()
    val_numbers = [1 + (3 * i) % 5 for i in range(60)]
    write_devkit(folder / ilsvrc2012.DEVKIT, val_numbers)
    with tarfile.open(folder / ilsvrc2012.TRAIN, "w") as archive:
        for synset, count in zip(SYNSETS, TRAIN_IMAGES, strict=True):
            add(archive, f"{synset}.tar", write_class_tar(synset, count))
    with tarfile.open(folder / ilsvrc2012.VAL, "w") as archive:
        for i in range(1, 61):
            add(archive, f"ILSVRC2012_val_{i:08d}.JPEG", f"val {i} ".encode() * 60)


def add(archive: tarfile.TarFile, name: str, data: bytes, **changes: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def write_devkit(file: Path, val_numbers: Sequence[int], train_images: Sequence[int] = TRAIN_IMAGES) -> None:
    """As the real one: a struct array [K, 1] with leaves and inner nodes, and a text file of numbers."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    rows = [
        (number, synset, f"words, of {synset}", "a gloss", 0, np.zeros((1, 0)), 0, count)
        for number, synset, count in zip(NUMBERS, SYNSETS, train_images, strict=True)
    ]
    rows.sort(key=lambda row: row[0])
    rows += [
        (6, "n00001740", "entity", "what is", 2, np.array([[7, 1]]), 2, 0),
        (7, "n00001930", "physical entity", "what is there", 4, np.array([[2, 3, 4, 5]]), 1, 0),
    ]
    dtype = [(field, object) for field in (*fields, "num_train_images")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=dtype).reshape(-1, 1)})
    with tarfile.open(file, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/readme.txt", b"read me")
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        text = "".join(f"{number}\n" for number in val_numbers)
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", text.encode())


def write_class_tar(synset: str, count: int) -> bytes:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for i in range(count):
            add(archive, f"{synset}_{10 * i}.JPEG", f"{synset} {i} ".encode() * (50 + i))
    return inner.getvalue()


# Numbers in the devkit do not follow the order of the synsets.
