#!/usr/bin/env bash
# Sets up .venv and runs all tests in two processes, a file at a time; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh requirements-dev.txt
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
