"""Names that are no words: in every command, every kind of output, every locale."""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import REPO, Run, Shared, assert_user_error, tiny_args
from helpers.networks import random_variables
from helpers.runs import PATIENCE, SMALL
from PIL import Image

from rn50_jax import cli
from rn50_jax.analysis.predictions import Predictions
from rn50_jax.analysis.tables import tell_mistakes, write_analysis, write_predictions
from rn50_jax.check_data import check, report_text, write_clean_lists
from rn50_jax.data.check.findings import PROBLEMS
from rn50_jax.data.formats.file_list import listable, read_list
from rn50_jax.data.image_set import ImageSet
from rn50_jax.errors import UserError
from rn50_jax.inference.output_formats import FORMATS, Answer
from rn50_jax.io.messages import say, warn
from rn50_jax.io.text import counted, csv_cell, csv_row, in_utf8, printable, shell
from rn50_jax.loggers.console import print_rows
from rn50_jax.models.compute import PRECISIONS
from rn50_jax.models.family import FAMILY
from rn50_jax.models.resnet import ResNet
from rn50_jax.runtime.run_folder import check_path
from rn50_jax.weights.files import WeightFile, read_weights, write_weights
from rn50_jax.weights.torch_names import to_torch

# Of class folders and of the images in them, sorted.
NAMES = (
    "$(touch pwned)$x$",
    "'quo\"te`",
    "-dash",
    "100%",
    "=1+1",
    "@at",
    "[red]b[|x]",
    "_a,b;c",
    "back\\slash",
    "caf\udce9",  # a byte that is not UTF-8
    "carriage\rreturn",
    "escape\x1b[31m",
    "line\nbreak",
    "n" * 240,
    "tab\there",
    "with  space",
    "\u202egnp",
    "😀",
)
LISTED = tuple(filter(listable, NAMES))


def write_odd(root: Path, names: tuple[str, ...], splits: tuple[str, ...] = ("train", "val")) -> None:
    rng = np.random.default_rng(0)
    for split in splits:
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            with open(f"{folder}/{name}.png", "wb") as file:  # noqa: PTH123
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")


@pytest.fixture(scope="module")
def odd(shared: Shared) -> Path:
    """Class folders of all `NAMES`, an image each."""
    return shared("odd", lambda folder: write_odd(folder / "data", NAMES)) / "data"


@pytest.fixture(scope="module")
def odd_weights(shared: Shared) -> Path:
    """A weight file whose classes are `NAMES`, in a folder whose name is not UTF-8."""

    def make(folder: Path) -> None:
        (folder / "caf\udce9").mkdir()
        variant = FAMILY["resnet18"]._replace(stages=(1,))
        variables = random_variables(ResNet(variant, len(NAMES), PRECISIONS["fp32"], width=8))
        facts = {
            "image_size": 32,
            "resize": 32,
            "class_names": list(NAMES),
            "mean": [124, 116, 104],
            "std": [58, 57, 57],
        }
        write_weights(folder / "caf\udce9/x.npz", WeightFile(to_torch(**variables), facts))

    return shared("odd weights", make) / "caf\udce9/x.npz"


def read_csv(data: bytes) -> list[list[str]]:
    """The rows as docs/predict.md says to read them; no cell is a formula for a spreadsheet."""
    rows = list(csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline="")))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for row in rows for cell in row)
    return [[cell.removeprefix("'") for cell in row] for row in rows]


def assert_harmless(text: str) -> None:
    """Nothing in it but line breaks that a terminal would obey."""
    assert printable(text.replace("\n", "")) == text.replace("\n", "")


def test_text() -> None:
    assert printable("a\nb\x1b[31m\x85\udce9é\u202e😀\ud800") == r"a\nb\x1b[31m\x85\xe9é\u202e😀\ud800"
    assert in_utf8("a\n\udce9é😀\ud800") == "a\n" r"\xe9é😀\ud800"
    for name in (*NAMES, "", "é", "\ufffe"):
        assert printable(printable(name)) == printable(name) and printable(name).isprintable()
        in_utf8(name).encode()
        assert csv_cell(name).removeprefix("'") == name
        row = csv_row([name, -1.5, 3, None, name])
        assert read_csv(row.encode("utf-8", "surrogateescape").replace(b",-1.5,", b",1.5,")) == [
            [name, "1.5", "3", "", name]
        ]
    assert csv_row(["class", -0.5, "\ud800"]) == "class,-0.5,\\ud800\n"


def test_a_shell_reads_the_words_of_hints() -> None:
    words = [*NAMES, "", "~", "*", "é", "a\\'b\x1b0", Path("-dash/x"), Path("a b")]
    wanted = [str(word) for word in words[:-2]] + ["./-dash/x", "a b"]
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {shell(words)}"], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in wanted]
    assert shlex.split(shell(["python", "a b", "$x"])) == ["python", "a b", "$x"]
    assert_harmless(shell(words))


