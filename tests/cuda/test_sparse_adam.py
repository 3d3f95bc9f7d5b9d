"""The CUDA kernel of sparse_adam_step beside PyTorch's SparseAdam and the CPU."""

from __future__ import annotations

import pytest
import torch

from xmplug import ops
from xmplug.ops import native, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 31, 200])
def test_is_the_reference(on_gpu: native.Gpu, dtype: torch.dtype, width: int) -> None:
    device, generator = on_gpu.device, torch.Generator().manual_seed(width)
    weight = torch.randn(50, width, generator=generator).to(device, dtype)
    rows = torch.tensor([0, 3, 4, 20, 49], device=device)
    moments = torch.zeros(2, 50, width, device=device)
    ours, theirs = (weight.clone(), *moments.clone()), (weight.clone(), *moments.clone())
    for step in range(1, 4):
        grad = torch.randn(len(rows), width, generator=generator).to(device)
        ops.sparse_adam_step(ours[0], rows, grad, ours[1], ours[2], step, learning_rate=0.1)
        factors = (0.1 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step), 1 - 0.9, 1 - 0.999, 1e-8)
        reference.sparse_adam_step(theirs[0], rows, grad, theirs[1], theirs[2], *factors)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=1e-5)
    untouched = torch.ones(50, dtype=torch.bool, device=device)
    untouched[rows] = False
    assert torch.equal(ours[0][untouched], weight[untouched])


def test_a_row_out_of_range_stops(on_gpu: native.Gpu) -> None:
    if on_gpu.device.type == "cuda":
        pytest.skip("on a GPU, a trap ends all that the process can do there")
    weight, moments = torch.zeros(3, 4), torch.zeros(2, 3, 4)
    with pytest.raises(RuntimeError, match="trap"):
        ops.sparse_adam_step(weight, torch.tensor([3]), torch.ones(1, 4), *moments, 1, learning_rate=0.1)
