#!/usr/bin/env bash
# Wheels for results/run_on_gpu.sh, collected where there is a package index, for Linux on x86-64:
#
#     bash results/collect_wheels.sh DIR [PYTHON]      # PYTHON is the GPU machine's, by default 3.12
#     WHEELS=DIR bash results/run_on_gpu.sh OUT        # there
#
# About 7 MB, in the versions of constraints/cuda.txt. PyTorch, Transformers, NumPy and SciPy are the GPU machine's own.
# xFormers 0.0.35 is built for CUDA 12; beside a PyTorch for CUDA 13 it needs the runtime library of CUDA 12.
set -euo pipefail

if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
folder=$1 python=${2:-3.12}
constraints=$(dirname "$0")/../constraints/cuda.txt
download=(python3 -m pip download --quiet --dest "$folder" --constraint "$constraints" --only-binary :all:
    --implementation cp --python-version "$python")
for glibc in 28 17 12 5; do
    download+=(--platform "manylinux_2_${glibc}_x86_64")
done
download+=(--platform manylinux2014_x86_64)
# xFormers asks for PyTorch, which is there.
"${download[@]}" --no-deps xformers nvidia-cuda-runtime-cu12
"${download[@]}" filelock nvidia-ml-py orjson psutil pytest pytest-benchmark pytest-timeout rich
du -sh "$folder"
