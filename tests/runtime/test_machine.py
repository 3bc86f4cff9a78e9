"""What is written down about GPUs, libraries and code, with an nvidia-smi, packages and checkouts made for it."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import pytest

import rn50_jax
from rn50_jax.bench.report import as_markdown, make_header
from rn50_jax.runtime.machine import describe_machine, find_commit, gpu_lines, read_gpus, versions

# Answers by the names of nvidia-smi's help, so that a mistaken or misplaced field shows.
FIRST = {
    "name": "NVIDIA H200",
    "driver_version": "580.95.05",
    "memory.total": "143771",
    "power.limit": "700.00",
    "clocks.sm": "345",
    "clocks.max.sm": "1980",
    "clocks.mem": "1593",
    "clocks.max.mem": "3201",
}
H200 = {
    "name": "NVIDIA H200",
    "driver": "580.95.05",
    "memory_mib": 143771.0,
    "power_limit_w": 700.0,
    "sm_clock_mhz": 345.0,
    "max_sm_clock_mhz": 1980.0,
    "memory_clock_mhz": 1593.0,
    "max_memory_clock_mhz": 3201.0,
}
GPU = cast(list[jax.Device], [SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")])


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder


def answering(folder: Path, *gpus: dict[str, str]) -> Path:
    """A folder with an nvidia-smi that has these GPUs."""
    return script(
        folder,
        "nvidia-smi",
        f"#!{sys.executable} -IS\nimport sys\nassert sys.argv[2] == '--format=csv,noheader,nounits'\n"
        f"fields = sys.argv[1].removeprefix('--query-gpu=').split(',')\n"
        f"for gpu in {gpus!r}:\n    print(', '.join(gpu[field] for field in fields))\n",
    )


def test_gpus_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = FIRST | dict.fromkeys(("clocks.sm", "clocks.max.sm", "memory.total"), "[N/A]")
    odd = bare | {"name": "[Unknown Error]", "power.limit": "[Not Supported]"}
    monkeypatch.setenv("PATH", str(answering(tmp_path / "bin", FIRST, odd)))
    gpus, problem = read_gpus()
    assert problem is None and gpus[0] == H200
    unknown = dict.fromkeys(("name", "memory_mib", "power_limit_w", "sm_clock_mhz", "max_sm_clock_mhz"))
    assert gpus[1] == H200 | unknown
    assert gpu_lines(gpus) == [
        "1 x NVIDIA H200, driver 580.95.05, 143,771 MiB, 700 W power limit, SM clock up to 1,980 MHz, "
        "memory clock up to 3,201 MHz",
        "1 x GPU, driver 580.95.05, memory clock up to 3,201 MHz",
    ]
    assert json.loads(json.dumps(gpus)) == gpus


def test_alike_gpus_share_a_line() -> None:
    gpus = [H200, H200 | {"sm_clock_mhz": 1980.0}]
    assert gpu_lines(gpus)[0].startswith("2 x NVIDIA H200, ") and len(gpu_lines(gpus)) == 1
    for odd in (None, {}, "x", [1, "x", None]):
        assert gpu_lines(odd) == []
    assert gpu_lines([{"name": 5, "sm_clock_mhz": "x"}]) == ["1 x 5"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "Failed to initialize NVML: "),
        ("echo 'No devices were found'; exit 6", "No devices were found"),
        ("echo 'No devices were found'", "No devices were found"),
        ("echo broken >&2; exit 1", "broken"),
        ("exit 1", "exit code 1"),
        ("exec /bin/sleep 1000", "no answer within 0.2 s"),
        (None, "No such file or directory"),
    ],
)
def test_an_nvidia_smi_that_tells_nothing(
    text: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = script(tmp_path / "bin", "nvidia-smi" if text else "other", f"#!/bin/sh\n{text}\n")
    monkeypatch.setenv("PATH", str(folder))
    gpus, told = read_gpus(timeout=0.2 if "sleep" in str(text) else 60)
    assert gpus == [] and told is not None and told.startswith(problem)


def test_one_gpu_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, lost = ", ".join(FIRST.values()), "Unable to determine the device handle for GPU0001: Unknown Error"
    monkeypatch.setenv(
        "PATH", str(script(tmp_path / "bin", "nvidia-smi", f"#!/bin/sh\necho '{row}\n{lost}'\nexit 15\n"))
    )
    assert read_gpus() == ([H200], lost)


def test_facts_of_a_gpu_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"jax-cuda13-plugin": "1.2", "jax-cuda13-pjrt": "1.3", "nvidia-nccl-cu13": "2.9", "torch": "7"}
    for name, version in packages.items():
        info = tmp_path / f"site/{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PATH", f"{answering(tmp_path / 'bin', FIRST, FIRST)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("OTHER_SECRET", "x")
    monkeypatch.setitem(sys.modules, "torch", None)  # its version is known without loading it

    facts = describe_machine(GPU)
    assert facts["gpus"] == [H200, H200] and "nvidia_smi" not in facts
    assert facts["environment"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"] and facts["environment"]["NCCL_DEBUG"] == "INFO"
    assert "OTHER_SECRET" not in facts["environment"]
    found = facts["versions"]
    assert versions().items() <= found.items() and packages.items() <= found.items()

    # Without a GPU in use, its tool is not even called, nor do its libraries matter; a plugin that is there does.
    script(tmp_path / "bin", "nvidia-smi", f"#!/bin/sh\ntouch {tmp_path}/called\n")
    on_cpu = describe_machine(jax.devices()[:1])
    assert not (tmp_path / "called").exists() and "gpus" not in on_cpu
    assert on_cpu["versions"]["jax-cuda13-plugin"] == "1.2"
    assert "nvidia-nccl-cu13" not in on_cpu["versions"]

    script(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\necho broken\nexit 1\n")
    facts = describe_machine(GPU)
    assert (facts["gpus"], facts["nvidia_smi"]) == ([], "broken")


def test_the_benchmarks_record_and_page_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{answering(tmp_path / 'bin', FIRST)}{os.pathsep}{os.environ['PATH']}")
    document = make_header(["--mode", "infer"], GPU)
    assert document["hardware"]["driver"] == "580.95.05" and document["gpus"] == [H200]
    text = as_markdown(document | {"commit": "abc+changes"})
    assert "- GPUs as read: 1 x NVIDIA H200, driver 580.95.05, 143,771 MiB" in text and "- commit: abc+changes" in text
    assert f"jax {importlib.metadata.version('jax')}" in text and "- XLA_FLAGS: `--xla" in text
    script(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\necho broken\nexit 1\n")
    document = make_header([], GPU)
    assert "driver" not in document["hardware"] and "- nvidia-smi: broken" in as_markdown(document)


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed package `project/code`."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    project = tmp_path / "project"
    (project / "code").mkdir(parents=True)
    (project / "code/__init__.py").write_text("x = 1\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    return project


def test_the_commit_is_that_of_the_whole_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("rn50_jax.runtime.machine.find_commit", asked.append)
    describe_machine(jax.devices())
    assert asked == [Path(rn50_jax.__file__).parent]


def test_the_commit_of_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, first = checkout / "code", git(checkout, "rev-parse", "HEAD")
    assert find_commit(package) == first
    (checkout / "metrics.jsonl").write_text("")  # of a run, not of the code
    assert find_commit(package) == first
    (package / "__init__.py").write_text("x = 2\n")
    assert find_commit(package) == f"{first}+changes"
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))  # of a git that called us
    assert find_commit(package) == f"{first}+changes"
    monkeypatch.delenv("GIT_DIR")

    git(checkout, "commit", "-qam", "second")
    second = git(checkout, "rev-parse", "HEAD")
    git(checkout, "pack-refs", "--all", "--prune")
    assert not (checkout / ".git/refs/heads/main").exists() and find_commit(package) == second != first
    git(checkout, "symbolic-ref", "refs/heads/same", "refs/heads/main")
    git(checkout, "symbolic-ref", "HEAD", "refs/heads/same")  # a branch that is another name of one
    assert find_commit(package) == second
    git(checkout, "checkout", "-q", "--detach", first)
    assert find_commit(package) == first
    git(checkout, "update-index", "--index-version", "4")  # in which names are not whole
    assert find_commit(package) == first


def test_the_commit_of_a_worktree_and_without_git(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, first = tmp_path / "tree", git(checkout, "rev-parse", "HEAD")
    git(checkout, "worktree", "add", "-q", str(tree), "-b", "other")
    (tree / "code/__init__.py").write_text("x = 3\n")
    git(tree, "commit", "-qam", "third")
    third = git(tree, "rev-parse", "HEAD")
    assert (tree / ".git").is_file() and find_commit(tree / "code") == third != first
    # Nothing is known where git is missing, or refuses another user's checkout.
    for refusal in (None, "echo 'fatal: detected dubious ownership' >&2; exit 128"):
        folder = script(tmp_path / "bin", "git" if refusal else "other", f"#!/bin/sh\n{refusal}\n")
        monkeypatch.setenv("PATH", str(folder))
        assert find_commit(checkout / "code") is None


def test_code_that_no_checkout_holds(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = shutil.copytree(checkout, tmp_path / "copy")
    shutil.rmtree(copied / ".git")
    assert find_commit(copied / "code") is None
    inside = shutil.copytree(copied, checkout / "vendor")  # of a repository that does not track it
    beside = shutil.copytree(copied / "code", checkout / "more/code")
    assert find_commit(inside / "code") is None and find_commit(beside) is None
    git(checkout, "add", "vendor")
    git(checkout, "commit", "-qm", "with it")
    assert find_commit(inside / "code") == git(checkout, "rev-parse", "HEAD")
    for name, text in (("HEAD", "ref: refs/heads/none"), ("HEAD", "ref: ../../x"), ("index", "")):
        broken = shutil.copytree(checkout, tmp_path / f"broken-{name}-{len(text)}")
        (broken / ".git" / name).write_text(text)
        assert find_commit(broken / "code") is None
    (copied / ".git").write_text("gitdir: /nowhere\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_commit(copied / "code") is None


def test_describing_costs_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    facts: dict[str, Any] = describe_machine(jax.devices()[:1])
    assert facts["versions"]["torch"] and not {"torch", "nvidia.dali"} & (set(sys.modules) - before)
