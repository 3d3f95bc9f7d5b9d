"""Words as vectors: where the vectors come from, dropout, and the encoder that gives them as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xmplug.components import WordsConfig
from xmplug.components.vectors import word_vectors
from xmplug.components.words import Dropout, Words
from xmplug.data import Tokenizer
from xmplug.interfaces import Batch


def test_states_are_the_vectors_of_the_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer.words(["red green blue"], 100, 1)
    vectors = torch.randn(len(tokenizer), 4)
    vectors[0] = 0
    encoder = Words(WordsConfig(), tokenizer, vectors).eval()
    batch = Batch(torch.arange(2), torch.tensor([[2, 4, 3], [1, 0, 0]]), torch.tensor([3, 1]))
    encoded = encoder(batch)
    torch.testing.assert_close(encoded.states, vectors[batch.tokens] * (batch.tokens > 0)[:, :, None])
    assert encoded.mask.tolist() == [[True, True, True], [True, False, False]]
    encoder.save(tmp_path)
    again = Words.restore(WordsConfig(), tmp_path).eval()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(batch).states, encoded.states)


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    torch.manual_seed(0)
    values = torch.ones(1003, 997, requires_grad=True)
    dropout = Dropout(0.2)
    out = dropout(values)
    assert out.eq(0).float().mean().item() == pytest.approx(0.2, abs=3e-3)  # 51 / 256, and sampling
    assert out.mean().item() == pytest.approx(1, abs=3e-3)
    out.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, out.detach())
    assert dropout.eval()(values) is values


GLOVE = "cat 1 2\nParis 3 4\n. . . 7 8\nNATO 5 6\n"
"""As glove.840B does, one "word" holds spaces."""


def _vectors(source: str, corpus: object = None) -> dict[str, np.ndarray]:
    tokenizer = Tokenizer.words(["cat Paris NATO zebra"], 100, 1)

    class _Corpus:
        class task:
            seed = 0

    table = word_vectors(WordsConfig(vectors=source), tokenizer, corpus or _Corpus())  # type: ignore[arg-type]
    return dict(zip(tokenizer.vocabulary(), table.numpy()))


@pytest.mark.parametrize("kind", ["glove", "word2vec", "binary"])
def test_vector_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "vectors"
    if kind == "glove":
        path.write_text(GLOVE)
    elif kind == "word2vec":
        path.write_text("4 2\n" + GLOVE)
    else:
        rows = [line.split() for line in GLOVE.splitlines() if line[0] != "."]
        packed = [row[0].encode() + b" " + np.array(row[1:], dtype=np.float32).tobytes() + b"\n" for row in rows]
        path.write_bytes(b"3 2\n" + b"".join(packed))
    vectors = _vectors(str(path))
    # A lower-case word is also found capitalised and in upper case.
    assert (
        vectors["cat"].tolist() == [1, 2] and vectors["paris"].tolist() == [3, 4] and vectors["nato"].tolist() == [5, 6]
    )
    assert vectors["[PAD]"].tolist() == [0, 0] and vectors["[UNK]"].tolist() == [3, 4]
    assert vectors["zebra"].shape == (2,) and np.isfinite(vectors["zebra"]).all()


def test_vectors_of_a_sentence_encoder_are_the_mean_over_a_words_pieces(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "par", "##is", "nato", "zebra"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertModel(BertConfig(vocab_size=len(pieces), **sizes)).eval()
    bert.save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with torch.no_grad():
        states = bert(torch.tensor([[2, 5, 6, 3]])).last_hidden_state[0]
    np.testing.assert_allclose(
        _vectors(f"transformer:{tmp_path}")["paris"], states.mean(0).numpy(), rtol=1e-4, atol=1e-5
    )


def test_files_without_vectors_are_refused(tmp_path: Path) -> None:
    from xmplug import DataError

    with pytest.raises(DataError, match="does not exist"):
        _vectors(str(tmp_path / "none.txt"))
    (tmp_path / "text.txt").write_text("this is no vector\nfile at all\n")
    with pytest.raises(DataError, match="holds no word vectors"):
        _vectors(str(tmp_path / "text.txt"))
    (tmp_path / "other.txt").write_text("chat 1 2\n")
    with pytest.raises(DataError, match="none of the words"):
        _vectors(str(tmp_path / "other.txt"))
