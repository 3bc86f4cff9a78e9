"""Several processes as one run: real processes on this machine, and real deaths."""

import argparse
import random
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import QUICK_COMPILE, REPO, TINY, assert_user_error
from helpers.runs import PATIENCE, SMALL, final_arrays, free_port, read_lines

from rn50_jax.distributed.processes import Cluster, find_cluster
from rn50_jax.errors import UserError


def command(digits: Path, workdir: Path, *args: object, config: Path = REPO / "configs/quickstart.py") -> list[str]:
    options = ("--config", config, f"--config.data.dir={digits}", *TINY, *SMALL, "--workdir", workdir, *args)
    return [sys.executable, "-m", "rn50_jax.train", *map(str, options)]


@pytest.fixture
def env(process_env: dict[str, str]) -> dict[str, str]:
    return dict(process_env)


def launch(env: dict[str, str], processes: int, line: list[str], devices: int = 1) -> subprocess.CompletedProcess[str]:
    env = env | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}"}
    launcher = [sys.executable, str(REPO / "scripts/launch.py"), "--processes", str(processes), "--"]
    return subprocess.run([*launcher, *line], env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)


def without_times(workdir: Path) -> list[dict[str, object]]:
    timed = ("time", "ips", "latency", "goodput")
    return [{k: v for k, v in line.items() if not any(word in k for word in timed)} for line in read_lines(workdir)]


@pytest.mark.parametrize(
    ("processes", "devices", "options"),
    [
        pytest.param(2, 1, (), marks=pytest.mark.nightly),
        (2, 2, ("--config.compute.all_reduce=ordered", "--config.recipe.bn_group=2")),
    ],
    ids=["2x1", "2x2"],
)
@pytest.mark.slow
def test_processes_train_to_the_bits_of_one(
    env: dict[str, str], digits: Path, tmp_path: Path, processes: int, devices: int, options: tuple
) -> None:
    # XLA on CPU adds up a matrix product in as many parts as it has threads: one a device, but no fewer than this.
    env["NPROC"] = "4"
    together = launch(env, processes, command(digits, tmp_path / "several", *options), devices)
    assert together.returncode == 0, together.stderr
    alone = launch(env, 1, command(digits, tmp_path / "one", *options), processes * devices)
    assert alone.returncode == 0, alone.stderr
    assert final_arrays(tmp_path / "several") == final_arrays(tmp_path / "one")
    assert without_times(tmp_path / "several") == without_times(tmp_path / "one")
    # Only the first process tells and writes.
    assert len(re.findall("^run ", together.stdout, re.MULTILINE)) == 1
    assert len(re.findall("^curves ", together.stdout, re.MULTILINE)) == 1
    assert f"devices    {processes * devices} x CPU" in together.stdout
    written = {path.name for path in (tmp_path / "several").iterdir()}
    assert written == {path.name for path in (tmp_path / "one").iterdir()}
    resumed = launch(env, processes, command(digits, tmp_path / "several", "--config.epochs=2", *options), devices)
    assert resumed.returncode == 0 and "resuming after epoch 1" in resumed.stdout, resumed.stderr


INJECTED = """
import os, signal, sys, time
from pathlib import Path
from rn50_jax.config import loading
from rn50_jax.loggers.meters import Meters

def get_config():
    loaded, _ = loading.load({quickstart!r})
    return loaded

HERE = os.environ["RN50_TEST_PROCESS"] == {where!r}
steps = 0
add = Meters.add

def add_and_fail(self, metrics):
    global steps
    add(self, metrics)
    steps += 1
    if HERE and steps == 8:
        Path({failed!r}).touch()
        {what}

Meters.add = add_and_fail
"""


def start(
    env: dict[str, str], digits: Path, tmp_path: Path, what: str, *options: str, where: int = 1
) -> list[subprocess.Popen[str]]:
    config = tmp_path / "config.py"
    failed = str(tmp_path / "failed")
    text = INJECTED.format(quickstart=str(REPO / "configs/quickstart.py"), where=str(where), failed=failed, what=what)
    config.write_text(text)
    meeting = f"127.0.0.1:{free_port()}"
    processes = []
    for number in range(2):
        place = (f"--coordinator={meeting}", "--num_processes=2", f"--process_id={number}")
        line = command(digits, tmp_path / "run", "--config.run.heartbeat_timeout=10", *options, *place, config=config)
        pipe = subprocess.PIPE
        environment = env | {"RN50_TEST_PROCESS": str(number)}
        processes.append(subprocess.Popen(line, env=environment, cwd=REPO, stdout=pipe, stderr=pipe, text=True))
    return processes


def ends(processes: list[subprocess.Popen[str]], tmp_path: Path) -> Iterator[tuple[int, str]]:
    """Each process's exit code and errors, once all have ended: after the failure, and none waits for it for ever."""
    for process in processes:
        _, err = process.communicate(timeout=PATIENCE)
        yield process.returncode, err
    assert (tmp_path / "failed").exists()


