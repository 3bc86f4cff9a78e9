"""The predict command on real files of every kind."""

import contextlib
import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from conftest import REPO, Run, assert_user_error
from helpers.runs import PATIENCE
from PIL import Image

from rn50_jax.data.formats.class_folders import scan_split
from rn50_jax.inference.image_files import find_images
from rn50_jax.inference.output_formats import FORMATS
from rn50_jax.inference.trained_model import load_run
from rn50_jax.predict import answers


def test_it_names_held_back_digits_as_evaluate_does(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    workdir, _ = trained
    _, val = scan_split(digits / "val")
    done = call("predict", "--workdir", workdir, *val.files[::5], "--json", "--top_k", 3)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [entry["file"] for entry in answers] == list(val.files[::5])
    for entry in answers:
        assert len(entry["predictions"]) == 3
        probabilities = [p["probability"] for p in entry["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert min(probabilities) >= 0 and sum(probabilities) <= 1.0001
        assert all(p["class"] == str(p["index"]) for p in entry["predictions"])
    table = tmp_path / "predictions.csv"
    done = call("evaluate", "--workdir", workdir, "--predictions", table)
    assert done.returncode == 0, done.stderr
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))[::5]
    named = [(Path(entry["file"]).name, entry["predictions"][0]["class"]) for entry in answers]
    assert named == [(Path(row["file"]).name, row["class_1"]) for row in found]


def test_every_kind_of_image_and_a_bad_one(trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path) -> None:
    workdir, _ = trained
    with Image.open(scan_split(digits / "val")[1].files[0]) as image:
        grey = image.convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    grey.convert("RGBA").save(tmp_path / "alpha with space ü.png")
    grey.convert("RGB").save(tmp_path / "image.webp", lossless=True)
    photo = Path(sklearn.datasets.__file__).parent / "images/china.jpg"  # 640 x 427 pixels
    shutil.copy(photo, tmp_path / "photo.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    names = ["grey.png", "cmyk.jpg", "text.jpg", "alpha with space ü.png", "none.jpg", "image.webp", "photo.jpg"]
    files = [tmp_path / name for name in names]
    done = call("predict", "--workdir", workdir, *files, "--json")
    assert done.returncode == 1, done.stderr
    answers = json.loads(done.stdout)
    assert [Path(entry["file"]).name for entry in answers] == names
    assert answers[2]["error"].startswith("no image (it is text)")
    assert "No such file" in answers[4]["error"]
    predictions = {Path(a["file"]).name: a["predictions"] for a in answers if "predictions" in a}
    assert len(predictions) == 5
    for name in ("cmyk.jpg", "alpha with space ü.png", "image.webp"):
        assert predictions[name][0]["index"] == predictions["grey.png"][0]["index"]
        assert predictions[name][0]["probability"] == pytest.approx(predictions["grey.png"][0]["probability"], abs=0.05)


def predict(env: dict[str, str], *args: object, **kwargs: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rn50_jax.predict", *map(str, args)]
    return subprocess.run(command, env=env, cwd=REPO, timeout=PATIENCE, **{"capture_output": True, **kwargs})


@pytest.mark.slow
def test_folders_and_standard_input_to_files(
    trained: tuple[Path, str], digits: Path, process_env: dict[str, str], tmp_path: Path
) -> None:
    workdir, _ = trained
    folder = tmp_path / "im ages"
    shutil.copytree(digits / "val/3", folder / "three")
    shutil.copy(next((digits / "val/4").iterdir()), os.fsencode(folder) + b"/\xff.jpg")
    (folder / "bad.jpg").write_text("no image")
    done = predict(process_env, "--workdir", workdir, folder, "--out", tmp_path / "a.jsonl", "--top_k", 2)
    told = f"29 images classified, 1 failed; the answers are in {tmp_path}/a.jsonl\n".encode()
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", told)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    names = ["bad.jpg", *sorted(f"three/{path.name}" for path in (folder / "three").iterdir()), "\udcff.jpg"]
    assert [line["file"] for line in lines] == [f"{folder}/{name}" for name in names]
    alone = predict(process_env, "--workdir", workdir, lines[5]["file"], "--json", "--top_k", 2)
    (wanted,) = json.loads(alone.stdout)
    assert [p["class"] for p in lines[5]["predictions"]] == [p["class"] for p in wanted["predictions"]]

    listed = b"".join(os.fsencode(line["file"]) + b"\0" for line in lines)
    options = ("-", "-0", "--workdir", workdir, "--top_k", 2, "--batch_size", 5)
    done = predict(process_env, *options, "--format", "csv", input=listed)
    assert done.returncode == 1 and done.stderr == b"29 images classified, 1 failed\n"
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(errors="surrogateescape"))))
    assert rows[0]["error"].startswith("no image")
    assert len(rows) == 1 + 2 * (len(lines) - 1)
    predictions = [p | {"file": line["file"]} for line in lines[1:] for p in line["predictions"]]
    for row, p in zip(rows[1:], predictions, strict=True):
        assert (row["file"], row["class"], row["index"], row["error"]) == (p["file"], p["class"], str(p["index"]), "")
        assert float(row["probability"]) == pytest.approx(p["probability"], abs=1e-5)  # another batch size


