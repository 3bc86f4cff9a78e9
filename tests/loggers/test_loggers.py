"""Logs besides the console: whole lines, events, Weights & Biases and MLflow as their own readers see them."""

import json
import struct
import time
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from helpers.logs import files_of_at_most, record, wandb_records
from helpers.trees import make_config

from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.io.lines import Appended
from rn50_jax.loggers import available, base
from rn50_jax.loggers.base import Background, Persistent, Record, RunFacts, remembered
from rn50_jax.loggers.jsonl import JsonLines
from rn50_jax.loggers.mlflow import Mlflow
from rn50_jax.loggers.tensorboard import TensorBoard
from rn50_jax.loggers.weights_and_biases import WeightsAndBiases


def test_lines_go_behind_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('{"step": 1}\n{"step": 2, "tra')
    with closing(Appended(path, lines=True)) as file:
        file.write_line("ä")
    assert path.read_text() == '{"step": 1}\nä\n'


def test_a_line_that_does_not_fit_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with closing(Appended(path, lines=True)) as file:
        file.write_line("a" * 50)
        with files_of_at_most(70), pytest.raises(OSError, match="File too large"):
            file.write_line("b" * 50)
        assert path.read_text() == "a" * 50 + "\n"
        file.write_line("c")
    assert path.read_text() == "a" * 50 + "\nc\n"


def test_a_file_that_somebody_deletes_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with closing(Appended(path, lines=True)) as file:
        file.write_line("a")
        path.unlink()
        file.write_line("b")
        assert path.read_text() == "b\n"
        (tmp_path / "y").write_text("c\n")
        (tmp_path / "y").replace(path)  # as editors do
        file.write_line("d")
    assert path.read_text() == "c\nd\n"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 200_000])