def test_lines_of_text_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        say(name)
        warn(name)
        print_rows({"data": name})
        out, err = capsys.readouterr()
        assert out == f"{printable(name)}\n{'data':<10} {printable(name)}\n"
        assert err == f"note: {printable(name)}\n"


def make_answers() -> list[Answer]:
    good = [
        {"file": name, "predictions": [{"class": name, "index": i, "probability": 0.5}]} for i, name in enumerate(NAMES)
    ]
    return [*good, *({"file": name, "error": f"-{name}"} for name in NAMES)]


def test_answers_in_every_format() -> None:
    answers = make_answers()
    written = {}
    for form, write in FORMATS.items():
        file = io.StringIO()
        write(answers, file)
        written[form] = file.getvalue()
    lines = written["table"].splitlines()
    assert lines[: 2 * len(NAMES) : 2] == [printable(name) for name in NAMES]
    assert lines[1 : 2 * len(NAMES) : 2] == [f"   50.0%  {printable(name)}" for name in NAMES]
    assert lines[2 * len(NAMES) :] == [printable(f"{name}: -{name}") for name in NAMES]
    lines = written["nvidia"].splitlines()
    assert lines[: 2 * len(NAMES) : 2] == [printable(name) for name in NAMES]
    assert lines[1 : 2 * len(NAMES) : 2] == [f"{printable(name)}: 50.0%" for name in NAMES]
    assert lines[2 * len(NAMES) :] == [printable(f"{name}: -{name}") for name in NAMES]
    rows = read_csv(written["csv"].encode("utf-8", "surrogateescape"))
    assert rows[1 : len(NAMES) + 1] == [[name, "1", name, str(i), "0.5", ""] for i, name in enumerate(NAMES)]
    assert rows[len(NAMES) + 1 :] == [[name, "", "", "", "", f"-{name}"] for name in NAMES]
    assert json.loads(written["json"]) == answers and written["json"].isascii()
    assert [json.loads(line) for line in written["jsonl"].splitlines()] == answers


@pytest.mark.parametrize("form", ["csv", "jsonl", "table", "nvidia"])
def test_predict(odd: Path, odd_weights: Path, call: Run, tmp_path: Path, form: str) -> None:
    out = tmp_path / "line\nbreak \udce9"
    files = [odd / "val" / name / f"{name}.png" for name in NAMES]
    options = ("--weights", odd_weights, "--top_k", 1, "--format", form, "--out", out)
    done = call("predict", *options, *files, tmp_path / "-none\n.png")
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"{counted(len(NAMES), 'image')} classified, 1 failed; the answers are in {printable(str(out))}\n",
    )
    data = out.read_bytes()
    if form == "jsonl":
        answers = [json.loads(line) for line in data.splitlines()]
        assert [answer["file"] for answer in answers[:-1]] == [str(file) for file in files]
        assert {answer["predictions"][0]["class"] for answer in answers[:-1]} <= set(NAMES)
    elif form == "csv":
        rows = read_csv(data)
        assert [row[0] for row in rows[1:-1]] == [str(file) for file in files]
        assert all(NAMES[int(row[3])] == row[2] for row in rows[1:-1])
    else:
        assert_harmless(data.decode())
        assert data.decode().splitlines()[:-1:2] == [printable(str(file)) for file in files]


def test_names_on_the_command_line_and_on_standard_input(
    odd: Path, odd_weights: Path, process_env: dict[str, str]
) -> None:
    folder = odd / "val" / "-dash"
    listed = [b"-dash.png", b"n" * 5000, b"a\0b.png", b"x*\0", os.fsencode(f"{odd}/val/caf\udce9/caf\udce9.png")]
    options = ("--weights", odd_weights, "--top_k", "1", "--json", "--", "-dash.png", "", "n" * 5000, "-")
    # A locale of ASCII, which makes other names of the same bytes.
    env = process_env | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "rn50_jax.predict", *map(os.fsencode, options)]
    done = subprocess.run(
        command, input=b"\n".join(listed), cwd=folder, env=env, capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"3 images classified, 5 failed\n")
    answers = json.loads(done.stdout)
    assert [answer["file"] for answer in answers] == ["-dash.png", "", "n" * 5000, *map(os.fsdecode, listed)]
    assert ["error" in answer for answer in answers] == [False, True, True, False, True, True, True, False]
    assert all(answer["predictions"][0]["class"] in NAMES for answer in answers if "error" not in answer)


