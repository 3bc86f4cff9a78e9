#!/usr/bin/env bash
# Usage: source scripts/setup.sh REQUIREMENTS_FILE
# Makes .venv if needed, installs the file into it unless that has been done, and activates it.
# PYTHON chooses the interpreter for a new .venv (default: python3), Python 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -x .venv/bin/python ]; then
  python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo "error: rn50-jax needs Python 3.11 to 3.13, and $python is not; choose one with PYTHON=python3.11 $0" >&2
    exit 2
  fi
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
stamp=".venv/installed-$1"
wanted=$(cat constraints.txt requirements*.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing $1"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$1" --constraint constraints.txt
  echo "$wanted" >"$stamp"
fi
# shellcheck disable=SC1091
source .venv/bin/activate
