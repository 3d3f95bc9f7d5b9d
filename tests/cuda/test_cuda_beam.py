"""The CUDA kernels of beam_step and tree_beam_search beside their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmplug import ops
from xmplug.ops import beam, native, reference

any_shape = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# A grid of values, so that equal scores are common and unequal ones are far apart in float32.
LOGITS, PARENTS = [-math.inf, -3.0, -1.0, 0.0, 0.5, 2.0, math.nan], [0.0, 0.25, 0.5, 1.0, math.nan]


def sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit)) if logit > -700 else 0.0


def by_hand(logits: Tensor, nodes: Tensor, parents: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in float64: scores, nodes and columns (B,k)."""
    rows = []
    for row in zip(logits.tolist(), nodes.tolist(), parents.tolist(), strict=True):
        best: dict[int, tuple[float, int]] = {}
        for column, (logit, node, parent) in enumerate(zip(*row, strict=True)):
            score = sigmoid(logit) * parent
            score = score if score > 0 else 0.0
            if node >= 0 and score > best.get(node, (-1.0, 0))[0]:
                best[node] = (score, column)
        ranked = sorted((-score, node, column) for node, (score, column) in best.items())
        rows.append(([(-score, node, column) for score, node, column in ranked] + [(0.0, -1, -1)] * k)[:k])
    scores, best_nodes, columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, k, 3).unbind(-1)
    return scores, best_nodes.long(), columns.long()


