"""The CUDA kernels of label_attention beside PyTorch's expressions in float64 and in the same precision."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import example as example_of
from hypothesis import strategies as st
from torch import Tensor

from xmplug import ops
from xmplug.ops import attention, native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def example(
    device: torch.device, b: int, t: int, d: int, labels: int, c: int | None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(b, t, d, generator=generator)
    mask = torch.rand(b, t, generator=generator) < 0.7
    queries = torch.randn(labels, d, generator=generator)
    candidates = None if c is None else torch.randint(-1, labels, (b, c), generator=generator).to(device)
    return states.to(device), mask.to(device), queries.to(device), candidates


def eager(states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None) -> Tensor:
    """The expression that anyone would write in PyTorch."""
    rows = queries[None] if candidates is None else queries[candidates.clamp(min=0)]
    logits = (states @ rows.to(states.dtype).transpose(1, 2)).masked_fill(~mask[..., None], float("-inf"))
    views = logits.softmax(1).nan_to_num().transpose(1, 2) @ states
    return views if candidates is None else views.masked_fill((candidates < 0)[..., None], 0.0)


def results(
    function: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], grad: Tensor
) -> list[Tensor]:
    """Views and the gradients of states and queries, in float64."""
    states, mask, queries, candidates = inputs
    states, queries = states.clone().requires_grad_(), queries.clone().requires_grad_()
    out = function(states, mask, queries, candidates)
    found = (out.detach(), *torch.autograd.grad(out, (states, queries), grad.to(out.dtype)))
    return [each.to_dense().double() for each in found]


def upstream(inputs: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> Tensor:
    states, _, queries, candidates = inputs
    width = len(queries) if candidates is None else candidates.shape[1]
    generator = torch.Generator().manual_seed(len(queries))
    return torch.randn(len(states), width, states.shape[2], generator=generator).to(states.device)


def check(inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], function: Callable[..., Tensor]) -> None:
    """Errors against float64 are at most twice those of PyTorch's expression in the same precision."""
    states, mask, queries, candidates = inputs
    grad = upstream(inputs).to(states.dtype)
    exact = results(eager, (states.double(), mask, queries.double(), candidates), grad.double())
    theirs = results(eager, inputs, grad)
    ours = results(function, inputs, grad)
    # A result is rounded to its type, and is a sum over tokens whose roundings in float32 walk at random.
    floor = torch.finfo(torch.float32).eps * states.shape[1] ** 0.5
    if states.dtype != torch.float32:
        floor += torch.finfo(states.dtype).eps / 2
    for found, other, true in zip(ours, theirs, exact, strict=True):
        assert found.isfinite().all()
        scale = float(true.square().mean().sqrt()) if true.numel() else 0.0
        error = (found - true).square().mean().sqrt() if true.numel() else torch.tensor(0.0)
        allowed = (other - true).square().mean().sqrt() if true.numel() else torch.tensor(0.0)
        assert float(error) <= max(2 * float(allowed), floor * scale + 1e-12)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    b=st.integers(0, 3),
    t=st.integers(0, 40),
    d=st.integers(1, 70),
    labels=st.integers(1, 130),
    c=st.none() | st.integers(0, 130),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
@example_of(b=1, t=2, d=54, labels=1, c=None, dtype=torch.float32, seed=325)  # weights that do not quite sum to 1
def test_is_as_exact_as_pytorch(
    on_gpu: native.Gpu, b: int, t: int, d: int, labels: int, c: int | None, dtype: torch.dtype, seed: int
) -> None:
    states, mask, queries, candidates = example(on_gpu.device, b, t, d, labels, c, seed)
    mask[:, :1] = True  # texts without a token have a test of their own: PyTorch's gradient has NaN there
    check((states.to(dtype), mask, (queries * 0.3).to(dtype), candidates), ops.label_attention)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 300, 264, 70, None), (2, 140, 136, 150, 70), (1, 900, 264, 140, None)], ids=str)
def test_several_tiles(on_gpu: native.Gpu, dtype: torch.dtype, size: tuple[int, int, int, int, int | None]) -> None:
    states, mask, queries, candidates = example(on_gpu.device, *size)
    check((states.to(dtype), mask, (queries * 0.1).to(dtype), candidates), ops.label_attention)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_queries_with_narrow_states(on_gpu: native.Gpu, dtype: torch.dtype) -> None:
    states, mask, queries, candidates = example(on_gpu.device, 2, 20, 40, 60, 30)
    check((states.to(dtype), mask, queries * 0.2, candidates), ops.label_attention)


@pytest.mark.parametrize(
    ("capability", "has_wgmma", "products"),
    [
        ((7, 5), True, 0),
        ((8, 0), True, 1),
        ((8, 9), True, 1),
        ((9, 0), True, 2),
        ((9, 0), False, 1),
        ((10, 0), True, 1),
    ],
)
def test_products_are_those_of_the_device(capability: tuple[int, int], has_wgmma: bool, products: int) -> None:
    module = ModuleType("without kernels")
    vars(module)["has_wgmma"] = has_wgmma
    assert attention._products(native.Gpu(module, torch.device("cpu"), capability)) == products


