from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmplug import ops
from xmplug.errors import KernelError
from xmplug.ops import native

SETS = native.INSTRUCTION_SETS[: native.instruction_set() + 1] if native.cpu() else ()


@pytest.fixture(params=["reference", *SETS], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with the reference and with the kernel for each instruction set of this processor."""
    if request.param == "reference":
        monkeypatch.setenv("XMPLUG_KERNELS", "reference")
    else:
        monkeypatch.setenv("XMPLUG_KERNELS", "native")
        monkeypatch.setenv("XMPLUG_INSTRUCTION_SET", request.param)
    return str(request.param)


def by_hand(states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None) -> np.ndarray:
    """The definition, one number at a time, in float64."""
    x, q = states.detach().double().numpy(), queries.detach().double().numpy()
    if candidates is None:
        candidates = torch.arange(len(q)).expand(len(x), len(q))
    out = np.zeros((*candidates.shape, x.shape[2]))
    for b, row in enumerate(candidates.tolist()):
        tokens = x[b][mask[b].numpy()]
        for c, label in enumerate(row):
            if label >= 0 and len(tokens):
                weight = np.exp(tokens @ q[label] - (tokens @ q[label]).max())
                out[b, c] = (weight / weight.sum()) @ tokens
    return out


def example(
    b: int, t: int, d: int, labels: int, c: int | None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(b, t, d, generator=generator)
    mask = torch.rand(b, t, generator=generator) < 0.7
    queries = torch.randn(labels, d, generator=generator)
    candidates = None if c is None else torch.randint(-1, labels, (b, c), generator=generator)
    return states, mask, queries, candidates


shapes = given(
    b=st.integers(0, 4),
    t=st.integers(0, 40),
    d=st.integers(1, 70),
    labels=st.integers(1, 130),
    c=st.none() | st.integers(0, 130),
    seed=st.integers(0, 1000),
)
fixed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fixed
@shapes
def test_is_its_definition(b: int, t: int, d: int, labels: int, c: int | None, seed: int) -> None:
    inputs = example(b, t, d, labels, c, seed)
    out = ops.label_attention(*inputs)
    assert out.shape == (b, labels if c is None else c, d)
    np.testing.assert_allclose(out.numpy(), by_hand(*inputs), atol=2e-5)


@fixed
@shapes
def test_gradients_are_those_of_float64(b: int, t: int, d: int, labels: int, c: int | None, seed: int) -> None:
    # In float64 the gradients come from the formulas that test_gradients checks against finite differences.
    states, mask, queries, candidates = example(b, t, d, labels, c, seed)
    grad = torch.randn(b, labels if c is None else c, d, generator=torch.Generator().manual_seed(seed))
    found = gradients(states, mask, queries, candidates, grad)
    exact = gradients(states.double(), mask, queries.double(), candidates, grad.double())
    for ours, true in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), true, atol=2e-4, rtol=1e-4)


def gradients(
    states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None, grad: Tensor
) -> tuple[Tensor, ...]:
    """The output, and the gradients of states and queries."""
    states, queries = states.clone().requires_grad_(), queries.clone().requires_grad_()
    out = ops.label_attention(states, mask, queries, candidates)
    return (out.detach(), *torch.autograd.grad(out, (states, queries), grad.to(out.dtype)))


def eager(states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None) -> Tensor:
    """The expression that anyone would write in PyTorch, for float64 or the same precision."""
    rows = queries[candidates.clamp(min=0)] if candidates is not None else queries[None]
    logits = (states @ rows.to(states.dtype).transpose(1, 2)).masked_fill(~mask[..., None], float("-inf"))
    views = logits.softmax(1).transpose(1, 2) @ states
    return views if candidates is None else views.masked_fill((candidates < 0)[..., None], 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(3, 150, 320, 300, None), (3, 130, 1024, 400, 150), (2, 600, 64, 90, 90)], ids=str)
def test_error_is_at_most_twice_that_of_the_same_precision(
    dtype: torch.dtype, size: tuple[int, int, int, int, int | None]
) -> None:
    states, mask, queries, candidates = example(*size)
    states, queries = states.to(dtype), (queries * 0.1).to(dtype)
    grad = torch.randn(len(states), size[3] if size[4] is None else size[4], size[2]).to(dtype)

    def errors(precision: torch.dtype, function: Callable[..., Tensor]) -> list[Tensor]:
        x, q = states.to(precision).requires_grad_(), queries.to(precision).requires_grad_()
        out = function(x, mask, q, candidates)
        results = (out.detach(), *torch.autograd.grad(out, (x, q), grad.to(precision)))
        return [result.double() for result in results]

    exact = errors(torch.float64, eager)
    torch_error = [(a - b).square().mean().sqrt() for a, b in zip(errors(dtype, eager), exact, strict=True)]
    our_error = [(a - b).square().mean().sqrt() for a, b in zip(errors(dtype, ops.label_attention), exact, strict=True)]
    for ours, theirs in zip(our_error, torch_error, strict=True):
        assert ours <= 2 * theirs


@pytest.mark.parametrize("queries_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_queries_may_have_another_type_than_states(queries_dtype: torch.dtype) -> None:
    states, mask, queries, candidates = example(3, 20, 40, 60, 30)
    queries = (queries * 0.2).to(queries_dtype)
    other = torch.bfloat16 if queries_dtype == torch.float32 else torch.float32
    found = gradients(states.to(other), mask, queries, candidates, torch.ones(3, 30, 40))
    assert [tensor.dtype for tensor in found] == [other, other, queries_dtype]
    np.testing.assert_allclose(
        found[0].float().numpy(), by_hand(states.to(other), mask, queries, candidates), atol=0.05
    )


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN, not zeros by chance."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtypes", list(itertools.product([torch.float32, torch.bfloat16], repeat=2)), ids=str)
@pytest.mark.parametrize(("labels", "c"), [("all", None), ("anywhere", 400), ("anywhere", 230), ("in one place", 400)])
def test_gradients_come_in_parts(labels: str, c: int | None, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    # Texts of which one has no token and one no candidate, labels that no text and that many texts have, and
    # more candidates in one place than are worked on at a time.
    states, mask, queries, candidates = example(6, 40, 24, 900, c)
    mask[1] = False
    if candidates is not None:
        candidates[2] = -1
        candidates[4] = candidates[3]
        if labels == "in one place":
            candidates[:5].clamp_(max=10)
    states, queries = states.to(dtypes[0]), (queries * 0.2).to(dtypes[1])
    grad = torch.randn(6, c or 900, 24)
    found = gradients(states, mask, queries, candidates, grad)
    wide = gradients(states.double(), mask, queries.double(), candidates, grad.to(dtypes[0]))
    assert [each.dtype for each in found] == [dtypes[0], *dtypes]
    for ours, exact in zip(found, wide, strict=True):
        assert ours.isfinite().all()
        tolerance = 1e-5 if dtypes == (torch.float32, torch.float32) else 0.02
        assert float((ours.double() - exact).norm()) <= tolerance * float(exact.norm())


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("c", [None, 200])
def test_gradients_do_not_depend_on_threads(c: int | None) -> None:
    states, mask, queries, candidates = example(20, 60, 64, 300, c)
    grad = torch.randn(20, c or 300, 64)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(gradients(states, mask, queries, candidates, grad))
    if native.cpu() is not None:
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("c", [None, 5])
def test_is_a_well_made_operator(c: int | None) -> None:
    states, mask, queries, candidates = example(3, 5, 6, 7, c)
    states.requires_grad_()
    queries.requires_grad_()
    torch.library.opcheck(torch.ops.xmplug.label_attention.default, (states, mask, queries, candidates, False))


def test_candidates_that_are_no_labels() -> None:
    states, mask, queries, _ = example(2, 5, 3, 6, None)
    with pytest.raises(KernelError, match="candidate 6 of 6 labels"):
        ops.label_attention(states, mask, queries, torch.tensor([[1, 6], [-1, 2]]))


def test_large_scores_do_not_overflow() -> None:
    states, mask, queries, candidates = example(3, 8, 4, 6, 5)
    out = ops.label_attention(states * 40, mask, queries * 40, candidates)
    np.testing.assert_allclose(out.numpy(), by_hand(states * 40, mask, queries * 40, candidates), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("c", [None, 5])
def test_gradients(c: int | None) -> None:
    states, mask, queries, candidates = example(3, 5, 3, 6, c)
    mask[1] = False
    states, queries = states.double().requires_grad_(), queries.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, q: ops.label_attention(s, mask, q, candidates), (states, queries))


@pytest.mark.parametrize("c", [None, 5])
def test_what_is_not_there_gives_zero_and_no_gradient(c: int | None) -> None:
    states, mask, queries, candidates = example(3, 5, 3, 6, c)
    mask[1] = False
    mask[0, 3:] = False
    states[0, 3:] = float("nan")
    states[1] = float("inf")
    if candidates is not None:
        candidates[2] = -1
    states.requires_grad_()
    queries.requires_grad_()
    out = ops.label_attention(states, mask, queries, candidates)
    out.square().sum().backward()
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert states.grad is not None
    assert queries.grad is not None
    assert states.grad.isfinite().all()
    assert queries.grad.isfinite().all()
    assert torch.equal(states.grad[1], torch.zeros(5, 3))
    assert torch.equal(states.grad[0, 3:], torch.zeros(2, 3))
    if candidates is not None:
        assert torch.equal(out[2], torch.zeros_like(out[2]))
        assert torch.equal(states.grad[2], torch.zeros(5, 3))


def test_sparse_gradient_has_the_candidates_rows_only() -> None:
    states, mask, queries, _ = example(2, 5, 3, 50, None)
    candidates = torch.tensor([[7, 31, 7, -1], [-1, -1, 40, 7]])  # with a repeated one
    grads = []
    for sparse_grad in (False, True):
        rows = queries.clone().requires_grad_()
        ops.label_attention(states, mask, rows, candidates, sparse_grad=sparse_grad).sum().backward()
        assert rows.grad is not None
        grads.append(rows.grad)
    assert grads[1].is_sparse
    assert set(grads[1].coalesce().indices()[0].tolist()) == {7, 31, 40}
    torch.testing.assert_close(grads[1].to_dense(), grads[0])


def test_only_padded_candidates() -> None:
    states, mask, queries, _ = example(2, 3, 3, 4, None)
    out = ops.label_attention(states, mask, queries, torch.full((2, 3), -1))
    assert torch.equal(out, torch.zeros(2, 3, 3))


def test_repeated_candidates_agree() -> None:
    states, mask, queries, _ = example(2, 5, 3, 6, None)
    out = ops.label_attention(states, mask, queries, torch.tensor([[4, 2, 4], [0, 0, 0]]))
    torch.testing.assert_close(out[0, 0], out[0, 2])
    torch.testing.assert_close(out[1, 0], out[1, 2])


def test_non_contiguous_inputs() -> None:
    states, mask, queries, candidates = example(4, 6, 6, 8, 5)
    assert candidates is not None
    strided = states.transpose(0, 1)[::2, :, ::2].transpose(0, 1)
    inputs = (strided, mask[:, ::2], queries[:, ::2], candidates.t().contiguous().t())
    np.testing.assert_allclose(ops.label_attention(*inputs).numpy(), by_hand(*inputs), atol=1e-5)


@pytest.mark.parametrize("c", [None, 5])
def test_bfloat16_autocast(c: int | None) -> None:
    states, mask, queries, candidates = example(3, 6, 8, 10, c)
    mask[0] = False
    states.requires_grad_()
    queries.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.label_attention(states, mask, queries, candidates)
    out.float().sum().backward()
    np.testing.assert_allclose(out.detach().float().numpy(), by_hand(states, mask, queries, candidates), atol=0.1)
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize("c", [None, 5])
def test_compiles_without_graph_breaks(c: int | None) -> None:
    states, mask, queries, candidates = example(3, 6, 4, 8, c)
    compiled = torch.compile(ops.label_attention, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (ops.label_attention, compiled):
        rows = queries.clone().requires_grad_()
        out = function(states, mask, rows, candidates)
        out.square().sum().backward()
        grads.append((out.detach(), rows.grad))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.usefixtures("restore_threads")
def test_threads_do_not_matter() -> None:
    inputs = example(8, 40, 32, 300, None)
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outs.append(ops.label_attention(*inputs))
    torch.testing.assert_close(outs[0], outs[1])


@pytest.mark.parametrize(
    "change",
    [
        {"mask": torch.ones(2, 4, dtype=torch.bool)},
        {"queries": torch.zeros(6, 4)},
        {"candidates": torch.zeros(3, 2, dtype=torch.int64)},
        {"states": torch.zeros(2, 5)},
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, Tensor]) -> None:
    states, mask, queries, candidates = example(2, 5, 3, 6, 4)
    inputs = {"states": states, "mask": mask, "queries": queries, "candidates": candidates, **change}
    with pytest.raises(KernelError, match="label_attention"):
        ops.label_attention(**inputs)  # type: ignore[arg-type]


def test_tensors_on_several_devices_are_refused() -> None:
    states, mask, queries, candidates = example(2, 5, 3, 6, 4)
    with pytest.raises(KernelError, match="one device; got states on cpu, the others on cpu, meta"):
        ops.label_attention(states, mask, queries.to("meta"), candidates)
