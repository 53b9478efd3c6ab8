#!/usr/bin/env bash
# The whole suite on one NVIDIA GPU, offline, in steps that can be taken one at a time:
#
#     bash results/run_on_gpu.sh OUT [STEP…]      # all steps by default, the most telling first, 25 minutes at most
#
# What must be there: Python 3.11 or newer as `python3` with pip, PyTorch with CUDA, Transformers, NumPy, SciPy.
# What else the suite imports is carried: results/collect_wheels.sh puts it into a folder, and $WHEELS names that folder
# here; it is unpacked into OUT, not installed.
#
# Each step leaves OUT/STEP.log, its results beside it, and its exit code in OUT/STEP.code. It is cut short after 9
# minutes, or when the 25 are over; the same command goes on with the cases that are missing. A step that is done is not
# run again, one that failed only where it is named. OUT is for one state of the sources: give another one after a change.
#
# PERF_GPU_DEVICE=cpu PERF_GPU_SMALL=1 tries all of it on a CPU, with models in miniature.
# PERF_GPU_STEP_SECONDS and PERF_GPU_SECONDS are other limits for a step and for all.
set -uo pipefail

if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
caller=$PWD
cd "$(dirname "$0")/.." || exit 2
out=$(cd "$caller" && mkdir -p "$1" && cd "$1" && pwd) || exit 2
wheels=${WHEELS:+$(cd "$caller" && cd "$WHEELS" && pwd)} || exit 2
shift
all=(environment tests single batched again kernels eager components peers)
steps=("${@:-${all[@]}}")
for step in "${steps[@]}"; do
    [[ " ${all[*]} " == *" $step "* ]] || { echo "run_on_gpu.sh: no step $step; there are: ${all[*]}" >&2; exit 2; }
done

# A flash round stands beside its control, so that fewer rounds than the tables' nominal 100 and 10 are enough.
single=(--perf-rounds 30) batched=(--perf-rounds 3) eager=(--perf-rounds 3) small=() contest=() narrow=()
cells=(-k "tiny.en-4 or base.en-6 or small.en-12 or medium.en-24")
device=${PERF_GPU_DEVICE:-cuda}
if [ -n "${PERF_GPU_SMALL:-}" ]; then
    small=(-p tests.suite.small_checkpoints -p tests.suite.short_batches --perf-checkpoint tiny.en)
    single=(--perf-rounds 2) batched=(--perf-rounds 1) eager=(--perf-rounds 1) contest=(--rounds 1) narrow=(--small)
fi

