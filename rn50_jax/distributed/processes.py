"""Several processes as one run: who they are, how they meet, and that they agree. The only place of `jax.distributed`.

Every process runs the same command. Each feeds its own devices; process 0 alone prints and writes files.
"""

import argparse
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rn50_jax import cli
from rn50_jax.distributed.rendezvous import meet
from rn50_jax.errors import Interrupted, RunStopped, UserError
from rn50_jax.io.messages import tell_end
from rn50_jax.io.text import first_line

CONNECT_TIMEOUT = 300  # seconds that processes wait for each other at the start
_LONGEST = 1_000_000  # seconds of a heartbeat, such as JAX takes


class Cluster(NamedTuple):
    """This process among all.

    coordinator: "host:port" of process 0; None where JAX asks the scheduler. local_device_ids: devices of this machine
    that are this process's; None for all. scheduler: "slurm", "ompi" or "".
    """

    coordinator: str | None
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None
    scheduler: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `find_cluster` reads."""
    group = parser.add_argument_group("several processes (not needed under SLURM or Open MPI; see docs/multi-node.md)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0's machine")
    group.add_argument("--num_processes", type=int, metavar="N", help="processes of the run, over all machines")
    group.add_argument("--process_id", type=int, metavar="I", help="this one's number, from 0")


def find_cluster(args: argparse.Namespace, environ: Mapping[str, str]) -> Cluster | None:
    """Returns this process's place among all; None if it is alone.

    The arguments tell, then `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, then SLURM's or Open
    MPI's variables.

    With one process per machine it has all devices; with several, under a scheduler, each has the one of its local
    number, unless `CUDA_VISIBLE_DEVICES` leaves it only one.

    Raises:
      UserError: something is missing, contradictory or no number.
    """
    scheduler, size, rank, local_size, local_rank = _ask_scheduler(environ)
    coordinator = args.coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = args.num_processes or _number(environ, "JAX_NUM_PROCESSES") or size
    given = (args.process_id, _number(environ, "JAX_PROCESS_ID"), rank)
    process_id = next((value for value in given if value is not None), None)
    if coordinator is None and not scheduler:
        if num_processes is None and process_id is None:
            return None
        raise UserError("--num_processes and --process_id need --coordinator HOST:PORT too")
    if num_processes is None or process_id is None:
        missing = "--num_processes" if num_processes is None else "--process_id"
        raise UserError(f"--coordinator {coordinator} needs {missing} too")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id {process_id} must be from 0 to {num_processes - 1} (--num_processes - 1)")
    if coordinator is not None and not _is_address(coordinator):
        raise UserError(f"--coordinator {coordinator} must be HOST:PORT, such as node1:12345")
    devices = None
    if local_size > 1:
        visible = environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = (0,) if visible and "," not in visible else (local_rank,)
    return Cluster(coordinator, num_processes, process_id, devices, scheduler)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return host != "" and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536


def _ask_scheduler(environ: Mapping[str, str]) -> tuple[str, int | None, int | None, int, int]:
    """Its name or "", then processes, this one's number, and both on this machine alone."""
    # A shell of `salloc` has SLURM's job, but only `srun` makes the steps that have a list of nodes.
    if "SLURM_STEP_NODELIST" in environ and (_number(environ, "SLURM_NTASKS") or 1) > 1:
        size = _number(environ, "SLURM_NTASKS") or 1
        nodes = _number(environ, "SLURM_STEP_NUM_NODES") or _number(environ, "SLURM_NNODES") or 1
        rank, local_rank = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID") or 0
        return "slurm", size, rank, -(-size // nodes), local_rank
    if (_number(environ, "OMPI_COMM_WORLD_SIZE") or 1) > 1:
        names = ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
        world, number, neighbours, place = (_number(environ, f"OMPI_COMM_WORLD_{name}") for name in names)
        # Open MPI 5 no longer tells where its head is, which JAX would take for the coordinator.
        scheduler = "ompi" if "OMPI_MCA_orte_hnp_uri" in environ else ""
        return scheduler, world, number, neighbours or 1, place or 0
    return "", None, None, 1, 0


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"the environment variable {name}={text} must be a number")
    return int(text)


def connect(cluster: Cluster | None, *, heartbeat_timeout: int) -> None:
    """Joins the processes, before any device is touched; a process alone has nothing to do.

    From then on, when one process dies, the others end within `heartbeat_timeout` seconds.

    Raises:
      UserError: what is wrong with the coordinator or the other processes, see `rendezvous.meet`.
      RunStopped: JAX cannot connect the processes.
    """
    if cluster is None or cluster.num_processes == 1:
        return
    if cluster.coordinator is not None:
        told = f"process {cluster.process_id} of {cluster.num_processes}: meeting at {cluster.coordinator}"
        tell_end(f"{told}, for up to {CONNECT_TIMEOUT} s")
        meet(cluster.coordinator, cluster.process_id, cluster.num_processes, timeout=CONNECT_TIMEOUT)
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    heartbeat_timeout = min(heartbeat_timeout, _LONGEST)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            local_device_ids=cluster.local_device_ids,
            cluster_detection_method=cluster.scheduler if cluster.coordinator is None else "deactivate",
            initialization_timeout=CONNECT_TIMEOUT,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except RuntimeError as error:
        told = f"the {cluster.num_processes} processes of the run do not come together"
        raise RunStopped(f"{told}: {first_line(error)}") from error
    if cluster.process_id > 0:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, it stays open


def check_shared(folder: Path) -> None:
    """Makes sure that all processes see one and the same folder: what process 0 writes to it.

    Raises:
      UserError: on those that do not see it.
      RunStopped: on the others.
    """
    if jax.process_count() == 1:
        return
    token = gather(secrets.token_hex(8))[0]
    file = folder / f".shared-{token}"
    try:
        if is_first():
            file.touch()
    except OSError as error:
        raise UserError(f"cannot write to the work folder {folder}: {error.strerror}") from error
    try:
        barrier("a file in the work folder")
        seen = _appears(file)
        everyone = gather(seen)
    finally:
        if is_first():
            file.unlink(missing_ok=True)
    if not seen:
        raise UserError(
            f"process {jax.process_index()} on {socket.gethostname()} does not see what process 0 writes to the work "
            f"folder {folder}, which must be one for all; give a --workdir that all machines share"
        )
    if not all(everyone):
        others = [number for number, theirs in enumerate(everyone) if not theirs]
        raise RunStopped(f"another work folder than {folder} on processes {others}, see their errors")


def _appears(file: Path) -> bool:
    """Whether a file is there, or comes within the time that network file systems take."""
    for _ in range(20):
        with suppress(OSError):
            file.stat()
            return True
        time.sleep(0.25)
    return False


def finish() -> None:
    """Waits until all processes are done, so that none takes another's end for a death."""
    if jax.process_count() > 1:
        barrier("the end of the run")
        jax.distributed.shutdown()


@contextmanager
def ending_together() -> Iterator[None]:
    """Ends one of several processes at once when something fails inside: the others would wait for it for ever.

    `RunStopped` and `Interrupted` are raised by all of them and may be handled in order.
    """
    try:
        yield
    except (RunStopped, Interrupted):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() > 1:
            print(f"process {jax.process_index()} on {socket.gethostname()} failed:", file=sys.stderr)
        end_if_several(error)
        raise


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def count() -> int:
    """Returns how many processes the run has."""
    return jax.process_count()


def end_if_several(error: BaseException) -> None:
    """Ends this process with an error that it alone has: the others, which may wait for it, end by its silence."""
    if jax.process_count() > 1:
        os._exit(cli.tell(error))


def is_first() -> bool:
    """Returns whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns a JSON value of each process, in their order, on all of them."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    lengths = multihost_utils.process_allgather(np.int32(len(text))).reshape(-1)
    padded = np.frombuffer(text.ljust(int(lengths.max()), b" "), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8).reshape(len(lengths), -1)
    return [json.loads(row.tobytes()) for row in rows]


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compares what each process believes, before anything is compiled from it.

    Args:
      facts: JSON values by what they are called in the complaint.

    Raises:
      UserError: on the processes that differ from process 0, naming the first difference.
      RunStopped: on the others.
    """
    everyone = gather(dict(facts))
    first, mine = everyone[0], everyone[jax.process_index()]
    names = (name for name in sorted(first.keys() | mine.keys()) if first.get(name) != mine.get(name))
    others = [number for number, theirs in enumerate(everyone) if theirs != first]
    if name := next(names, None):
        raise UserError(
            f"process {jax.process_index()} on {socket.gethostname()} has another {name} than process 0: "
            f"{mine.get(name)} instead of {first.get(name)}; run the same command on the same data everywhere"
        )
    if others:
        raise RunStopped(f"disagreement with process 0 on processes {others}, see their errors")
