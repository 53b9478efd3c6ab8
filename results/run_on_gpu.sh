#!/usr/bin/env bash
# The whole suite on one NVIDIA GPU, offline, in steps that can be taken one at a time:
#
#     bash results/run_on_gpu.sh OUT [STEP…]      # all steps by default, the most telling first
#
# A step that is done (OUT/STEP.done) is not run again; one that fails or takes over 9 minutes leaves its output and the
# others go on. Cases that a step had finished when it was cut short are kept: run it again. PyTorch with CUDA,
# Transformers and the packages of the extra `perf` must be there; wheels in $WHEELS (xFormers, nvidia-cuda-runtime-cu12,
# …) are unpacked beside the results and put on the paths. PERF_GPU_DEVICE=cpu and PERF_GPU_SMALL=1 try all of it on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(environment tests single batched again eager components peers)

device=${PERF_GPU_DEVICE:-cuda}
site=$out/site
if [ -n "${WHEELS:-}" ] && [ ! -d "$site" ]; then
    python -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
export LD_LIBRARY_PATH=$site/nvidia/cuda_runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export HF_HUB_OFFLINE=1 PERF_STORE=$out/store COLUMNS=150

suite() { # suite NAME ARGUMENTS…: measure, and save as OUT/NAME.json; go on with what an earlier try had measured
    local name=$1 storage=$out/storage/$1 resume=()
    shift
    ! compgen -G "$storage/journal_*.jsonl" >/dev/null || resume=(--perf-resume)
    python -m pytest perf_tests -p no:cacheprovider --perf-device "$device" --perf-dataset synthetic \
        --benchmark-storage "file://$storage" --benchmark-json "$out/$name.json" "${small[@]}" "${resume[@]}" "$@"
}
small=()
[ -z "${PERF_GPU_SMALL:-}" ] || small=(-p tests.suite.small_checkpoints --perf-rounds 2 --perf-checkpoint tiny.en)
four=(-k "tiny.en-4 or small.en-12 or medium.en-24 or base.en-6")

step_environment() { python results/describe_environment.py >"$out/environment.json" && cat "$out/environment.json"; }
step_tests() { python -m pytest tests/model -p no:cacheprovider -q -m "cuda" -rs; }
step_single() { suite single --perf-preset paper --perf-setting single --perf-implementation original --perf-implementation flash; }
step_batched() { suite batched --perf-preset paper --perf-setting batched --perf-implementation original --perf-implementation flash; }
step_again() { # the same four cells twice: a gate that fires here cannot be trusted
    suite again-1 --perf-preset paper --perf-setting single --perf-implementation flash "${four[@]}" &&
        suite again-2 --perf-preset paper --perf-setting single --perf-implementation flash "${four[@]}" &&
        python -m perf_tests compare "$out/again-1.json" "$out/again-2.json" --json "$out/again.json"
}
step_eager() { suite eager --perf-preset paper --perf-implementation eager --perf-rounds "${PERF_GPU_EAGER_ROUNDS:-5}"; }
step_components() { suite components --perf-components; }
step_peers() { python -m perf_tests peers --json "$out/peers.json"; }

failed=0
for step in "${steps[@]}"; do
    if [ -e "$out/$step.done" ]; then
        echo "$step: done before"
        continue
    fi
    start=$SECONDS
    functions=$(declare -f suite "step_$step")
    variables=$(declare -p small four out device)
    timeout --signal INT --kill-after 30 540 bash -c "$variables; $functions; step_$step" >"$out/$step.log" 2>&1
    code=$?
    [ $code -ne 0 ] || touch "$out/$step.done"
    [ $code -eq 0 ] || failed=1
    printf '%-12s exit code %-4s %4d s   %s\n' "$step" "$code" $((SECONDS - start)) "$(grep -v '^ *$' "$out/$step.log" | tail -1)"
done
exit $failed
