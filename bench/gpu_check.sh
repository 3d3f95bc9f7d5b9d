#!/bin/sh
# On a machine with a GPU: builds the kernels for it, checks them against float64, times them beside PyTorch, which writes
# results/gpu.md (or $1), and checks memory and races with compute-sanitizer. Ends within 10 minutes. PYTHON: the interpreter that has PyTorch.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:-bench/results/gpu.md}

XMPLUG_CUDA_ARCHITECTURES=$("$python" -c '
import sys
try:
    import torch
except ImportError:
    sys.exit("gpu_check.sh: set PYTHON to an interpreter that has PyTorch")
if not torch.cuda.is_available():
    sys.exit("gpu_check.sh: PyTorch sees no GPU")
major, minor = torch.cuda.get_device_capability()
print(f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else ""))')
export XMPLUG_CUDA_ARCHITECTURES XMPLUG_BUILD=cuda XMPLUG_KERNELS=native PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" setup.py --quiet build_ext --inplace
timeout 200 "$python" -m pytest -q -m cuda tests/cuda
timeout 200 "$python" bench/gpu.py "$out"
if ! command -v compute-sanitizer >/dev/null; then
	echo "compute-sanitizer is not there: memory and races are not checked"
	exit 1
fi
failed=0
for tool in memcheck racecheck; do
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 75 compute-sanitizer --tool "$tool" --report-api-errors no \
		--error-exitcode 1 "$python" bench/gpu.py --once || failed=1
done
exit $failed
