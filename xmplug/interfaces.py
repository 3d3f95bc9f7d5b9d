"""What fills the slots, and what flows between them.

    tokens (B,T) -> Encoder -> Encoded -> LabelStructure -> Shortlist -> Fusion -> Scores -> Loss, or the top k
                       LabelContext -> LabelTexts -> Encoder ----------^

B texts in a batch, T tokens in the longest of them, D numbers in a text vector, C candidates for a text. A structure
has one level (flat) or several (tree); training and inference walk them from the top, so that any encoder, fusion and
loss runs on any structure. Node ids count from 0 within their level; at the last level a node stands for a label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

if TYPE_CHECKING:
    from .data import Corpus, Documents, LabelSet, Tokenizer

MarginLoss = Literal["squared_hinge", "logistic"]
"""Of the margin m = y z, y = 1 for a true node and -1 for another: max(0, 1 - m)^2, or log(1 + exp(-m))."""


@dataclass(frozen=True)
class Task:
    """What a component may know of the problem when it is built.

    The model's outputs are the labels 0 .. num_labels-1 of `labels`, those with a training document.
    """

    labels: LabelSet
    seed: int

    @property
    def num_labels(self) -> int:
        return self.labels.num_trained


@dataclass(frozen=True)
class Batch:
    """Some texts. index (B,) int64: their places in the split, of label texts in the label set; tokens (B,T) int64, 0
    behind the end; lengths (B,).

    training: these are training documents, whatever is done with them: what looks for like documents among those of
    training must leave each one itself out, or its own labels leak.
    features (B,F) CSR: what an encoder that reads raw text has made of the texts. candidates (B,L) CSR: the same for a
    label structure: the labels to score, with a number above 0 each. Of training documents, their own labels too.
    """

    index: Tensor
    tokens: Tensor
    lengths: Tensor
    training: bool = False
    features: csr_matrix | None = None
    candidates: csr_matrix | None = None

    @property
    def mask(self) -> Tensor:
        """(B,T) bool, True at a token."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return places[None, :] < self.lengths[:, None]

    def to(self, device: torch.device) -> Batch:
        tensors = self.index.to(device), self.tokens.to(device), self.lengths.to(device)
        return Batch(*tensors, self.training, self.features, self.candidates)


@dataclass(frozen=True)
class Encoded:
    """Texts as vectors. pooled (B,n,D): n vectors for a text as a whole; states (B,T,D); mask (B,T) bool;
    features (B,F) CSR: sparse vectors."""

    mask: Tensor
    states: Tensor | None = None
    pooled: Tensor | None = None
    features: csr_matrix | None = None


@dataclass(frozen=True)
class Shortlist:
    """What to score for each text at one level.

    nodes (B,C) int64, -1 = padding, or None: every node of the level, in order.
    prior (B,C) float: probability of each candidate's parent, or None: 1.
    """

    nodes: Tensor | None = None
    prior: Tensor | None = None


@dataclass(frozen=True)
class LabelTexts:
    """Texts of labels that inform the scores of B texts.

    texts: U label texts, each once. members (B,K) int64: the places among them of those that inform each text,
    -1 = none. weights (B,K) float32: how much each counts beside the others of its text, 0 where there is none.
    encoded: what the model's encoder makes of the U texts; None until it has read them.
    """

    texts: Batch
    members: Tensor
    weights: Tensor
    encoded: Encoded | None = None

    def to(self, device: torch.device) -> LabelTexts:
        return LabelTexts(self.texts.to(device), self.members.to(device), self.weights.to(device))


@dataclass(frozen=True)
class Neighbour:
    """A training document that is like a text, and stands for all documents of the same words.

    similarity: their cosine. labels: those of the documents, as places in the label set; inferred: further labels that
    they contribute, such as the parents of their own.
    """

    document: str
    beginning: str
    similarity: float
    labels: tuple[int, ...]
    inferred: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scores:
    """logits (B,C), one for each candidate; extras: anything a loss of the same plugin needs besides."""

    logits: Tensor
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """True nodes of B texts at one level, CSR: text b has indices[indptr[b]:indptr[b+1]], ascending. Both int64."""

    indptr: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> Targets:
        return Targets(self.indptr.to(device), self.indices.to(device))

    def positions(self, shortlist: Shortlist) -> tuple[Tensor, Tensor]:
        """(rows, columns) int64 of the true nodes among the candidates: where a dense target would hold a one."""
        lengths = self.indptr.diff()
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=self.indices.device), lengths)
        if shortlist.nodes is None:
            return rows, self.indices
        # One number for each (row, node) pair turns "which candidates are true" into one search in a sorted list.
        nodes = shortlist.nodes
        stride = max(int(self.indices.max()) if len(self.indices) else 0, int(nodes.max()) if nodes.numel() else 0) + 1
        true = rows * stride + self.indices
        if not len(true):
            return rows, self.indices
        asked = torch.arange(len(nodes), device=nodes.device)[:, None] * stride + nodes
        found = true[torch.searchsorted(true, asked).clamp_(max=len(true) - 1)] == asked
        hit_rows, hit_columns = (found & (nodes >= 0)).nonzero(as_tuple=True)
        return hit_rows, hit_columns


