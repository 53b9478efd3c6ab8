#!/usr/bin/env bash
# One visit to a machine with an NVIDIA GPU: `bash results/run_on_gpu.sh --help` says how.
exec python3 "$(dirname "$0")/visit.py" "$@"
