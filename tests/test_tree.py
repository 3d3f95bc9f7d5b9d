"""core:tree: levels, targets, candidates and siblings agree with one another, and survive saving."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, random

from xmplug import RunError
from xmplug.components import TreeConfig
from xmplug.components.flat import Flat
from xmplug.components.tree import Tree
from xmplug.data import Corpus, LabelSet
from xmplug.interfaces import Batch, Task

KINDS = pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unbalanced"])


def _batch(texts: int = 1) -> Batch:
    return Batch(torch.arange(texts), torch.zeros(texts, 1, dtype=torch.int64), torch.zeros(texts, dtype=torch.int64))


def _tree(labels: int, balanced: bool, branching: int = 3, max_leaf: int = 5, beam: int = 4) -> Tree:
    corpus = SimpleNamespace(
        label_features=random(labels, 40, 0.2, "csr", dtype=np.float32, random_state=0), task=SimpleNamespace(seed=0)
    )
    config = TreeConfig(branching=branching, max_leaf=max_leaf, balanced=balanced, beam=beam)
    return Tree.fit(config, corpus)  # type: ignore[arg-type]


@KINDS
@pytest.mark.parametrize("labels", [1, 2, 5, 6, 60, 200])
def test_levels_siblings_targets_and_candidates_agree(labels: int, balanced: bool) -> None:
    tree = _tree(labels, balanced)
    assert sorted(tree.leaf_labels().tolist()) == list(range(labels))
    assert tree.level_size(tree.num_levels - 1) == labels
    assert (tree.num_levels == 1) == (labels <= 5)
    each = csr_matrix(np.eye(labels, dtype=np.int8))
    assert tree.siblings(0).tolist() == [0, tree.level_size(0)]
    for level in range(1, tree.num_levels):
        siblings, above = tree.siblings(level), tree.level_size(level - 1)
        assert len(siblings) == above + 1 and siblings[0] == 0 and siblings[-1] == tree.level_size(level)
        most = 5 if level == tree.num_levels - 1 else 3
        assert (np.diff(siblings) >= 1).all() and (np.diff(siblings) <= most).all()
        of_parent = np.searchsorted(siblings, tree.level_targets(level, each).indices, side="right") - 1
        np.testing.assert_array_equal(of_parent, tree.level_targets(level - 1, each).indices)
        shortlist = tree.shortlist(level, _batch(), torch.arange(above)[None], torch.full((1, above), 0.5))
        assert shortlist.nodes is not None and shortlist.prior is not None
        rows = shortlist.nodes.view(above, -1)
        for node in range(above):
            own = rows[node][rows[node] >= 0].tolist()
            assert own == list(range(siblings[node], siblings[node + 1]))
        assert (shortlist.prior > 0).eq(shortlist.nodes >= 0).all()


@KINDS
def test_targets_of_a_node_are_its_labels(balanced: bool) -> None:
    tree = _tree(60, balanced)
    labels = csr_matrix((np.random.default_rng(1).random((30, 60)) < 0.1).astype(np.int8))
    before = labels.copy()
    below = labels.toarray()[:, tree.leaf_labels()]
    np.testing.assert_array_equal(tree.level_targets(tree.num_levels - 1, labels).toarray(), below)
    for level in reversed(range(1, tree.num_levels)):
        below = np.maximum.reduceat(below, tree.siblings(level)[:-1], axis=1)
        np.testing.assert_array_equal(tree.level_targets(level - 1, labels).toarray(), below)
    assert (labels != before).nnz == 0


def test_a_text_without_nodes_above_has_no_candidates() -> None:
    tree = _tree(60, False)
    shortlist = tree.shortlist(1, _batch(2), torch.tensor([[-1, -1], [0, -1]]), torch.tensor([[0.0, 0], [0.5, 0]]))
    assert shortlist.nodes is not None and shortlist.prior is not None
    assert (shortlist.nodes[0] < 0).all() and (shortlist.prior[0] == 0).all()
    assert (shortlist.nodes[1] >= 0).sum() == tree.siblings(1)[1]


@KINDS
@pytest.mark.parametrize("labels", [1, 60])
def test_saved_and_restored(labels: int, balanced: bool, tmp_path: Path) -> None:
    tree = _tree(labels, balanced)
    tree.save(tmp_path)
    config = TreeConfig(branching=3, max_leaf=5, balanced=balanced, beam=7)
    again = Tree.restore(config, tmp_path, SimpleNamespace(num_labels=labels))  # type: ignore[arg-type]
    assert again.beam == 7 and again.num_levels == tree.num_levels
    np.testing.assert_array_equal(again.leaf_labels(), tree.leaf_labels())
    for level in range(tree.num_levels):
        np.testing.assert_array_equal(again.siblings(level), tree.siblings(level))


def test_a_tree_that_is_missing_damaged_or_of_other_labels(tmp_path: Path) -> None:
    def restore(labels: int = 60) -> None:
        Tree.restore(TreeConfig(), tmp_path, SimpleNamespace(num_labels=labels))  # type: ignore[arg-type]

    with pytest.raises(RunError, match="holds no label tree"):
        restore()
    _tree(60, True).save(tmp_path)
    restore()
    with pytest.raises(RunError, match="for 60 labels, and the run has 61"):
        restore(61)
    path = tmp_path / "tree.safetensors"
    arrays = load_file(path)
    save_file({**arrays, "labels": arrays["labels"] * 0}, path)
    with pytest.raises(RunError, match="each label once"):
        restore()
    save_file({"labels": arrays["labels"]}, path)
    with pytest.raises(RunError, match="needs the array"):
        restore()
    save_file(arrays, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="holds no label tree"):
        restore()


def test_siblings_of_a_structure_of_one_level() -> None:
    flat = Flat.fit(None, Corpus(None, None, Task(LabelSet.build([["a", "b", "c"]]), 0)))  # type: ignore[arg-type]
    assert flat.siblings(0).tolist() == [0, 3]
    assert flat.read(["a text"]) is None