class Encoder(nn.Module, ABC):
    """Turns the tokens of a text, or the raw text, into vectors."""

    tokenizer: Tokenizer | None
    """None where the encoder reads no tokens."""
    max_tokens: int
    """Longer texts are cut here."""
    size: int
    """D, the length of a state or pooled vector; of a sparse encoder F."""
    num_pooled: int = 0
    """n, how many pooled vectors a text has; 0: it has states alone."""

    @classmethod
    @abstractmethod
    def fit(cls, config: Any, corpus: Corpus) -> Encoder:
        """A new encoder for these training texts (vocabulary, word vectors, pretrained weights)."""

    @classmethod
    @abstractmethod
    def restore(cls, config: Any, folder: Path) -> Encoder:
        """The encoder whose files `save` wrote into `folder`; its weights are loaded afterwards."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `restore` needs besides the weights."""

    def learning_rates(self) -> Mapping[str, float]:
        """For parameters by name: their learning rate as a multiple of `training.learning_rate`; 1 for all others."""
        return {}

    def input_vectors(self) -> nn.Module | None:
        """The module whose output (B,T,D') is what `forward` makes of the tokens first; for explanation."""
        return None

    def word_vectors(self) -> Tensor | None:
        """(V,D') for each token id a vector that does not depend on its neighbours, or None where there is none."""
        return None

    def read(self, texts: Documents | Sequence[str]) -> csr_matrix | None:
        """(N,F) sparse vectors of raw texts; None of an encoder that is not sparse. Called for the training texts after
        `fit`, and again when training begins; for dev; and in each prediction."""
        return None

    def activations(self, tokens: int) -> int:
        """About how many numbers `forward` keeps for backward of a text of so many tokens; for the estimate of the
        memory that training needs."""
        return 6 * tokens * self.size

    def occurrences(self, text: str) -> dict[int, tuple[int, int]]:
        """Where in a text each of its sparse features first stands, as character offsets; for explanation."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch) -> Encoded:
        """Encode B texts. A text's result must not depend on padding or on its neighbours in the batch."""


class LabelStructure(ABC):
    """Says which nodes to score for a text, level by level."""

    num_levels: int
    beam: int
    """Nodes of a level whose children are candidates at the next."""

    @classmethod
    @abstractmethod
    def fit(cls, config: Any, corpus: Corpus) -> LabelStructure:
        """A new structure for these training texts and their labels."""

    @classmethod
    @abstractmethod
    def restore(cls, config: Any, folder: Path, task: Task) -> LabelStructure:
        """The structure that `save` wrote into `folder`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `restore` needs."""

    @abstractmethod
    def level_size(self, level: int) -> int:
        """Number of nodes at `level`."""

    @abstractmethod
    def level_targets(self, level: int, labels: csr_matrix) -> csr_matrix:
        """Which nodes of `level` have a true label below them. labels (N, num_labels); returns (N, level_size)."""

    @abstractmethod
    def shortlist(self, level: int, batch: Batch, nodes: Tensor | None, scores: Tensor | None) -> Shortlist:
        """Candidates at `level`, given the best nodes of the level above and their probabilities.

        nodes (B,b) int64, -1 = none, and scores (B,b) are None at level 0. No node may appear twice for a text.
        """

    def siblings(self, level: int) -> np.ndarray:
        """(G+1,) int64: the children of node g of the level above are siblings[g] .. siblings[g + 1] - 1 of this one.

        At level 0, and by default, there is one group of all nodes.
        """
        return np.array([0, self.level_size(level)], np.int64)

    def read(self, texts: Documents | Sequence[str]) -> csr_matrix | None:
        """(N, num_labels) the labels to score for each raw text, with a number above 0 each; None of a structure that
        chooses them in another way. Called for each split and in each prediction; `shortlist` gets the rows in
        `Batch.candidates`, in training with the true labels among them, whose number is 1 or more."""
        return None

    @abstractmethod
    def leaf_labels(self) -> np.ndarray:
        """(level_size(last),) int64: the label that each node of the last level stands for."""


