"""What components are fitted on: the training texts with their labels, and the label features made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, diags

from .dataset import Documents

if TYPE_CHECKING:
    from ..interfaces import Task


@dataclass
class Corpus:
    """Training documents. targets (N, num_labels) CSR: their labels that are outputs of the model."""

    documents: Documents
    targets: csr_matrix
    task: Task

    @cached_property
    def features(self) -> csr_matrix:
        """(N,F) float32: TF-IDF of the words of the full texts, rows of unit length; what the encoder reads instead,
        where it is sparse."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            sublinear_tf=True, min_df=min(2, len(self.documents)), max_features=300_000, dtype=np.float32
        )
        try:
            return vectorizer.fit_transform(self.documents.texts()).tocsr()
        except ValueError:  # no word at all: every text is empty
            return csr_matrix((len(self.documents), 1), dtype=np.float32)

    @cached_property
    def label_features(self) -> csr_matrix:
        """(num_labels, words) float32, rows of unit length or empty: the normalised sum of the features of each
        label's texts (positive instance feature aggregation, PIFA; AttentionXML section 2.2)."""
        summed = csr_matrix(self.targets.astype(np.float32).T @ self.features)
        norms = np.sqrt(summed.multiply(summed).sum(axis=1)).A1
        return csr_matrix(diags(1 / np.maximum(norms, 1e-12)) @ summed, dtype=np.float32)
