"""The CUDA kernels of linear_bce beside float64 and the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from xmplug import ops
from xmplug.ops import bce, native, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def labels_of(texts: int, labels: int, random: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, indices and y (texts, labels)."""
    y = torch.rand(texts, labels, generator=random) < 0.02
    counts = functional.pad(y.sum(dim=1).cumsum(0), (1, 0))
    return counts.to(device), y.nonzero()[:, 1].to(device), y.to(device)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.integers(0, 3),
    width=st.integers(1, 5000),
    before=st.integers(0, 3),
    with_bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_a_chunk_is_the_reference(
    on_gpu: native.Gpu, texts: int, width: int, before: int, with_bias: bool, dtype: torch.dtype
) -> None:
    device, random = on_gpu.device, torch.Generator().manual_seed(width)
    first, labels = 256 * before, 256 * before + width + 10
    indptr, indices, _ = labels_of(texts, labels, random, device)
    bias = torch.randn(labels, generator=random).to(device) if with_bias else None
    memory = (20 * torch.randn(texts, -(-width // 256) * 256, generator=random)).to(device, dtype)
    memory[:, width:] = torch.nan  # what lies behind the last label must not matter
    ours, theirs = memory.clone()[:, :width], memory.clone()[:, :width]
    sums = torch.ones(2, texts, 3, dtype=torch.float64, device=device)
    bce._bce_chunk(ours, bias, indptr, indices, first, labels, sums[0])
    reference.linear_bce_chunk(theirs, bias, indptr, indices, first, sums[1])
    precision = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(ours, theirs, rtol=precision, atol=1e-7)
    torch.testing.assert_close(sums[0].sum(dim=1), sums[1].sum(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_the_dense_loss(on_gpu: native.Gpu, dtype: torch.dtype) -> None:
    device, random = on_gpu.device, torch.Generator().manual_seed(0)
    indptr, indices, y = labels_of(3, 2500, random, device)
    hidden, weight = torch.randn(3, 16, generator=random), torch.randn(2500, 16, generator=random)
    bias = torch.randn(2500, generator=random)
    ours = [tensor.to(device, dtype).requires_grad_() for tensor in (hidden, weight, bias)]
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    loss = ops.linear_bce(ours[0], ours[1], indptr, indices, ours[2], chunk=2304)
    logits = exact[0] @ exact[1].t() + exact[2]
    expected = functional.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum") / 3
    loss.backward()
    expected.backward()
    precision = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(loss.double(), expected, rtol=precision, atol=0)
    for a, b in zip(ours, exact, strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad.double() - b.grad).norm() <= precision * b.grad.norm()


@pytest.mark.parametrize("change_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "position"), [(1, 0), (1027, 256), (2048, 256 << 30)])
def test_rounding_is_the_reference(on_gpu: native.Gpu, change_dtype: torch.dtype, size: int, position: int) -> None:
    device, random = on_gpu.device, torch.Generator().manual_seed(size)
    weight = torch.randn(size, generator=random).to(device, torch.bfloat16)
    weight[0] = torch.nan
    change = (0.01 * torch.randn(size, generator=random)).to(device, change_dtype)
    ours, theirs = weight.clone(), weight.clone()
    bce._add_rounded(ours, change, position, 1 << 40 | 5, 1 << 33 | 7)
    reference.add_rounded(theirs, change, position, 1 << 40 | 5, 1 << 33 | 7)
    assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_that_of_the_reference(
    on_gpu: native.Gpu, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, random = on_gpu.device, torch.Generator().manual_seed(0)
    indptr, indices, _ = labels_of(2, 700, random, device)
    hidden, weight = torch.randn(2, 9, generator=random).to(device), torch.randn(700, 9, generator=random)
    bias = torch.zeros(2, 700, device=device)
    weights = [weight.to(device, dtype, copy=True) for _ in range(2)]
    results = []
    for i in range(2):
        arguments = (hidden, weights[i], indptr, indices, bias[i])
        results.append(ops.linear_bce_step(*arguments, learning_rate=0.1, step=1, seed=2, chunk=512))
        monkeypatch.setattr(native, "gpu", lambda tensor: None)
    for a, b in zip((*results[0], bias[0]), (*results[1], bias[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    # Sums that differ in the last bit of float32 can fall on the two sides of a random number.
    close = torch.isclose(weights[0].float(), weights[1].float(), rtol=1e-6, atol=1e-6)
    assert close.double().mean() > 0.999


@pytest.mark.parametrize(("indptr", "indices"), [([0, 1], [5]), ([0, 1], [-1]), ([0, 2], [0]), ([1, 0], [0])])
def test_labels_that_cannot_be_stop(on_gpu: native.Gpu, indptr: list[int], indices: list[int]) -> None:
    if on_gpu.device.type == "cuda":
        pytest.skip("on a GPU, a trap ends all that the process can do there")
    logits, sums = torch.zeros(1, 256)[:, :5], torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="trap"):
        bce._bce_chunk(logits, None, torch.tensor(indptr), torch.tensor(indices), 0, 5, sums)
