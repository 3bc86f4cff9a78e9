"""scripts/measure_gpu.sh: what it starts, in what time, and what is left of it whatever happens."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK_COMPILE, REPO
from helpers.programs import STANDIN
from helpers.project import copy_project
from helpers.runs import PATIENCE, wait_until

from rn50_jax import benchmark
from rn50_jax.config import loading
from rn50_jax.loggers.meters import Meters

SCRIPT = str(REPO / "scripts/measure_gpu.sh")
# A shell starts what is in the background with SIGINT ignored, and whoever is started so cannot trap it.
NOTICE = (
    "import os, signal, sys\n"
    "for number in (1, 2, 15): signal.signal(number, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
LISTENING = (sys.executable, "-c", NOTICE, SCRIPT)
ENV = {"SMALL": "1", "XLA_FLAGS": QUICK_COMPILE}
PARTS = (
    "first real precisions batches variants flags peers-infer timm flax-example resume latencies scaling quickstarts"
)
RESULT = {
    "hardware": {"platform": "cpu", "device": "CPU (a)", "devices": 1, "processor": "a", "cores": 2},
    "date": "2026-11-28T10:00:00+0000",
    "versions": {"jax": "1.0"},
    "input": {"image_size": 32, "workers": 2, "programs": [{"name": "torch DataLoader", "error": "no torch"}]},
}
# Stands for Python: answers what the script asks of it, but in place of what is to be measured runs $STANDIN.
PYTHON = """#!/bin/bash
case " $* " in
*" -c "* | *" -m pip "* | *bench.summary*) exec {python} "$@" ;;
esac
echo "$@" >>"$CALLS"
eval "$STANDIN"
"""


def measure(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command, env = [SCRIPT, *map(str, args)], os.environ | ENV | env
    return subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts `PYTHON` before all others; returns the file of its calls."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("STANDIN", "")
    put(tmp_path / "bin/python3", PYTHON.format(python=sys.executable))
    return tmp_path / "calls"


def put(program: Path, text: str) -> None:
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)


def missed(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/not_measured.txt").read_text().splitlines()


def test_unknown_part(tmp_path: Path) -> None:
    done = measure(tmp_path / "out", "first", "trian")
    assert (done.returncode, done.stderr) == (2, f"error: no part trian; there are: {PARTS}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], [""], ["--help"]])
def test_usage(words: list[str]) -> None:
    done = measure(*words)
    assert done.returncode == 2 and "Usage: " in done.stderr and PARTS in done.stderr
    assert "set -e" not in done.stderr and done.stderr.endswith("130 after a signal.\n")


@pytest.mark.parametrize("value", ["abc", "1.5", "-5", "08"])
@pytest.mark.parametrize("name", ["BUDGET", "TOTAL"])
def test_seconds_that_are_no_number(name: str, value: str, tmp_path: Path) -> None:
    done = measure(tmp_path / "out", "timm", **{name: value})
    assert (done.returncode, done.stderr) == (2, f"error: {name}={value} must be a whole number of seconds\n")
    assert not (tmp_path / "out").exists()


def test_folders_are_those_of_the_caller(tmp_path: Path, standin: Path) -> None:
    env = os.environ | ENV | {"FLAX_EXAMPLE": "my flax", "DATA": "my data"}
    subprocess.run(
        [SCRIPT, "my out", "flax-example", "real"], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, check=True
    )
    assert (tmp_path / "my out/summary.md").is_file()
    calls = standin.read_text()
    for given in ("--json {}/my out/", "--compare flax-example={}/my flax ", "--config.data.dir={}/my data "):
        assert given.format(tmp_path) in calls


def test_what_was_measured_before_stays(tmp_path: Path, standin: Path) -> None:
    out = tmp_path / "out"
    writes = f"""case "$*" in
      *batches.json*) echo "$N" >{out}/batches.json ;;
      *--workdir*) mkdir {out}/quickstart-bf16 && echo "$N" >{out}/quickstart-bf16/run.json ;;
    esac"""
    for number in ("first", "second", "third"):
        assert measure(out, "batches", "real", N=number, STANDIN=writes).returncode == 0
    for name in ("batches{}.json", "quickstart-bf16{}/run.json"):
        found = [(out / name.format(end)).read_text().strip() for end in ("-1", "-2", "")]
        assert found == ["first", "second", "third"]


def test_parts_run_in_order_within_their_seconds(tmp_path: Path, standin: Path) -> None:
    done = measure(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[2].strip(",") for line in done.stdout.splitlines() if line.endswith(" s") and "part" in line][
        ::2
    ] == PARTS.split()
    calls = standin.read_text().splitlines()
    names = [Path(call.partition("--json ")[2].split()[0]).stem if "--json" in call else "train" for call in calls]
    assert names[:6] == ["train", "infer", "train-largest", "train", "feed", "end-to-end"]
    assert all(int(call.partition("--budget=")[2].split()[0]) <= 570 for call in calls if ".benchmark" in call)
    assert [line.partition(":")[0] for line in missed(tmp_path)] == ["flax-example"]


def test_the_commands_for_a_gpu_are_accepted(tmp_path: Path, standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "bin/nvidia-smi", "#!/bin/sh\necho GPU 0\necho GPU 1\n")
    (tmp_path / "train.py").touch()
    done = measure(tmp_path / "out", SMALL="", FLAX_EXAMPLE=str(tmp_path))
    assert done.returncode == 0 and missed(tmp_path) == []
    begun: list[str] = []
    for name in ("_sweep", "_compare", "measure_input", "measure_end_to_end"):
        monkeypatch.setattr(benchmark, name, lambda *_, name=name, **__: begun.append(name))
    monkeypatch.setattr(benchmark, "_devices", lambda args: [None] * (args.devices or 2))
    monkeypatch.setattr(benchmark, "generated_folder", lambda count: tmp_path)
    monkeypatch.setattr(benchmark.jax_setup, "prepare_runtime", lambda *_: None)
    for call in standin.read_text().splitlines():
        words = call.split()
        if words[1] == "rn50_jax.benchmark":
            benchmark.main(words[2:])
        else:  # the quick start, also the one that is killed
            given = [word.removeprefix("--config.").split("=", 1) for word in words if word.startswith("--config.")]
            loading.load(str(REPO / "configs/quickstart.py"), [(key, value) for key, value in given])
    assert begun[:4] == ["_compare", "_sweep", "_sweep", "measure_input"]
    assert begun.count("_compare") == 4


@pytest.mark.parametrize("env", [{"TOTAL": "0"}, {"BUDGET": "0"}])
def test_what_does_not_fit_is_not_run(env: dict[str, str], tmp_path: Path, standin: Path) -> None:
    done = measure(tmp_path / "out", "first", "batches", **env)
    assert done.returncode == 0 and not standin.exists()
    told = [f"{part}: not begun, 0 s were left" for part in ("first", "batches")]
    assert missed(tmp_path) == told
    assert all(f"- {line}" in done.stdout for line in told)
    measure(tmp_path / "out", "batches")  # what is measured later is missing no more
    assert missed(tmp_path) == told[:1]


def test_a_limit_is_told_to_the_command_and_kept(tmp_path: Path, standin: Path) -> None:
    put(tmp_path / "bin/timeout", '#!/bin/bash\necho "$@" >>"$CALLS"\nexit 124\n')
    done = measure(tmp_path / "out", "batches", BUDGET="100")
    given = re.match(r"-s INT -k 15 (\d+) python3 -m rn50_jax.benchmark .* --budget=(\d+) ", standin.read_text())
    assert given and given[1] == given[2] and 0 < int(given[1]) <= 100
    assert done.returncode == 1
    assert missed(tmp_path) == [f"batches: ended at its limit of {given[1]} s"]


def test_a_failure_does_not_stop_the_others(tmp_path: Path, standin: Path) -> None:
    done = measure(tmp_path / "out", "batches", "timm", STANDIN='echo of no use; [[ "$*" == *timm* ]] || exit 3')
    assert done.returncode == 1 and len(standin.read_text().splitlines()) == 2
    assert missed(tmp_path) == ["batches: exit code 3, see batches.log"]
    assert (tmp_path / "out/batches.log").read_text() == "of no use\n"


def test_once_more_where_no_algorithm_passes_the_checks(tmp_path: Path, standin: Path) -> None:
    out = tmp_path / "out/batches.json"
    fails = f"""echo "$XLA_FLAGS" >>"$CALLS"; echo "$XLA_FLAGS" >{out}
      [[ $XLA_FLAGS == *strict_conv* ]] || {{ echo Autotuning failed for HLO; exit 1; }}"""
    done = measure(tmp_path / "out", "batches", STANDIN=fails, XLA_FLAGS="--of=mine")
    assert done.returncode == 0 and missed(tmp_path) == []
    flags = standin.read_text().splitlines()[1::2]
    assert flags == ["--of=mine", "--of=mine --xla_gpu_strict_conv_algorithm_picker=false"]
    assert [
        out.with_stem(name).read_text().strip() for name in ("batches-1", "batches")
    ] == flags  # the first one stays


def test_without_dali_the_rest_is_measured(tmp_path: Path, standin: Path) -> None:
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia/__init__.py").touch()  # a package of this name with no DALI in it
    done = measure(tmp_path / "out", "real", "batches", "resume", "quickstarts", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    (call,) = standin.read_text().splitlines()
    assert "batches.json" in call
    parts = ("real", "resume", "quickstarts")
    assert missed(tmp_path) == [f"{part}: DALI is not installed, which reads real files" for part in parts]


def test_what_torture_replaces_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    add = Meters.add
    monkeypatch.setattr(Meters, "add", add)  # is put back at the end
    text = importlib.import_module("torture").DEATH
    made: dict[str, Any] = {}
    exec(text.format(recipe=str(REPO / "configs/quickstart.py"), where="0", failed="", what="pass"), made)
    assert made["get_config"]().epochs and Meters.add is not add


def test_no_jax(tmp_path: Path) -> None:
    for name in ("python3", "python"):
        put(tmp_path / "bin" / name, "#!/bin/sh\nexit 1\n")
    done = measure(tmp_path / "out", PATH=f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 2 and "neither python3 nor python has jax" in done.stderr


def test_a_package_is_missing(tmp_path: Path, standin: Path) -> None:
    hides = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda name: None if name in {names} else f(name)"
    )
    (tmp_path / "sitecustomize.py").write_text(hides.format(names=("ml_collections", "pydantic")))
    done = measure(tmp_path / "out", "batches", PYTHONPATH=str(tmp_path))
    program = tmp_path / "bin/python3"
    assert done.returncode == 2
    told, hint = f"error: {program} lacks ml_collections pydantic", "install requirements.txt, or give their wheels"
    assert done.stderr == f"{told}; {hint} with WHEELS=DIR\n"
    assert not standin.exists() and not (tmp_path / "out").exists()


def test_wheels_are_used_and_not_installed(tmp_path: Path, standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/brought-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {
            "brought.py": "",
            "brought-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n",
            "brought-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "brought-1.0.dist-info/RECORD": "",
        }.items():
            wheel.writestr(name, text)
    monkeypatch.setenv("STANDIN", f'{sys.executable} -c "import brought; print(brought.__file__)"')
    done = measure(tmp_path / "out", "batches", WHEELS=str(tmp_path / "wheels"), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/batches.log").read_text() == f"{tmp_path}/rn50-jax-wheels/brought.py\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_what_runs_whose_result_is_kept(number: int, tmp_path: Path, standin: Path) -> None:
    # Stands for a benchmark that has one result, and writes another when it is told to end.
    works = f"""sleep 1000 & trap 'trap "" INT; cp "$1" "$2"; kill $!; exit 5' INT; touch {tmp_path}/running; wait"""
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    env = {"STANDIN": f"set -- {tmp_path}/result.json {tmp_path}/out/late.json; {works}"}
    script = subprocess.Popen(
        [*LISTENING, f"{tmp_path}/out", "batches", "timm"],
        env=os.environ | ENV | env,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until((tmp_path / "running").exists, script)
    script.send_signal(number)
    told, _ = script.communicate(timeout=PATIENCE)
    assert script.returncode == 130, told
    assert missed(tmp_path) == ["batches: exit code 5, see batches.log", "timm: not begun, a signal came"]
    assert "(late)" in (tmp_path / "out/summary.md").read_text()


@pytest.mark.slow
def test_a_benchmark_that_is_stopped_is_in_the_summary(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = subprocess.Popen(
        [*LISTENING, out, "batches", "timm", "peers-infer"],
        env=os.environ | ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def timed() -> list[int]:
        document = json.loads((out / "batches.json").read_text()) if (out / "batches.json").exists() else {}
        return [result["batch_size_per_device"] for result in document.get("results", [])]

    wait_until(lambda: timed() != [], script)
    script.send_signal(signal.SIGINT)
    told, _ = script.communicate(timeout=PATIENCE)
    assert script.returncode == 130, told
    assert timed()[0] == 6
    assert missed(tmp_path)[-1] == "peers-infer: not begun, a signal came"  # however late the signal came
    assert ["bf16", "1", "6"] in [
        [cell.strip() for cell in line.split("|")[1:4]] for line in (out / "summary.md").read_text().splitlines()
    ]


@pytest.mark.slow
def test_every_part_in_small(tmp_path: Path) -> None:
    copy_project(tmp_path / "project")
    for name, text in STANDIN.items():
        path = tmp_path / "imagenet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    out = tmp_path / "out"
    env = os.environ | ENV | {"FLAX_EXAMPLE": str(tmp_path / "imagenet"), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        ["scripts/measure_gpu.sh", out],
        env=env,
        cwd=tmp_path / "project",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[2].strip(",") for line in done.stdout.splitlines() if line.startswith("=== part")][
        ::2
    ] == PARTS.split()
    text = (out / "summary.md").read_text()
    assert text.count("\n## ") == 2 and text.endswith("Everything was measured.\n")
    assert "\nNot measured:" not in text  # there is a table of each kind
    for log in out.glob("*.log"):
        assert log.with_suffix(".json").exists() or (out / log.stem / "run.json").exists(), log
        assert log.stem in text or log.stem.startswith("quickstart-")
    assert list(out.rglob("*.xplane.pb"))
