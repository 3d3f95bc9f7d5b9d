"""A linear label tree on one corpus: what someone would use who does not want to train a deep model.

    pip install -r bench/requirements.txt
    python bench/linear_baseline.py debtags

TF-IDF of the words of the full text, PECOS XR-Linear over a PIFA tree with 16-way splits and leaves of 100
labels, beam 20, one thread; trained on the train split and measured on the test split, or on dev where there
is no test. The scores of PECOS are products of squashed margins rather than probabilities, which matters to
F1, and many of them are exactly 1: P@1 moves by some tenths of a point with the order of such ties.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from itertools import chain

os.environ["OMP_NUM_THREADS"] = "1"  # read when the libraries below load

import numpy as np
from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xlinear.model import XLinearModel
from rich.console import Console
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer

from xmplug.data import LabelSet, load_dataset
from xmplug.metrics import evaluate, popularity, propensity_constants, table

KS = (1, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a linear label tree on a corpus.")
    parser.add_argument("data", help="name of a corpus, or a folder")
    parser.add_argument("--out", metavar="FILE", help="where to write the figures as JSON")
    parser.add_argument("--with-dev", action="store_true", help="train on dev as well: nothing is chosen on it here")
    arguments = parser.parse_args()

    dataset = load_dataset(arguments.data)
    tested = "test" if len(dataset.split("test")) else "dev"
    test = dataset.split(tested)
    if arguments.with_dev and tested == "dev":
        parser.error(f"--with-dev: {arguments.data} has no test split, so dev is what is measured on")
    train = [dataset.split(name) for name in (("train", "dev") if arguments.with_dev else ("train",))]
    labels = LabelSet.build(chain.from_iterable(part.label_lists() for part in train), dataset.declared)
    train_targets = vstack([part.targets(labels)[:, : labels.num_trained] for part in train], format="csr")
    train_targets = train_targets.astype(np.float32)
    truth = test.targets(labels)
    seconds = {}

    begun = time.perf_counter()
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=200_000, dtype=np.float32)
    train_features = vectorizer.fit_transform(chain.from_iterable(part.texts() for part in train))
    seconds["features"] = time.perf_counter() - begun

    begun = time.perf_counter()
    label_features = LabelEmbeddingFactory.create(train_targets, train_features, method="pifa")
    tree = Indexer.gen(label_features, indexer_type="hierarchicalkmeans", nr_splits=16, max_leaf_size=100, threads=1)
    model = XLinearModel.train(train_features, train_targets, C=tree, threads=1)
    seconds["training"] = time.perf_counter() - begun

    begun = time.perf_counter()
    test_features = vectorizer.transform(test.texts())
    scores = model.predict(test_features, only_topk=max(KS), beam_size=20, threads=1)
    seconds["prediction"] = time.perf_counter() - begun

    common, share = popularity(labels.counts, labels.num_documents, max(KS))
    baseline = np.tile(common, (len(test), 1)), np.tile(share, (len(test), 1))
    reports = {
        name: evaluate(
            predictions,
            truth,
            labels.counts,
            labels.num_documents,
            ks=KS,
            propensity=propensity_constants(arguments.data),
        )
        for name, predictions in {"popularity": baseline, "linear tree": best(scores, max(KS))}.items()
    }
    package = f"libpecos {version('libpecos')}"
    Console().print(table(reports))
    print(f"{arguments.data} {tested}, {labels.num_documents} training documents, {labels.num_trained} labels")
    print(f"{package}: {', '.join(f'{name} {spent:.1f} s' for name, spent in seconds.items())}")
    if arguments.out:
        record = {"data": arguments.data, "split": tested, "package": package, "seconds": seconds}
        record |= {name: report.as_dict() for name, report in reports.items()}
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


def best(scores: csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest scores of each row, best first: labels (N,k), -1 = none, and scores (N,k)."""
    labels = np.full((scores.shape[0], k), -1, dtype=np.int64)
    values = np.zeros((scores.shape[0], k), dtype=np.float32)
    for row in range(scores.shape[0]):
        cells = slice(scores.indptr[row], scores.indptr[row + 1])
        order = np.argsort(-scores.data[cells], kind="stable")[:k]
        labels[row, : len(order)] = scores.indices[cells][order]
        values[row, : len(order)] = scores.data[cells][order]
    return labels, values


if __name__ == "__main__":
    main()