@pytest.mark.parametrize("where", [pytest.param(0, marks=pytest.mark.nightly), 1])
@pytest.mark.slow
def test_one_that_raises_ends_all(env: dict[str, str], digits: Path, tmp_path: Path, where: int) -> None:
    codes = list(ends(start(env, digits, tmp_path, "raise RuntimeError('boom')", where=where), tmp_path))
    code, err = codes.pop(where)
    assert code == 1 and f"process {where} on " in err and "RuntimeError: boom" in err
    assert codes[0][0] != 0 and re.search("distributed service|Socket closed|heartbeat|RuntimeError", codes[0][1])


@pytest.mark.slow
def test_one_that_is_killed_ends_all(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    what = "os.kill(os.getpid(), signal.SIGKILL)"
    (first, err), (second, _) = ends(start(env, digits, tmp_path, what), tmp_path)
    assert second == -signal.SIGKILL and first != 0
    assert "heartbeat" in err or "Gloo" in err, err


@pytest.mark.slow
def test_one_that_hangs_ends_all_with_stacks(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    codes = list(ends(start(env, digits, tmp_path, "time.sleep(1e6)", "--config.run.hang_timeout=15"), tmp_path))
    assert all(code != 0 for code, _ in codes)
    code, err = codes[1]
    if code == 3:
        assert "was finished for" in err and "config.run.hang_timeout=15" in err and "add_and_fail" in err
    assert any(code == 3 and "Thread 0x" in err and "in train\n" in err for code, err in codes), codes


DIVERGED = """
import os
import jax
from rn50_jax.config import loading as config
from rn50_jax.distributed import devices as parallel

def get_config():
    loaded, _ = config.load({quickstart!r})
    return loaded

replicate = parallel.replicate

def replicate_wrongly(tree, mesh):
    if os.environ["JAX_PROCESS_ID"] == "1":
        tree = tree._replace(params=jax.tree.map(lambda x: x * 1.0001, tree.params))
    return replicate(tree, mesh)

parallel.replicate = replicate_wrongly
"""


@pytest.mark.slow
def test_processes_that_diverge_stop(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(DIVERGED.format(quickstart=str(REPO / "configs/quickstart.py")))
    done = launch(env, 2, command(digits, tmp_path / "run", config=config))
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert "the devices diverged by step 23: device 1 (process 1) with other values than device 0 in " in done.stderr
    assert not any(path.name.isdecimal() for path in (tmp_path / "run/checkpoints").iterdir())


def test_the_launcher_ends_what_is_left(env: dict[str, str], tmp_path: Path) -> None:
    script = "import os, sys, time; sys.exit(7) if os.environ['JAX_PROCESS_ID'] == '2' else time.sleep(1e6)"
    done = launch(env, 3, [sys.executable, "-c", script])
    assert done.returncode == 7
    assert "process 2 ended with code 7; ending the others" in done.stderr
    shares = "import os; os.write(1, '{JAX_PROCESS_ID} {CUDA_VISIBLE_DEVICES}\\n'.format(**os.environ).encode())"
    done = launch(env | {"CUDA_VISIBLE_DEVICES": "1,3,5,7"}, 2, [sys.executable, "-c", shares])
    assert sorted(done.stdout.splitlines()) == ["0 1,3", "1 5,7"]


def test_processes_that_disagree_are_told_so(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    meeting = f"127.0.0.1:{free_port()}"
    pipe, processes = subprocess.PIPE, []
    for number in range(2):
        place = (f"--coordinator={meeting}", "--num_processes=2", f"--process_id={number}", f"--config.seed={number}")
        line = command(digits, tmp_path / "run", *place)
        processes.append(subprocess.Popen(line, env=env, cwd=REPO, stdout=pipe, stderr=pipe, text=True))
    (_, first), (_, second) = [process.communicate(timeout=PATIENCE) for process in processes]
    assert processes[1].returncode == 2 and "has another config.seed than process 0: 1 instead of 0" in second
    assert processes[0].returncode != 0 and "disagreement with process 0 on processes [1]" in first
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))


def test_a_work_folder_that_is_not_shared_is_found(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    meeting = f"127.0.0.1:{free_port()}"
    pipe, processes = subprocess.PIPE, []
    for number in range(2):
        place = (f"--coordinator={meeting}", "--num_processes=2", f"--process_id={number}")
        line = command(digits, tmp_path / f"run{number}", *place, "--config.run.heartbeat_timeout=2147483647")
        processes.append(subprocess.Popen(line, env=env, cwd=REPO, stdout=pipe, stderr=pipe, text=True))
    (_, first), (_, second) = [process.communicate(timeout=PATIENCE) for process in processes]
    assert processes[1].returncode == 2 and f"process 1 on {socket.gethostname()} does not see" in second
    assert f"the work folder {tmp_path / 'run1'}, which must be one for all" in second
    assert processes[0].returncode == 3 and "another work folder than" in first
    assert all(len(err.splitlines()) == 2 for err in (first, second)), (first, second)  # the first: where they meet
    assert [list((tmp_path / name).iterdir()) for name in ("run0", "run1")] == [[], []]


@pytest.mark.slow
def test_the_slurm_script(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    # What `srun` does: as many processes as tasks, each with SLURM's variables.
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(
        "#!/usr/bin/env bash\n"
        "[[ $1 == --kill-on-bad-exit=1 ]] && shift\n"
        'for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!); done\n'
        'for pid in "${pids[@]}"; do wait "$pid" || exit 1; done\n'
    )
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    slurm = {
        "SLURM_JOB_ID": str(random.randrange(10**6)),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "PATH": f"{srun.parent}:{env['PATH']}",
    }
    script = (REPO / "scripts/train.sbatch").read_text().replace("source .venv/bin/activate\n", "")
    (tmp_path / "train.sbatch").write_text(script)
    options = command(digits, tmp_path / "run", "--config.run.prof=3", "--config.data.backend=synthetic")[3:]
    options.append("--config.data.synthetic_images=(640, 64)")
    line = ["bash", str(tmp_path / "train.sbatch"), *options]
    done = subprocess.run(line, env=env | slurm, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "devices    2 x CPU" in done.stdout and len(re.findall("step +3/", done.stdout)) == 1


def test_the_kubernetes_manifest() -> None:
    service, job = yaml.safe_load_all((REPO / "scripts/train-kubernetes.yaml").read_text())
    pods = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == pods and job["spec"]["completionMode"] == "Indexed"
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry.get("value", "1") for entry in container["env"]}
    found = find_cluster(arguments(), variables)
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert found == Cluster(f"{host}:12345", pods, 1, None, "")


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**({"coordinator": None, "num_processes": None, "process_id": None} | given))


SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_STEP_NUM_NODES": "2"}
SLURM |= {"SLURM_PROCID": "11", "SLURM_LOCALID": "3"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
OMPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("given", "environ", "wanted"),
    [
        ({}, {}, None),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 0}, {}, Cluster("a:1", 2, 0, None, "")),
        ({}, SLURM, Cluster(None, 16, 11, (3,), "slurm")),
        ({}, SLURM | {"CUDA_VISIBLE_DEVICES": "5"}, Cluster(None, 16, 11, (0,), "slurm")),
        ({}, SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, Cluster(None, 2, 1, None, "slurm")),
        ({}, SLURM | {"SLURM_NTASKS": "1"}, None),
        ({}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16"}, None),  # the shell of salloc
        ({}, OMPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://1.2.3.4:5"}, Cluster(None, 4, 2, (1,), "ompi")),
        ({"coordinator": "a:1"}, OMPI, Cluster("a:1", 4, 2, (1,), "")),
    ],
)
def test_a_process_finds_its_place(given: dict, environ: dict, wanted: Cluster | None) -> None:
    assert find_cluster(arguments(**given), environ) == wanted


@pytest.mark.parametrize(
    ("given", "environ", "message"),
    [
        ({"num_processes": 2}, {}, "need --coordinator HOST:PORT too"),
        ({"coordinator": "a:1", "num_processes": 2}, {}, "needs --process_id too"),
        ({"coordinator": "a:1"}, {}, "needs --num_processes too"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, {}, "--process_id 2 must be from 0 to 1"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 1}, {}, "must be HOST:PORT"),
        ({"coordinator": "a:0", "num_processes": 2, "process_id": 1}, {}, "must be HOST:PORT"),
        ({"coordinator": "a:65536", "num_processes": 2, "process_id": 1}, {}, "must be HOST:PORT"),
        ({"coordinator": ":123", "num_processes": 2, "process_id": 1}, {}, "must be HOST:PORT"),
        ({}, OMPI, "need --coordinator HOST:PORT too"),
        ({}, {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID=one must be a number"),
        ({}, {"JAX_PROCESS_ID": "1" * 5000}, "must be a number"),
    ],
)
def test_an_incomplete_place_is_refused(given: dict, environ: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        find_cluster(arguments(**given), environ)


@pytest.mark.slow
def test_a_coordinator_that_cannot_be(env: dict[str, str], digits: Path, tmp_path: Path) -> None:
    def run(meeting: str, number: int) -> subprocess.CompletedProcess[str]:
        place = (f"--coordinator={meeting}", "--num_processes=2", f"--process_id={number}")
        line = command(digits, tmp_path / "run", *place)
        done = subprocess.run(line, env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
        done.stderr = "\n".join(done.stderr.splitlines()[1:])  # the first says where they are to meet
        return done

    assert_user_error(run("no-such-host.invalid:12345", 1), "no-such-host.invalid:12345: the host is unknown")
    with socket.create_server(("", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        assert_user_error(run(taken, 0), taken, "choose another port")