@pytest.mark.slow
def test_progress_is_shown_to_a_terminal(trained: tuple[Path, str], digits: Path, process_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "rn50_jax.predict", "--workdir", str(trained[0]), str(digits / "val/3")]
    outer, inner = pty.openpty()
    env = process_env | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, env=env, cwd=REPO, stdout=subprocess.DEVNULL, stderr=inner) as process:
        os.close(inner)
        shown = b""
        with contextlib.suppress(OSError):  # so the end of a terminal is told
            while part := os.read(outer, 4096):
                shown += part
    assert process.returncode == 0
    number = len(list((digits / "val/3").iterdir()))
    assert f"{number}/{number}" in shown.decode() and "img/s" in shown.decode()


def test_a_reader_that_has_seen_enough(trained: tuple[Path, str], digits: Path, process_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "rn50_jax.predict", "--workdir", str(trained[0]), str(digits / "val")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=process_env, cwd=REPO, **pipes) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_several_devices_and_batches_give_the_same(trained: tuple[Path, str], digits: Path) -> None:
    stored = load_run(trained[0], "best", [("data.backend", "dali-cpu")])
    assert len(stored.devices) == 8
    files = list(find_images([str(digits / "val")]))
    one, two = (stored._replace(devices=stored.devices[:number]) for number in (1, 2))
    wanted = list(answers(one, files, top_k=10, batch_size=len(files)))
    found = list(answers(two, files, top_k=10, batch_size=16))
    assert [a["file"] for a in found] == [a["file"] for a in wanted] == [f.file for f in files]
    for a, b in zip(found, wanted, strict=True):
        p, q = ({x["index"]: x["probability"] for x in answer["predictions"]} for answer in (a, b))
        assert p == pytest.approx(q, abs=1e-5)


ANSWERS = [
    {"file": "a, b.jpg", "predictions": [{"class": 'x "y"', "index": 1, "probability": 0.75}]},
    {"file": "ü.jpg", "error": "cannot be read"},
]


def test_formats() -> None:
    written = {}
    for name, write in FORMATS.items():
        for number in (0, 2):
            file = io.StringIO()
            write(ANSWERS[:number], file)
            written[name, number] = file.getvalue()
    assert written["table", 2] == 'a, b.jpg\n   75.0%  x "y"\nü.jpg: cannot be read\n'
    header = "file,rank,class,index,probability,error\n"
    assert written["csv", 0] == header
    assert written["csv", 2] == header + '"a, b.jpg",1,"x ""y""",1,0.75,\nü.jpg,,,,,cannot be read\n'
    for number in (0, 2):
        assert written["json", number] == json.dumps(ANSWERS[:number], indent=2) + "\n"
        assert [json.loads(line) for line in written["jsonl", number].splitlines()] == ANSWERS[:number]


