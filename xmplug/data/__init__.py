"""Corpora: documents and labels, the formats they come in, and their splits. Nothing here needs torch."""

from .corpus import Corpus
from .dataset import Dataset, Documents, load_dataset
from .documents import FORMATS, Document, detect_format, read_documents, read_svmlight, write_documents
from .fetch import cache_dir, fetch
from .labels import Label, LabelSet, read_labels, write_labels
from .synthetic import synthetic_dataset
from .tokens import UNKNOWN, Tokenizer, TokenStore

__all__ = [
    "FORMATS",
    "UNKNOWN",
    "Corpus",
    "Dataset",
    "Document",
    "Documents",
    "Label",
    "LabelSet",
    "TokenStore",
    "Tokenizer",
    "cache_dir",
    "detect_format",
    "fetch",
    "load_dataset",
    "read_documents",
    "read_labels",
    "read_svmlight",
    "synthetic_dataset",
    "write_documents",
    "write_labels",
]
