"""AttentionXML against the paper's equations and against PyTorch's own bidirectional LSTM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn
from xmplug_attentionxml import BiLSTMConfig, LabelAttentionConfig, PLTConfig
from xmplug_attentionxml.attention import LabelAttention
from xmplug_attentionxml.encoder import BiLSTM
from xmplug_attentionxml.tree import PLT

from xmplug.data import Tokenizer
from xmplug.interfaces import Batch, Encoded, Shortlist
from xmplug.ops import build_label_tree


def _encoder(words: int = 9, **options: object) -> BiLSTM:
    torch.manual_seed(0)
    tokenizer = Tokenizer.words([" ".join(f"w{word}" for word in range(words))], 100, 1)
    return BiLSTM(BiLSTMConfig(hidden=3, **options), tokenizer, torch.randn(len(tokenizer), 4))


def _batch(lengths: list[int], width: int | None = None) -> Batch:
    torch.manual_seed(1)
    width = width or max(1, max(lengths))
    tokens = torch.randint(2, 9, (len(lengths), width))
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return Batch(torch.arange(len(lengths)), tokens, torch.tensor(lengths))


# Section 2.4.2 -----------------------------------------------------------------------------------------------------


def test_states_and_gradients_are_those_of_a_bidirectional_lstm_on_packed_sequences() -> None:
    encoder, batch = _encoder().double().eval(), _batch([5, 2, 7, 1])
    reference = nn.LSTM(4, 3, batch_first=True, bidirectional=True).double()
    for name, value in encoder.forward_lstm.named_parameters():
        getattr(reference, name).data.copy_(value.data)
    for name, value in encoder.backward_lstm.named_parameters():
        getattr(reference, name + "_reverse").data.copy_(value.data)
    words = encoder.embedding(batch.tokens).detach()
    packed = nn.utils.rnn.pack_padded_sequence(words, batch.lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)

    states = encoder(batch).states
    assert states is not None
    valid = batch.mask
    torch.testing.assert_close(states[valid], expected[valid], rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected[valid])
    (states[valid] * weights).sum().backward()
    (expected[valid] * weights).sum().backward()
    for name, value in encoder.backward_lstm.named_parameters():
        torch.testing.assert_close(value.grad, getattr(reference, name + "_reverse").grad, rtol=1e-10, atol=1e-12)


def test_frozen_vectors_get_no_gradient_and_a_second_backward_is_a_new_forward() -> None:
    encoder, batch = _encoder(train_vectors=False), _batch([4, 2])
    for _ in range(2):
        states = encoder(batch).states
        assert states is not None
        states.sum().backward()
    assert encoder.embedding.weight.grad is None
    assert encoder.forward_lstm.weight_hh_l0.grad is not None


def test_padding_and_neighbours_change_nothing() -> None:
    encoder = _encoder().eval()
    batch = _batch([5, 3, 0])
    wide = Batch(batch.index, torch.nn.functional.pad(batch.tokens, (0, 6)), batch.lengths)
    states, padded = encoder(batch).states, encoder(wide).states
    assert states is not None and padded is not None
    torch.testing.assert_close(states[batch.mask], padded[wide.mask])
    alone = encoder(Batch(batch.index[1:2], batch.tokens[1:2, :3], batch.lengths[1:2])).states
    assert alone is not None
    torch.testing.assert_close(states[1, :3], alone[0])


def test_word_dropout_hides_words_in_training_only() -> None:
    encoder = _encoder(word_dropout=0.9, dropout=0.0, state_dropout=0.0)
    batch = _batch([200])
    calm = encoder.eval()(batch).states
    hidden = encoder.train()(batch).states
    assert calm is not None and hidden is not None and not torch.allclose(calm, hidden)
    torch.testing.assert_close(encoder.eval()(batch).states, calm)


# Sections 2.4.3 and 2.4.4 --------------------------------------------------------------------------------------------


def _by_hand(fusion: LabelAttention, states: np.ndarray, query: np.ndarray) -> float:
    """Equation 2 and the shared layers for one text and one label, in float64."""
    weights = np.exp(states @ query)
    hidden = (weights / weights.sum()) @ states
    for layer in fusion.layers:
        assert isinstance(layer, nn.Linear)
        hidden = np.maximum(0, layer.weight.detach().numpy() @ hidden + layer.bias.detach().numpy())
    return float((fusion.output.weight.detach().numpy() @ hidden + fusion.output.bias.detach().numpy())[0])


@pytest.mark.parametrize("layers", [(5,), (5, 4)])
def test_logits_follow_equation_2(layers: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fusion = LabelAttention(LabelAttentionConfig(layers=layers), 6, 10).double()
    lengths = [4, 1, 6]
    states = torch.randn(3, 6, 6, dtype=torch.float64)
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    nodes = torch.tensor([[7, 0, 3], [2, 9, -1], [5, 1, 4]])
    encoded = Encoded(mask=mask, states=states)
    full, some = fusion(encoded, Shortlist()).logits, fusion(encoded, Shortlist(nodes)).logits
    queries = fusion.queries.weight.detach().numpy()
    for text, length in enumerate(lengths):
        for column, node in enumerate(nodes[text].tolist()):
            if node >= 0:
                expected = _by_hand(fusion, states[text, :length].numpy(), queries[node])
                assert full[text, node].item() == pytest.approx(expected, rel=1e-10)
                assert some[text, column].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wide_level_has_row_sparse_gradients_equal_to_the_dense_ones(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for sparse_from in (10, 1000):
        monkeypatch.setattr("xmplug_attentionxml.attention._SPARSE_FROM", sparse_from)
        torch.manual_seed(0)
        fusion = LabelAttention(LabelAttentionConfig(layers=(5,)), 6, 50)
        states, mask = torch.randn(2, 3, 6).to(dtype), torch.ones(2, 3, dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores = fusion(Encoded(mask=mask, states=states), Shortlist(torch.tensor([[3, 7, -1], [7, 40, 9]])))
        scores.logits.float().square().sum().backward()
        gradients.append(fusion.queries.weight.grad)
    sparse, dense = gradients
    assert sparse is not None
    assert dense is not None
    assert sparse.is_sparse
    assert set(sparse.coalesce().indices()[0].tolist()) == {3, 7, 9, 40}
    torch.testing.assert_close(sparse.to_dense(), dense)


def test_attention_sums_to_one_over_the_words_of_a_text() -> None:
    fusion = LabelAttention(LabelAttentionConfig(), 6, 10)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    weights = fusion.attention(
        Encoded(mask=mask, states=torch.randn(2, 3, 6)), Shortlist(torch.tensor([[1, 2], [3, -1]]))
    )
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2))
    assert weights[0, :, 2].eq(0).all() and weights[1].eq(0).all()


# Sections 2.2 and 2.3 ------------------------------------------------------------------------------------------------


def _plt(num_labels: int, branching: int, height: int, beam: int = 3) -> PLT:
    rng = np.random.default_rng(0)
    features = csr_matrix(rng.random((num_labels, 20)).astype(np.float32))
    return PLT(build_label_tree(features, branching, branching, 0), beam, height)


@pytest.mark.parametrize(
    ("num_labels", "branching", "height"), [(8000, 8, 3), (100, 4, 2), (37, 5, 1), (10, 16, 1), (1, 2, 1)]
)
def test_levels_of_the_tree(num_labels: int, branching: int, height: int) -> None:
    plt = _plt(num_labels, branching, height)
    assert plt.num_levels <= height + 1
    assert sorted(plt.leaf_labels()) == list(range(num_labels))
    labels = csr_matrix(np.eye(num_labels, dtype=np.int8))
    for level in range(1, plt.num_levels):
        # Each label alone: its node at a level is a child of its node one level up, and no parent has too many.
        below = plt.level_targets(level, labels).indices
        above = plt.level_targets(level - 1, labels).indices
        parents = {(child, parent) for child, parent in zip(below.tolist(), above.tolist())}
        assert len(parents) == plt.level_size(level)
        assert max(np.bincount([parent for _, parent in parents])) <= branching
        shortlist = plt.shortlist(
            level,
            _batch([1]),
            torch.arange(plt.level_size(level - 1))[None],
            torch.rand(1, plt.level_size(level - 1)),
        )
        assert shortlist.nodes is not None
        assert sorted(shortlist.nodes[shortlist.nodes >= 0].tolist()) == list(range(plt.level_size(level)))


def test_figure_1b() -> None:
    """K = M = 8, H = 3 and L = 8000: the tree of the paper's figure 1(b) has 8000 leaves under 1000 to 1024 nodes."""
    plt = _plt(8000, 8, 3)
    sizes = [plt.level_size(level) for level in range(plt.num_levels)]
    assert len(sizes) == 4 and sizes[3] == 8000
    assert 1000 <= sizes[2] <= 1024 and 125 <= sizes[1] <= 128 and sizes[0] == 16


