"""Images that cannot be decoded, in the stream and in real runs."""

import errno
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.loading import eval_data, open_data, train_data
from helpers.trees import make_config, write_image
from PIL import Image

from rn50_jax.config.derived import make_plan
from rn50_jax.data import dali, decoded_batches
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.batch import Position
from rn50_jax.data.image_set import ImageSet, read_image
from rn50_jax.data.images.headers import MAX_BYTES
from rn50_jax.distributed.devices import make_mesh
from rn50_jax.errors import RunStopped, UserError

NUM_TRAIN = 60
Seen = dict[tuple[int, int, int], tuple[bytes, int, float]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noisy JPEGs of three classes, large enough that a crop may miss what is missing at a file's end."""
    rng = np.random.default_rng(0)
    for split, count in (("train", NUM_TRAIN // 3), ("val", 4)):
        for name in ("ant", "bee", "cat"):
            for i in range(count):
                path = tmp_path / "data" / split / name / f"{i:02}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)).save(path, quality=80)
    return tmp_path / "data"


def damage(root: Path) -> dict[str, str]:
    """Spoils six training images and one for validation; returns their short names by kind."""
    bad = {
        "text": root / "train/ant/03.jpg",
        "empty": root / "train/ant/11.jpg",
        "half": root / "train/bee/00.jpg",
        "tail": root / "train/cat/07.jpg",
        "gone": root / "train/cat/19.jpg",
        "huge": root / "train/bee/09.jpg",
        "val": root / "val/bee/02.jpg",
    }
    bad["text"].write_bytes(b"no image")
    bad["empty"].write_bytes(b"")
    for kind, share in (("half", 0.5), ("tail", 0.9), ("val", 0.5)):
        whole = bad[kind].read_bytes()
        bad[kind].write_bytes(whole[: int(share * len(whole))])
    bad["gone"].unlink()
    with bad["huge"].open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    return {kind: f"{path.parent.name}/{path.name}" for kind, path in bad.items()}


def run(root: Path, bad_images: BadImages, num_devices: int, start: Position, images: object = None) -> Iterator[tuple]:
    """(position behind it, its images, labels and weights) for each step of two... of three epochs."""
    config = make_config(
        root,
        ("batch_size", str(12 // num_devices)),
        ("epochs", "4"),
        ("data.flip", "0.5"),
        ("data.crop_area", "(.2,1)"),
    )
    dataset = open_data(config) if images is None else images
    mesh = make_mesh(jax.devices()[:num_devices])
    plan = make_plan(config, num_images=NUM_TRAIN, num_devices=num_devices)
    epoch, step = start.epoch, start.step
    for batch, pipelines in train_data(config, dataset.train, plan, mesh, start, bad_images):
        step += 1
        position = Position(epoch, step, pipelines)
        pixels, labels, weights = (np.asarray(batch[key]) for key in ("image", "label", "weight"))
        yield position, pixels.reshape(-1, 32, 32, 3), labels.reshape(-1), weights.reshape(-1)
        if step == plan.steps_per_epoch:
            epoch, step = epoch + 1, 0


@pytest.mark.parametrize("num_devices", [1, 3])
def test_the_others_get_the_pixels_that_they_would_have_had(photos: Path, tmp_path: Path, num_devices: int) -> None:
    clean = list(run(photos, BadImages(None, limit=0), num_devices, Position(0, 0)))
    images = open_data(make_config(photos))
    names = damage(photos)
    path = tmp_path / "quarantine.json"
    with pytest.MonkeyPatch.context():
        spoilt = list(run(photos, BadImages(path, limit=9), num_devices, Position(0, 0), images))
    assert len(spoilt) == len(clean) == 20
    for epoch in range(4):
        left_out = 0
        for (_, pixels, labels, weights), (_, wanted, wanted_labels, _) in zip(
            spoilt[5 * epoch : 5 * epoch + 5], clean[5 * epoch : 5 * epoch + 5], strict=True
        ):
            np.testing.assert_array_equal(pixels[weights == 1], wanted[weights == 1])
            np.testing.assert_array_equal(labels[weights == 1], wanted_labels[weights == 1])
            left_out += int(np.sum(weights == 0))
        assert 5 <= left_out <= 6  # the one without its tail may be lucky
    entries = {entry["file"].split("train/")[1]: entry for entry in json.loads(path.read_text())["files"]}
    assert set(entries) <= {name for kind, name in names.items() if kind != "val"}
    assert all(entries[names[kind]]["epoch"] == 1 for kind in ("text", "empty", "half", "gone", "huge"))
    assert all(entry["split"] == "train" and entry["reason"] for entry in entries.values())


@pytest.mark.slow
def test_a_resumed_stream_leaves_out_the_same(photos: Path, tmp_path: Path) -> None:
    images = open_data(make_config(photos))
    damage(photos)
    path = tmp_path / "quarantine.json"
    everything = list(run(photos, BadImages(path, limit=9), 3, Position(0, 0), images))
    wanted = [(p.tobytes(), labels.tolist(), weights.tolist()) for _, p, labels, weights in everything]
    for done in (1, 3, 5, 7, 12, 19):
        # The list is now longer than it was when the position was kept; that must not matter.
        goes_on = run(photos, BadImages(path, limit=9), 3, everything[done - 1][0], images)
        got = [(p.tobytes(), labels.tolist(), weights.tolist()) for _, p, labels, weights in goes_on]
        assert got == wanted[done:], done


def test_evaluation_counts_every_good_image_once(photos: Path) -> None:
    config = make_config(photos)
    dataset = open_data(config)
    damage(photos)
    mesh = make_mesh(jax.devices()[:3])
    bad_images = BadImages(None, limit=9)
    for _ in range(2):
        batches = list(eval_data(config, dataset.val, mesh, bad_images=bad_images))
        weights = np.concatenate([np.asarray(batch["weight"]).reshape(-1) for batch in batches])
        labels = np.concatenate([np.asarray(batch["label"]).reshape(-1) for batch in batches])
        assert weights.sum() == 11
        assert np.bincount(labels[weights == 1]).tolist() == [4, 3, 4]


def test_an_image_of_which_only_a_crop_fails_is_found(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_data(make_config(photos))
    bad = damage(photos)
    monkeypatch.setattr(decoded_batches, "_find_bad", lambda images, indices: {})
    bad_images = BadImages(None, limit=9)
    seen = list(islice(run(photos, bad_images, 1, Position(0, 0), images), NUM_TRAIN // 12))
    left_out = sum(int((weights == 0).sum()) for *_, weights in seen)
    assert left_out >= len(bad) - 2  # one is for validation, and a crop may miss what is missing of another


def test_a_read_that_fails_for_a_moment_leaves_nothing_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_images = BadImages(None, limit=9)
    wanted = [pixels.tobytes() for _, pixels, *_ in run(photos, bad_images, 1, Position(0, 0))]
    fails = iter([False] * 30 + [True])

    def read(images: ImageSet, index: int) -> bytes:
        if next(fails, False):
            raise OSError(errno.EIO, "Input/output error")
        return read_image(images, index)

    monkeypatch.setattr(dali, "read_image", read)
    assert [pixels.tobytes() for _, pixels, *_ in run(photos, bad_images, 1, Position(0, 0))] == wanted
    assert next(fails, None) is None and not bad_images._read()


def test_too_many_bad_images_stop_the_run(photos: Path, tmp_path: Path) -> None:
    images = open_data(make_config(photos))
    damage(photos)
    bad_images = BadImages(tmp_path / "quarantine.json", limit=2)
    with pytest.raises(RunStopped, match=r"more than config\.data\.max_bad_images=2 .*check_data"):
        list(run(photos, bad_images, 1, Position(0, 0), images))
    with pytest.raises(UserError, match=r"(?s)cannot be used: .*max_bad_images"):
        list(run(photos, BadImages(None, limit=0), 1, Position(0, 0), images))


def test_no_good_image_at_all(photos: Path) -> None:
    images = open_data(make_config(photos))
    for path in photos.glob("train/*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 60 images can be decoded"):
        list(run(photos, BadImages(None, limit=99), 1, Position(0, 0), images))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"files": 3}', '{"files": [{}]}', '{"files": [{"file": 1, "split": "train"}]}', "\udcff"]
)
def test_a_spoilt_list_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "quarantine.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"quarantine\.json cannot be read as the list of bad images .*remove it"):
        BadImages(tmp_path / "quarantine.json", limit=1)


def listed(root: str, *names: str) -> ImageSet:
    return ImageSet(tuple(f"{root}/{name}" for name in names), np.zeros(len(names), np.int32), root=root)


def test_images_of_one_name_in_several_places_are_told_apart(tmp_path: Path) -> None:
    """Also where the data lie elsewhere now, in files that are not UTF-8, and in another split."""
    path = tmp_path / "quarantine.json"
    names = ("A/x/4.jpg", "B/x/4.jpg", "x/4.jpg", "x/caf\udce9.jpg", "/mnt/x/4.jpg")
    images = listed("/data", *names)
    for index in (0, 0, 3):
        BadImages(path, limit=9).add("train", images, index, epoch=0, reason="text")
    entries = json.loads(path.read_text())["files"]
    assert [(entry["file"], entry["root"]) for entry in entries] == [(names[0], "/data"), (names[3], "/data")]
    for now in (images, listed("data", *names)):
        bad_images = BadImages(path, limit=9)
        assert bad_images.known("train", now, 2).tolist() == [0, 3]
        assert bad_images.known("train", now, 1).tolist() == bad_images.known("val", now, 2).tolist() == []
    assert bad_images.known("train", listed("/data", "x/4.jpg", "y/A/x/4.jpg"), 2).tolist() == []


def test_one_bad_image_of_a_list_leaves_the_others_of_its_name_in(tmp_path: Path) -> None:
    lines = []
    for site in "ABC":
        for i in range(8):
            write_image(tmp_path / site / f"images/{i}.png", (9 * i, 0, 0))
            lines.append(f"{site}/images/{i}.png\t{'cat' if i % 2 else 'dog'}\n")
    (tmp_path / "l.tsv").write_text("".join(lines))
    (tmp_path / "A/images/4.png").write_bytes(b"no image")
    lists = [(f"data.{split}_list", "l.tsv") for split in ("train", "val")]
    config = make_config(tmp_path, ("batch_size", "12"), ("epochs", "4"), *lists)
    dataset, mesh = open_data(config), make_mesh(jax.devices()[:1])
    plan = make_plan(config, num_images=24, num_devices=1)
    bad_images = BadImages(tmp_path / "q.json", limit=9)
    batches = train_data(config, dataset.train, plan, mesh, Position(0, 0), bad_images)
    left_out = np.array([(np.asarray(batch["weight"]) == 0).sum() for batch, _ in batches])
    assert left_out.reshape(4, 2).sum(axis=1).tolist() == [1, 1, 1, 1]