def test_long_texts_go_in_turns(on_gpu: native.Gpu) -> None:
    # More tokens than a block has shared memory for; scores rise along the text, so that each turn has a new largest.
    states, mask, queries, candidates = example(on_gpu.device, 1, 2200, 8, 5, None)
    states += torch.linspace(0, 3, 2200, device=on_gpu.device)[:, None] * queries.sum(0).sign()
    check((states, mask, queries * 0.5, candidates), ops.label_attention)
    check((states.bfloat16(), mask, (queries * 0.5).bfloat16(), candidates), ops.label_attention)


def test_texts_and_labels_in_several_waves(on_gpu: native.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = example(on_gpu.device, 5, 20, 24, 40, 33)
    whole = results(ops.label_attention, inputs, upstream(inputs))
    monkeypatch.setattr(attention, "_GPU_WORKSPACE", 200_000)  # two texts
    for ours, other in zip(results(ops.label_attention, inputs, upstream(inputs)), whole, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)
    many = example(on_gpu.device, 2, 3, 8, 8300, None)
    check(many, ops.label_attention)


def test_what_is_not_there_gives_zero_and_no_gradient(on_gpu: native.Gpu) -> None:
    states, mask, queries, candidates = example(on_gpu.device, 3, 5, 3, 6, 5)
    assert candidates is not None
    mask[0] = True
    mask[1] = False
    mask[0, 3:] = False
    states[0, 3:] = float("nan")
    states[1] = float("inf")
    candidates[2] = -1
    states.requires_grad_()
    queries.requires_grad_()
    out = ops.label_attention(states, mask, queries, candidates)
    grad = torch.ones_like(out)
    grad[2] = float("nan")  # of padding
    out.backward(grad)
    assert torch.equal(out[1:], torch.zeros_like(out[1:]))
    assert states.grad is not None and states.grad.isfinite().all()
    assert queries.grad is not None and queries.grad.isfinite().all()
    assert torch.equal(states.grad[1:], torch.zeros_like(states.grad[1:]))
    assert torch.equal(states.grad[0, 3:], torch.zeros_like(states.grad[0, 3:]))


def test_sparse_gradient_has_the_candidates_rows_only(on_gpu: native.Gpu) -> None:
    states, mask, queries, _ = example(on_gpu.device, 2, 5, 3, 50, None)
    candidates = torch.tensor([[7, 31, 7, -1], [-1, -1, 40, 7]], device=on_gpu.device)  # with a repeated one
    grads = []
    for sparse_grad in (False, True):
        rows = queries.clone().requires_grad_()
        ops.label_attention(states, mask, rows, candidates, sparse_grad=sparse_grad).sum().backward()
        assert rows.grad is not None
        grads.append(rows.grad)
    assert grads[1].is_sparse
    assert set(grads[1].coalesce().indices()[0].tolist()) == {7, 31, 40}
    torch.testing.assert_close(grads[1].to_dense(), grads[0])


def test_gradients_are_the_same_in_every_run(on_gpu: native.Gpu) -> None:
    inputs = example(on_gpu.device, 6, 40, 16, 30, 60)
    runs = [results(ops.label_attention, inputs, upstream(inputs)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_non_contiguous_inputs(on_gpu: native.Gpu) -> None:
    states, mask, queries, candidates = example(on_gpu.device, 4, 6, 6, 8, 5)
    assert candidates is not None
    strided = states.transpose(0, 1)[::2, :, ::2].transpose(0, 1)
    inputs = (strided, mask[:, ::2] | True, queries[:, ::2], candidates.t().contiguous().t())
    grad = upstream(inputs)
    for ours, theirs in zip(results(ops.label_attention, inputs, grad), results(eager, inputs, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow(on_gpu: native.Gpu) -> None:
    states, mask, queries, candidates = example(on_gpu.device, 3, 8, 4, 6, 5)
    inputs = (states * 40, mask | ~mask, queries * 40, candidates)
    torch.testing.assert_close(ops.label_attention(*inputs), eager(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("c", [None, 5])
def test_is_a_well_made_operator(on_gpu: native.Gpu, c: int | None) -> None:
    states, mask, queries, candidates = example(on_gpu.device, 3, 5, 6, 7, c)
    states.requires_grad_()
    queries.requires_grad_()
    torch.library.opcheck(torch.ops.xmplug.label_attention.default, (states, mask, queries, candidates, False))


def test_a_candidate_that_is_no_label_stops(on_gpu: native.Gpu) -> None:
    if on_gpu.device.type == "cuda":
        pytest.skip("on a GPU, a trap ends all that the process can do there")
    states, mask, queries, _ = example(on_gpu.device, 1, 5, 3, 6, None)
    with pytest.raises(Exception, match=r"trap|6 labels"):
        ops.label_attention(states, mask, queries, torch.tensor([[1, 6]]))
