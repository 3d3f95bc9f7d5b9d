"""A planted corpus: each label has words of its own, so that a model that works is far better than
popularity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .dataset import Dataset, Documents, load_dataset
from .documents import Document, write_documents
from .labels import Label, write_labels


def synthetic_dataset(
    num_documents: int = 400,
    num_labels: int = 20,
    seed: int = 0,
    *,
    max_labels: int = 3,
    folder: str | Path | None = None,
) -> Dataset:
    """Eight parts of train to one of dev and one of test.

    A document has 1 to `max_labels` labels, frequent ones more often, and three of the five words of each,
    among words that say nothing. Labels come in groups of four that have a broader label. folder: write files
    there and load them; else the documents are in memory.
    """
    rng = np.random.default_rng(seed)
    share = 1 / np.sqrt(np.arange(1, num_labels + 1))
    share /= share.sum()
    documents = []
    for number in range(num_documents):
        labels = rng.choice(num_labels, size=rng.integers(1, min(max_labels, num_labels) + 1), replace=False, p=share)
        words = [f"noise{word}" for word in rng.integers(0, 200, size=rng.integers(4, 12))]
        for label in labels:
            words += [f"word{label}x{word}" for word in rng.choice(5, size=3, replace=False)]
        rng.shuffle(words)
        documents.append(Document(str(number), " ".join(words), tuple(f"label{label:04}" for label in np.sort(labels))))
    groups = [f"group{group:04}" for group in range((num_labels + 3) // 4)]
    declared = [Label(f"label{n:04}", f"Label {n}", (), (groups[n // 4],)) for n in range(num_labels)]
    declared += [Label(group, group.capitalize()) for group in groups]
    held_out = max(1, num_documents // 10)
    parts = {
        "test": documents[:held_out],
        "dev": documents[held_out : 2 * held_out],
        "train": documents[2 * held_out :],
    }
    if folder is None:
        splits = {name: Documents.of(part) for name, part in parts.items()}
        return Dataset("synthetic", splits["train"], splits["dev"], splits["test"], declared=declared)
    for name, part in parts.items():
        write_documents(part, Path(folder) / f"{name}.jsonl")
    write_labels(declared, Path(folder) / "labels.jsonl")
    return load_dataset(folder)
