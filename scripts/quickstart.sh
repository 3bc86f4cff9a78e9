#!/usr/bin/env bash
# Sets up .venv and trains ResNet-50 on real handwritten digits: minutes on two CPU cores.
# For an NVIDIA GPU: REQUIREMENTS=requirements-cuda13.txt (or requirements-cuda12.txt) ./scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh "${REQUIREMENTS:-requirements.txt}"
# On a CPU, memory in pages of 2 MB makes training faster by a fifth or so, see docs/performance.md.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec python -m rn50_jax.train --config configs/quickstart.py "$@"
