#!/usr/bin/env bash
# Measures one GPU in at most ten minutes, and writes every table to a folder.
#
#   benchmarks/gpu.sh OUT          on a machine with a GPU
#   benchmarks/gpu.sh OUT tiny     the same commands with tiny shapes, on the CPU: a rehearsal
#
# A part that fails or takes too long leaves its log, and the next part begins. OUT/summary.md has
# all tables, with their commands, and how each part ended. PYTHON names another interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?give a folder for the results}" && cd "$1" && pwd)
size=${2:-full}
python=${PYTHON:-.venv/bin/python}
summary=$out/summary.md
export COLUMNS=160
began=$SECONDS failed=0

case $size in
  full)
    unset JAX_PLATFORMS
    ops="--tokens=32768 --segment=2048 --heads=8 --kv-heads=8 --head-dim=128 --dtype=bfloat16"
    paper="--config=configs/lm_paper.py --lengths=32768 --tokens=32768 --rounds=5"
    large="--config=configs/llm_1b.py --lengths=2048,32768,262144 --tokens=262144 --rounds=3"
    plain="--config=configs/llm_1b.py --lengths=32768 --tokens=262144 --rounds=1"
    decode="--config=configs/llm_1b.py --near=4096 --far=65536 --tokens=100"
    # 20 for the first lines, 45, 2 x 45, 150, 75, 60, 2 x 40, 20, and 5 to kill each of 9: 585.
    steps=200 seconds="45 45 150 75 60 40 20"
    ;;
  tiny)
    export JAX_PLATFORMS=cpu
    ops="--tokens=512 --segment=128 --heads=2 --kv-heads=1 --head-dim=16 --rounds=1"
    narrow="--config.model.width=64 --config.model.heads=2 --config.model.kv_heads=1"
    narrow="$narrow --config.model.head_dim=32 --config.model.ffn=128 --config.model.layers=2"
    narrow="$narrow --config.model.segment_length=64 --config.model.vocab_size=512"
    paper="--config=configs/lm_paper.py --lengths=256 --tokens=256 --rounds=1 $narrow"
    large="--config=configs/llm_1b.py --lengths=64,256 --tokens=256 --rounds=1 $narrow"
    plain="--config=configs/llm_1b.py --lengths=256 --tokens=256 --rounds=1 $narrow"
    decode="--config=configs/llm_1b.py --near=100 --far=300 --tokens=5 $narrow"
    steps=4 seconds="480 480 480 480 480 480 240"
    ;;
  *) echo "benchmarks/gpu.sh: $size: give tiny, or nothing" >&2; exit 2 ;;
esac
read -r t_ops t_paper t_large t_plain t_decode t_train t_compare <<<"$seconds"
one="--config.mesh.fsdp=1 --config.mesh.seq=1"

part() {  # title, seconds, command...
  local title=$1 most=$2 log status start=$SECONDS
  shift 2
  log=$out/$(tr -cs 'a-z0-9\n' '-' <<<"$title").log
  echo "$title ..."
  timeout --kill-after=5 "$most" "$@" >"$log" 2>&1
  status=$?
  ((status == 0)) || failed=$((failed + 1))
  {
    printf '## %s\n\n    %s\n\n' "$title" "${*/#$python/python}"
    ((status == 0)) || printf 'It ended with status %s (124: too slow); the end of its log:\n\n' $status
    printf '```\n'; tail -n 40 "$log"; printf '```\n\n%s s\n\n' $((SECONDS - start))
  } >>"$summary"
  echo "$title: status $status, $((SECONDS - start)) s"
}

{
  echo "# GPU, $(date -u +%F)"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null ||
    echo "no NVIDIA GPU: a rehearsal"
  timeout --kill-after=5 15 "$python" -c 'import jax, flax, sys; d = jax.devices()
print(f"{len(d)} x {d[0].device_kind}, jax {jax.__version__}, flax {flax.__version__}, "
      f"Python {sys.version.split()[0]}")'
  echo
} >"$summary"

train() {  # the name of the run, flags...
  local name=$1
  shift
  part "train, $name" "$t_train" "$python" train.py --config=configs/demo.py --workdir="$out/$name" \
    --config.data.path=docs --config.data.tokenizer=bytes --config.model.vocab_size=512 \
    --config.train.steps=$steps --config.train.eval_every=0 --config.train.log_every=1 \
    --config.data.lanes=4 "$@"
}

train "cuda" --config.run.compute_dtype=float32
JAX_PLATFORMS=cpu train "cpu" --config.run.compute_dtype=float32
part "losses compared" "$t_compare" "$python" - "$out/cuda" "$out/cpu" <<'PY'
import sys
import jax
jax.config.update("jax_platforms", "cpu")
from pathlib import Path
from infini_jax.runs.metrics import read_metrics

here, cpu = ({m["step"]: m["loss"] for m in read_metrics(Path(run))} for run in sys.argv[1:])
both = sorted(here.keys() & cpu.keys())
difference = {step: abs(here[step] - cpu[step]) / cpu[step] for step in both}
print(f"{'step':>6} {'here':>10} {'CPU':>10} {'difference':>11}")
for step in sorted({*both[:5], *both[:: max(1, len(both) // 5)], *both[-1:]}):
  print(f"{step:>6} {here[step]:>10.5f} {cpu[step]:>10.5f} {difference[step]:>11.1e}")
sys.exit(not both or max(difference[step] for step in both[:10]) > 1e-3)
PY
# shellcheck disable=SC2086
{
  part "ops" "$t_ops" "$python" benchmarks/ops.py $ops --json="$out/ops.json"
  for form in parallel kernels; do
    part "a step of the paper's model, $form" "$t_paper" "$python" benchmarks/train_step.py \
      $paper $one --config.run.implementation=$form --json="$out/paper-$form.json"
  done
  part "a step of 1.5B at fixed tokens, kernels" "$t_large" "$python" benchmarks/train_step.py \
    $large $one --config.run.implementation=kernels --json="$out/large.json"
  part "a step of 1.5B at fixed tokens, parallel" "$t_plain" "$python" benchmarks/train_step.py \
    $plain $one --config.run.implementation=parallel --json="$out/large-parallel.json"
  part "decoding with 1.5B" "$t_decode" "$python" benchmarks/decode.py $decode $one \
    --json="$out/decode.json"
}
echo "$((SECONDS - began)) s in all, $failed parts failed: $summary"
((failed == 0))