@pytest.fixture
def found(odd: Path) -> Predictions:
    """All taken for another class."""
    labels = np.arange(len(NAMES), dtype=np.int32)
    images = ImageSet(tuple(f"{odd}/val/{name}/{name}.png" for name in NAMES), labels)
    classes = np.stack([(labels + shift) % len(NAMES) for shift in (1, 0)], axis=1)
    return Predictions(images, labels.astype(int), labels, classes, np.full(classes.shape, 0.5, np.float32), NAMES)


def test_evaluate(found: Predictions, tmp_path: Path) -> None:
    import pyarrow.parquet

    lines = list(tell_mistakes(found))
    assert all(printable(line) == line for line in lines)
    write_analysis(found, tmp_path / "line\nbreak")
    rows = read_csv((tmp_path / "line\nbreak/per_class.csv").read_bytes())
    assert {row[1] for row in rows[1:]} == set(NAMES)
    rows = read_csv((tmp_path / "line\nbreak/confusion.csv").read_bytes())
    assert {(row[0], row[1]) for row in rows[1:]} == set(zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True))
    with Image.open(tmp_path / "line\nbreak/mistakes.png") as image:
        assert image.width > 500
    write_predictions(found, tmp_path / "p.csv")
    rows = read_csv((tmp_path / "p.csv").read_bytes())
    assert [row[0] for row in rows[1:]] == list(found.images.files)
    assert [(row[1], row[4]) for row in rows[1:]] == [(name, name) for name in NAMES]
    write_predictions(found, tmp_path / "caf\udce9.parquet")
    with open(tmp_path / "caf\udce9.parquet", "rb") as file:  # noqa: PTH123, whose name pyarrow does not take
        columns = pyarrow.parquet.read_table(file).to_pydict()
    assert columns["label"] == [in_utf8(name) for name in NAMES] and r"caf\xe9" in columns["label"]


def test_check_data(odd: Path, call: Run, tmp_path: Path) -> None:
    done = call("check_data", odd, "--workers", 1, "--json", tmp_path / "r.json", "--write_list", tmp_path / "l.tsv")
    assert done.returncode == 1, done.stderr
    assert_harmless(done.stdout)
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    (kind,) = report["problems"]
    told = {Path(entry["file"]).parent.name for entry in report["problems"][kind]["files"]}
    assert kind in PROBLEMS and told == set(NAMES) - set(LISTED)
    lines = done.stdout.splitlines()
    left_out = len(NAMES) - len(LISTED)
    for split, line in zip(("train", "val"), lines[-2:], strict=True):
        assert line == (
            f"{tmp_path}/l.{split}.tsv: {len(LISTED)} images, {left_out} left out, {left_out} of them for names that "
            "a list cannot hold"
        )
        listed = read_list(tmp_path / f"l.{split}.tsv")
        assert listed.class_names == LISTED
        assert [NAMES.index(file.split("/")[1]) for file in listed.files] == sorted(map(NAMES.index, LISTED))