def test_half_a_line_of_any_length_is_dropped(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    for before in (b"", b"a\n", b"a" * 70_000 + b"\n"):
        path.write_bytes(before + b"b" * size)
        Appended(path, lines=True).close()
        assert path.read_bytes() == before


def test_metrics_that_are_not_finite_are_null(tmp_path: Path) -> None:
    with closing(JsonLines(tmp_path / "m.jsonl")) as file:
        file.log(record(5, train_loss=float("nan"), train_top1=1.0))
        file.log(record(10, "epoch"))  # without validation there is nothing to say
    (line,) = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert line == {"time": 1005.0, "step": 5, "epoch": 1, "epochs_done": 0.5, "train.loss": None, "train.top1": 1.0}


def test_a_logger_that_fails_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Persistent("the log", Server(answers=True))
    for step in range(5):
        broken.log(record(step, train_loss=1.0))
    broken.close()
    assert capsys.readouterr().err.splitlines() == [
        "note: the log cannot be written (RuntimeError: the server has); the run goes on, and tries again with each "
        "report",
        "note: the log lacks 5 reports that could not be written",
    ]


def test_a_file_that_was_full_for_a_while_gets_all_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Persistent("the log", JsonLines(tmp_path / "m.jsonl"))
    with files_of_at_most(100):
        for step in range(1, 6):
            log.log(record(step, train_loss=1.0))
    log.log(record(6, "epoch", val_top1=1.0))
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    with files_of_at_most(100):
        log.log(record(7, train_loss=1.0))
    log.close()  # there is room again
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 7
    told = "the log cannot be written (File too large); the run goes on, and tries again with each report"
    assert capsys.readouterr().err == f"note: {told}\n"


def test_what_never_fitted_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_BACKLOG", 3)
    log = Persistent("the log", JsonLines(tmp_path / "m.jsonl"))
    with files_of_at_most(10):
        for step in range(1, 9):
            log.log(record(step, train_loss=1.0))
    log.log(record(9, train_loss=1.0))
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [7, 8, 9]
    with files_of_at_most(10):
        log.log(record(10, train_loss=1.0))
        log.close()
    assert capsys.readouterr().err.splitlines()[1] == "note: the log lacks 7 reports that could not be written"


def test_events_of_a_disk_that_was_full_for_a_while(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with closing(Persistent("events", TensorBoard(RunFacts(tmp_path, Config(), 1, 0.1)))) as log:
        log.log(record(1, train_loss=1.0))
        (path,) = (tmp_path / "tensorboard").iterdir()
        with files_of_at_most(path.stat().st_size + 10):  # half an event fits
            for step in (2, 3):
                log.log(record(step, train_loss=float(step)))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0})
    events.Reload()
    assert [(p.step, p.value) for p in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize("known", [b"", b"{", b"[1]", b'{"project": "p"}', b'{"project": "p", "id": 5}', b"\xff"])
def test_an_identity_that_cannot_be_read_is_made_anew(tmp_path: Path, known: bytes) -> None:
    path = tmp_path / "wandb.json"
    path.write_bytes(known)
    assert remembered(path, "p", lambda: "new") == "new"
    assert remembered(path, "p", lambda: "newer") == "new"
    assert remembered(path, "q", lambda: "other") == "other"


class Server:
    """A logger that never comes back, or fails."""

    def __init__(self, answers: bool) -> None:
        self.answers = answers

    def log(self, record: Record) -> None:
        if not self.answers:
            Event().wait()
        raise RuntimeError("the server has\ngone away")

    def close(self) -> None:
        pass


def test_training_does_not_wait_for_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    slow = Background("Server", lambda: Server(answers=False), patience=0.1)
    for step in range(100):
        slow.log(record(step, train_loss=1.0))
    slow.close()  # would wait for ever
    assert (
        capsys.readouterr().err == "note: Server has not taken everything within 0.1 s; not waiting for it any longer\n"
    )
    Background("Server", lambda: Event().wait(), opening=0.1)  # not even at the start
    broken = Background("Server", lambda: Server(answers=True))
    broken.log(record(1, train_loss=1.0))
    broken.close()
    told = "note: Server has failed (RuntimeError: the server has); the run goes on without it\n"
    assert capsys.readouterr().err == told
    broken.log(record(2, train_loss=1.0))
    assert capsys.readouterr().err == ""


def crc32c(data: bytes) -> int:
    """Castagnoli's polynomial (RFC 3720, B.4), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_events_are_read_by_tensorboard_and_repeated_steps_count_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert crc32c(bytes(32)) == 0x8A9136AA  # the example of the RFC
    facts = RunFacts(tmp_path, make_config(tmp_path), 1, 0.1)
    for first_step, value in ((0, 1.0), (20, 2.0)):
        with closing(TensorBoard(facts._replace(first_step=first_step))) as log:
            for step in range(first_step + 10, first_step + 50, 10):
                log.log(record(step, train_loss=value, lr=0.5, train_top1=float("inf")))
        time.sleep(1.1)  # the names of the files tell the second
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "tensors": 0})
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss", "lr"]
    points = events.Scalars("train/loss")
    assert [(p.step, p.value) for p in points] == [(10, 1.0), (20, 1.0), *((s, 2.0) for s in (30, 40, 50, 60))]
    assert points[0].wall_time == 1010.0
    text = events.Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text.strip("`\n"))["data.dir"] == str(tmp_path)
    for path in (tmp_path / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # length, its checksum, content, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            content = data[12 : 12 + length]
            assert struct.unpack("<II", data[8:12] + data[12 + length : 16 + length]) == (
                masked(data[:8]),
                masked(content),
            )
            data = data[16 + length :]


def test_weights_and_biases_get_the_same_run_again(tmp_path: Path) -> None:
    import wandb

    wandb.teardown()  # it would stay with the settings of the test before
    config = make_config(tmp_path, ("log.wandb", "project"))
    available.check_loggers(config.log)
    for first_step in (0, 10):
        with closing(WeightsAndBiases(RunFacts(tmp_path, config, 1, 0.1), "project")) as log:
            for step in (first_step + 10, first_step + 20):
                log.log(record(step, train_loss=step, val_top1=float("nan")))
            log.log(record(first_step + 20, "epoch", val_top1=50.0))
            log.log(record(first_step + 20, "end", goodput_train=1.0)._replace(finished=True))
        time.sleep(1.1)  # the names of the folders tell the second
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1  # one run of two processes
    steps: dict[int, dict[str, float]] = {}
    for found in wandb_records(files[1]):
        if found.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in found.history.item}
            steps[found.history.step.num] = items
    assert steps.keys() == {20, 30}
    assert steps[30]["train/loss"] == 30 and steps[30]["val/top1"] == 50.0 and steps[30]["epochs_done"] == 3.0
    assert "val/top1" not in steps[20]
    exits = [found.exit.exit_code for found in wandb_records(files[1]) if found.WhichOneof("record_type") == "exit"]
    assert exits == [0]


def test_mlflow_gets_the_same_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    config = make_config(tmp_path, ("log.mlflow", "digits"), ("seed", "7"))
    available.check_loggers(config.log)
    ends = (("end", False), ("end", True))
    for first_step, (kind, finished) in zip((0, 10), ends, strict=True):
        with closing(Mlflow(RunFacts(tmp_path, config, 1, 0.1), "digits")) as log:
            log.log(record(first_step + 10, train_loss=2.0, val_top1=float("inf")))
            log.log(record(first_step + 10, kind, goodput_train=1.0)._replace(finished=finished))
        client = MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
        assert run.info.status == ("FINISHED" if finished else "KILLED")
    assert (run.data.params["seed"], run.data.params["data.dir"]) == ("7", str(tmp_path))
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(10, 2.0, 1_010_000), (20, 2.0, 1_020_000)]
    assert "val/top1" not in run.data.metrics


def test_what_is_missing_is_told_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, ("log.wandb", "p"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match="run `wandb login`, or set WANDB_MODE=offline"):
        available.check_loggers(config.log)
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda name: None)
    for key in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=rf"config.log.{key}='p' needs the package {key}; pip install {key}"):
            available.check_loggers(make_config(tmp_path, (f"log.{key}", "p")).log)