class LabelContext(ABC):
    """Says which label texts inform the scores of a text, which the encoder reads and the fusion gets beside it; or
    which labels inform the score of a label."""

    training_only: ClassVar[bool] = False
    """Whether its label texts take part in training alone, so that the saved run does without it."""
    notes: tuple[str, ...] = ()
    """What the user should know of it, a line each; said once, when it has been fitted."""

    @classmethod
    @abstractmethod
    def fit(cls, config: Any, corpus: Corpus, encoder: Encoder) -> LabelContext:
        """A new context for these training texts and their labels."""

    @classmethod
    @abstractmethod
    def restore(cls, config: Any, folder: Path, task: Task, encoder: Encoder) -> LabelContext:
        """The context that `save` wrote into `folder`. The encoder's weights are not loaded yet."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `restore` needs."""

    def fit_level(self, level: int, targets: csr_matrix) -> None:  # noqa: B027 - most need nothing
        """Learn what it needs of a level, once, after `fit`. targets (N,nodes): the true nodes of training texts."""

    def label_groups(self, level: int) -> Tensor | None:
        """(nodes,k) int64, -1 = none: for each node of a level those that inform its score; None where none do."""
        return None

    def label_texts(self, batch: Batch) -> LabelTexts | None:
        """The label texts that inform each text of the batch; None where the method has none.

        Texts without tokens, (U,0), are not read by the encoder: the fusion gets their places in the label set alone.
        """
        return None

    def neighbours(self, batch: Batch) -> list[list[Neighbour]] | None:
        """For each text the training documents that its label texts come from; None where they come from none."""
        return None


class Fusion(nn.Module, ABC):
    """Scores texts against the nodes of one level."""

    per_node: ClassVar[tuple[str, ...]] = ()
    """Parameters with a row for each node. They start afresh at each level; all others are taken from above, where
    levels are not trained together."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Modules that only training needs; the saved run does without them."""
    solved: ClassVar[bool] = False
    """Whether a level is fitted by one call of `solve` instead of by steps along a gradient; only of one that takes
    sparse vectors."""
    ranked_negatives: bool = False
    """Of a fusion that is solved: whether texts for which the level above ranks a node high are examples for its
    children, besides those for which the node is true."""
    label_groups: Tensor | None
    """(nodes,k) int64, -1 = none: for each node of its level those that inform its score; None where the label context
    has no groups. Set by the runtime after `build`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("label_groups", None, persistent=False)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, encoder: Encoder, num_nodes: int, task: Task) -> Fusion:
        """A new fusion for what `encoder` makes (`size`, `num_pooled`) and a level of `num_nodes` nodes."""

    @abstractmethod
    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        """Logits (B,C) of the candidates; padded candidates may have any finite logit.

        labels: the label texts that inform each text, read by the encoder; given where the label context has some.
        """

    def solve(
        self,
        features: csr_matrix,
        targets: csr_matrix,
        siblings: np.ndarray,
        examples: csr_matrix,
        margin_loss: MarginLoss,
        progress: Callable[[str], None],
    ) -> None:
        """Fit all weights of a level at once.

        features (N,F); targets (N,nodes): the true nodes; siblings (G+1,): groups of nodes, of
        `LabelStructure.siblings`; examples (N,G): not 0 where a text is an example for the nodes of a group.
        progress: to be called now and then, with a line for the user or nothing; it raises to end the training.
        """
        raise NotImplementedError(f"{type(self).__name__} is not solved")

    def attention(self, encoded: Encoded, shortlist: Shortlist) -> Tensor | None:
        """(B,C,T): the weight of each token in each candidate's score, or None where the method has none."""
        return None

    def contributions(self, encoded: Encoded, shortlist: Shortlist) -> csr_matrix | None:
        """(C,F) of one text: what each of its sparse features adds to each candidate's logit; None where the method has
        no such sum."""
        return None


class Loss(nn.Module, ABC):
    """Holds the scores against the true nodes. Its parameters learn with the model, from `build` at each level that is
    trained apart; no run keeps them."""

    margin_loss: ClassVar[MarginLoss | None] = None
    """Of a loss that sums a function of the margin over the candidates, which one; for fusions that are solved."""

    @classmethod
    @abstractmethod
    def build(cls, config: Any, task: Task) -> Loss:
        """A new loss."""

    def sample(self, shortlist: Shortlist, targets: Targets, num_nodes: int) -> Shortlist:
        """In training, which candidates of a level to score: all true ones among them, and of the others those that the
        loss looks at; by default all. Of levels that are trained together for the last alone, since the scores of the
        others choose the candidates below. Random choices come from torch's generator.

        num_nodes: of the level. A text has no node twice."""
        return shortlist

    @abstractmethod
    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        """A scalar, in float32."""
