"""Co-attention and predictor, eq. 4 to 9, against the equations pair by pair in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xmplug_maacf.network as network
from torch import Tensor
from xmplug_maacf import ClassifierConfig, CoAttentionConfig
from xmplug_maacf.network import Aspects, Classifier, CoAttention

from xmplug import ConfigError
from xmplug.interfaces import Encoded, Shortlist

_LABELS, _TEXTS, _SIZE = 9, 4, 6
_GROUPS = torch.tensor([[1, 2], [0, -1], [5, 8], [-1, -1], [3, 0], [2, 7], [7, 1], [6, -1], [4, 5]])


def _fusion(aspects: int = 3, groups: Tensor | None = _GROUPS, **options: Any) -> CoAttention:
    torch.manual_seed(5)
    config = CoAttentionConfig(size=_SIZE, hidden=7, dropout=0.0, **options)
    fusion = CoAttention(config, SimpleNamespace(size=5, num_pooled=aspects), _LABELS)  # type: ignore[arg-type]
    fusion.label_groups = groups
    with torch.no_grad():
        for name, parameter in fusion.named_parameters():
            if name != "product":
                parameter.normal_(std=0.7)
            else:
                parameter.uniform_(0.5, 1.5)
    return fusion.double()


def _encoded(aspects: int = 3) -> Encoded:
    torch.manual_seed(8)
    return Encoded(mask=torch.ones(_TEXTS, 2, dtype=torch.bool), pooled=torch.randn(_TEXTS, aspects, 5).double())


def _pair(fusion: CoAttention, encoded: Encoded, text: int, label: int) -> Tensor:
    """The score of one pair as the paper has it."""
    assert encoded.pooled is not None
    weights = dict(fusion.named_parameters())
    s = [
        encoded.pooled[text, n] @ weights[f"aspects.maps.{n}.weight"].T + weights[f"aspects.maps.{n}.bias"]
        for n in range(fusion.aspects.count)
    ]
    h = fusion.labels.weight
    group = [] if fusion.label_groups is None else [h[k] for k in fusion.label_groups[label].tolist() if k >= 0]
    co = fusion.config.attention == "co"
    if not group:
        of_group = torch.zeros_like(h[label])
    elif co:
        of_aspect, logits = [], []
        for n, aspect in enumerate(s):
            total = sum(torch.exp(member @ aspect) for member in group)
            h_n = sum(torch.exp(member @ aspect) / total * member for member in group)  # eq. 4, 5
            of_aspect.append(h_n)
            logits.append(h_n @ weights["of_aspects.weight"][n] + weights["of_aspects.bias"][n])
        beta = torch.softmax(torch.stack(logits), 0)  # eq. 6
        of_group = sum(b * each for b, each in zip(beta, of_aspect))  # type: ignore[assignment]  # eq. 7
    else:
        logits = [member @ weights["of_members.weight"][0] + weights["of_members.bias"][0] for member in group]
        alpha = torch.softmax(torch.stack(logits), 0)
        of_group = sum(a * member for a, member in zip(alpha, group))  # type: ignore[assignment]
    side = torch.cat([h[label], of_group]) @ weights["fuse.weight"].T + weights["fuse.bias"]  # eq. 8
    queries = [
        aspect @ h[label] if co else (aspect @ weights["of_aspects.weight"][0] + weights["of_aspects.bias"][0])
        for aspect in s
    ]
    text_side = sum(w * aspect for w, aspect in zip(torch.softmax(torch.stack(queries), 0), s))
    value = torch.cat([text_side, side])  # type: ignore[list-item]
    for at, name in enumerate(["first", *(f"layers.{each}" for each in range(len(fusion.layers)))]):  # eq. 9
        value = torch.relu(value) if at else value
        value = value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    product = 0 if fusion.product is None else (fusion.product * text_side * side).sum()
    return value[0] + product


_VARIANTS: list[dict[str, Any]] = [
    {},
    {"product": False},
    {"layers": 1},
    {"layers": 3},
    {"attention": "self"},
    {"attention": "self", "product": False, "layers": 1},
    {"groups": None},
    {"groups": None, "attention": "self"},
    {"aspects": 1},
]


@pytest.mark.parametrize("options", _VARIANTS, ids=str)
@pytest.mark.parametrize("form", ["all", "some", "rare"])
def test_pair_by_pair(options: dict[str, Any], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all labels; of some, with padding; and with row-sparse gradients, as a large level has them."""
    aspects = options.get("aspects", 3)
    if form == "rare":
        monkeypatch.setattr(network, "_SPARSE_FROM", 1)
    settings = {key: value for key, value in options.items() if key not in ("aspects", "groups")}
    fusion, plain = (_fusion(aspects, options.get("groups", _GROUPS), **settings) for _ in range(2))
    encoded = _encoded(aspects)
    nodes = None if form == "all" else torch.tensor([[4, -1, 0], [8, 1, 3], [2, 6, 5], [-1, -1, 7]])
    found = fusion(encoded, Shortlist(nodes)).logits
    expected = torch.zeros(_TEXTS, _LABELS if nodes is None else 3).double()
    wanted = torch.zeros_like(expected)
    for text in range(_TEXTS):
        for column in range(expected.shape[1]):
            label = column if nodes is None else int(nodes[text, column])
            if label >= 0:
                wanted[text, column] = 1 + text - 0.3 * column
                expected[text, column] = _pair(plain, encoded, text, label)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    (found * wanted).sum().backward()
    (expected * wanted).sum().backward()
    for (name, parameter), (_, other) in zip(fusion.named_parameters(), plain.named_parameters()):
        gradient = parameter.grad
        if other.grad is None:  # the plain form builds no part that has no effect
            assert gradient is None or float(gradient.to_dense().abs().max()) == 0, name
            continue
        assert gradient is not None, name
        other_gradient = other.grad.to_dense() if other.grad.is_sparse else other.grad
        torch.testing.assert_close(
            gradient.to_dense() if gradient.is_sparse else gradient, other_gradient, rtol=1e-9, atol=1e-9, msg=name
        )


