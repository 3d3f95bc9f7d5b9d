"""The dual cooperative network against the paper's equations 3 to 19, computed by hand in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from xmplug_treaderxml import DualConfig, xmplug_recipes
from xmplug_treaderxml.loss import SoftmaxLogistic
from xmplug_treaderxml.network import DualNetwork, Reading, SelfAttention, front, scope_states

from xmplug import ConfigError
from xmplug.interfaces import Batch, Encoded, LabelTexts, Scores, Shortlist, Targets

D, HEADS = 8, 2


def _texts(lengths: list[int], size: int = D, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(lengths), max(1, *lengths), size, dtype=torch.float64, generator=generator)
    mask = torch.arange(states.shape[1])[None] < torch.tensor(lengths)[:, None]
    return states * mask[:, :, None], mask


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _attention(part: SelfAttention, text: np.ndarray) -> np.ndarray:
    """Equations 3 to 13 for one text (T,D), head by head."""
    weights = part.queries_keys_values.weight.detach().numpy()
    queries, keys, values = (text @ matrix.T for matrix in np.split(weights, 3))  # eq. 4-6
    size = text.shape[1] // part.heads  # eq. 3
    heads = []
    for head in range(part.heads):
        at = slice(head * size, (head + 1) * size)
        scores = queries[:, at] @ keys[:, at].T / np.sqrt(size)  # eq. 7
        if part.masked:
            scores[np.triu_indices(len(text), 1)] = -np.inf  # eq. 8 and 9
        heads.append(_softmax(scores) @ values[:, at])  # eq. 10 and 11
    return np.tanh(np.concatenate(heads, axis=1) @ part.output.weight.detach().numpy().T)  # eq. 12 and 13


@pytest.mark.parametrize("masked", [True, False])
def test_attention_follows_equations_3_to_13(masked: bool) -> None:
    torch.manual_seed(0)
    part = SelfAttention(D, HEADS, masked).double()
    lengths = [5, 1, 7]
    states, mask = _texts(lengths)
    out = part(states, mask).detach().numpy()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(out[row, :length], _attention(part, states[row, :length].numpy()), atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
def test_the_form_for_bfloat16_on_a_cpu_is_the_same_attention(masked: bool) -> None:
    torch.manual_seed(0)
    part = SelfAttention(64, 4, masked)
    states, mask = (value.float() for value in _texts([40, 3, 17], 64))
    mask = mask.bool()
    exact = part.double()(states.double(), mask)
    inexact = part.bfloat16()(states.bfloat16(), mask).double()
    assert (exact - inexact)[mask].abs().max() < 0.03


def test_an_empty_text_stays_finite_forward_and_backward() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        part = SelfAttention(D, HEADS, masked=False).to(dtype)
        states = torch.randn(2, 3, D, dtype=dtype, requires_grad=True)
        part(states, torch.tensor([[True, True, False], [False, False, False]])).sum().backward()
        assert states.grad is not None and states.grad.isfinite().all()


READINGS = {
    (): lambda e, _: e,
    ("masked", "residual"): lambda e, a: e + _attention(a[0], e),
    ("full", "residual"): lambda e, a: e + _attention(a[0], e),
    ("full", "residual", "masked"): lambda e, a: _attention(a[1], e + _attention(a[0], e)),
    ("masked", "full"): lambda e, a: _attention(a[1], _attention(a[0], e)),
    ("masked", "residual", "full"): lambda e, a: _attention(a[1], e + _attention(a[0], e)),  # eq. 14 and 15
}


@pytest.mark.parametrize("parts", READINGS)
def test_reading_follows_table_3(parts: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    reading = Reading(DualConfig(heads=HEADS, reading=parts), D).double()
    assert [part.masked for part in reading.attentions] == [part == "masked" for part in parts if part != "residual"]
    states, mask = _texts([4, 6])
    out = reading(states, mask).detach().numpy()
    for row, length in enumerate([4, 6]):
        expected = READINGS[parts](states[row, :length].numpy(), list(reading.attentions))
        np.testing.assert_allclose(out[row, :length], expected, atol=1e-12)


def _labels(members: list[list[int]], lengths: list[int]) -> LabelTexts:
    states, mask = _texts(lengths, seed=5)
    texts = Batch(torch.arange(len(lengths)), mask.long() * 2, torch.tensor(lengths))
    weights = (torch.tensor(members) >= 0).float()
    return LabelTexts(texts, torch.tensor(members), weights, Encoded(mask, states))


def test_a_scope_is_the_mean_of_its_labels_word_by_word() -> None:
    labels = _labels([[2, 0, -1], [1, -1, -1], [-1, -1, -1]], [3, 1, 2])
    assert labels.encoded is not None and labels.encoded.states is not None
    encoded = labels.encoded.states
    states, there = scope_states(labels)
    assert there.tolist() == [[True, True, True], [True, False, False], [False] * 3]
    torch.testing.assert_close(states[0], (encoded[2] + encoded[0]) / 2)  # algorithm 1, line 8
    torch.testing.assert_close(states[1], encoded[1])
    assert states[2].eq(0).all()
    weighted, _ = scope_states(replace(labels, weights=torch.tensor([[3.0, 1, 0], [2, 0, 0], [0, 0, 0]])))
    torch.testing.assert_close(weighted[0], (3 * encoded[2] + encoded[0]) / 4)
    torch.testing.assert_close(weighted[1], states[1])


def test_words_move_to_the_front_in_their_order() -> None:
    states = torch.arange(8.0).view(2, 4, 1)
    moved, mask = front(states, torch.tensor([[True, False, True, False], [False, False, False, True]]))
    assert mask.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert moved[0, :2, 0].tolist() == [0, 2] and moved[1, 0, 0] == 7


def _network(**options: object) -> DualNetwork:
    torch.manual_seed(0)
    return DualNetwork(DualConfig(heads=HEADS, hidden=6, **options), D, 9).double().eval()  # type: ignore[arg-type]


def test_the_papers_loss_follows_equations_18_and_19() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.3, 1.0, -3.0]])
    shortlist = Shortlist(torch.tensor([[4, 1, 2], [0, 3, -1]]))
    targets = Targets(torch.tensor([0, 2, 3]), torch.tensor([1, 4, 3]))
    expected = 0.0
    for row, true in ((logits[0].double().numpy(), [1, 1, 0]), (logits[1, :2].double().numpy(), [0, 1])):
        for share, y in zip(_softmax(row), true):
            expected -= y * np.log(1 / (1 + np.exp(-share))) + (1 - y) * np.log(np.exp(-share) / (1 + np.exp(-share)))
    loss = SoftmaxLogistic()(Scores(logits), shortlist, targets)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-6)


def _by_hand(network: DualNetwork, text: np.ndarray, scope: np.ndarray) -> np.ndarray:
    """Equations 3 to 18 for one text (T,D) with its scope (W,D): the logits of all nodes."""

    def read(reading: Reading, states: np.ndarray) -> np.ndarray:
        masked, full = reading.attentions
        assert isinstance(masked, SelfAttention) and isinstance(full, SelfAttention)
        return _attention(full, states + _attention(masked, states)) if len(states) else states

    joined = np.concatenate([read(network.scope, scope), read(network.text, text)])  # eq. 16
    joined = _attention(network.interaction, joined) if len(joined) else joined
    means = [part.mean(axis=0) if len(part) else np.zeros(D) for part in (joined[: len(scope)], joined[len(scope) :])]
    hidden = network.bottleneck.weight.detach().numpy() @ np.concatenate(means)  # eq. 17
    return network.output.weight.detach().numpy() @ hidden + network.bias.weight.detach().numpy()[:, 0]  # eq. 18


def test_logits_follow_the_paper_from_end_to_end() -> None:
    network, lengths = _network(), [4, 6, 3, 0]
    states, mask = _texts(lengths)
    labels = _labels([[2, 0], [1, -1], [-1, -1], [0, 1]], [3, 1, 2])
    scope, there = (value.numpy() for value in scope_states(labels))
    nodes = torch.tensor([[7, 0, 3], [2, 8, -1], [5, 1, 4], [0, -1, -1]])
    full = network(Encoded(mask, states), Shortlist(), labels).logits
    some = network(Encoded(mask, states), Shortlist(nodes), labels).logits
    for row, length in enumerate(lengths):
        expected = _by_hand(network, states[row, :length].numpy(), scope[row][there[row]])
        np.testing.assert_allclose(full[row].detach().numpy(), expected, atol=1e-10)
        for column, node in enumerate(nodes[row].tolist()):
            if node >= 0:
                assert some[row, column].item() == pytest.approx(expected[node], abs=1e-10)
    alone = network(Encoded(mask[:1], states[:1]), Shortlist()).logits
    np.testing.assert_allclose(
        alone[0].detach().numpy(), _by_hand(network, states[0, :4].numpy(), np.zeros((0, D))), atol=1e-10
    )


def test_padding_and_company_change_nothing() -> None:
    network = _network()
    states, mask = _texts([4, 6])
    labels = _labels([[2, 0, -1], [1, -1, -1]], [3, 1, 2])
    together = network(Encoded(mask, states), Shortlist(), labels).logits
    wide = torch.nn.functional.pad(states, (0, 0, 0, 5), value=3.0), torch.nn.functional.pad(mask, (0, 5))
    padded = network(Encoded(wide[1], wide[0]), Shortlist(), labels).logits
    torch.testing.assert_close(padded, together, atol=1e-12, rtol=0)
    alone = network(
        Encoded(mask[:1], states[:1]),
        Shortlist(),
        replace(labels, members=labels.members[:1], weights=labels.weights[:1]),
    ).logits
    torch.testing.assert_close(alone, together[:1], atol=1e-12, rtol=0)


def test_gradients_reach_every_weight_and_are_those_of_finite_differences() -> None:
    network = _network(dropout=0.0)
    states, mask = _texts([3, 2])
    labels = _labels([[2, 0], [1, -1]], [3, 1, 2])
    assert labels.encoded is not None and labels.encoded.states is not None
    names = labels.encoded.states.requires_grad_()
    states.requires_grad_()

    def logits(text: torch.Tensor, scope: torch.Tensor) -> torch.Tensor:
        encoded = replace(labels.encoded, states=scope)  # type: ignore[type-var]
        scores: torch.Tensor = network(Encoded(mask, text), Shortlist(), replace(labels, encoded=encoded)).logits
        return scores

    assert torch.autograd.gradcheck(logits, (states, names))
    logits(states, names).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in network.parameters())


def test_heads_must_divide_the_vectors() -> None:
    with pytest.raises(ConfigError, match="vectors of 10 numbers do not divide into 4 attention heads"):
        DualNetwork(DualConfig(), 10, 5)


# Table 3 and section 4.1 ---------------------------------------------------------------------------------------------


def test_the_presets_are_the_rows_of_table_3() -> None:
    (recipe,) = xmplug_recipes()
    rows = {
        0: (None, ()),
        1: ("scope", ()),
        2: ("scope", ("masked", "residual")),
        3: ("scope", ("full", "residual")),
        4: ("scope", ("full", "residual", "masked")),
        5: ("scope", ("masked", "full")),
        6: ("scope", ("masked", "residual", "full")),
    }
    for number, (context, reading) in rows.items():
        preset = recipe.presets[f"ablation-{number}"]
        assert DualConfig(**preset["fusion"]).reading == reading
        component = preset.get("label_context", {}).get("component", recipe.label_context)
        assert component == ("core:none" if context is None else "treaderxml:scope")


def test_a_residual_needs_an_attention_before_it() -> None:
    for reading in (("residual",), ("masked", "residual", "residual"), ("residual", "full")):
        with pytest.raises(ValueError, match="name an attention first"):
            DualConfig(reading=reading)  # type: ignore[arg-type]
