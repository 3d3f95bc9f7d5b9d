"""Nearest training texts by the cosine of their mean word vectors (TReaderXML eq. 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from typing import Any

import faiss
import numpy as np
import torch
from torch.nn.functional import embedding_bag

from xmplug.data import UNKNOWN

_CHUNK = 4096
_NUMBERS = 2**22
"""Numbers of the neighbours' vectors that are held at a time."""
_MARGIN = 16
"""More neighbours are fetched than asked, and their cosines computed again in float64: the order, and who is last,
then depends neither on the other texts of a batch nor on how a library adds up."""


def text_vectors(words: torch.Tensor, texts: Iterable[np.ndarray]) -> np.ndarray:
    """V_x (N,D) float32: the mean of the vectors of each text's words (eq. 1), scaled to unit length.

    words (V,D): the vector of each token. texts: token ids of each. Unknown words tell nothing and are left out; a text
    without a known word gets zeros. The words are summed in one order, so that texts of the same words are equal.
    """
    source, vectors = iter(texts), [np.zeros((0, words.shape[1]), np.float32)]
    while chunk := [np.sort(tokens[tokens > UNKNOWN]) for tokens in islice(source, _CHUNK)]:
        offsets = np.cumsum([0, *(len(tokens) for tokens in chunk[:-1])])
        flat = torch.from_numpy(np.concatenate(chunk).astype(np.int64))
        mean = embedding_bag(flat, words, torch.from_numpy(offsets), mode="mean")
        vectors.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(vectors)


def distinct(texts: Iterable[np.ndarray]) -> np.ndarray:
    """(N,) int32: a number for each text, from 0, equal for texts of the same known words; -1 without such a word."""
    numbers: dict[bytes, int] = {}
    found = []
    for tokens in texts:
        known = np.sort(tokens[tokens > UNKNOWN])
        digest = blake2b(known.tobytes(), digest_size=16).digest()
        found.append(numbers.setdefault(digest, len(numbers)) if len(known) else -1)
    return np.array(found, dtype=np.int32)


class NeighbourIndex:
    """Search among N vectors: all of them up to `exact_up_to`, else those of the nearest clusters.

    vectors (N,D) of any float type and length. centres (C,D), cluster (N,): of an index by clusters built before.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        exact_up_to: int,
        centres: np.ndarray | None = None,
        cluster: np.ndarray | None = None,
    ):
        self.vectors = np.array(vectors, dtype=np.float32, order="C")
        # Vectors that were kept in half precision are no longer of unit length.
        self.vectors /= np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-30)
        self.centres, self.cluster = centres, cluster
        faiss.omp_set_num_threads(torch.get_num_threads())
        if len(vectors) > exact_up_to:
            self.index: Any = self._by_clusters()
        else:
            self.index = faiss.IndexFlatIP(vectors.shape[1])
            self.index.add(self.vectors)

    def _by_clusters(self) -> Any:
        number, size = self.vectors.shape
        if self.centres is None or self.cluster is None:
            # 4 sqrt(N) clusters of which the nearest 32 are searched: within the range that faiss advises up to 10^6.
            clusters = max(1, min(number // 39, int(4 * math.sqrt(number))))
            kmeans = faiss.Kmeans(size, clusters, niter=10, seed=0, spherical=True, max_points_per_centroid=64)
            kmeans.train(self.vectors)
            self.centres = np.ascontiguousarray(kmeans.centroids, dtype=np.float32)
            self.cluster = kmeans.index.search(self.vectors, 1)[1][:, 0].astype(np.int32)
        self._nearest_centres = faiss.IndexFlatIP(size)  # the index keeps a bare pointer to it
        self._nearest_centres.add(self.centres)
        index = faiss.IndexIVFFlat(self._nearest_centres, size, len(self.centres), faiss.METRIC_INNER_PRODUCT)
        index.is_trained, index.nprobe = True, 32
        lists = np.ascontiguousarray(self.cluster, dtype=np.int64)
        index.add_core(number, faiss.swig_ptr(self.vectors), None, faiss.swig_ptr(lists))
        return index

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query (B,D), nearest first, the smaller place first among equals.

        places (B,k) int32, -1 = none; cosines (B,k) float32. A query of zeros has no neighbours.
        """
        number = len(self.vectors)
        places = np.full((len(queries), k), -1, np.int32)
        cosines = np.zeros((len(queries), k), np.float32)
        chunk = max(1, _NUMBERS // ((k + _MARGIN) * max(1, queries.shape[1])))
        for start in range(0, len(queries) if number else 0, chunk):
            part = np.ascontiguousarray(queries[start : start + chunk], dtype=np.float32)
            _, found = self.index.search(part, min(k + _MARGIN, number))
            exact = np.einsum("bkd,bd->bk", self.vectors[found].astype(np.float64), part.astype(np.float64))
            exact[(found < 0) | (part == 0).all(axis=1)[:, None]] = -np.inf
            order = np.lexsort((found, -exact))[:, :k]
            best = np.take_along_axis(exact, order, axis=1)
            there = np.isfinite(best)
            rows = slice(start, start + len(part))
            places[rows, : order.shape[1]] = np.where(there, np.take_along_axis(found, order, axis=1), -1)
            cosines[rows, : order.shape[1]] = np.where(there, best, 0)
        return places, cosines

    def among_themselves(self, k: int) -> np.ndarray:
        """(N,k) int32: the k nearest of each of the N vectors, itself left out; -1 = none."""
        nearest = np.full((len(self.vectors), k), -1, np.int32)
        for start in range(0, len(self.vectors), _CHUNK):
            part = self.vectors[start : start + _CHUNK]
            found, _ = self.search(part, k + 1)
            itself = found == np.arange(start, start + len(part), dtype=np.int32)[:, None]
            # The k+1 nearest without the text itself, or, where it was not among them, without the last.
            kept = np.argsort(itself, axis=1, kind="stable")[:, :k]
            nearest[start : start + len(part)] = np.take_along_axis(found, kept, axis=1)
        return nearest
