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
from xmplug.ops import beam, native, reference

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(params=["reference", *native.INSTRUCTION_SETS])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the reference and with the native kernels in each instruction set."""
    if request.param == "reference":
        monkeypatch.setenv("XMPLUG_KERNELS", "reference")
        return "reference"
    if native.cpu() is None:
        pytest.skip(ops.kernels()["beam_step"])
    if request.param not in native.INSTRUCTION_SETS[: native.instruction_set() + 1]:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("XMPLUG_KERNELS", "native")
    monkeypatch.setenv("XMPLUG_INSTRUCTION_SET", request.param)
    return request.param


any_shape = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


either = pytest.mark.parametrize("kernels", ["reference", "baseline"], indirect=True)  # where the set cannot matter


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


@settings(any_shape, max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    width=st.integers(1, 900),
    k=st.integers(1, 800),
    nodes=st.sampled_from([40, 900, 2**40]),
)
def test_step_of_long_rows(seed: int, width: int, k: int, nodes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.choice([-math.inf, -3.0, -1.0, 0.0, 0.5, 2.0, math.nan], width)
    parents = rng.choice([0.0, 0.25, 0.5, 1.0], width)
    ids = rng.integers(-1, nodes, width)
    scores, best = ops.beam_step(
        torch.tensor(logits[None], dtype=torch.float32),
        torch.tensor(ids[None]),
        torch.tensor(parents[None], dtype=torch.float32),
        k,
    )
    expected = by_hand(logits.tolist(), ids.tolist(), parents.tolist(), k)
    assert best[0].tolist() == [node for _, node in expected]
    np.testing.assert_allclose(scores[0].numpy(), [score for score, _ in expected], rtol=1e-6)


def test_step_of_far_logits() -> None:
    logits = torch.cat([torch.linspace(-86, 100, 999), torch.tensor([-math.inf, math.inf, -1e30, 1e30])])
    scores, nodes = ops.beam_step(logits[None], torch.arange(1003)[None], torch.ones(1, 1003), 1003)
    exact = torch.sigmoid(logits.double())[nodes]
    torch.testing.assert_close(scores.double(), exact, rtol=5e-7, atol=0)
    assert (scores.diff() <= 0).all()


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


@either
def test_step_gradients() -> None:
    logits, nodes, parents = random_step(3, 8)
    nodes[0, :3] = 5
    logits, parents = logits.double().requires_grad_(), parents.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: ops.beam_step(x, nodes, p, 4)[0], (logits, parents))


@either
def test_step_operator_registration() -> None:
    logits, nodes, parents = random_step(3, 8)
    for dtype in (torch.float32, torch.float64):
        inputs = (logits.to(dtype).requires_grad_(), nodes, parents.to(dtype).requires_grad_(), 4)
        torch.library.opcheck(torch.ops.xmplug.beam_step.default, inputs)


@either
def test_step_compiles_without_graph_breaks() -> None:
    inputs = random_step(3, 8)
    compiled = torch.compile(ops.beam_step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, 4), ops.beam_step(*inputs, 4))


@either
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


PAIRS = [(a, b) for a in (torch.float32, torch.bfloat16) for b in (torch.float32, torch.bfloat16)]


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


@either
def test_search_gradients_and_compilation() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(TREE.num_nodes, 4, dtype=torch.float64, generator=generator, requires_grad=True)

    def search(hidden: Tensor, weights: Tensor) -> Tensor:
        return ops.tree_beam_search(hidden, weights, TREE, 2, 3)[0]

    assert torch.autograd.gradcheck(search, (hidden, weights))
    compiled = torch.compile(search, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, weights), search(hidden, weights))


@pytest.mark.parametrize(("hidden_type", "weights_type"), PAIRS)
def test_search_gradients_in_any_types(hidden_type: torch.dtype, weights_type: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 20, generator=generator).to(hidden_type).requires_grad_()
    weights = (torch.randn(TREE.num_nodes, 20, generator=generator) / 4).to(weights_type).requires_grad_()
    exact_hidden, exact_weights = (t.detach().double().requires_grad_() for t in (hidden, weights))
    scores, labels = ops.tree_beam_search(hidden, weights, TREE, 3, 4)
    exact, exact_labels = ops.tree_beam_search(exact_hidden, exact_weights, TREE, 3, 4)
    assert torch.equal(labels, exact_labels)
    grads = torch.autograd.grad(scores.sum(), (hidden, weights))
    exact_grads = torch.autograd.grad(exact.sum(), (exact_hidden, exact_weights))
    for grad, exact_grad, of in zip(grads, exact_grads, (hidden, weights), strict=True):
        assert grad.dtype == of.dtype
        tolerance = 2e-2 if of.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(grad.double(), exact_grad, rtol=tolerance, atol=tolerance * 0.1)


@either
@pytest.mark.parametrize(("hidden_type", "weights_type"), PAIRS[:2])
def test_search_operator_registration(hidden_type: torch.dtype, weights_type: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    arrays = [torch.from_numpy(array) for array in (TREE.first_child, TREE.level_offsets, TREE.labels)]
    hidden = torch.randn(3, 4, generator=generator).to(hidden_type).requires_grad_()
    weights = torch.randn(TREE.num_nodes, 4, generator=generator).to(weights_type).requires_grad_()
    torch.library.opcheck(torch.ops.xmplug.tree_beam_search.default, (hidden, weights, *arrays, 2, 3))


def ragged_tree(rng: np.random.Generator, depth: int, most: int) -> ops.LabelTree:
    """A tree whose nodes have 1 to `most` children, few of them many, in random order of labels."""
    offsets, first_child = [0, 1], [1]
    for _ in range(depth):
        counts = rng.integers(1, np.where(rng.random(offsets[-1] - offsets[-2]) < 0.2, most, 2) + 1)
        first_child.extend(first_child[-1] + np.cumsum(counts))
        offsets.append(int(first_child[-1]))
    labels = rng.permutation(offsets[-1] - offsets[-2])
    return ops.LabelTree(np.array(offsets), np.array(first_child), labels)


@settings(any_shape, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    depth=st.integers(1, 4),
    most=st.sampled_from([2, 9, 17, 40]),
    texts=st.integers(0, 9),
    width=st.integers(0, 70),
    beam_width=st.integers(1, 60),
    k=st.integers(1, 40),
    types=st.sampled_from(PAIRS),
)
def test_search_is_a_step_for_each_level(
    seed: int,
    depth: int,
    most: int,
    texts: int,
    width: int,
    beam_width: int,
    k: int,
    types: tuple[torch.dtype, torch.dtype],
) -> None:
    rng = np.random.default_rng(seed)
    tree = ragged_tree(rng, depth, most)
    # Small whole numbers: their sums are exact in any order, and many are equal.
    hidden = torch.tensor(rng.integers(-1, 2, (texts, width)) * (rng.random((texts, width)) < 0.3)).to(types[0])
    weights = torch.tensor(rng.integers(-1, 2, (tree.num_nodes, width))).to(types[1])
    scores, labels = ops.tree_beam_search(hidden, weights, tree, beam_width, k)
    arrays = (torch.from_numpy(array) for array in (tree.first_child, tree.level_offsets, tree.labels))
    stepped = reference.tree_beam_search(hidden, weights, *arrays, beam_width, k, step=beam._beam_step)
    assert torch.equal(scores, stepped[0])
    assert torch.equal(labels, stepped[2])


@pytest.mark.parametrize(("hidden_type", "weights_type"), PAIRS)
def test_search_error_is_that_of_float32(hidden_type: torch.dtype, weights_type: torch.dtype) -> None:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    tree = ragged_tree(rng, 3, 30)
    for width in (3, 37, 300):
        hidden = torch.randn(40, width, generator=generator).to(hidden_type)
        weights = (torch.randn(tree.num_nodes, width, generator=generator) / width**0.5).to(weights_type)
        exact = all_scores(hidden, weights, tree)
        scores, labels = ops.tree_beam_search(hidden, weights, tree, 20, 10)
        assert scores.dtype == torch.float32
        assert (labels >= 0).all()
        error = np.abs(scores.numpy() - np.take_along_axis(exact, labels.numpy(), 1)).max()
        plain = torch.ones(40, 1)
        for level in range(1, tree.num_levels):
            nodes = tree.level(level)
            plain = plain[:, tree.parent[nodes] - tree.level(level - 1)[0]]
            plain = plain * torch.sigmoid(hidden.float() @ weights[nodes.start : nodes.stop].float().T)
        assert error <= 2 * np.abs(plain.numpy() - exact[:, tree.labels]).max()


@pytest.mark.parametrize(("hidden_type", "weights_type"), PAIRS)
def test_search_of_a_text_does_not_depend_on_the_others(hidden_type: torch.dtype, weights_type: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tree = ragged_tree(np.random.default_rng(1), 4, 20)
    hidden = torch.randn(25, 50, generator=generator).to(hidden_type)
    weights = torch.randn(tree.num_nodes, 50, generator=generator).to(weights_type)
    together = ops.tree_beam_search(hidden, weights, tree, 12, 7)
    for number in (1, 2, 3) if native.cpu() else ():
        for begin in range(0, 25, number):
            few = ops.tree_beam_search(hidden[begin : begin + number], weights, tree, 12, 7)
            assert torch.equal(few[0], together[0][begin : begin + number])
            assert torch.equal(few[1], together[1][begin : begin + number])


@pytest.mark.usefixtures("restore_threads")
def test_search_threads_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    tree = ragged_tree(np.random.default_rng(2), 3, 60)
    hidden = torch.randn(150, 256, generator=generator)
    weights = torch.randn(tree.num_nodes, 256, generator=generator) / 16
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.tree_beam_search(hidden, weights, tree, 40, 10))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_search_of_more_than_goes_together(kernels: str) -> None:
    # More texts than are searched at a time, and more candidates on a level.
    if kernels == "reference":
        pytest.skip("slow, and all at once")
    logits = torch.randn(4500, generator=torch.Generator().manual_seed(0))
    tree = ops.LabelTree(np.array([0, 1, 4501]), np.array([1, 4501]), np.arange(4500))
    hidden = torch.linspace(0.5, 2.0, 1100)[:, None]
    scores, labels = ops.tree_beam_search(hidden, torch.cat([torch.zeros(1), logits])[:, None], tree, 1, 3)
    best, places = logits.topk(3)
    assert torch.equal(labels, places.expand(1100, 3))
    torch.testing.assert_close(scores, torch.sigmoid(hidden * best), rtol=1e-6, atol=0)


def test_search_takes_non_contiguous_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weights = torch.randn(12, 6, generator=generator), torch.randn(TREE.num_nodes, 12, generator=generator)
    result = ops.tree_beam_search(hidden.T[:, ::2], weights[:, ::2], TREE, 2, 3)
    expected = ops.tree_beam_search(hidden.T[:, ::2].contiguous(), weights[:, ::2].contiguous(), TREE, 2, 3)
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])


@pytest.mark.parametrize("weights_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5, 19, 37, 75])
def test_search_keeps_what_is_not_a_number_where_it_is(width: int, weights_type: torch.dtype) -> None:
    hidden, weights = torch.full((2, width), 0.25), torch.full((TREE.num_nodes, width), 0.5, dtype=weights_type)
    exact = all_scores(hidden, weights, TREE)
    weights[[2, 5, 8]] = math.nan  # an inner node with the leaves 5 to 7, and the leaf 8 beside 9
    hidden[1] = math.nan
    scores, labels = ops.tree_beam_search(hidden, weights, TREE, 3, 6)
    assert labels[0].tolist() == [3, 2, 0, 5, 1, 4]
    np.testing.assert_allclose(scores[0].numpy(), [exact[0, 3], exact[0, 2], 0, 0, 0, 0], rtol=1e-5)
    assert labels[1].tolist() == [3, 0, 5, 1, 4, 2]
    assert not scores[1].any()


def test_search_of_nothing() -> None:
    scores, labels = ops.tree_beam_search(torch.zeros(0, 4), torch.zeros(10, 4), TREE, 2, 3)
    assert scores.shape == labels.shape == (0, 3)


@either
def test_search_shapes_that_do_not_fit() -> None:
    with pytest.raises(KernelError, match="weights"):
        ops.tree_beam_search(torch.zeros(2, 4), torch.zeros(9, 4), TREE, 2, 3)
    with pytest.raises(KernelError, match="beam"):
        ops.tree_beam_search(torch.zeros(2, 4), torch.zeros(10, 4), TREE, 0, 3)
