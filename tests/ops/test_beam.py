from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmplug import ops
from xmplug.errors import KernelError
from xmplug.ops import beam

pytestmark = pytest.mark.usefixtures("kernels")
any_shape = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sigmoid(logit: float) -> float:
    if math.isnan(logit):
        return 0.0
    return 1.0 / (1.0 + math.exp(-logit)) if logit > -700 else 0.0


def by_hand(logits: list[float], nodes: list[int], parents: list[float], k: int) -> list[tuple[float, int]]:
    """The definition for one row, in float64."""
    best: dict[int, float] = {}
    for logit, node, parent in zip(logits, nodes, parents, strict=True):
        if node >= 0:
            best[node] = max(best.get(node, 0.0), sigmoid(logit) * parent)
    ranked = sorted(((score, node) for node, score in best.items()), key=lambda pair: (-pair[0], pair[1]))
    return (ranked + [(0.0, -1)] * k)[:k]


# A grid of values, so that equal scores are common and unequal ones are far apart in float32.
grid_logits = st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 2.0, math.nan])
grid_parents = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@any_shape
@given(data=st.data(), rows=st.integers(0, 3), width=st.integers(0, 8), k=st.integers(1, 10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_is_its_definition(data: st.DataObject, rows: int, width: int, k: int, dtype: torch.dtype) -> None:
    def matrix(values: st.SearchStrategy) -> list[list]:
        row = st.lists(values, min_size=width, max_size=width)
        return data.draw(st.lists(row, min_size=rows, max_size=rows))

    logits, nodes, parents = matrix(grid_logits), matrix(st.integers(-1, 12)), matrix(grid_parents)
    scores, best = ops.beam_step(
        torch.tensor(logits, dtype=dtype).reshape(rows, width),
        torch.tensor(nodes, dtype=torch.int64).reshape(rows, width),
        torch.tensor(parents, dtype=dtype).reshape(rows, width),
        k,
    )
    assert scores.shape == best.shape == (rows, k)
    assert scores.dtype == dtype
    for row in range(rows):
        expected = by_hand(logits[row], nodes[row], parents[row], k)
        assert best[row].tolist() == [node for _, node in expected]
        np.testing.assert_allclose(scores[row].numpy(), [score for score, _ in expected], rtol=1e-6)


def test_step_orders_ties_by_node_and_fills_missing_places() -> None:
    logits = torch.tensor([[0.0, 0.0, 5.0, 0.0], [-math.inf, math.nan, 1.0, 1.0]])
    nodes = torch.tensor([[9, 4, -1, 7], [3, 2, -1, -1]])
    parents = torch.full((2, 4), 0.5)
    scores, best = ops.beam_step(logits, nodes, parents, 4)
    assert best.tolist() == [[4, 7, 9, -1], [2, 3, -1, -1]]
    assert scores.tolist() == [[0.25, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_step_takes_a_repeated_node_once_with_its_best_score() -> None:
    logits = torch.tensor([[3.0, 2.5, 2.0, 1.0, 0.0]])
    nodes = torch.tensor([[5, 5, 5, 6, 7]])
    scores, best = ops.beam_step(logits, nodes, torch.ones(1, 5), 3)
    assert best.tolist() == [[5, 6, 7]]
    torch.testing.assert_close(scores, torch.sigmoid(torch.tensor([[3.0, 1.0, 0.0]])))


@pytest.mark.parametrize(
    ("logits_type", "parents_type", "scores_type"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float16),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_step_types(logits_type: torch.dtype, parents_type: torch.dtype, scores_type: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, generator=generator).to(logits_type)
    parents = torch.rand(3, 20, generator=generator).to(parents_type)
    nodes = torch.arange(20).repeat(3, 1)
    scores, best = ops.beam_step(logits, nodes, parents, 4)
    assert scores.dtype == scores_type
    exact = torch.sigmoid(logits.double()) * parents.double()
    torch.testing.assert_close(scores.double(), exact.gather(1, best), rtol=5e-3, atol=0)
    torch.testing.assert_close(scores.double(), exact.sort(1, descending=True)[0][:, :4], rtol=5e-3, atol=0)


def random_step(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, width, generator=generator)
    nodes = torch.stack([torch.randperm(2 * width, generator=generator)[:width] for _ in range(rows)])
    nodes[torch.rand(rows, width, generator=generator) < 0.1] = -1
    return logits, nodes, torch.rand(rows, width, generator=generator)


def test_step_error_is_that_of_float32() -> None:
    logits, nodes, parents = random_step(50, 400)
    scores, best = ops.beam_step(logits * 5, nodes, parents, 30)
    position = (nodes[:, None] == best[..., None]).int().argmax(-1)
    exact = (torch.sigmoid(logits.double() * 5) * parents.double()).gather(1, position)
    plain = (torch.sigmoid(logits * 5) * parents).gather(1, position)
    error, allowed = (scores.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    assert error <= 2 * allowed


@pytest.mark.usefixtures("restore_threads")
def test_step_threads_do_not_matter() -> None:
    inputs = random_step(200, 900)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.beam_step(*inputs, 20))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_step_takes_non_contiguous_inputs() -> None:
    logits, nodes, parents = random_step(6, 40)
    strided = (
        logits.t().contiguous().t(),
        nodes[:, ::2].repeat_interleave(2, 1)[:, ::2],
        parents.expand(6, 40),
    )
    scores, best = ops.beam_step(strided[0][:, ::2], strided[1], strided[2][:, ::2], 7)
    expected = ops.beam_step(logits[:, ::2].contiguous(), nodes[:, ::2].contiguous(), parents[:, ::2].contiguous(), 7)
    assert torch.equal(scores, expected[0])
    assert torch.equal(best, expected[1])


def test_step_gradients() -> None:
    logits, nodes, parents = random_step(3, 8)
    nodes[0, :3] = 5
    logits, parents = logits.double().requires_grad_(), parents.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: ops.beam_step(x, nodes, p, 4)[0], (logits, parents))


def test_step_operator_registration() -> None:
    logits, nodes, parents = random_step(3, 8)
    for dtype in (torch.float32, torch.float64):
        inputs = (logits.to(dtype).requires_grad_(), nodes, parents.to(dtype).requires_grad_(), 4)
        torch.library.opcheck(beam._beam_step, inputs)


def test_step_compiles_without_graph_breaks() -> None:
    inputs = random_step(3, 8)
    compiled = torch.compile(ops.beam_step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, 4), ops.beam_step(*inputs, 4))


def test_step_shapes_that_do_not_fit() -> None:
    logits, nodes, parents = random_step(3, 8)
    for inputs in [
        (logits, nodes[:, 1:], parents, 4),
        (logits, nodes, parents, 0),
        (logits, nodes.int(), parents, 4),
    ]:
        with pytest.raises(KernelError, match="beam_step"):
            ops.beam_step(*inputs)


# A ragged tree: the root has the inner nodes 1-3, these have 1, 3 and 2 leaves.
TREE = ops.LabelTree(np.array([0, 1, 4, 10]), np.array([1, 4, 5, 8, 10]), np.array([3, 0, 5, 1, 4, 2]))


def all_scores(hidden: Tensor, weights: Tensor, tree: ops.LabelTree) -> np.ndarray:
    """(B,L) the probability of every label, in float64."""
    node = 1 / (1 + np.exp(-(hidden.double() @ weights.double().t()).numpy()))
    scores = np.zeros((len(hidden), tree.num_labels))
    for place, leaf in enumerate(tree.level(-1)):
        path, at = np.ones(len(hidden)), leaf
        while at > 0:
            path, at = path * node[:, at], int(tree.parent[at])
        scores[:, tree.labels[place]] = path
    return scores


@pytest.mark.parametrize("tree", [TREE, "built"])
def test_search_with_a_wide_beam_is_exhaustive(tree: ops.LabelTree) -> None:
    from scipy import sparse

    if isinstance(tree, str):
        tree = ops.build_label_tree(sparse.random(45, 30, 0.2, "csr", random_state=0), 3, 4, seed=1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator)
    weights = torch.randn(tree.num_nodes, 5, generator=generator)
    exact = all_scores(hidden, weights, tree)
    scores, labels = ops.tree_beam_search(hidden, weights, tree, beam=tree.num_nodes, k=5)
    order = np.argsort(-exact, axis=1)[:, :5]
    assert labels.tolist() == order.tolist()
    np.testing.assert_allclose(scores.numpy(), np.take_along_axis(exact, order, 1), rtol=1e-5)


def test_search_keeps_the_beam_and_no_more() -> None:
    # Node 1 is likeliest, but its only leaf (label 3) is unlikely; the best leaf (label 5) is below node 2.
    logits = torch.tensor([0.0, 2.0, 1.0, -9.0, -4.0, 0.0, 5.0, 0.0, 9.0, 9.0])
    hidden, weights = torch.ones(1, 1), logits[:, None]
    narrow = ops.tree_beam_search(hidden, weights, TREE, beam=1, k=2)
    assert narrow[1].tolist() == [[3, -1]]
    assert narrow[0][0, 1] == 0
    wide = ops.tree_beam_search(hidden, weights, TREE, beam=2, k=2)
    assert wide[1].tolist() == [[5, 0]]


def test_search_gradients_and_compilation() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(TREE.num_nodes, 4, dtype=torch.float64, generator=generator, requires_grad=True)

    def search(hidden: Tensor, weights: Tensor) -> Tensor:
        return ops.tree_beam_search(hidden, weights, TREE, 2, 3)[0]

    assert torch.autograd.gradcheck(search, (hidden, weights))
    compiled = torch.compile(search, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, weights), search(hidden, weights))


def test_search_operator_registration() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, generator=generator, requires_grad=True)
    weights = torch.randn(TREE.num_nodes, 4, generator=generator, requires_grad=True)
    arrays = torch.from_numpy(TREE.first_child), torch.from_numpy(TREE.level_offsets)
    torch.library.opcheck(beam._tree_beam_search, (hidden, weights, *arrays, 2, 3))


def test_search_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, generator=generator).bfloat16()
    weights = torch.randn(TREE.num_nodes, 4, generator=generator).bfloat16()
    scores, labels = ops.tree_beam_search(hidden, weights, TREE, 3, 6)
    exact = np.take_along_axis(all_scores(hidden, weights, TREE), labels.numpy(), 1)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), exact, rtol=0.05)


def test_search_of_nothing() -> None:
    scores, labels = ops.tree_beam_search(torch.zeros(0, 4), torch.zeros(10, 4), TREE, 2, 3)
    assert scores.shape == labels.shape == (0, 3)


def test_search_shapes_that_do_not_fit() -> None:
    with pytest.raises(KernelError, match="weights"):
        ops.tree_beam_search(torch.zeros(2, 4), torch.zeros(9, 4), TREE, 2, 3)
    with pytest.raises(KernelError, match="beam"):
        ops.tree_beam_search(torch.zeros(2, 4), torch.zeros(10, 4), TREE, 0, 3)