def test_the_lines_of_nvidias_classify(trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path) -> None:
    images = scan_split(digits / "val")[1].files[:40:20]
    options = ("--workdir", trained[0], images[0], tmp_path / "none.jpg", images[1])
    done = call("predict", *options, "--format", "nvidia")
    assert done.returncode == 1
    wanted = []
    for answer in json.loads(call("predict", *options, "--json").stdout):
        problem = f": {answer['error']}" if "error" in answer else ""
        wanted += [answer["file"] + problem]
        # What classify.py prints of a name and a probability.
        wanted += [f"{p['class']}: {100 * p['probability']:.1f}%" for p in answer.get("predictions", [])]
    assert done.stdout.splitlines() == wanted and len(wanted) == 6 + 1 + 6
    file = io.StringIO()
    prediction = {"class": "tench, Tinca tinca", "index": 0, "probability": 0.98349}
    FORMATS["nvidia"]([{"file": "a.jpg", "predictions": [prediction]}], file)
    assert file.getvalue() == "a.jpg\ntench, Tinca tinca: 98.3%\n"


def test_a_probability_that_is_none_is_null_in_json() -> None:
    answer = {"file": "a", "predictions": [{"class": "x", "index": 0, "probability": float("nan")}]}
    for name in ("json", "jsonl"):
        file = io.StringIO()
        FORMATS[name]([answer], file)
        assert '"probability": null' in file.getvalue() and "NaN" not in file.getvalue()


def test_half_precision_answers_nearly_the_same(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "w.npz"
    assert call("convert", trained[0], weights).returncode == 0
    options = ("--weights", weights, *scan_split(digits / "val")[1].files[::30], "--json", "--top_k", 10)
    found = []
    for precision in ("fp32", "fp16"):
        done = call("predict", *options, f"--config.precision={precision}")
        assert done.returncode == 0 and done.stderr == f"{len(range(0, 297, 30))} images classified\n", done.stderr
        found.append([{p["index"]: p["probability"] for p in a["predictions"]} for a in json.loads(done.stdout)])
    whole, half = found
    assert whole != half  # it was computed in it
    for p, q in zip(half, whole, strict=True):
        assert p == pytest.approx(q, abs=0.01)


def test_weights_that_are_not_finite_answer_nothing(
    trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "w.npz"
    assert call("convert", trained[0], weights).returncode == 0
    arrays = dict(np.load(weights)) | {"fc.bias": np.full(10, np.nan, np.float32)}
    with weights.open("wb") as file:
        np.savez(file, **arrays)
    image = scan_split(digits / "val")[1].files[0]
    out = tmp_path / "x.json"
    out.write_text("before")
    for command in (("predict", image, "--out", out), ("evaluate", "--json", out, f"--config.data.dir={digits}")):
        told = f"{weights}: params.fc.bias is not finite"
        assert_user_error(call(command[0], "--weights", weights, *command[1:]), told)
        assert out.read_text() == "before"


def test_text_output(trained: tuple[Path, str], call: Run, digits: Path, tmp_path: Path) -> None:
    image = scan_split(digits / "val")[1].files[0]
    done = call("predict", "--workdir", trained[0], image, tmp_path / "none.jpg", "--top_k", 2)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == image
    assert len(lines) == 4 and lines[1].split()[0].endswith("%")
    assert lines[3] == f"{tmp_path / 'none.jpg'}: cannot be read: No such file or directory"


def test_only_bad_images(trained: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    done = call("predict", "--workdir", trained[0], tmp_path / "a.jpg", "--json")
    assert done.returncode == 1
    assert list(json.loads(done.stdout)[0]) == ["file", "error"]


def test_mistakes_are_told_in_one_line(trained: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    assert_user_error(call("predict", "--workdir", tmp_path, "a.jpg"), "has no checkpoints")
    assert_user_error(call("predict", "--workdir", trained[0], "a.jpg", "--top_k", 0), "--top_k 0 must be at least 1")
    assert_user_error(call("predict", "--workdir", trained[0], "a.jpg", "--checkpoint", "9"), "'9'")
    assert_user_error(call("predict", "--workdir", trained[0], "a.jpg", "--batch_size", 0), "--batch_size 0 must be")
    out = tmp_path / "none/a.csv"
    assert_user_error(call("predict", "--workdir", trained[0], "a.jpg", "--out", out), f"cannot write {out}: No such")
    done = call("predict", "--workdir", trained[0], "a.jpg", "--out", "/dev/full")
    assert_user_error(done, "cannot write /dev/full: No space left on device")