def grid(seed: int, rows: int, width: int, nodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    logits, parents = rng.choice(LOGITS, (rows, width)), rng.choice(PARENTS, (rows, width))
    return torch.tensor(logits).to(dtype), torch.tensor(rng.integers(-1, nodes, (rows, width))), torch.tensor(parents)


def check_step(on_gpu: native.Gpu, logits: Tensor, nodes: Tensor, parents: Tensor, k: int) -> None:
    operands = (each.to(on_gpu.device) for each in (logits, nodes, parents.to(logits.dtype)))
    scores, best, columns = (each.cpu() for each in beam._beam_step(*operands, k))
    expected = by_hand(logits, nodes, parents, k)
    assert torch.equal(best, expected[1])
    assert torch.equal(columns, expected[2])
    assert scores.dtype == logits.dtype
    torch.testing.assert_close(scores.double(), expected[0], rtol=1e-6, atol=0)


@any_shape
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 3),
    width=st.integers(0, 150),
    k=st.integers(1, 160),
    nodes=st.sampled_from([4, 150, 2**40]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_step_is_its_definition(
    on_gpu: native.Gpu, seed: int, rows: int, width: int, k: int, nodes: int, dtype: torch.dtype
) -> None:
    check_step(on_gpu, *grid(seed, rows, width, nodes, dtype), k)


@pytest.mark.parametrize(
    ("width", "k", "nodes", "dtype"),
    [
        (1280, 160, 2**40, torch.float32),
        (1300, 600, 2**40, torch.float32),  # too many to rank
        (1300, 600, 900, torch.float64),  # of which some are there twice
        (4500, 10, 2**40, torch.float32),  # too many for shared memory
    ],
)
def test_step_of_long_rows(on_gpu: native.Gpu, width: int, k: int, nodes: int, dtype: torch.dtype) -> None:
    check_step(on_gpu, *grid(0, 2, width, nodes, dtype), k)


def test_step_of_siblings_of_which_some_come_again(on_gpu: native.Gpu) -> None:
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randperm(90, generator=generator)[:40].sort().values.repeat_interleave(8) * 8
    nodes = (nodes + torch.arange(8).repeat(40)).repeat(2, 1)
    nodes[1, 200:240] = nodes[1, :40]
    logits = torch.randn(2, 320, generator=generator).mul(8).round().div(8)
    check_step(on_gpu, logits, nodes, torch.ones(2, 320), 50)


def test_step_is_as_near_as_float32_can_be(on_gpu: native.Gpu) -> None:
    logits = torch.cat([torch.linspace(-103, 100, 900), torch.tensor([-math.inf, math.inf, -1e30, 1e30])])
    operands = (each.to(on_gpu.device) for each in (logits[None], torch.arange(904)[None], torch.full((1, 904), 0.3)))
    scores, nodes = (each.cpu()[0] for each in ops.beam_step(*operands, 904))
    exact = torch.sigmoid(logits.double())[nodes] * torch.tensor(0.3).double()
    torch.testing.assert_close(scores.double(), exact, rtol=4e-7, atol=1e-38)
    plain = torch.sigmoid(logits)[nodes] * 0.3
    assert ((scores.view(torch.int32) - plain.view(torch.int32)).abs() <= 4)[plain > 1e-37].all()
    assert (scores.diff() <= 0).all()


def test_step_gradients_and_registration(on_gpu: native.Gpu) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, parents = (torch.rand(3, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    logits, parents = (each.to(on_gpu.device).requires_grad_() for each in (logits, parents))
    nodes = torch.arange(8, device=on_gpu.device).repeat(3, 1)
    nodes[0, :3] = 5
    assert torch.autograd.gradcheck(lambda x, p: ops.beam_step(x, nodes, p, 4)[0], (logits, parents))
    torch.library.opcheck(torch.ops.xmplug.beam_step.default, (logits, nodes, parents, 4))


def ragged_tree(rng: np.random.Generator, depth: int, most: int) -> ops.LabelTree:
    """A tree whose nodes have 1 to `most` children, few of them many, in random order of labels."""
    offsets, first_child = [0, 1], [1]
    for _ in range(depth):
        counts = rng.integers(1, np.where(rng.random(offsets[-1] - offsets[-2]) < 0.2, most, 2) + 1)
        first_child.extend(first_child[-1] + np.cumsum(counts))
        offsets.append(int(first_child[-1]))
    labels = rng.permutation(offsets[-1] - offsets[-2])
    return ops.LabelTree(np.array(offsets), np.array(first_child), labels)


def even_tree(leaves: int, branching: int) -> ops.LabelTree:
    sizes = [leaves]
    while sizes[0] > 1:
        sizes.insert(0, -(-sizes[0] // branching))
    offsets = np.cumsum([0, *sizes])
    first = [np.minimum(np.arange(n) * branching, m) + at for n, m, at in zip(sizes[:-1], sizes[1:], offsets[1:])]
    return ops.LabelTree(offsets, np.append(np.concatenate(first), offsets[-1]), np.arange(leaves))


def search_by_hand(
    hidden: Tensor, weights: Tensor, tree: ops.LabelTree, beam: int, k: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Labels and scores by the definition in float64."""
    logits = (hidden.double() @ weights.double().T).tolist()
    labels, scores = [], []
    for row in logits:
        found = [(1.0, 0)]
        for depth in range(1, tree.num_levels):
            next_level = []
            for parent, node in found:
                for child in tree.children(node):
                    score = parent * sigmoid(row[child])
                    next_level.append((score if score > 0 else 0.0, child))
            found = sorted(next_level, key=lambda pair: (-pair[0], pair[1]))[
                : k if depth == tree.num_levels - 1 else beam
            ]
        found += [(0.0, -1)] * (k - len(found))
        labels.append([-1 if node < 0 else int(tree.labels[node - tree.level(-1).start]) for _, node in found])
        scores.append([score for score, _ in found])
    return labels, scores


TYPES = [torch.float32, torch.bfloat16, torch.float16]


def check_search(on_gpu: native.Gpu, hidden: Tensor, weights: Tensor, tree: ops.LabelTree, beam: int, k: int) -> None:
    operands = (hidden.to(on_gpu.device), weights.to(on_gpu.device))
    scores, labels = (each.cpu() for each in ops.tree_beam_search(*operands, tree, beam, k))
    expected = search_by_hand(hidden, weights, tree, beam, k)
    assert labels.tolist() == expected[0]
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy().reshape(-1, k), np.array(expected[1]).reshape(-1, k), rtol=2e-6)


@any_shape
@given(
    seed=st.integers(0, 2**32),
    depth=st.integers(1, 3),
    most=st.integers(1, 20),
    texts=st.integers(0, 3),
    width=st.sampled_from([1, 5, 8, 40, 136]),
    beam_width=st.integers(1, 9),
    k=st.integers(1, 12),
    types=st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)),
)
def test_search_is_a_step_for_each_level(
    on_gpu: native.Gpu,
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
    # Few small numbers: their sums are exact in any order, and many are equal.
    hidden = torch.zeros(texts, width)
    for row in hidden:
        row[rng.integers(0, width, 2)] = torch.tensor(rng.choice([-1.0, 0.5, 1.0], 2)).float()
    weights = torch.tensor(rng.choice([-1.0, 0.0, 1.0], (tree.num_nodes, width)))
    operands = (hidden.to(on_gpu.device, types[0]), weights.to(on_gpu.device, types[1]))
    scores, labels = ops.tree_beam_search(*operands, tree, beam_width, k)
    arrays = (
        torch.from_numpy(array).to(on_gpu.device) for array in (tree.first_child, tree.level_offsets, tree.labels)
    )
    stepped = reference.tree_beam_search(*operands, *arrays, beam_width, k, beam._beam_step)
    assert torch.equal(scores, stepped[0])
    assert torch.equal(labels, stepped[2])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [37, 256])
def test_search_of_many_texts(on_gpu: native.Gpu, width: int, dtype: torch.dtype) -> None:
    # Nodes with more visitors, and with more children, than a tile has.
    generator = torch.Generator().manual_seed(0)
    tree = even_tree(120, 11)
    hidden = torch.randn(35, width, generator=generator).to(dtype)
    weights = (torch.randn(tree.num_nodes, width, generator=generator) * 2 / width**0.5).to(dtype)
    check_search(on_gpu, hidden, weights, tree, 5, 7)


def test_search_of_a_text_does_not_depend_on_the_others(on_gpu: native.Gpu) -> None:
    generator = torch.Generator().manual_seed(0)
    tree = ragged_tree(np.random.default_rng(1), 3, 20)
    hidden = torch.randn(21, 50, generator=generator).to(on_gpu.device)
    weights = torch.randn(tree.num_nodes, 50, generator=generator).to(on_gpu.device)
    together = ops.tree_beam_search(hidden, weights, tree, 6, 7)
    for number in (1, 3):
        for begin in range(0, 21, 5 * number):
            few = ops.tree_beam_search(hidden[begin : begin + number], weights, tree, 6, 7)
            assert torch.equal(few[0], together[0][begin : begin + number])
            assert torch.equal(few[1], together[1][begin : begin + number])


def test_search_of_more_leaves_than_are_ranked(on_gpu: native.Gpu) -> None:
    logits = torch.randn(702, generator=torch.Generator().manual_seed(0))
    tree = ops.LabelTree(np.array([0, 1, 701]), np.array([1, 701]), np.arange(700)[::-1])
    check_search(on_gpu, torch.tensor([[0.5], [0.0]]), logits[:701, None], tree, 1, 620)


def test_search_of_more_than_goes_together(on_gpu: native.Gpu) -> None:
    tree = ops.LabelTree(np.array([0, 1, 4]), np.array([1, 4]), np.arange(3))
    weights = torch.tensor([[0.0], [1.0], [3.0], [2.0]], device=on_gpu.device)
    hidden = torch.linspace(0.5, 2.0, 1100, device=on_gpu.device)[:, None]
    scores, labels = ops.tree_beam_search(hidden, weights, tree, 1, 2)
    assert torch.equal(labels.cpu(), torch.tensor([[1, 2]]).expand(1100, 2))
    torch.testing.assert_close(scores, torch.sigmoid(hidden * torch.tensor([[3.0, 2.0]], device=on_gpu.device)))


def test_search_of_rows_that_are_not_aligned(on_gpu: native.Gpu) -> None:
    generator = torch.Generator().manual_seed(0)
    tree = even_tree(30, 4)
    flat = torch.randn(tree.num_nodes * 16 + 1, generator=generator).to(on_gpu.device)
    hidden = torch.randn(3, 16, generator=generator).to(on_gpu.device)
    result = ops.tree_beam_search(hidden, flat[1:].reshape(-1, 16), tree, 3, 4)
    expected = ops.tree_beam_search(hidden, flat[1:].clone().reshape(-1, 16), tree, 3, 4)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("width", [5, 16])
def test_search_keeps_what_is_not_a_number_where_it_is(on_gpu: native.Gpu, width: int) -> None:
    tree = ops.LabelTree(np.array([0, 1, 4, 10]), np.array([1, 4, 5, 8, 10]), np.array([3, 0, 5, 1, 4, 2]))
    hidden, weights = torch.full((2, width), 0.25), torch.full((10, width), 0.5)
    weights[[2, 5, 8]] = math.nan  # an inner node with the leaves 5 to 7, and the leaf 8 beside 9
    hidden[1] = math.nan
    check_search(on_gpu, hidden, weights, tree, 3, 6)


def test_search_gradients_and_registration(on_gpu: native.Gpu) -> None:
    generator = torch.Generator().manual_seed(0)
    tree = even_tree(12, 3)
    hidden = torch.randn(3, 20, generator=generator).to(on_gpu.device).requires_grad_()
    weights = (torch.randn(tree.num_nodes, 20, generator=generator) / 4).to(on_gpu.device).requires_grad_()
    exact = [each.detach().double().requires_grad_() for each in (hidden, weights)]
    grads = torch.autograd.grad(ops.tree_beam_search(hidden, weights, tree, 3, 4)[0].sum(), (hidden, weights))
    exact_grads = torch.autograd.grad(ops.tree_beam_search(*exact, tree, 3, 4)[0].sum(), exact)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-5, atol=1e-6)
    arrays = [torch.from_numpy(tree.first_child), torch.from_numpy(tree.level_offsets), torch.from_numpy(tree.labels)]
    arrays[0], arrays[2] = arrays[0].to(on_gpu.device), arrays[2].to(on_gpu.device)
    operands = (hidden, weights, *arrays, 2, 3, tree.most_children)
    torch.library.opcheck(torch.ops.xmplug.tree_beam_search.default, operands)
    compiled = torch.compile(
        lambda h, w: ops.tree_beam_search(h, w, tree, 3, 4)[0], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(hidden, weights), ops.tree_beam_search(hidden, weights, tree, 3, 4)[0])


def test_a_tree_that_is_none_stops(on_gpu: native.Gpu) -> None:
    if on_gpu.device.type == "cuda":
        pytest.skip("on a GPU, a trap ends all that the process can do there")
    weights, labels, offsets = torch.zeros(8, 4), torch.arange(5), torch.tensor([0, 1, 3, 8])
    for first_child in ([1, 3, 6, 9], [1, 3, 2, 8], [1, 3, 8, 8], [1, 4, 6, 8], [1, 3, 3, 8]):
        with pytest.raises(RuntimeError, match="trap"):
            beam._tree_beam_search(torch.ones(2, 4), weights, torch.tensor(first_child), offsets, labels, 2, 3, [2, 3])
    expected = reference.tree_beam_search(
        torch.ones(2, 4), weights, torch.tensor([1, 3, 5, 8]), offsets, labels, 2, 3, beam._beam_step
    )
    found = beam._tree_beam_search(torch.ones(2, 4), weights, torch.tensor([1, 3, 5, 8]), offsets, labels, 2, 3, [2, 3])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
