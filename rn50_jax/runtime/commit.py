"""The git commit of the code that runs."""

import os
import re
import subprocess
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TIMEOUT = 5.0  # seconds for an answer of git's, on a slow file system


def find_commit(package: Path) -> str | None:
    """Returns the commit of the checkout that holds a package, with "+changes" if tracked files differ from it.

    The commit is read from git's files, so that git need not be there. Whether files differ only git can tell: where it
    is missing, or refuses a checkout of another user, they are taken for the same.

    Args:
      package: its folder.

    Returns:
      None where no checkout holds it: in an installed copy, or inside a repository that does not track it.
    """
    package = package.resolve()
    root = next((folder for folder in package.parents if (folder / ".git").exists()), None)
    if root is None:
        return None
    try:
        folder = _git_folder(root / ".git")
        file = (package / "__init__.py").relative_to(root).as_posix()
        if not (_is_listed(folder / "index", file) or _ask_git(root, "ls-files", "--error-unmatch", file)):
            return None
        commit = _read_head(folder) or ""
        if not _HASH.fullmatch(commit):  # as where a branch is another name of one
            commit = (_ask_git(root, "rev-parse", "HEAD") or "").strip()
    except (OSError, ValueError):
        return None
    if not _HASH.fullmatch(commit):
        return None
    changes = _ask_git(package.parent, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+changes" if changes else commit


def _git_folder(place: Path) -> Path:
    """What `.git` stands for: itself, or the folder that the file names, in a worktree or submodule."""
    if place.is_dir():
        return place
    return place.parent / place.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")


def _is_listed(index: Path, file: str) -> bool:
    """Whether git's list of tracked files has a file; False too for forms of the list that are rare."""
    name = file.encode()
    # In front of a name stands the lower byte of its length, behind it a zero.
    return bytes([len(name) & 0xFF]) + name + b"\0" in index.read_bytes()


def _read_head(folder: Path) -> str | None:
    """The commit that HEAD names, by itself or by a branch; None if files do not tell."""
    head = (folder / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    branch = head.removeprefix("ref: ")
    shared = folder / "commondir"
    common = folder / shared.read_text(encoding="utf-8").strip() if shared.is_file() else folder
    if (common / branch).is_file():
        return (common / branch).read_text(encoding="utf-8").strip()
    packed = common / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    return next((line.partition(" ")[0] for line in lines if line.partition(" ")[2] == branch), None)


def _ask_git(folder: Path, *words: str) -> str | None:
    """What git answers; None if it is missing, fails or takes too long."""
    # Variables of a git that called us would name another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=env | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