def test_targets_of_a_node_are_its_labels() -> None:
    plt = _plt(50, 4, 2)
    labels = csr_matrix((np.random.default_rng(1).random((30, 50)) < 0.1).astype(np.int8))
    leaves = plt.level_targets(plt.num_levels - 1, labels)
    np.testing.assert_array_equal(leaves.toarray(), labels.toarray()[:, plt.leaf_labels()])
    for level in range(plt.num_levels - 1):
        nodes = plt.level_targets(level, labels).toarray()
        below = plt.level_targets(level + 1, labels).toarray()
        children = plt.shortlist(
            level + 1,
            _batch([1]),
            torch.arange(plt.level_size(level))[:, None],
            torch.ones(plt.level_size(level), 1),
        ).nodes
        assert children is not None
        for node, row in enumerate(children.tolist()):
            own = [child for child in row if child >= 0]
            np.testing.assert_array_equal(nodes[:, node], below[:, own].max(axis=1))


def test_a_shortlist_carries_the_parents_probability_and_pads() -> None:
    plt = _plt(37, 5, 1)
    shortlist = plt.shortlist(1, _batch([1]), torch.tensor([[3, -1]]), torch.tensor([[0.25, 0.0]]))
    assert shortlist.nodes is not None and shortlist.prior is not None
    real = shortlist.nodes >= 0
    assert 0 < int(real.sum()) <= 5
    assert shortlist.prior[real].eq(0.25).all() and shortlist.prior[~real].eq(0).all()


def test_saved_and_restored(tmp_path: Path) -> None:
    plt = _plt(100, 4, 2)
    plt.save(tmp_path)
    task = SimpleNamespace(num_labels=100)
    again = PLT.restore(PLTConfig(branching=4, height=2), tmp_path, task)  # type: ignore[arg-type]
    np.testing.assert_array_equal(plt.leaf_labels(), again.leaf_labels())
    assert [plt.level_size(level) for level in range(3)] == [again.level_size(level) for level in range(3)]
