#!/usr/bin/env bash
# Sets up .venv and checks format, lint and types.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh requirements-dev.txt
ruff format --check .
ruff check .
mypy
# Text without an encoding would be read as the locale has it.
ruff check --preview --select PLW1514 rn50_jax configs scripts
