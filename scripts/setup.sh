#!/usr/bin/env bash
# Usage: bash scripts/setup.sh REQUIREMENTS_FILE, or from another script source scripts/setup.sh REQUIREMENTS_FILE
# Makes .venv if needed, installs the file into it unless that has been done, and activates it for the script.
# PYTHON chooses the interpreter of a new .venv (default: the newest of Python 3.13, 3.12 and 3.11 that is there), VENV
# another folder for it. Installs with uv, several times as fast as pip; with pip where uv cannot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -f "${1:-}" ]; then
  echo "error: ${1:-no file} is no requirements file; give one of $(ls requirements*.txt | xargs)" >&2
  exit 2
fi

venv=${VENV:-.venv}
if [ ! -x "$venv/bin/python" ]; then
  python=${PYTHON:-$(scripts/find_python.sh 3.13 3.12 3.11 || echo python3)}
  if ! "$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    echo "error: rn50-jax needs Python 3.11 to 3.13 with venv, and $python is not; choose one with PYTHON=python3.13 $(printf %q "$0")" >&2
    exit 2
  fi
  echo "making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi

install_requirements() { # REQUIREMENTS_FILE
  local pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check) uv=uv
  local what=(--requirement "$1" --constraint constraints.txt)
  if ! command -v uv >/dev/null; then
    "${pip[@]}" install uv && uv=$venv/bin/uv
  fi
  # Where pip has been told to look, uv looks too.
  UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("${pip[@]}" config get global.index-url 2>/dev/null || true)}} \
    UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} \
    "$uv" pip install --quiet --python "$venv/bin/python" "${what[@]}" || "${pip[@]}" install "${what[@]}"
}

cuda() { [[ $1 == *cuda12* ]] && echo 12 || echo 13; }
for other in "$venv"/installed-requirements*.txt; do
  name=${other##*/installed-}
  if [ -e "$other" ] && [ "$(cuda "$name")" != "$(cuda "$1")" ]; then
    echo "error: $venv holds $name, whose DALI cannot live beside that of $1; choose another folder with VENV=" >&2
    exit 2
  fi
done

stamp="$venv/installed-$1"
wanted=$(cat constraints.txt requirements*.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing $1"
  install_requirements "$1"
  # uv leaves compiling to bytecode to the first start; where Python may not keep that, each start would do it anew.
  [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || "$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages || true
  echo "$wanted" >"$stamp"
fi
# shellcheck disable=SC1091
source "$venv/bin/activate"
