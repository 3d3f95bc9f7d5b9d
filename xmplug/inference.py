"""Ranking the nodes of a level for many texts, and predicting the labels of new ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from .calibration import Calibration
from .combination import align, check_weights, highest, rank_scores, weighted_mean
from .data import TokenStore
from .data.batches import inference_order, make_batch
from .errors import ConfigError, RunError
from .interfaces import Batch, LabelTexts, Neighbour, Shortlist
from .model import LevelModel, Model
from .ops import beam_step

_CHUNK = 2048


@dataclass(frozen=True)
class Ranked:
    """The best nodes of one level for N texts, best first. nodes (N,k) int32, -1 = none; scores (N,k) float32."""

    nodes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """A label for a text. score: the model's probability that the label applies (product along the tree's path), or
    what an ensemble or a calibration makes of it; in [0, 1]."""

    label: str
    name: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """What carried a prediction.

    words: those with most of its attention; of a linear method the n-grams that add most to its logit; where there is
    neither, words by gradient x input; (word, start, end, weight), best first; None where the method tells nothing of
    words. neighbours: the training documents like the text that have the label, or
    one that it is inferred from, nearest first; None where the method looks for none.
    """

    prediction: Prediction
    words: list[tuple[str, int, int, float]] | None
    neighbours: list[Neighbour] | None


def device() -> torch.device:
    """Where models run: the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def uses_bfloat16(precision: str) -> bool:
    """Whether `training.precision` means bfloat16 on this machine."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    if uses_bfloat16(precision):
        return torch.autocast(device().type, torch.bfloat16)
    return nullcontext()


def best_nodes(model: Model, level: int, logits: Tensor, shortlist: Shortlist, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best nodes of `level` for each text, best first: nodes (B,k) int64, -1 = none, and scores (B,k) float32.

    A node's score is its probability: sigmoid of its logit times the score of its parent (AttentionXML eq. 1).
    """
    logits, k = logits.float(), min(k, model.structure.level_size(level))
    if shortlist.nodes is None:
        scores, nodes = logits.sigmoid().topk(k)
    else:
        prior = torch.ones_like(logits) if shortlist.prior is None else shortlist.prior
        scores, nodes = beam_step(logits, shortlist.nodes, prior, k)
    return nodes, scores


@torch.no_grad()
def rank_stage(
    model: Model,
    levels: range,
    store: TokenStore,
    above: Ranked | None,
    k: int,
    training: bool = False,
) -> Ranked:
    """The `k` best nodes of the last of `levels` for each text of `store`, given those of the level above the first.

    levels: one of `Model.stages`, so that each text is encoded once. training: the texts are the training documents.
    """
    module = model.stage(levels)
    was_training = module.training
    module.eval()
    batch_size = model.config.training.batch_size
    k = min(k, model.structure.level_size(levels[-1]))
    ranked = Ranked(np.full((len(store), k), -1, np.int32), np.zeros((len(store), k), np.float32))
    where = device()
    try:
        for places in inference_order(store.lengths, batch_size):
            batch = make_batch(store, places, training).to(where)
            nodes = scores = None
            if above is not None:
                nodes = torch.from_numpy(above.nodes[places].astype(np.int64)).to(where)
                scores = torch.from_numpy(above.scores[places]).to(where)
            with autocast(model.config.training.precision):
                encoded, labels = model.encode(levels, batch)
            for level in levels:
                shortlist = model.structure.shortlist(level, batch, nodes, scores)
                with autocast(model.config.training.precision):
                    logits = model.score(level, encoded, shortlist, labels).logits.to(where)  # (B,C)
                wanted = k if level == levels[-1] else model.structure.beam
                nodes, scores = best_nodes(model, level, logits, shortlist, wanted)
            assert nodes is not None and scores is not None
            ranked.nodes[places] = nodes.cpu().numpy()
            ranked.scores[places] = scores.cpu().numpy()
    finally:
        module.train(was_training)
    return ranked