# Apart from the rest: what is on Python's path should not come with folders named `nvidia`.
site=$out/site cuda12=$out/cuda12
if [ -n "$wheels" ] && [ ! -d "$site" ]; then
    unpack=(python3 -m pip install --quiet --no-index --no-deps --no-compile --no-warn-conflicts)
    packages=() runtime=()
    for wheel in "$wheels"/*.whl; do
        case ${wheel##*/} in nvidia_cuda_runtime_*) runtime+=("$wheel") ;; *) packages+=("$wheel") ;; esac
    done
    rm -rf "$site.part" "$cuda12"
    "${unpack[@]}" --target "$site.part" "${packages[@]}" || exit 2
    [ ${#runtime[@]} -eq 0 ] || "${unpack[@]}" --target "$cuda12" "${runtime[@]}" || exit 2
    mv "$site.part" "$site"
fi
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
export LD_LIBRARY_PATH=$cuda12/nvidia/cuda_runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export HF_HUB_OFFLINE=1 PERF_STORE=$out/store COLUMNS=150 PYTHONUNBUFFERED=1

if [ "$device" != cpu ] && ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "run_on_gpu.sh: no GPU that PyTorch can use" >&2
    exit 2
fi

suite() { # suite NAME ARGUMENTS…: measure into OUT/NAME.json; where the process died, go on behind the case
    local name=$1 storage=$out/storage/$1 resume=() code
    shift
    for _ in 1 2 3 4 5; do
        ! compgen -G "$storage/journal_*.jsonl" >/dev/null || resume=(--perf-resume)
        python3 -m pytest perf_tests -p no:cacheprovider --perf-device "$device" --perf-dataset synthetic \
            --benchmark-storage "file://$storage" --benchmark-json "$out/$name.json" "${small[@]}" "${resume[@]}" "$@"
        code=$?
        # 4: pytest's word for options that cannot be
        if [ $code -eq 4 ] || ! compgen -G "$storage/journal_*.jsonl" >/dev/null; then
            break
        fi
    done
    return $code
}

step_environment() {
    python3 -m xformers.info >"$out/xformers.txt" 2>&1
    python3 results/describe_environment.py >"$out/environment.json" && cat "$out/environment.json"
}
step_tests() { # a warning of a library is no failure here, a graph that cannot be captured is
    python3 -m pytest tests/model/test_cuda.py -p no:cacheprovider -q -rs \
        -W default -W "error:Decoding without a CUDA graph:RuntimeWarning"
}
pair=(--perf-implementation original --perf-implementation flash)
step_single() { suite single --perf-preset paper --perf-setting single "${pair[@]}" "${single[@]}"; }
step_batched() { suite batched --perf-preset paper --perf-setting batched "${pair[@]}" "${batched[@]}"; }
step_again() { # the same four cells twice: a gate that fires here cannot be trusted
    for name in again-1 again-2; do
        [ -e "$out/$name.json" ] || suite "$name" --perf-preset paper --perf-setting single \
            --perf-implementation flash "${cells[@]}" "${single[@]}" || return
    done
    python3 -m perf_tests compare "$out/again-1.json" "$out/again-2.json" --json "$out/again.json"
}
step_kernels() { python3 results/measure_kernels.py --device "$device" "${narrow[@]}" >"$out/kernels.md" && tail -5 "$out/kernels.md"; }
step_eager() { suite eager --perf-preset paper --perf-implementation eager "${eager[@]}"; }
step_components() { suite components --perf-components --perf-preset quick; }
step_peers() { python3 -m perf_tests peers --only contest --json "$out/peers.json" "${contest[@]}"; }

set -m # a job of its own for each step, which hears Ctrl-C from the trap below
job='' stopped=''
trap 'stopped=interrupted; [ -z "$job" ] || kill -INT -- "-$job" 2>/dev/null' INT TERM
failed=0
for step in "${steps[@]}"; do
    before=$(cat "$out/$step.code" 2>/dev/null)
    left=$((${PERF_GPU_SECONDS:-1500} - SECONDS)) limit=${PERF_GPU_STEP_SECONDS:-510}
    case ${before:-none} in
    0) echo "$step: done before" && continue ;;
    none | 124 | 130 | 137) ;; # new, or cut short
    *) [ $# -gt 0 ] || { echo "$step: failed before ($before), see $step.log; name it to run it again" && failed=1 && continue; } ;;
    esac
    if [ -n "$stopped" ] || [ $left -lt 10 ]; then
        echo "$step: not begun, ${stopped:-no time is left}; the same command goes on" && failed=1 && continue
    fi
    start=$SECONDS
    functions=$(declare -f suite "step_$step")
    variables=$(declare -p out device small pair cells single batched eager contest narrow)
    timeout --signal INT --kill-after 30 $((left < limit ? left : limit)) \
        env --default-signal=INT bash -c "trap 'exit 130' INT; $variables; $functions; step_$step" \
        >>"$out/$step.log" 2>&1 </dev/null &
    job=$!
    wait "$job"
    code=$?
    while kill -0 "$job" 2>/dev/null; do wait "$job"; code=$?; done
    job=''
    echo $code >"$out/$step.code"
    [ $code -eq 0 ] || failed=1
    printf '%-12s exit code %-4s %4d s   %s\n' "$step" "$code" $((SECONDS - start)) "$(grep -v '^ *$' "$out/$step.log" | tail -1)"
done
exit $failed
