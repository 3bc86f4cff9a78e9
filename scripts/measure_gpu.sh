#!/usr/bin/env bash
# Measures on this machine's GPUs what the README says is not measured yet; one result file each in OUT.
# Usage: ./scripts/measure_gpu.sh OUT     (in an environment with JAX for CUDA, see requirements-cuda13.txt)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: $0 OUT}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv >"$out/gpus.csv"

bench() { # NAME ARGS...: a failure is written down and does not stop the others
  local name=$1
  shift
  echo "== $name"
  python -m rn50_jax.benchmark --config configs/dgxa100_90e.py --json "$out/$name.json" "$@" 2>&1 | tee "$out/$name.log" ||
    echo "failed: $name" | tee -a "$out/failures.txt"
}
for precision in bf16 fp16 tf32 fp32; do
  bench "train-$precision-256" --mode train --steps 200 --warmup 20 --config.precision=$precision
  for batch in 1 256; do
    bench "infer-$precision-$batch" --mode infer --steps 200 --warmup 20 --config.precision=$precision --config.batch_size=$batch
  done
done
bench train-bf16-512 --mode train --steps 200 --warmup 20 --config.batch_size=512
bench train-bf16-256-shard_map --mode train --steps 200 --warmup 20 --config.parallel=shard_map

# The quick start in every precision, decoded on the CPU and on the GPU: does it reach 96 %?
quickstart() { # NAME ARGS...
  local name=quickstart-$1
  shift
  echo "== $name"
  python -m rn50_jax.train --config configs/quickstart.py --workdir "$out/$name" "$@" 2>&1 | tee "$out/$name.log" ||
    echo "failed: $name" | tee -a "$out/failures.txt"
}
quickstart bf16 --config.precision=bf16 --config.recipe.ema_decay=0.99
quickstart bf16-dali-gpu --config.precision=bf16 --config.data.backend=dali-gpu
quickstart fp16-static --config.precision=fp16
quickstart fp16-dynamic --config.precision=fp16 --config.loss_scale.mode=dynamic
quickstart tf32 --config.precision=tf32

# Is resuming exact here too?
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true" python scripts/torture.py --kills 5 --damages 0 \
  >"$out/torture.json" 2>"$out/torture.log" || echo "failed: torture" | tee -a "$out/failures.txt"
[ ! -e "$out/failures.txt" ]
