#!/usr/bin/env bash
# Sets up .venv and runs all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh requirements-dev.txt
exec python -m pytest "$@"
