#!/usr/bin/env bash
# Sets up .venv and trains ResNet-50 on real handwritten digits: minutes on two CPU cores.
# For an NVIDIA GPU: REQUIREMENTS=requirements-cuda13.txt (or requirements-cuda12.txt) ./scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh "${REQUIREMENTS:-requirements.txt}"
exec python -m rn50_jax.train --config configs/quickstart.py "$@"
