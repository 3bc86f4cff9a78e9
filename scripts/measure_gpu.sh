#!/usr/bin/env bash
# Measures on this machine's GPUs what the documents say is not measured yet; one table of it all in OUT/summary.md.
#
# Usage: ./scripts/measure_gpu.sh OUT [PART...]     (in an environment with JAX for CUDA, see requirements-cuda13.txt)
#   PART  train infer infer-more variants flags profile peers peers-infer scaling input end-to-end quickstart resume
#         (all, in this order)
# Each part ends within BUDGET seconds (570): what does not fit is written to OUT/failures.txt, like what failed.
# A part can be repeated, on another day or in another call; the table shows all results that OUT holds.
#   FLAX_EXAMPLE=DIR  a checkout of flax's examples/imagenet, to be among the peers
#   DATA=DIR          real images for input and end-to-end, train/<class>/<image>; otherwise JPEGs are generated
#   SMALL=1           tiny networks and few steps, on a CPU too: does everything run?
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: $0 OUT [PART...]}
shift
all=(train infer infer-more variants flags profile peers peers-infer scaling input end-to-end quickstart resume)
[ $# -gt 0 ] || set -- "${all[@]}"
for part in "$@"; do
  if [[ " ${all[*]} " != *" $part "* ]]; then
    echo "error: no part $part; there are: ${all[*]}" >&2
    exit 2
  fi
done
mkdir -p "$out"
rm -f "$out/failures.txt"
budget=${BUDGET:-570}
# What one part compiled the others need not; the first result of each program says how long it takes.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/rn50-jax-compiled}

if [ -n "${SMALL:-}" ]; then
  device=cpu
  decoder=dali-cpu
  gpus=${SMALL_DEVICES:-1}
  recipe=(--config configs/quickstart.py --config.model.arch=resnet18 --config.model.width=8 "--config.model.stages=(1,1)")
  quick=(--config.model.arch=resnet18 --config.model.width=8 "--config.model.stages=(1,1)" --config.epochs=1)
  steps=(--steps 2 --warmup 1)
  few=()
  common=fp32
  rounds=(--rounds 1)
  batch=4 batches=2,4 latencies=1,2 images=64 workers=2 kills=1
else
  device=gpu
  decoder=dali-gpu
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv >"$out/gpus.csv"
  gpus=$(nvidia-smi --list-gpus | wc -l)
  recipe=(--config configs/dgxa100_90e.py)
  quick=()
  steps=(--steps 200 --warmup 20)
  few=(--steps 100 --warmup 10)
  common=bf16
  rounds=(--rounds 3)
  batch=256 batches=64,128,256,512 latencies=1,2,4,8,16,32,64,128,256,512 images=8192 workers=8 kills=5
fi
data=(--generated "$images")
[ -z "${DATA:-}" ] || data=("--config.data.dir=$DATA")

run() { # NAME COMMAND...: in what is left of the part's time; a failure is written down and does not stop the others
  local name=$1 left=$((budget - (SECONDS - started)))
  shift
  echo "== $name"
  if [ "$left" -le 0 ]; then
    echo "$name: not begun, the $budget s of its part were over" | tee -a "$out/failures.txt"
    return
  fi
  local code=0
  timeout "$left" "$@" >"$out/$name.log" 2>&1 || code=$?
  tail -n 3 "$out/$name.log"
  [ "$code" -eq 0 ] || echo "$name: exit code $code, see $name.log" | tee -a "$out/failures.txt"
}

bench() { # NAME ARGS...
  local name=$1
  shift
  run "$name" python -m rn50_jax.benchmark "${recipe[@]}" "${steps[@]}" --device "$device" \
    --json "$out/$name.json" --markdown "$out/$name.md" "$@"
}

step() { # one device, the batch that everything is compared at
  bench "$@" --devices 1 --batch_sizes "$batch"
}

train_part() {
  step train-precisions --precisions bf16,fp16,tf32,fp32
  bench train-batches --devices 1 --precisions bf16 --batch_sizes "$batches"
}

infer_part() {
  latencies_of bf16
  latencies_of fp32
}

infer-more_part() {
  latencies_of fp16
  latencies_of tf32
}

latencies_of() { # PRECISION
  bench "infer-$1" --mode infer --devices 1 --precisions "$1" --batch_sizes "$latencies"
}

variant() { # MODE KEY VALUE: one key other than its default
  step "variant-$1-${2##*.}-$3" "${few[@]}" --mode "$1" --precisions bf16 "--config.$2=$3"
}

variants_part() { # each other way of computing the step, alone, beside the default
  step variant-train-default "${few[@]}" --precisions bf16
  variant train model.fused_norm false
  variant train model.max_pool indexed
  variant train model.max_pool native
  variant train model.conv_lowering dot1x1
  variant train model.stem space_to_depth
  variant train model.stem conv
  variant train parallel shard_map
  step variant-infer-default "${few[@]}" --mode infer --precisions bf16
  variant infer model.fold_batch_norm off
}

flags() { # NAME FLAGS: of XLA
  step "flags-$1" "${few[@]}" --precisions bf16 "--config.run.xla_flags=$2"
}

flags_part() {
  step flags-none "${few[@]}" --precisions bf16
  flags command-buffers-off --xla_gpu_enable_command_buffer=
  flags latency-hiding --xla_gpu_enable_latency_hiding_scheduler=true
  flags conv-fusion --xla_gpu_experimental_enable_conv_fusion=true
  flags runtime-fusion --xla_gpu_use_runtime_fusion=true
  flags exhaustive-tiling --xla_gpu_exhaustive_tiling_search=true
}

profile_part() {
  step profile-train --precisions bf16 --profile "$out/trace-train"
  step profile-infer --mode infer --precisions bf16 --profile "$out/trace-infer"
}

beside() { # MODE PEERS
  [ -z "${SMALL:-}" ] || set -- "$1" torch
  [ "$1" = infer ] || [ -z "${FLAX_EXAMPLE:-}" ] || set -- "$1" "$2,flax-example=$FLAX_EXAMPLE"
  step "peers-$1" "${few[@]}" --mode "$1" --precisions "$common" --compare "$2" "${rounds[@]}"
}

peers_part() {
  beside train torch,torch-compile,timm
}

peers-infer_part() {
  beside infer torch,torch-compile,timm
}

scaling_part() {
  if [ "$gpus" -lt 2 ]; then
    echo "== scaling: there is one device"
    return
  fi
  bench scaling --precisions bf16,fp32 --batch_sizes "$batch" --scaling both
}

input_part() {
  local feed=(--mode input "${data[@]}" "${rounds[@]}" "--config.batch_size=$batch" "--config.data.workers=$workers")
  bench "input-$decoder" "${feed[@]}" --steps 20 --warmup 4 "--config.data.backend=$decoder"
  [ "$decoder" = dali-cpu ] || bench input-dali-cpu "${feed[@]}" --steps 20 --warmup 4 --config.data.backend=dali-cpu
}

end-to-end_part() {
  bench end-to-end --mode end-to-end "${data[@]}" "${rounds[@]}" --devices 1 "--config.batch_size=$batch" \
    "--config.data.workers=$workers" "--config.data.backend=$decoder"
}

quickstart_part() { # does the full training reach 96 % in every precision, decoded on the CPU and on the GPU?
  local name
  for name in bf16 bf16-dali-gpu fp16-static fp16-dynamic tf32 fp32; do
    local args=("--config.precision=${name%%-*}")
    case $name in
    bf16) args+=(--config.recipe.ema_decay=0.99) ;;
    bf16-dali-gpu) args+=("--config.data.backend=$decoder") ;;
    fp16-dynamic) args+=(--config.loss_scale.mode=dynamic) ;;
    esac
    rm -rf "$out/quickstart-$name"
    run "quickstart-$name" python -m rn50_jax.train --config configs/quickstart.py "${quick[@]}" \
      --workdir "$out/quickstart-$name" "${args[@]}"
  done
}

resume_part() { # is resuming exact here too?
  XLA_FLAGS="${XLA_FLAGS:-} $([ "$device" = cpu ] || echo --xla_gpu_deterministic_ops=true)" \
    run resume bash -c "python scripts/torture.py --kills $kills --damages 0 --deaths 0 >'$out/resume.json'"
}

for part in "$@"; do
  started=$SECONDS
  "${part}_part"
  echo "== part $part: $((SECONDS - started)) s"
done
python -m rn50_jax.bench.summary "$out"
[ ! -e "$out/failures.txt" ]
