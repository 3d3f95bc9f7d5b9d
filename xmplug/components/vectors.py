"""Initial word vectors: from a file, the training texts, or a sentence encoder.

Out-of-vocabulary rule: a word that a file does not know in lower case is looked up capitalised, then in upper case;
a word found in no form gets a random vector with the mean and the spread of the vectors found. The unknown word is
their mean, padding is zero.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import Corpus, Tokenizer
from ..errors import ConfigError, DataError
from . import WordsConfig

_SPECIAL = 2  # padding and unknown
_FASTTEXT = b"\xba\x16\x4f\x2f"  # its magic number, little endian
_WORDS_READ = 15_000_000
"""Words that word2vec reads in about a minute: a small corpus ten times over, a large one once."""


def word_vectors(config: WordsConfig, tokenizer: Tokenizer, corpus: Corpus) -> Tensor:
    """(words, D) float32 vectors of the tokenizer's vocabulary, from the source that `config.vectors` names.

    Raises ConfigError when a needed package is missing; DataError for a file that holds no vectors.
    """
    words = tokenizer.vocabulary()
    seed = corpus.task.seed
    if config.vectors == "random":
        found: dict[str, np.ndarray] = {}
    elif config.vectors == "corpus":
        found = _word2vec(config, tokenizer, corpus)
    elif config.vectors.startswith("transformer:"):
        found = _transformer(config.vectors.removeprefix("transformer:"), words[_SPECIAL:])
    else:
        found = _file(Path(config.vectors), words)
    return torch.from_numpy(_table(words, found, config.vector_size, seed))


def _table(words: list[str], found: dict[str, np.ndarray], size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    known = np.stack(list(found.values())) if found else None
    if known is not None:
        size, mean, spread = known.shape[1], known.mean(axis=0), known.std(axis=0)
    else:
        mean, spread = np.zeros(size), np.full(size, 0.1)
    table = rng.normal(mean, spread, size=(len(words), size)).astype(np.float32)
    for place, word in enumerate(words):
        if word in found:
            table[place] = found[word]
    table[0], table[1] = 0, mean
    return table


def _word2vec(config: WordsConfig, tokenizer: Tokenizer, corpus: Corpus) -> dict[str, np.ndarray]:
    """Skip-gram word2vec of the training texts; one worker, so that a seed gives one result."""
    from gensim.models import Word2Vec

    words = tokenizer.vocabulary()
    sentences = _Sentences(config, tokenizer, corpus, words)
    model = Word2Vec(vector_size=config.vector_size, min_count=1, workers=1, seed=corpus.task.seed, sg=1)
    model.build_vocab(sentences)
    if not len(model.wv):
        return {}
    epochs = min(10, max(1, round(_WORDS_READ / model.corpus_total_words)))
    model.train(sentences, total_examples=model.corpus_count, epochs=epochs)
    return {word: model.wv[word] for word in model.wv.index_to_key if word != words[1]}


class _Sentences:
    """Texts as lists of words, read again for each pass."""

    def __init__(self, config: WordsConfig, tokenizer: Tokenizer, corpus: Corpus, words: list[str]):
        self.config, self.tokenizer, self.corpus, self.words = config, tokenizer, corpus, words

    def __iter__(self) -> Iterator[list[str]]:
        for ids in self.tokenizer.encode(self._texts(), self.config.max_tokens):
            yield [self.words[place] for place in ids]

    def _texts(self) -> Iterator[str]:
        yield from self.corpus.documents.texts()
        if self.config.unlabelled is not None:
            try:
                with open(self.config.unlabelled, encoding="utf-8") as file:
                    yield from file
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"unlabelled texts cannot be read: {error}", self.config.unlabelled) from error


def _transformer(name: str, words: list[str]) -> dict[str, np.ndarray]:
    """Mean of the last states over a word's pieces, for each word on its own."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ConfigError(
            "vectors 'transformer:...' need the package transformers: pip install 'xmplug[transformer]'"
        ) from None
    try:
        tokenizer, model = (
            AutoTokenizer.from_pretrained(name),
            AutoModel.from_pretrained(name, use_safetensors=True).eval(),
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the encoder {name!r}: {error}; give a local folder or a hub name") from error
    vectors: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for start in range(0, len(words), 256):
            part = words[start : start + 256]
            inputs = tokenizer(part, padding=True, truncation=True, max_length=32, return_tensors="pt")
            mask = inputs["attention_mask"][:, :, None]
            states = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors.update(zip(part, states.float().numpy()))
    return vectors


def _file(path: Path, words: list[str]) -> dict[str, np.ndarray]:
    """Vectors of `words` from GloVe text, word2vec text or binary, or fastText text or binary."""
    if not path.is_file():
        raise DataError("no vectors: the file does not exist; say corpus, random, transformer:NAME or a file", path)
    forms = {form: word for word in words[_SPECIAL:] for form in (word.upper(), word.capitalize(), word)}
    try:
        found = dict(_read(path, forms))
    except (ValueError, EOFError, NotImplementedError, IndexError) as error:
        raise DataError(
            f"holds no word vectors ({error}); GloVe, word2vec and fastText files are read", path
        ) from error
    chosen = {}
    for word in words[_SPECIAL:]:
        for form in (word, word.capitalize(), word.upper()):
            if form in found:
                chosen[word] = found[form]
                break
    if not chosen:
        raise DataError("knows none of the words of the training texts; is it of their language?", path)
    return chosen


def _read(path: Path, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The vectors of the `wanted` words that the file has."""
    from gensim.models import KeyedVectors
    from gensim.models.fasttext import load_facebook_vectors

    with open(path, "rb") as file:
        head = file.readline(1 << 20)
        second = file.readline(1 << 20)
    if head[:4] == _FASTTEXT:
        keyed = load_facebook_vectors(str(path))
    elif re.fullmatch(rb"\s*\d+ \d+\s*", head) and _is_binary(second, int(head.split()[1])):
        keyed = KeyedVectors.load_word2vec_format(str(path), binary=True)
    else:
        yield from _read_text(path, wanted)
        return
    for word in keyed.key_to_index:
        if word in wanted:
            yield word, np.asarray(keyed[word], dtype=np.float32)


def _read_text(path: Path, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """A word and its numbers on each line, behind one line with two counts or without; words may hold spaces."""
    with open(path, encoding="utf-8", newline="\n") as file:
        size = 0
        for number, line in enumerate(file):
            fields = line.rstrip().split(" ")
            if number == 0 and len(fields) == 2:
                size = int(fields[1])
                continue
            size = size or len(fields) - 1
            if len(fields) <= size or not size:
                raise ValueError(f"line {number + 1} has {len(fields)} fields, expected a word and {size} numbers")
            word = " ".join(fields[:-size])
            if word in wanted:
                yield word, np.array(fields[-size:], dtype=np.float32)
            elif number == 0:
                np.array(fields[-size:], dtype=np.float32)  # numbers, or this is no file of vectors


def _is_binary(entry: bytes, size: int) -> bool:
    """Whether the first entry behind a word2vec header is not a line of text with `size` numbers."""
    try:
        return len([float(field) for field in entry.decode("utf-8").split(" ")[-size:]]) != size
    except ValueError:
        return True
