"""Token stores: parts of them, and those of an encoder that reads no tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random

from xmplug.data import Tokenizer, TokenStore
from xmplug.data.batches import inference_order, make_batch, training_order

TEXTS = ["one two three", "", "two two", "three one one one", "unheard"]


@pytest.fixture
def store() -> TokenStore:
    return TokenStore.of_texts(Tokenizer.words(TEXTS[:4], 10, 1), TEXTS, 3)


@pytest.mark.parametrize("places", [[3, 1, 0], [], [1], [4, 4, 2]])
def test_a_subset_holds_what_the_store_holds(store: TokenStore, places: list[int]) -> None:
    store.features = random(5, 9, 0.5, "csr", dtype=np.float32, random_state=0)
    store.candidates = random(5, 7, 0.5, "csr", dtype=np.float32, random_state=1)
    chosen = np.array(places, np.int64)
    subset = store.subset(chosen)
    assert len(subset) == len(places) and subset.tokens.dtype == np.int32
    for at, place in enumerate(places):
        np.testing.assert_array_equal(subset[at], store[place])
    assert subset.features is not None and subset.candidates is not None
    np.testing.assert_array_equal(subset.features.toarray(), store.features.toarray()[chosen])
    np.testing.assert_array_equal(subset.candidates.toarray(), store.candidates.toarray()[chosen])
    whole, part = make_batch(store, chosen), make_batch(subset, np.arange(len(places)))
    assert torch.equal(whole.tokens, part.tokens) and torch.equal(whole.lengths, part.lengths)


def test_a_subset_without_features(store: TokenStore) -> None:
    subset = store.subset(np.array([2, 0]))
    assert subset.features is None and subset.candidates is None
    assert make_batch(subset, np.arange(2)).features is None


@pytest.mark.parametrize("texts", [0, 1, 5])
def test_a_store_without_tokens(texts: int) -> None:
    store = TokenStore.without_tokens(texts)
    assert len(store) == texts and not store.lengths.any()
    store.features = csr_matrix(np.arange(texts, dtype=np.float32)[:, None])
    batch = make_batch(store, np.arange(texts)[::-1].copy())
    assert batch.tokens.shape == (texts, 1) and not batch.mask.any()
    assert batch.features is not None
    assert batch.features.toarray()[:, 0].tolist() == list(range(texts))[::-1]
    assert batch.to(torch.device("cpu")).features is batch.features
    for order in (inference_order(store.lengths, 2), training_order(store.lengths, 2, (0,))):
        assert sorted(place for places in order for place in places) == list(range(texts))
    assert len(store.subset(np.arange(texts)[:1])) == min(texts, 1)
