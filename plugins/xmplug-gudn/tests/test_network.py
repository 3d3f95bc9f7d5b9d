"""Equations 2 to 8 computed by hand in float64, and the gradients of each guide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from xmplug_gudn import GuidedConfig
from xmplug_gudn.loss import GuidedLoss
from xmplug_gudn.network import FeatureExtractor, Guided, Standardize

from xmplug import ConfigError
from xmplug.interfaces import Batch, Encoded, LabelTexts, Scores, Shortlist, Targets

B, N, D, L = 4, 5, 6, 7
TARGETS = Targets(torch.tensor([0, 2, 3, 3, 5]), torch.tensor([0, 3, 6, 1, 2]))
DENSE = np.array([[1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0] * 7, [0, 1, 1, 0, 0, 0, 0]], np.float64)


def _guided(**options: Any) -> Guided:
    torch.manual_seed(1)
    config = GuidedConfig(**({"size": 8, "hidden": 9, "text_layers": 3, "label_layers": 4, "dropout": 0} | options))
    return Guided(config, D, N, L, L, 0.1)


def _encoded(texts: int, seed: int = 0) -> Encoded:
    pooled = torch.randn(texts, N, D, generator=torch.Generator().manual_seed(seed))
    return Encoded(mask=torch.ones(texts, 2, dtype=torch.bool), pooled=pooled)


def _labels(encoded: bool = True) -> LabelTexts:
    """Of texts 0 and 3 the same label text, of text 2 none."""
    texts = Batch(torch.arange(2), torch.ones(2, 3, dtype=torch.int64), torch.full((2,), 3))
    members = torch.tensor([[0], [1], [-1], [0]])
    return LabelTexts(texts, members, (members >= 0).float(), _encoded(2, seed=5) if encoded else None)


def _double(values: Tensor) -> np.ndarray:
    return values.detach().double().numpy()


def _features(extractor: Any, pooled: Tensor) -> np.ndarray:
    """Eq. 2 in float64 after one training step: the mean and the variance are those of this batch."""
    states = _double(pooled)[:, -extractor.layers :].reshape(len(pooled), -1)
    states = (states - states.mean(axis=0)) / np.sqrt(states.var(axis=0) + 1e-5)
    return np.maximum(states, 0) @ _double(extractor.mlp.weight).T + _double(extractor.mlp.bias)


def _affine(layer: Any, values: np.ndarray) -> np.ndarray:
    return values @ _double(layer.weight).T + _double(layer.bias)


def _classify(classifier: Any, values: np.ndarray) -> np.ndarray:
    return values @ _double(classifier.weight.weight).T + _double(classifier.bias.weight)[:, 0]


def _cross_entropy(logits: np.ndarray) -> float:
    chance = 1 / (1 + np.exp(-logits))
    return float((-DENSE * np.log(chance) - (1 - DENSE) * np.log(1 - chance)).sum() / B)


@pytest.mark.parametrize("activation", ["softmax", "none"])
def test_equations_2_to_8(activation: str) -> None:
    fusion: Any = _guided(activation=activation).train()
    encoded, labels = _encoded(B), _labels()
    scores = fusion(encoded, Shortlist(), labels)
    assert encoded.pooled is not None and labels.encoded is not None and labels.encoded.pooled is not None
    text = _features(fusion.text, encoded.pooled)
    hidden = _affine(fusion.hidden, text)
    if activation == "softmax":
        hidden = np.exp(hidden) / np.exp(hidden).sum(axis=1, keepdims=True)
    logits = _classify(fusion.classifier, hidden)  # eq. 6
    np.testing.assert_allclose(_double(scores.logits), logits, rtol=1e-4, atol=1e-5)
    each = _features(fusion.labels, labels.encoded.pooled)
    label = _affine(fusion.guide, np.stack([each[0], each[1], np.zeros(8), each[0]]))
    gap = ((_affine(fusion.guide, _affine(fusion.shape, text)) - label) ** 2).mean(axis=1)[[0, 1, 3]]
    np.testing.assert_allclose(_double(scores.extras["feature"]), gap, rtol=1e-4)
    link = _classify(fusion.link, label)
    np.testing.assert_allclose(_double(scores.extras["link"]), link, rtol=1e-4, atol=1e-5)
    for weight in (1.0, 0.25):
        loss = GuidedLoss(weight)(scores, Shortlist(), TARGETS)
        expected = _cross_entropy(logits) + weight * gap.sum() / (2 * B) + _cross_entropy(link)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(GuidedLoss(1.0)(Scores(scores.logits), Shortlist(), TARGETS)) == pytest.approx(
        _cross_entropy(logits), rel=1e-5
    )


def test_candidates_have_the_logits_they_have_among_all() -> None:
    fusion = _guided().eval()
    encoded, labels = _encoded(B), _labels()
    nodes = torch.tensor([[6, 0, 2], [1, 5, -1], [0, 1, 2], [3, 4, 6]])
    whole, some = fusion(encoded, Shortlist(), labels), fusion(encoded, Shortlist(nodes), labels)
    known = nodes >= 0
    for found, among in ((some.logits, whole.logits), (some.extras["link"], whole.extras["link"])):
        torch.testing.assert_close(found[known], among.gather(1, nodes.clamp(min=0))[known])


@pytest.mark.parametrize("guides", [(), ("feature",), ("link",), ("feature", "link")])
def test_each_guide_teaches_its_own_parts(guides: tuple[str, ...]) -> None:
    fusion = _guided(guides=guides).train()
    scores = fusion(_encoded(B), Shortlist(), _labels())
    assert scores.extras.keys() == set(guides)
    GuidedLoss(1.0)(scores, Shortlist(), TARGETS).backward()
    assert all(parameter.grad is not None for parameter in fusion.parameters())
    parts = {name.split(".")[0] for name, _ in fusion.named_parameters()}
    expected = {"text", "hidden", "classifier"}
    if guides:
        expected |= {"labels", "guide"}
    assert parts == expected | ({"shape"} if "feature" in guides else set()) | ({"link"} if "link" in guides else set())


def test_the_feature_guide_pulls_text_and_label_features_together() -> None:
    fusion = _guided(guides=("feature",)).train()
    optimizer = torch.optim.Adam(fusion.parameters(), lr=1e-2)
    gaps = []
    for _ in range(60):
        scores = fusion(_encoded(B), Shortlist(), _labels())
        gaps.append(float(scores.extras["feature"].mean()))
        GuidedLoss(1.0)(scores, Shortlist(), TARGETS).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert gaps[-1] < gaps[0] / 5


def test_multi_hot_vectors_are_the_sum_of_rows() -> None:
    fusion: Any = _guided(label_input="multi_hot").train()
    texts = Batch(torch.tensor([0, 3, 5]), torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    members = torch.tensor([[0, 1], [2, -1], [-1, -1], [1, 2]])
    labels = LabelTexts(texts, members, (members >= 0).float())
    scores = fusion(_encoded(B), Shortlist(), labels)
    rows, bias = _double(fusion.labels.rows.weight), _double(fusion.labels.bias)
    label = np.stack([rows[0] + rows[3], rows[5], np.zeros(8), rows[3] + rows[5]]) + bias
    link = _classify(fusion.link, _affine(fusion.guide, label))
    np.testing.assert_allclose(_double(scores.extras["link"]), link, rtol=1e-4, atol=1e-5)


def test_in_prediction_a_text_depends_on_no_other() -> None:
    fusion = _guided().train()
    for seed in range(3):
        fusion(_encoded(B, seed), Shortlist(), _labels())
    fusion.eval()
    encoded = _encoded(B)
    assert encoded.pooled is not None
    alone = fusion(Encoded(encoded.mask[1:2], pooled=encoded.pooled[1:2]), Shortlist()).logits
    torch.testing.assert_close(alone[0], fusion(encoded, Shortlist()).logits[1])


def test_running_means_are_those_of_all_texts_seen() -> None:
    values = torch.randn(640, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 20.0, 0.1]) + 5
    standardize = Standardize(3).train()
    for part in values.split(32):
        standardize(part)
    found = standardize.eval()(values)
    assert found.mean(dim=0).abs().max() < 0.1 and (found.std(dim=0) - 1).abs().max() < 0.1


def test_an_encoder_that_pools_nothing_gives_the_mean_of_its_states() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 3, D)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    fusion = Guided(GuidedConfig(size=8, hidden=9), D, 0, L, L, 0.1).eval()
    found = fusion(Encoded(mask, states), Shortlist()).logits
    pooled = torch.stack([states[0, :2].mean(0), states[1].mean(0)])[:, None]
    torch.testing.assert_close(found, fusion(Encoded(mask, pooled=pooled), Shortlist()).logits)
    with pytest.raises(ConfigError, match="gives neither"):
        fusion(Encoded(mask), Shortlist())


def test_a_layer_of_the_model_and_no_more_is_read() -> None:
    extractor = FeatureExtractor(2, D, 8, 0.0).eval()
    pooled = torch.randn(3, N, D)
    changed = pooled.clone()
    changed[:, :-2] = 0
    assert torch.equal(extractor(pooled), extractor(changed))


def test_a_flat_level_that_is_too_wide_is_refused() -> None:
    with pytest.raises(ConfigError, match="too wide; use --label-structure core:tree"):
        Guided(GuidedConfig(size=2, hidden=2, guides=()), D, N, 100_000, 3, 0.1)(_encoded(B), Shortlist())