def rank_labels(model: Model, store: TokenStore, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Walk all levels. labels (N,k) int64, -1 = none, and scores (N,k) float32, best first."""
    ranked: Ranked | None = None
    for levels in model.stages:
        ranked = rank_stage(model, levels, store, ranked, k if levels == model.stages[-1] else model.structure.beam)
    assert ranked is not None
    return node_labels(model, ranked.nodes), ranked.scores


@torch.no_grad()
def score_labels(model: Model, store: TokenStore, labels: np.ndarray) -> np.ndarray:
    """(N,M) float32: the scores of `labels` (M,), places in the label set, for each text, whether or not its candidates
    have them: along a label's path, the product of its nodes' probabilities."""
    structure, where = model.structure, device()
    shape = (len(labels), model.task.num_labels)
    asked = csr_matrix((np.ones(len(labels), np.int8), labels, np.arange(len(labels) + 1)), shape)
    scores = np.ones((len(store), len(labels)), np.float32)
    for levels in model.stages:
        paths = [np.unique(structure.level_targets(level, asked).indices, return_inverse=True) for level in levels]
        model.stage(levels).eval()
        for places in inference_order(store.lengths, model.config.training.batch_size):
            batch = make_batch(store, places).to(where)
            with autocast(model.config.training.precision):
                encoded, context = model.encode(levels, batch)
                for level, (nodes, place) in zip(levels, paths):
                    shortlist = Shortlist(torch.from_numpy(nodes.astype(np.int64)).to(where).expand(len(places), -1))
                    logits = model.score(level, encoded, shortlist, context).logits
                    scores[places] *= logits.float().sigmoid().cpu().numpy()[:, place]
    return scores


def node_labels(model: Model, nodes: np.ndarray) -> np.ndarray:
    """The labels (int64) of nodes of the last level; -1 stays."""
    return np.where(nodes >= 0, model.structure.leaf_labels()[nodes], -1)


class Tagger:
    """Predicts labels of texts. This one has one trained model; an `Ensemble` has taggers as members.

    models: all that take part. calibration: makes the scores probabilities; None leaves them as they are. trained_on:
    the fingerprints of the training documents (`Documents.fingerprint`) of all models, where their runs tell them.
    """

    trained_on: frozenset[str] = frozenset()

    def __init__(self, model: Model):
        self.models = [model]
        self.labels = model.task.labels
        self.calibration: Calibration | None = None

    def rank(self, texts: Sequence[str], k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """labels (N,k') int64, -1 = none, and their scores (N,k') float32, best first; k' = k, or fewer where there
        are fewer labels."""
        if k < 1:
            raise ConfigError(f"asked for k={k} labels; k is at least 1")
        labels, scores = self._lists(texts, self._depth(k))
        return labels[:, :k], scores[:, :k]

    def _depth(self, k: int) -> int:
        """How long lists must be so that the first `k` labels are right."""
        return k

    def _lists(self, texts: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """`rank` with the length of all lists given, those of members too."""
        labels, scores = self._plain_lists(texts, depth)
        return labels, scores if self.calibration is None else self.calibration(scores)

    def _plain_lists(self, texts: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        (model,) = self.models
        return rank_labels(model, model.read(texts), depth)

    def score(self, texts: Sequence[str], labels: np.ndarray) -> np.ndarray:
        """(N,M) float32: the scores of `labels` (M,), places in the label set, for each text, however low they are.
        They are not calibrated. Raises ConfigError of an ensemble by ranks, which has none."""
        (model,) = self.models
        return score_labels(model, model.read(texts), labels)

    def predict(self, texts: Sequence[str], k: int = 5, threshold: float = 0.0) -> list[list[Prediction]]:
        """The `k` best labels of each text with a score of at least `threshold`, best first."""
        if isinstance(texts, str):
            raise ConfigError("predict takes a list of texts, found one string; write [text]")
        labels, scores = self.rank(texts, k)
        return [
            [self._prediction(label, score) for label, score in zip(*row) if label >= 0 and score >= threshold]
            for row in zip(labels, scores)
        ]

    def predict_stream(self, texts: Iterable[str], k: int, threshold: float = 0.0) -> Iterator[list[Prediction]]:
        """`predict` for any number of texts, a few thousand at a time."""
        source = iter(texts)
        while chunk := list(islice(source, _CHUNK)):
            yield from self.predict(chunk, k, threshold)

    def explain(self, text: str, k: int = 5, words: int = 6) -> list[Explanation]:
        """The `k` best labels of one text, each with the `words` words or n-grams that carried most, and with the
        training documents like the text that have it.

        An ensemble is explained by the member with the largest weight, the first of equals. Raises ConfigError when the
        method tells neither.
        """
        module, batch = self._one(text)
        neighbours = self.neighbours(text)
        predictions = self.predict([text], k)[0]
        labels = [self.labels.index(prediction.label) for prediction in predictions]
        leaves = np.argsort(self.models[0].structure.leaf_labels())[labels]
        carried = _carried(self.models[0], module, batch, leaves, text)
        if carried is None and neighbours is None:
            config = self.models[0].config
            raise ConfigError(
                f"--explain needs words or neighbours; the fusion {config.components['fusion'].id!r} does not tell "
                f"what words carry, the label context {config.components['label_context'].id!r} has no neighbours"
            )
        return [
            Explanation(
                prediction,
                None if carried is None else _heaviest(text, carried[0], carried[1][row], words),
                neighbours and [found for found in neighbours if label in found.labels + found.inferred],
            )
            for row, (prediction, label) in enumerate(zip(predictions, labels))
        ]

    def neighbours(self, text: str) -> list[Neighbour] | None:
        """The training documents whose labels inform the scores of `text`, nearest first; None where none do."""
        found = self.models[0].context.neighbours(self._one(text)[1])
        return None if found is None else found[0]

    @property
    def vector_size(self) -> int:
        """D, the length of a text vector."""
        return sum(model.level(0).encoder.size for model in self.models)

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(N,D) float32: the encoder's vector of each text: pooled (the mean, of several), or the mean of the states of
        its tokens, from the last level; of an ensemble those of all models side by side. Not of a sparse encoder."""
        return np.concatenate([_vectors(model, model.read(texts)) for model in self.models], axis=1)

    def _one(self, text: str) -> tuple[LevelModel, Batch]:
        """The last level of the first model, and `text` as a batch."""
        model = self.models[0]
        module = model.level(model.structure.num_levels - 1).eval()
        return module, make_batch(model.read([text]), np.zeros(1, np.int64)).to(device())

    def _prediction(self, label: int, score: float) -> Prediction:
        return Prediction(self.labels.ids[label], self.labels.names[label], float(score))


class Ensemble(Tagger):
    """Taggers that predict together; members may be calibrated, or ensembles themselves.

    A label's score is the weighted mean of the members' scores, as AttentionXML section 3.3 has it with equal weights;
    with `by_rank`, of `rank_scores`, for members whose scores do not compare. A label that is not in a member's list
    counts 0 there, so members give longer lists than asked.

    weights: not negative; their sum does not matter; None weighs all alike. Raises ConfigError for weights of another
    kind or number, RunError for members that know different labels.
    """

    def __init__(self, members: Sequence[Tagger], weights: Sequence[float] | None = None, by_rank: bool = False):
        self.members, self.by_rank = list(members), by_rank
        self.weights = check_weights(weights if weights is not None else [1.0] * len(members), len(members))
        heaviest = sorted(range(len(members)), key=lambda member: -self.weights[member])
        self.models = [model for member in heaviest for model in members[member].models]
        self.labels = members[0].labels
        self.calibration = None
        self.trained_on = frozenset().union(*(member.trained_on for member in members))
        if any(member.labels.ids != self.labels.ids for member in members):
            raise RunError("the members know different labels; train them on the same data")

    def score(self, texts: Sequence[str], labels: np.ndarray) -> np.ndarray:
        if self.by_rank:
            raise ConfigError(
                "asked for scores of given labels, but an ensemble by ranks has none for labels far down; combine the "
                "runs by --method mean, weighted or fitted"
            )
        found = [weight * member.score(texts, labels) for weight, member in zip(self.weights, self.members)]
        return np.asarray(sum(found) / sum(self.weights), np.float32)

    def member_lists(self, texts: Sequence[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """What the members give when `k` labels are asked for: labels (N,K) int64, -1 = none, and scores (N,K) float32
        of each."""
        return self._member_lists(texts, self._depth(k))

    def _depth(self, k: int) -> int:
        # Far down a list scores come close to 0 and ranks do not: 200 keeps them the same for all k up to 20.
        return max(10 * k, 200 if self.by_rank else 50, *(member._depth(k) for member in self.members))

    def _plain_lists(self, texts: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        labels, scores = align(self._member_lists(texts, depth))
        return highest(labels, weighted_mean(scores, self.weights), min(depth, self.labels.num_trained))

    def _member_lists(self, texts: Sequence[str], depth: int) -> list[tuple[np.ndarray, np.ndarray]]:
        lists = [member._lists(texts, depth) for member in self.members]
        return [(labels, rank_scores(labels)) for labels, _ in lists] if self.by_rank else lists


@torch.no_grad()
def _vectors(model: Model, store: TokenStore) -> np.ndarray:
    encoder = model.level(model.structure.num_levels - 1).encoder.eval()
    vectors = np.zeros((len(store), encoder.size), np.float32)
    for places in inference_order(store.lengths, model.config.training.batch_size):
        batch = make_batch(store, places).to(device())
        with autocast(model.config.training.precision):
            encoded = encoder(batch)
        if encoded.pooled is not None:
            found = encoded.pooled.float().mean(dim=1)
        elif encoded.states is None:
            raise ConfigError(f"encoder {model.config.components['encoder'].id} makes sparse vectors; give a deep run")
        else:
            weights = encoded.mask[:, :, None].float()
            found = (encoded.states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
        vectors[places] = found.cpu().numpy()
    return vectors


@torch.no_grad()
def _carried(
    model: Model, module: LevelModel, batch: Batch, leaves: np.ndarray, text: str
) -> tuple[list[tuple[int, int]], np.ndarray] | None:
    """Where in `text` its words stand, and how much each carried of the score of each leaf (C, words); None where the
    method does not tell. Words are tokens with their attention, or n-grams with what they add to the logit."""
    encoder, fusion = module.encoder, module.fusion
    shortlist = Shortlist(nodes=torch.tensor(leaves[None], dtype=torch.int64, device=batch.tokens.device))
    encoded, labels = model.encode(model.stages[-1], batch)
    attention = fusion.attention(encoded, shortlist)  # (1,C,T)
    if attention is not None and encoder.tokenizer is not None:
        return encoder.tokenizer.spans(text)[: int(batch.lengths[0])], attention[0].float().cpu().numpy()
    added = fusion.contributions(encoded, shortlist)  # (C,F)
    if added is None:
        return _gradient_times_input(module, batch, labels, shortlist, text)
    found = encoder.occurrences(text)
    return list(found.values()), added[:, list(found)].toarray()


def _gradient_times_input(
    module: LevelModel, batch: Batch, labels: LabelTexts | None, shortlist: Shortlist, text: str
) -> tuple[list[tuple[int, int]], np.ndarray] | None:
    """Where the words of `text` stand, and of each leaf's logit the gradient along each word's first vector, times that
    vector, (C, words): to first order, how much lower the logit were without the word. labels: the label texts that
    inform the score, which stay as they are. None where the encoder does not show these vectors."""
    encoder, inputs = module.encoder, module.encoder.input_vectors()
    if inputs is None or shortlist.nodes is None or encoder.tokenizer is None:
        return None
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: tuple[Any, ...], vectors: Tensor) -> Tensor:
        caught[:] = [vectors.detach().requires_grad_()]
        return caught[0]

    hook = inputs.register_forward_hook(catch)
    try:
        # On a GPU, the LSTM of cuDNN goes backward in training only; PyTorch's own in prediction too.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            products = []
            for leaf in range(shortlist.nodes.shape[1]):  # anew for each: some graphs go backward once only
                logits = module.fusion(encoder(batch), shortlist, labels).logits[0]
                (gradient,) = torch.autograd.grad(logits[leaf], caught)
                products.append((gradient * caught[0].detach())[0].sum(dim=-1))
    finally:
        hook.remove()
    weights = torch.stack(products).float().cpu().numpy()  # (C,T)
    # Pieces of one word share its span, and their weights add up; signs that stand for no word have an empty one.
    spans = encoder.tokenizer.spans(text)[: weights.shape[1]]
    words = {span: place for place, span in enumerate(dict.fromkeys(span for span in spans if span[0] < span[1]))}
    summed = np.zeros((len(weights), len(words)), np.float32)
    for place, span in enumerate(spans):
        if span in words:
            summed[:, words[span]] += weights[:, place]
    return list(words), summed


def _heaviest(
    text: str, spans: list[tuple[int, int]], weights: np.ndarray, words: int
) -> list[tuple[str, int, int, float]]:
    best = np.argsort(-weights[: len(spans)], kind="stable")[:words]
    return [(text[slice(*spans[at])], *spans[at], float(weights[at])) for at in best if weights[at] > 0]
