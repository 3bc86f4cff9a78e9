#!/usr/bin/env bash
# Sets up .venv and runs the tests in two processes: all but those for the night, or all with FULL=1. Arguments go to
# pytest: `./scripts/test.sh -m "not slow"` is for the minutes between two edits.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # the tests start hundreds of processes
source scripts/setup.sh requirements-dev.txt
[ -z "${FULL:-}" ] || set -- -m "" "$@"
exec python -m pytest --numprocesses 2 --dist worksteal "$@"
