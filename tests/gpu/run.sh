#!/usr/bin/env bash
# What holds on a GPU, in at most six minutes on one of them; prints a table. Everything is drawn:
# neither data nor weights are needed. `--dry` goes through it on a CPU, with tiny networks.
#
#     pip install . && bash tests/gpu/run.sh [--dry]
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import torch; print("torch", torch.__version__)'
exec timeout 360 "$PYTHON" tests/gpu/measure.py "$@"
