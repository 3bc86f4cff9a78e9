"""TensorBoard: scalars as event files."""

import os
import socket
import time
from typing import Any

from rn50_jax.errors import UserError
from rn50_jax.io.json_files import to_json
from rn50_jax.io.lines import Appended
from rn50_jax.loggers.base import Record, RunFacts, tagged


class TensorBoard:
    """A new events file in `tensorboard/` for each process of the run, written without TensorFlow and without a thread.

    Steps that are done again after `run.first_step` replace those of earlier files.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, run: RunFacts) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, folder = event_pb2.Event, run.workdir / "tensorboard"
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(exist_ok=True)
            self._writer = RecordWriter(Appended(folder / name))
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._put(file_version="brain.Event:2")
            self._put(step=run.first_step + 1, session_log=start)
            config = to_json(run.config.flat(), indent=2)
            self._put(step=run.first_step, summary=text_pb("config", f"```\n{config}\n```"))
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error

    def log(self, record: Record) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in tagged(record.metrics).items()]
        self._put(step=record.step, wall_time=record.time, summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _put(self, **content: Any) -> None:
        self._writer.write(self._event(**({"wall_time": time.time()} | content)).SerializeToString())
