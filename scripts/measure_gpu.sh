#!/usr/bin/env bash
# Measures on this machine's GPU what the documents say is not measured yet, what is worth most first; tables in OUT/summary.md.
#
# Usage: [NAME=VALUE...] ./scripts/measure_gpu.sh OUT [PART...]    (with JAX for CUDA, see requirements-cuda13.txt; installs nothing)
#   PART  first real precisions batches variants flags peers-infer timm flax-example resume latencies scaling quickstarts
# Without PART all of them, in this order. Each ends within its seconds, `budgets` below; what it had measured by then is kept. A part
# can be repeated, on another day or card: the results of before stay, as NAME-1.json and so on, and the tables keep them apart.
# OUT/not_measured.txt says what failed or was not run.
#   BUDGET=SECONDS    for each part, instead of its own
#   TOTAL=SECONDS     for all parts together: those that do not fit are not run; 780 fits into 15 minutes
#   FLAX_EXAMPLE=DIR  a checkout of flax's examples/imagenet
#   WHEELS=DIR        wheels of what is missing here, for a machine without a package index; they are not installed, but used
#   DATA=DIR          real images for part real, train/<class>/<image>; otherwise JPEGs are generated
#   SMALL=1           tiny networks and few steps, on a CPU too: does everything run?
# The exit code is 1 if something failed or was ended at its limit, 130 after a signal.
set -euo pipefail
refuse() { echo "error: $1" >&2 && exit 2; }
absolute() { [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"; } # PATH: one of the folder in which this was called
if [[ ${1:--} == -* ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
out=$(absolute "$1")
shift
[ -z "${DATA:-}" ] || DATA=$(absolute "$DATA")
[ -z "${WHEELS:-}" ] || WHEELS=$(absolute "$WHEELS")
[ -z "${FLAX_EXAMPLE:-}" ] || FLAX_EXAMPLE=$(absolute "$FLAX_EXAMPLE")
cd "$(dirname "$0")/.."
declare -A budgets=([first]=480 [real]=240 [precisions]=570 [batches]=240 [variants]=570 [flags]=480 [peers-infer]=300 [timm]=240
  [flax-example]=240 [resume]=240 [latencies]=570 [scaling]=570 [quickstarts]=570)
all=(first real precisions batches variants flags peers-infer timm flax-example resume latencies scaling quickstarts)
[ $# -gt 0 ] || set -- "${all[@]}"
for part in "$@"; do
  [ -n "${budgets[$part]:-}" ] || refuse "no part $part; there are: ${all[*]}"
done
for name in BUDGET TOTAL; do
  [[ ${!name:-0} =~ ^(0|[1-9][0-9]{0,8})$ ]] || refuse "$name=${!name} must be a whole number of seconds"
done
has() { "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1" 2>/dev/null; }
for python in python3 python none; do
  if has jax; then break; fi
done
[ "$python" != none ] || refuse "neither python3 nor python has jax; activate the environment that has it"
if [ -n "${WHEELS:-}" ]; then
  site=${TMPDIR:-/tmp}/rn50-jax-wheels
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
missing=$("$python" -c 'import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if not u.find_spec(name)))' \
  annotated_types flax ml_collections numpy optax orbax PIL pydantic pydantic_core rich safetensors typing_extensions typing_inspection)
[ -z "$missing" ] ||
  refuse "$(command -v "$python") lacks $missing; install requirements.txt, or give their wheels with WHEELS=DIR"
mkdir -p "$out" || refuse "cannot write to $out"
not_measured=$out/not_measured.txt no_algorithm='strict_conv_algorithm_picker|Autotuning failed|No valid config found' failed='' stopped='' child='' waiting=''
touch "$not_measured"
# Autotuning's results are kept there too, so that a program is cheaper for those before it.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/rn50-jax-compiled} PYTHONUNBUFFERED=1

if [ -n "${SMALL:-}" ]; then
  device=cpu decoder=dali-cpu gpus=2 least=1 baselines=torch common=fp32 batch=4 larger=6 largest=8 latencies=1,2 images=20 workers=2 kills=1
  tiny=(--config.model.arch=resnet18 --config.model.width=8 "--config.model.stages=(1,)")
  recipe=(--config configs/quickstart.py "${tiny[@]}") quick=("${tiny[@]}" --config.epochs=1)
  steps=(--steps 2 --warmup 1) feed=(--steps 2 --warmup 1) modes=(infer) beside=4 every=fp32
  variants=(compute.impl=plain) quickstarts=(fp16-dynamic)
  killed=(--config.epochs=2 --config.precision=fp32 "--config.model.stages=(1,)")
else
  device=gpu decoder=dali-gpu least=60 baselines=torch-compile,torch common=bf16 batch=256 larger=400 largest=512
  latencies=1,2,4,8,16,32,64,128,256,512 images=2048 workers=8 kills=3
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
  recipe=(--config configs/dgxa100_90e.py) quick=() killed=(--config.precision=bf16 --config.loss_scale.mode=static)
  steps=(--steps 200 --warmup 20) feed=(--steps 40 --warmup 4) modes=(train infer) beside=256,1 every=bf16,fp16,tf32,fp32
  variants=(compute.impl=plain) quickstarts=(bf16-dali-gpu fp16-static fp16-dynamic tf32 fp32)
fi
data=(--generated "$images")
[ -z "${DATA:-}" ] || data=("--config.data.dir=$DATA")

left() { echo $((deadline > SECONDS ? deadline - SECONDS : 0)); }
miss() { # NAME WHY: it is not measured
  forget "$1"
  echo "$1: $2" | tee -a "$not_measured"
}
forget() { sed -i "/^$1: /d" "$not_measured"; } # NAME: what an earlier call has missed
keep() { # NAME: what an earlier call has measured, under a name of its own
  local number=1
  [ -e "$out/$1.json" ] || [ -e "$out/$1" ] || return 0
  while [ -e "$out/$1-$number.json" ] || [ -e "$out/$1-$number" ]; do number=$((number + 1)); done
  [ ! -e "$out/$1.json" ] || mv "$out/$1.json" "$out/$1-$number.json"
  [ ! -e "$out/$1" ] || mv "$out/$1" "$out/$1-$number"
}
fits() {                                    # SECONDS NAME: whether so many are worth beginning it
  [ -z "$stopped" ] || miss "$2" "not begun, a signal came"
  [ -n "$stopped" ] || [ "$1" -ge "$least" ] || miss "$2" "not begun, $1 s were left"
  [ -z "$stopped" ] && [ "$1" -ge "$least" ]
}

stop() { # passes the signal on to what runs, whose results are then kept
  stopped=yes waiting=''
  [ -z "$child" ] || kill -INT "$child" 2>/dev/null || true
}
trap stop INT TERM HUP

attempt() { # SECONDS LOG COMMAND...: ended with SIGINT at its limit, with SIGKILL 15 s later; "--budget=left" is replaced by the limit
  local limit=$1 log=$2 code=0
  shift 2
  set -m # a process group of its own, in which SIGINT is not ignored
  timeout -s INT -k 15 "$limit" "${@/#--budget=left/--budget=$limit}" >"$log" 2>&1 </dev/null &
  child=$!
  set +m
  until # a signal ends the wait, not the command
    waiting=yes code=0
    wait "$child" || code=$?
    [ -n "$waiting" ]
  do :; done
  child=''
  return "$code"
}

run() { # SECONDS NAME COMMAND...: in what is left of the part's time; what fails is written down and does not stop the others
  local limit=$1 name=$2 log=$out/$2.log code=0
  shift 2
  [ "$limit" -lt "$(left)" ] || limit=$(left)
  fits "$limit" "$name" || return 0
  forget "$name"
  keep "$name"
  echo "== $name, at most $limit s"
  attempt "$limit" "$log" "$@" || code=$?
  if [ "$code" -ne 0 ] && grep -qsE "$no_algorithm" "$log" "$out/$name.json" && fits "$(left)" "$name"; then
    echo "== $name once more: XLA found no algorithm for a convolution, and may now take one that fails its checks"
    mv "$log" "$out/$name.strict.log"
    keep "$name"
    code=0
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_strict_conv_algorithm_picker=false" attempt "$(left)" "$log" "$@" || code=$?
  fi
  tail -n 5 "$log"
  [ "$code" -ne 0 ] || return 0
  failed=yes
  case $code in
  124 | 137) miss "$name" "ended at its limit of $limit s" ;;
  *) miss "$name" "exit code $code, see $name.log" ;;
  esac
}

bench() { # SECONDS NAME ARGS...
  local limit=$1 name=$2
  shift 2
  run "$limit" "$name" "$python" -m rn50_jax.benchmark "${recipe[@]}" --device "$device" --json "$out/$name.json" --budget=left "$@"
}

one() { bench "$@" --devices 1 "${steps[@]}"; } # on one device

train() { # SECONDS NAME ARGS...: the quick start
  local limit=$1 name=$2
  shift 2
  run "$limit" "$name" "$python" -m rn50_jax.train --config configs/quickstart.py "${quick[@]}" --workdir "$out/$name" "$@"
}

needs_dali() { has nvidia.dali || { miss "$part" "DALI is not installed, which reads real files" && false; }; }

first_part() { # training cold, as PyTorch beside it, and profiled in the same call
  one 340 train --precisions "$common" --batch_sizes "$batch" --profile "$out/trace-train" --compare "$baselines" --rounds 1
  one 480 infer --mode infer --precisions "$common" --batch_sizes "1,$batch"
  one 480 train-largest --precisions "$common" --batch_sizes "$largest"
}

real_part() { # does the quick start reach 96 %; the loader alone; training on real files
  local real=(--rounds 1 "${data[@]}" "--config.batch_size=$batch" "--config.data.workers=$workers" "--config.data.backend=$decoder")
  needs_dali || return 0
  train 120 quickstart-bf16 --config.precision=bf16
  bench 100 feed --mode input "${real[@]}" "${feed[@]}"
  bench 240 end-to-end --mode end-to-end "${real[@]}" --config.precision="$common" --devices 1 "${feed[@]}"
}

precisions_part() {
  one 570 precisions --precisions bf16,tf32,fp32 --batch_sizes "$batch"
  one 570 loss-scales --precisions fp16 --batch_sizes "$batch" --vary loss_scale.mode=dynamic
}

batches_part() { one 240 batches --precisions bf16 --batch_sizes "$larger,$largest"; }
timm_part() { one 240 timm --precisions "$common" --batch_sizes "$batch" --compare timm --rounds 1; }
peers-infer_part() { one 300 peers-infer --mode infer --precisions "$common" --batch_sizes "$beside" --compare "$baselines" --rounds 1; }
latencies_part() { one 570 latencies --mode infer --precisions "$every" --batch_sizes "$latencies"; }

variants_part() { # one key each
  one 570 variants-infer --mode infer --precisions bf16 --batch_sizes "$batch" --vary compute.fold_batch_norm=off
  one 570 variants-train --precisions bf16 --batch_sizes "$batch" "${variants[@]/#/--vary=}"
}

flags_part() { # of XLA's command buffers; a process reads them once
  local mode
  for mode in "${modes[@]}"; do
    local sizes=(--mode "$mode" --precisions bf16 --batch_sizes "$([ "$mode" = train ] && echo "$batch" || echo 1)")
    one 160 "flags-$mode-default" "${sizes[@]}"
    one 160 "flags-$mode-off" "${sizes[@]}" --config.compute.xla_flags=--xla_gpu_enable_command_buffer=
    one 160 "flags-$mode-convolution" "${sizes[@]}" --config.compute.xla_flags=--xla_gpu_enable_command_buffer=+CONVOLUTION
  done
}

flax-example_part() {
  if [ -z "${FLAX_EXAMPLE:-}" ]; then
    miss flax-example "FLAX_EXAMPLE names no checkout of flax's examples/imagenet"
  else
    one 240 flax-example --precisions "$common" --batch_sizes "$batch" --compare "flax-example=$FLAX_EXAMPLE" --rounds 1
  fi
}

resume_part() { # do killed runs go on to the same bits
  needs_dali || return 0
  XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true" run 240 resume "$python" scripts/torture.py --kills "$kills" \
    --damages 0 --deaths 0 --running --json "$out/resume.json" -- "${killed[@]}"
}

scaling_part() {
  if [ "$gpus" -lt 2 ]; then
    miss scaling "there is one device"
  else
    bench 570 scaling --precisions bf16 --batch_sizes "$batch" --scaling both "${steps[@]}"
  fi
}

quickstarts_part() {
  local name
  needs_dali || return 0
  for name in "${quickstarts[@]}"; do
    local args=("--config.precision=${name%%-*}")
    case $name in
    bf16-dali-gpu) args+=("--config.data.backend=$decoder") ;;
    fp16-dynamic) args+=(--config.loss_scale.mode=dynamic) ;;
    esac
    train 240 "quickstart-$name" "${args[@]}"
  done
}

nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || true
for part in "$@"; do
  started=$SECONDS budget=${BUDGET:-${budgets[$part]}}
  if [ -n "${TOTAL:-}" ]; then
    rest=$((TOTAL > SECONDS ? TOTAL - SECONDS : 0))
    [ "$budget" -le "$rest" ] || budget=$rest
  fi
  deadline=$((SECONDS + budget))
  fits "$(left)" "$part" || continue
  forget "$part"
  echo "=== part $part, at most $budget s"
  "${part}_part"
  echo "=== part $part took $((SECONDS - started)) s"
done
trap '' INT TERM HUP
"$python" -m rn50_jax.bench.summary "$out"
[ -z "$stopped" ] || exit 130
[ -z "$failed" ]
