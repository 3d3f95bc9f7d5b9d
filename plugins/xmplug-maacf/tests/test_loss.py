"""BPR loss and its candidates, eq. 10."""

from __future__ import annotations

import math

import pytest
import torch
from xmplug_maacf.loss import BPR

from xmplug.interfaces import Scores, Shortlist, Targets


def _targets(*labels: list[int]) -> Targets:
    indptr = torch.tensor([0, *torch.tensor([len(each) for each in labels]).cumsum(0).tolist()])
    return Targets(indptr, torch.tensor([label for each in labels for label in each], dtype=torch.int64))


def test_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0, 9.0], [0.0, 1.0, 2.0, 3.0]])
    shortlist = Shortlist(torch.tensor([[4, 1, 7, -1], [0, 1, 2, 3]]))
    # Text 0: 4 and 7 are true, 1 is not, the padding is nothing. Text 1: label 3 is true.
    pairs = [2.0 - 0.5, -1.0 - 0.5, 3.0 - 0.0, 3.0 - 1.0, 3.0 - 2.0]
    expected = sum(-math.log(1 / (1 + math.exp(-gap))) for gap in pairs) / 2
    found = BPR(5)(Scores(logits), shortlist, _targets([4, 7], [3]))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_all_labels_as_candidates() -> None:
    logits = torch.tensor([[0.3, -0.2, 0.7]])
    expected = math.log1p(math.exp(-0.2 - 0.7)) + math.log1p(math.exp(0.3 - 0.7))
    assert float(BPR(1)(Scores(logits), Shortlist(), _targets([2]))) == pytest.approx(expected, rel=1e-6)


def test_finite_where_the_printed_form_overflows() -> None:
    logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = BPR(1)(Scores(logits), Shortlist(), _targets([0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1, 1]]


def test_texts_without_true_candidates_cost_nothing() -> None:
    logits = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = BPR(3)(Scores(logits), Shortlist(), _targets([]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(BPR(3)(Scores(logits.detach()), Shortlist(), _targets([0, 1]))) == 0  # all are true


@pytest.mark.parametrize("given", [False, True])
def test_candidates(given: bool) -> None:
    """All true ones, others at most `negatives` times as many, none twice, none that was no candidate."""
    torch.manual_seed(0)
    targets = _targets([3, 7, 20], [], [5])
    nodes = torch.stack([torch.randperm(40)[:30] for _ in range(3)])
    nodes[:, ::7] = -1
    before = Shortlist(nodes, torch.rand(3, 30)) if given else Shortlist()
    there = [set(row[row >= 0].tolist()) for row in nodes] if given else [set(range(40))] * 3
    drawn: set[int] = set()
    for _ in range(200):
        found = BPR(2).sample(before, targets, 40)
        assert found.nodes is not None
        for text, row in enumerate(found.nodes):
            chosen = row[row >= 0].tolist()
            true = {3, 7, 20} & there[0] if text == 0 else {5} & there[2] if text == 2 else set()
            assert len(chosen) == len(set(chosen))
            assert true <= set(chosen) <= there[text]
            assert len(chosen) <= 3 * len(true)
            if given:  # drawn without repetition: as many as asked
                assert len(chosen) == 3 * len(true)
            drawn |= set(chosen) if text == 2 else set()
        if given:
            assert found.prior is not None
            for text, column in (found.nodes >= 0).nonzero().tolist():
                place = (nodes[text] == found.nodes[text, column]).nonzero()[0, 0]
                assert found.prior[text, column] == before.prior[text, place]  # type: ignore[index]
    assert drawn == there[2] if 5 in there[2] else not drawn


def test_without_a_number_all_candidates_stay() -> None:
    shortlist = Shortlist()
    assert BPR(None).sample(shortlist, _targets([1]), 9) is shortlist
