"""Tokens: the word tokenizer, and the memory-mapped store that holds a split's tokens."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers
from scipy.sparse import csr_matrix
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from ..errors import DataError, RunError
from .dataset import Documents
from .fetch import cache_dir

PADDING, UNKNOWN = 0, 1
_SPECIAL = ["[PAD]", "[UNK]"]
# Letters or digits, with an apostrophe inside and the signs of C++ and C# behind: punctuation carries no label.
_WORD = Regex(r"[\p{L}\p{M}\p{N}]+(?:['’][\p{L}]+)*[+#]*")  # noqa: RUF001, both apostrophes are meant
_CHUNK = 1024


class Tokenizer:
    """Text to token ids. Id 0 is padding, id 1 stands for every unknown word. Wraps a `tokenizers.Tokenizer`."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend

    @classmethod
    def words(cls, texts: Iterable[str], max_words: int, min_count: int) -> Tokenizer:
        """Lower-case words: the `max_words` most frequent of `texts` that occur `min_count` times or more."""
        backend = tokenizers.Tokenizer(models.WordLevel({}, unk_token=_SPECIAL[UNKNOWN]))
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.Split(_WORD, behavior="removed", invert=True)
        trainer = trainers.WordLevelTrainer(
            vocab_size=max_words + len(_SPECIAL),
            min_frequency=min_count,
            special_tokens=_SPECIAL,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def vocabulary(self) -> list[str]:
        """The token of each id."""
        ids = self.backend.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def encode(self, texts: Iterable[str], max_tokens: int) -> Iterator[np.ndarray]:
        """(T,) int32 token ids of each text, at most `max_tokens`."""
        source = iter(texts)
        while chunk := list(islice(source, _CHUNK)):
            try:
                encodings = self.backend.encode_batch_fast(chunk)
            except (TypeError, UnicodeError) as error:
                raise DataError("one of the texts is not Unicode text; give strings without lone surrogates") from error
            for encoding in encodings:
                yield np.asarray(encoding.ids[:max_tokens], dtype=np.int32)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in `text` each token stands, as character offsets."""
        return list(self.backend.encode(text).offsets)

    def digest(self) -> str:
        """Changes whenever the tokens of some text would."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.backend.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Raises RunError when the file is missing or broken."""
        path = folder / "tokenizer.json"
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain Exception
            raise RunError(f"{path}: no usable tokenizer ({error}); the run is incomplete or damaged") from error


class TokenStore:
    """The tokens of many texts: one flat int32 array with offsets, both memory-mapped.

    features, candidates: what an encoder and a label structure that read raw text have made of the texts, a sparse row
    each (`xmplug.interfaces.Batch`); else None.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray):
        self.tokens, self.offsets = tokens, offsets
        self.lengths = np.diff(offsets)
        self.features: csr_matrix | None = None
        self.candidates: csr_matrix | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> np.ndarray:
        """(T,) int32 tokens of the text at `place`."""
        return self.tokens[self.offsets[place] : self.offsets[place + 1]]

    def padded(self, places: np.ndarray) -> np.ndarray:
        """(len(places), longest) int64 tokens, 0 behind the end; at least one column."""
        lengths = self.lengths[places]
        block = np.zeros((len(places), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
        for row, place in enumerate(places):
            block[row, : lengths[row]] = self[place]
        return block

    def subset(self, places: np.ndarray) -> TokenStore:
        """A store in memory of the texts at `places`."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[places])]).astype(np.int64)
        chosen = TokenStore(np.concatenate([np.zeros(0, np.int32), *(self[place] for place in places)]), offsets)
        chosen.features = None if self.features is None else self.features[places]
        chosen.candidates = None if self.candidates is None else self.candidates[places]
        return chosen

    @classmethod
    def without_tokens(cls, texts: int) -> TokenStore:
        """A store for an encoder that reads no tokens."""
        return cls(np.zeros(0, np.int32), np.zeros(texts + 1, np.int64))

    @classmethod
    def of_texts(cls, tokenizer: Tokenizer, texts: Iterable[str], max_tokens: int) -> TokenStore:
        """A store in memory, for a few texts."""
        encoded = list(tokenizer.encode(texts, max_tokens))
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
        return cls(np.concatenate(encoded) if encoded else np.zeros(0, np.int32), offsets)

    @classmethod
    def of_documents(cls, tokenizer: Tokenizer, documents: Documents, max_tokens: int) -> TokenStore:
        """A store on disk, kept in the cache folder under the content's digest and opened again next time."""
        key = f"{documents.fingerprint}{tokenizer.digest()}{max_tokens}"
        folder = cache_dir() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:32]
        if not folder.is_dir():
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
                    _write(Path(scratch), tokenizer.encode(documents.texts(), max_tokens))
                    os.replace(scratch, folder)
            except OSError as error:
                if not folder.is_dir():  # else another process was faster with the same content
                    raise DataError(
                        f"cannot write tokens: {error.strerror}; free space or set XMPLUG_CACHE", folder
                    ) from error
        size = (folder / "tokens.bin").stat().st_size
        tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r") if size else np.zeros(0, np.int32)
        return cls(tokens, np.load(folder / "offsets.npy"))


def _write(folder: Path, encoded: Iterator[np.ndarray]) -> None:
    offsets = [0]
    with open(folder / "tokens.bin", "wb") as file:
        for ids in encoded:
            file.write(ids.tobytes())
            offsets.append(offsets[-1] + len(ids))
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
