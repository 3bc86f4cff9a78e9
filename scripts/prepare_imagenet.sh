#!/usr/bin/env bash
# ImageNet's official archives to class folders, which take 150 GB; no network is needed but to set up .venv.
# Usage: ./scripts/prepare_imagenet.sh ARCHIVES OUT [--check] [--pack SHARDS]
# ARCHIVES holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, as image-net.org gives
# them. The same command again goes on after an interruption. See docs/data.md.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
source scripts/setup.sh "${REQUIREMENTS:-requirements.txt}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
cd "$here"
exec python -m rn50_jax.prepare_imagenet "$@"