def test_prediction_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fusion, encoded = _fusion().eval(), _encoded()
    whole = fusion(encoded, Shortlist()).logits
    monkeypatch.setattr(network, "_AT_ONCE", 50)
    torch.testing.assert_close(fusion(encoded, Shortlist()).logits, whole, rtol=1e-12, atol=1e-12)


def test_too_many_labels_to_train_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SPARSE_FROM", 1)
    with pytest.raises(ConfigError, match="--loss maacf:bpr"):
        _fusion()(_encoded(), Shortlist())
    with pytest.raises(ConfigError, match="core:tree"):
        Classifier(ClassifierConfig(size=4), SimpleNamespace(size=5, num_pooled=3), 3).double()(_encoded(), Shortlist())  # type: ignore[arg-type]


def test_aspects_of_states() -> None:
    """Each aspect is an attention pooling with a query of its own; an empty text has the bias of the map alone."""
    torch.manual_seed(2)
    aspects = Aspects(SimpleNamespace(size=5, num_pooled=0), 2, 4)  # type: ignore[arg-type]
    states, mask = torch.randn(3, 6, 5), torch.arange(6) < torch.tensor([[6], [4], [0]])
    found = aspects(Encoded(mask=mask, states=states))
    assert aspects.queries is not None
    for text, length in enumerate((6, 4, 0)):
        for n, layer in enumerate(aspects.maps):
            weights = torch.softmax(states[text, :length] @ aspects.queries[n], 0)
            pooled = (weights[:, None] * states[text, :length]).sum(0)
            torch.testing.assert_close(found[text, n], layer(pooled))


def test_aspects_where_there_are_none() -> None:
    aspects = Aspects(SimpleNamespace(size=5, num_pooled=0), None, 4)  # type: ignore[arg-type]
    assert aspects.count == 2
    with pytest.raises(ConfigError, match=r"--fusion\.aspects none"):
        aspects(Encoded(mask=torch.ones(1, 1, dtype=torch.bool), pooled=torch.zeros(1, 2, 5)))


@pytest.mark.parametrize("nodes", [None, torch.tensor([[4, -1, 0], [8, 1, 3], [2, 6, 5], [-1, -1, 7]])])
def test_classifier(nodes: Tensor | None) -> None:
    classifier = Classifier(
        ClassifierConfig(size=4, dropout=0.0), SimpleNamespace(size=5, num_pooled=3), _LABELS
    ).double()  # type: ignore[arg-type]
    encoded = _encoded()
    found = classifier(encoded, Shortlist(nodes)).logits
    text = classifier.aspects(encoded).mean(dim=1)
    expected = text @ classifier.weight.weight.T + classifier.bias.weight[:, 0]
    if nodes is not None:
        expected = expected.gather(1, nodes.clamp(min=0))
        found, expected = found[nodes >= 0], expected[nodes >= 0]
    torch.testing.assert_close(found, expected)
