"""Neighbour search of TReaderXML: time, memory and recall.

python bench/neighbour_search.py [--texts 45000,1000000] [--size 200]

The vectors are synthetic: a text is the mean of 100 words, most of which come from one of 2,000 topics, over word
vectors with a spectrum that falls like word2vec's. The queries of the recall are texts that are not in the index.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from xmplug_treaderxml.neighbours import NeighbourIndex

import xmplug

EXACT_UP_TO = 100_000  # the plugin's default
ASKED, NEIGHBOURS = 2_000, 5


def texts(number: int, size: int, seed: int) -> np.ndarray:
    """(number, size) unit vectors."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, size + 1) ** -0.5
    topics = np.random.default_rng(0).normal(size=(2_000, size)) * spectrum
    vectors = np.empty((number, size), np.float32)
    for start in range(0, number, 50_000):
        rows = slice(start, min(start + 50_000, number))
        count = rows.stop - rows.start
        mixed = topics[rng.integers(0, len(topics), count)] + 0.5 * topics[rng.integers(0, len(topics), count)]
        vectors[rows] = mixed + 0.6 * rng.normal(size=(count, size)) * spectrum
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def measure(number: int, size: int) -> None:
    vectors, queries = texts(number, size, 1), texts(ASKED, size, 2)
    begun = time.perf_counter()
    index = NeighbourIndex(vectors, EXACT_UP_TO)
    built = time.perf_counter()
    index.among_themselves(NEIGHBOURS)
    all_found = time.perf_counter()
    found, _ = index.search(queries, NEIGHBOURS)
    batched = time.perf_counter() - all_found
    single = []
    for query in queries[:500]:
        start = time.perf_counter()
        index.search(query[None], NEIGHBOURS)
        single.append(time.perf_counter() - start)
    best = np.full((ASKED, NEIGHBOURS), -np.inf, np.float32)
    exact = np.zeros((ASKED, NEIGHBOURS), np.int64)
    for start in range(0, number, 50_000):
        cosines = np.concatenate([best, queries @ vectors[start : start + 50_000].T], axis=1)
        at = np.argpartition(-cosines, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        places = np.where(at < NEIGHBOURS, np.take_along_axis(exact, at % NEIGHBOURS, 1), at - NEIGHBOURS + start)
        best, exact = np.take_along_axis(cosines, at, 1), places
    recall = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(found.tolist(), exact.tolist())])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    p50, p99 = np.percentile(single, [50, 99]) * 1e3
    searched = "all" if index.centres is None else f"32 of {len(index.centres):,} clusters"
    print(
        f"| {number:,} | {searched} "
        f"| {built - begun:.1f} | {all_found - built:.1f} | {p50:.2f} / {p99:.2f} | {batched / ASKED * 1e3:.3f} "
        f"| {100 * recall:.1f} | {peak:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", default="45000,1000000", help="numbers of training texts")
    parser.add_argument("--size", type=int, default=200, help="length of a vector")
    given = parser.parse_args()
    print(f"xmplug {xmplug.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(
        "| texts | searched | build s | neighbours of all s | one query ms (p50 / p99) | of 2,000 ms each | recall@5 % "
        "| peak GiB |\n|---|---|---|---|---|---|---|---|"
    )
    for number in map(int, given.texts.split(",")):
        measure(number, given.size)