def test_a_list_and_a_folder_of_odd_names(odd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "line\nbreak \x1b[31m"
    write_odd(folder / "data", ("a", "b"))
    report, splits, _, _ = check(folder / "data")
    text = report_text(report)
    assert_harmless(text)
    assert text.startswith(printable(str(folder)))
    (told, _) = write_clean_lists(folder / "l.tsv", folder / "data", splits, set())
    assert told == f"{printable(str(folder))}/l.train.tsv: 2 images, 0 left out"


def test_other_files_of_a_model(odd: Path, odd_weights: Path, call: Run, tmp_path: Path) -> None:
    folder = tmp_path / "line\nbreak \udce9"
    folder.mkdir()
    for target in ("w.npz", "w.safetensors"):
        done = call("convert", odd_weights, folder / target)
        assert done.returncode == 0, done.stderr
        assert read_weights(folder / target).meta["class_names"] == list(NAMES)
        assert len(done.stdout.splitlines()) == 2
        assert_harmless(done.stdout)
    done = call("export", "--weights", odd_weights, "--out", folder / "m.onnx", f"--config.data.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert_harmless(done.stdout)
    with open(folder / "m.onnx", "rb") as file:  # noqa: PTH123
        props = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(props["class_names"]) == list(NAMES)
    assert props["source"] == in_utf8(str(odd_weights))
    beside = json.loads((folder / "m.onnx.json").read_text(encoding="utf-8"))
    assert (beside["class_names"], beside["source"]) == (list(NAMES), str(odd_weights))
    data = f"--config.data.dir={odd}"
    done = call(
        "export", "--weights", odd_weights, "--out", folder / "q.onnx", "--quantise", "--calibration", odd, data
    )
    assert done.returncode == 0, done.stderr


def test_features(tmp_path: Path, odd_weights: Path, call: Run) -> None:
    write_odd(tmp_path, NAMES, ("val",))
    done = call("features", "--weights", odd_weights, tmp_path / "val", "--out", tmp_path / "=\n\udce9.npz")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert_harmless(done.stdout)
    with open(tmp_path / "=\n\udce9.npz", "rb") as file, np.load(file) as arrays:  # noqa: PTH123
        assert arrays["class_names"].tolist() == list(NAMES)
        assert arrays["files"].tolist() == [f"{name}/{name}.png" for name in NAMES]


def test_names_of_runs_in_figures(trained: tuple[Path, str], call: Run, tmp_path: Path) -> None:
    run = tmp_path / "_$x^$ 😀\n"
    run.symlink_to(trained[0])
    for labels in ("$a_{$,_b", "\udce9,=\x1b"):
        done = call("plot", run, run, "--out", tmp_path / f"c{labels[0]}\n.svg", "--labels", labels)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 1
        assert_harmless(done.stdout)


@pytest.mark.parametrize("name", ["caf\udce9", "back\\slash", "gs:", "a.__lock"])
def test_work_folders_that_cannot_hold_checkpoints(name: str, call_train: Run, call: Run, tmp_path: Path) -> None:
    done = call_train(tmp_path / name / "run")
    assert_user_error(done, "cannot hold checkpoints: its path has", "choose another --workdir")
    assert not os.path.lexists(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    assert_user_error(call("evaluate", "--workdir", tmp_path / "link"), "cannot hold checkpoints")


@pytest.mark.slow
def test_a_run_of_odd_names_in_a_folder_of_odd_name(call: Run, tmp_path: Path) -> None:
    names = NAMES
    data = tmp_path / "data: a?b#c"
    write_odd(data, names)
    workdir = tmp_path / "-100%25 'x'?a=b#|$(touch pwned)\nsecond {1}"
    options = (*tiny_args(data), *SMALL, "--config.batch_size=4", "--config.recipe.warmup_epochs=0")
    for epochs in (1, 2):
        done = call("train", *options, "--workdir", workdir.name, f"--config.epochs={epochs}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_harmless(done.stdout)
    hint = next(line for line in done.stdout.splitlines() if line.startswith("report "))
    program = hint.removeprefix("report").strip().replace("python -m", "printf '%s\\0' ")
    printed = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.split("\0")[:-1] == [
        "rn50_jax.plot",
        f"./{workdir.name}",
        "--html",
        f"./{workdir.name}/report.html",
    ]
    done = call("evaluate", "--workdir", f"./{workdir.name}", "--per_class", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_harmless(done.stdout)
    rows = read_csv((workdir / "evaluation/per_class.csv").read_bytes())
    assert {row[1] for row in rows[1:]} == set(names)
    assert not os.path.lexists(tmp_path / "pwned")


def test_paths_that_can_hold_checkpoints(tmp_path: Path) -> None:
    for name in ("100%25", "a:b", "gs", "é", "x\ny", "a b"):
        check_path(tmp_path / name)
    for path in ("/s3/x", "/gs/x/y", "/az", "x\udce9/y"):
        with pytest.raises(UserError, match="cannot hold checkpoints"):
            check_path(Path(path) / "run")


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "train/é/tab\\there.png".encode()),
        ({"LC_ALL": "POSIX"}, "train/é/tab\\there.png".encode()),
        ({"PYTHONIOENCODING": "latin-1"}, "train/é/tab\\there.png".encode("latin-1")),
        ({"PYTHONIOENCODING": "ascii"}, rb"train/\xe9/tab\there.png"),
    ],
)
def test_locales(env: dict[str, str], shown: bytes, process_env: dict[str, str], tmp_path: Path) -> None:
    write_odd(tmp_path / "é", ("é",), ("train",))
    (tmp_path / "é/train/é/é.png").rename(tmp_path / "é/train/é/tab\there.png")
    command = [sys.executable, "-m", "rn50_jax.check_data", "é", "--workers", "1", "--json", "é.json"]
    done = subprocess.run(
        list(map(os.fsencode, command)), env=process_env | env, cwd=tmp_path, capture_output=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (1, b"") and shown in done.stdout
    report = json.loads((tmp_path / "é.json").read_text(encoding="utf-8"))
    assert report["splits"]["train"]["images_per_class"]["largest"] == "é"


def test_it_starts_anew_in_utf8_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, str] = {}
    monkeypatch.setattr(os, "execve", lambda program, argv, environ: started.update(environ))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    cli.use_utf8()
    assert not started  # a test is no command
    monkeypatch.setattr(sys, "argv", [str(REPO / "rn50_jax/train.py")])
    monkeypatch.setenv("PYTHONUTF8", "1")
    cli.use_utf8()
    assert not started
    monkeypatch.setenv("PYTHONUTF8", "0")
    cli.use_utf8()
    assert started["PYTHONUTF8"] == "1"
