"""XML-CNN and BiLSTM with self-attention, several side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from xmplug_maacf import AttentionBiLSTMConfig, XMLCNNConfig
from xmplug_maacf.encoder import XMLCNN, AttentionBiLSTM, dynamic_max_pool

from xmplug.data import Tokenizer
from xmplug.interfaces import Batch

_TEXTS = ["a b c d e f g h i j", "c a", "d", ""]


def _encoder(kind: str, **options: Any) -> Any:
    torch.manual_seed(3)
    tokenizer = Tokenizer.words(iter(_TEXTS), 100, 1)
    vectors = torch.randn(len(tokenizer), 8)
    vectors[0] = 0
    if kind == "xmlcnn":
        config = XMLCNNConfig(aspects=2, widths=(2, 4), filters=5, pools=3, size=6, **options)
        return XMLCNN(config, tokenizer, vectors).eval()
    return AttentionBiLSTM(
        AttentionBiLSTMConfig(aspects=2, hidden=3, attention=4, **options), tokenizer, vectors
    ).eval()


def _batch(encoder: Any, texts: list[str], width: int = 0) -> Batch:
    ids = [list(each) for each in encoder.tokenizer.encode(iter(texts), 100)]
    lengths = torch.tensor([len(each) for each in ids])
    tokens = torch.zeros(len(ids), max(width, int(lengths.max())), dtype=torch.int64)
    for row, each in enumerate(ids):
        tokens[row, : len(each)] = torch.tensor(each, dtype=torch.int64)
    return Batch(torch.arange(len(ids)), tokens, lengths)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 17])
def test_pooling_equals_adaptive_pooling(length: int) -> None:
    """PyTorch's adaptive pooling of a text alone, whatever stands beside it."""
    features = torch.randn(2, 20, 4)
    found = dynamic_max_pool(features, torch.tensor([length, 20]), 3)
    expected = torch.nn.functional.adaptive_max_pool1d(features[:1, :length].mT, 3).mT
    torch.testing.assert_close(found[:1], expected)
    assert dynamic_max_pool(features, torch.tensor([0, 4]), 3)[0].abs().sum() == 0
    assert dynamic_max_pool(features, torch.tensor([0, 0]), 3).abs().sum() == 0


@pytest.mark.parametrize("kind", ["xmlcnn", "bilstm"])
def test_aspects_do_not_share_what_they_learn(kind: str) -> None:
    encoder = _encoder(kind)
    batch = _batch(encoder, _TEXTS)
    encoded = encoder(batch)
    assert encoded.pooled.shape == (4, 2, encoder.size)
    assert encoder.num_pooled == 2
    assert torch.isfinite(encoded.pooled).all()
    encoded.pooled[:, 0].sum().backward()
    for name, parameter in encoder.named_parameters():
        if any(f"{part}.{at}." in name for part in ("bottlenecks", "onward", "keys", "queries") for at in (0, 1)):
            of_second = ".1." in name
            assert (float(parameter.grad.abs().sum()) == 0) == of_second, name
    for convolution in getattr(encoder, "convolutions", []):
        assert convolution.weight.grad[5:].abs().sum() == 0
        assert convolution.weight.grad[:5].abs().sum() > 0


def test_xml_cnn_of_one_text_by_hand() -> None:
    """Convolution over the text and zeros behind it, pooling of all words, bottleneck."""
    encoder = _encoder("xmlcnn")
    batch = _batch(encoder, [_TEXTS[0]])
    words = encoder.embedding(batch.tokens)[0]  # (T,D)
    found = encoder(batch).pooled[0]
    for aspect in range(2):
        pooled = []
        for convolution, width in zip(encoder.convolutions, (2, 4)):
            padded = torch.cat([words, torch.zeros(width - 1, 8)])
            filters, bias = (
                convolution.weight[5 * aspect : 5 * aspect + 5],
                convolution.bias[5 * aspect : 5 * aspect + 5],
            )
            windows = torch.stack(
                [(filters * padded[t : t + width].T).sum(dim=(1, 2)) + bias for t in range(len(words))]
            )
            # 10 words in 3 parts: 0-4, 3-7, 6-10.
            pooled.append(torch.stack([windows[a:b].amax(0) for a, b in ((0, 4), (3, 7), (6, 10))]).flatten())
        expected = torch.relu(encoder.bottlenecks[aspect](torch.relu(torch.cat(pooled))))
        torch.testing.assert_close(found[aspect], expected, rtol=1e-4, atol=1e-5)


def test_bilstm_equals_pytorchs_with_attention() -> None:
    encoder = _encoder("bilstm")
    batch = _batch(encoder, [_TEXTS[0]])
    words = encoder.embedding(batch.tokens)
    lstm = torch.nn.LSTM(8, 3, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, value in encoder.onward[1].named_parameters():
            getattr(lstm, name).copy_(value)
        for name, value in encoder.backward_[1].named_parameters():
            getattr(lstm, f"{name}_reverse").copy_(value)
    states = lstm(words)[0][0]
    weights = torch.softmax(encoder.queries[1](torch.tanh(encoder.keys[1](states))), dim=0)
    torch.testing.assert_close(encoder(batch).pooled[0, 1], (weights * states).sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["xmlcnn", "bilstm"])
def test_neither_padding_nor_neighbours_matter(kind: str) -> None:
    encoder = _encoder(kind)
    together = encoder(_batch(encoder, _TEXTS, width=23)).pooled
    for row, text in enumerate(_TEXTS):
        if text:
            torch.testing.assert_close(encoder(_batch(encoder, [text])).pooled[0], together[row], rtol=1e-4, atol=1e-5)
