"""Checks of models that were trained on small corpora."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from ..evaluation import evaluate_documents
from ..inference import device
from ..interfaces import Encoded, Scores
from ..model import Model
from ..recipe import Slot
from ..saving import load_run, read_tensors
from .methods import Method, Step, StopInside, Walk
from .registry import Failed, Skipped, of_method

_KNOWN = 0.7
"""P@1 on the texts that a model has learned: twice what the most frequent label gives."""
_ABOVE_POPULARITY = 1.5
_CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": True}
"""Logits in float32 that may differ by the order in which a kernel sums."""


@of_method("declarations")
def trains(method: Method) -> None:
    """Training ends without an error, also on empty texts, texts without labels and labels without texts, as corpora
    have them."""
    _ = method.trained, method.midway, method.short


@of_method("trains")
def shapes(method: Method) -> None:
    """What flows between the slots has the shapes and types of `xmplug.interfaces`, so that components of other plugins
    can take the next slot."""
    model = method.trained.model
    structure, encoder = model.structure, model.level(0).encoder
    leaves = structure.leaf_labels()
    size = structure.level_size(structure.num_levels - 1)
    _expect("leaf_labels()", leaves, (size,), np.int64)
    if not ((leaves >= 0) & (leaves < model.task.num_labels)).all() or len(np.unique(leaves)) != len(leaves):
        raise Failed("leaf_labels() names a label twice, or one that there is not; give each label to one leaf at most")
    if (vectors := encoder.word_vectors()) is not None and encoder.tokenizer is not None:
        _expect("word_vectors()", vectors, (len(encoder.tokenizer), vectors.shape[-1]), None)
    for walk in (method.midway, method.trained.dev):
        for level in range(structure.num_levels):
            nodes = walk.model.structure.level_targets(level, walk.labels)
            _expect("level_targets()", nodes, (len(walk.store), structure.level_size(level)), None)
            siblings = structure.siblings(level)
            if siblings[0] != 0 or siblings[-1] != structure.level_size(level) or (np.diff(siblings) < 0).any():
                raise Failed(
                    f"siblings({level}) do not divide all nodes of the level; let it rise from 0 to level_size"
                )
            step = walk.step(level, range(min(8, len(walk.store))))
            with torch.no_grad():
                encoded = walk.model.level(level).encoder(step.batch)
                _shapes_of_encoded(encoded, step, encoder.size, encoder.num_pooled)
                _gives_what_it_says(walk.model, encoded, step)
                _shapes_of_scores(walk, step)
            if walk.training and not method.solved:
                with _training(walk, level):
                    _expect("the loss", _loss(walk, step), (), torch.float32)


def _shapes_of_encoded(encoded: Encoded, step: Step, size: int, num_pooled: int) -> None:
    texts, width = step.batch.tokens.shape
    _expect("Encoded.mask", encoded.mask, (texts, width), torch.bool)
    if not torch.equal(encoded.mask, step.batch.mask):
        raise Failed("Encoded.mask is not that of the batch; give batch.mask")
    if encoded.states is not None:
        _expect("Encoded.states", encoded.states, (texts, width, size), torch.float32)
    if encoded.pooled is not None:
        _expect("Encoded.pooled", encoded.pooled, (texts, num_pooled, size), torch.float32)
    elif num_pooled:
        raise Failed(f"the encoder's num_pooled is {num_pooled}, but Encoded.pooled is None; make them agree")
    if encoded.features is not None:
        _expect("Encoded.features", encoded.features, (texts, size), None)
    if encoded.states is None and encoded.pooled is None and encoded.features is None:
        raise Failed("Encoded holds neither states nor pooled vectors nor features; give one of them")


def _gives_what_it_says(model: Model, encoded: Encoded, step: Step) -> None:
    encoder, labels = model.level(step.level).encoder, model.context.label_texts(step.batch)
    found: dict[Slot, dict[str, bool]] = {
        "encoder": {
            "tokens": encoder.tokenizer is not None,
            "word vectors": encoder.word_vectors() is not None,
            "states": encoded.states is not None,
            "pooled vectors": encoded.pooled is not None,
            "sparse vectors": encoded.features is not None,
        }
    }
    # A context that the fusion takes nothing from is left out, and one of which nothing comes has nothing to show.
    if labels is not None:
        read = bool(labels.texts.tokens.shape[1])
        found["label_context"] = {"nothing": False, "label texts": read, "label numbers": not read}
    for slot, words in found.items():
        said, component = model.config.given(slot), model.config.components[slot].id
        for word, there in words.items():
            if said is not None and (word in said) != there:
                does, advice = ("gives", "add it to") if there else ("does not give", "take it out of")
                raise Failed(f"{slot} {component} {does} {word!r}, and gives={said} is declared; {advice} gives")


def _shapes_of_scores(walk: Walk, step: Step) -> None:
    texts, size = len(step.places), walk.model.structure.level_size(step.level)
    shortlist = step.shortlist
    if shortlist.nodes is not None:
        size = shortlist.nodes.shape[-1]
        _expect("Shortlist.nodes", shortlist.nodes, (texts, size), torch.int64)
    if shortlist.prior is not None:
        _expect("Shortlist.prior", shortlist.prior, (texts, size), torch.float32)
    labels = walk.model.context.label_texts(step.batch)
    if labels is not None:
        _expect("LabelTexts.members", labels.members, (texts, labels.members.shape[-1]), torch.int64)
        _expect("LabelTexts.weights", labels.weights, tuple(labels.members.shape), torch.float32)
        if ((labels.members >= len(labels.texts.tokens)) | (labels.members < -1)).any():
            raise Failed("LabelTexts.members names a text that there is not; give places among the texts, -1 for none")
        if labels.weights[labels.members < 0].any():
            raise Failed("LabelTexts.weights is not 0 where members is -1; let what is not there count nothing")
    scores = walk.score(step)
    _expect("Scores.logits", scores.logits, (texts, size), None)
    if not scores.logits.isfinite().all():
        raise Failed("Scores.logits has numbers that are not finite; let padded candidates too have a finite logit")


def _expect(name: str, found: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if tuple(found.shape) != shape:
        raise Failed(f"{name} has shape {tuple(found.shape)}, expected {shape}; see xmplug.interfaces")
    if dtype is not None and found.dtype != dtype:
        raise Failed(f"{name} is {found.dtype}, expected {np.dtype(dtype) if dtype is np.int64 else dtype}; convert it")


@of_method("shapes")
def shortlist(method: Method) -> None:
    """Candidates are nodes of their level, and none is there twice for a text, since each would take a place in the
    ranking."""
    structure = method.trained.model.structure
    for walk, step in _all_steps(method):
        nodes = step.shortlist.nodes
        if nodes is None or not nodes.numel():
            continue
        if nodes.max() >= structure.level_size(step.level) or nodes.min() < -1:
            raise Failed(
                f"{_where(walk, step)} the shortlist names nodes from {int(nodes.min())} to {int(nodes.max())}; there "
                f"are {structure.level_size(step.level)}, from 0, and -1 for none"
            )
        ordered = nodes.sort(dim=1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if twice.any():
            row = int(twice.any(dim=1).nonzero()[0])
            node = int(ordered[row, 1:][twice[row]][0])
            raise Failed(f"{_where(walk, step)} node {node} is a candidate of a text twice; leave out what is there")


@of_method("shapes")
def true_labels(method: Method) -> None:
    """In training all true nodes of a text are among its candidates, since the loss cannot ask for what is not
    scored."""
    if method.solved:
        raise Skipped("its fusion is solved without candidates")
    walk = method.midway
    for level in range(walk.model.structure.num_levels):
        for step in walk.steps(level):
            wanted, found = len(step.targets.indices), len(step.targets.positions(step.shortlist)[0])
            if found < wanted:
                raise Failed(
                    f"{_where(walk, step)} {wanted - found} of {wanted} true nodes are no candidates; where "
                    "batch.training, keep the given nodes with all of their children, or batch.candidates"
                )


@of_method("shapes")
def repeatable(method: Method) -> None:
    """A model in eval mode gives a text the same scores twice, so that predictions can be trusted and compared."""
    walk = method.trained.dev
    for level in range(walk.model.structure.num_levels):
        everything = np.arange(len(walk.store))
        first, second = walk.logits(level, everything), walk.logits(level, everything)
        if not np.allclose(first, second, **_CLOSE):
            raise Failed(
                f"{_difference(first, second)} between two equal calls; switch off in eval mode what is random "
                "(dropout with training=self.training), and keep no state from call to call"
            )


@of_method("repeatable")
def padding(method: Method) -> None:
    """A text's scores depend neither on padding nor on its neighbours in the batch, or a ranking would change with who
    else asks."""
    trained = method.trained
    if trained.model.level(0).encoder.tokenizer is None:
        raise Skipped("its encoder reads no tokens, so that there is no padding")
    store = trained.model.read(trained.texts)
    walk = Walk(trained.model, store, _no_labels(trained.dev, len(store)), training=False)
    longest = np.argsort(-store.lengths, kind="stable")[:3]
    for level in range(trained.model.structure.num_levels):
        for place in range(len(store)):
            company = [place, *(int(other) for other in longest if other != place)]
            alone, together = walk.logits(level, [place])[0], walk.logits(level, company)[0]
            if not np.allclose(alone, together, **_CLOSE):
                raise Failed(
                    f"{_difference(alone, together)} between a text of {store.lengths[place]} tokens alone and in a "
                    f"batch of {store.lengths[company].max()}; let Encoded.mask decide what counts in means, maxima "
                    "and softmaxes, and normalise no text by others"
                )


@of_method("repeatable")
def batch_order(method: Method) -> None:
    """Texts in another order have their scores in that order, since batches are formed by length."""
    walk = method.trained.dev
    order = np.random.default_rng(0).permutation(len(walk.store))
    for level in range(walk.model.structure.num_levels):
        straight, mixed = walk.logits(level, np.arange(len(walk.store))), walk.logits(level, order)
        if not np.allclose(straight[order], mixed, **_CLOSE):
            raise Failed(
                f"{_difference(straight[order], mixed)} when the texts of a batch change places; let a row depend on "
                "its own text only"
            )


@of_method("shapes")
def gradients(method: Method) -> None:
    """The loss moves every trainable parameter, since one without a gradient keeps its initial value and nobody
    notices."""
    if method.solved:
        raise Skipped("its fusion is solved at once, without gradients")
    walk, exempt = method.midway, method.suite.exempt
    for level in range(walk.model.structure.num_levels):
        with _training(walk, level) as module:
            for step in walk.steps(level):
                _loss(walk, step).backward()
            named = [*module.named_parameters(), *walk.model.loss.named_parameters(prefix="loss")]
            trainable = {name: weight for name, weight in named if weight.requires_grad}
            reached = {
                name for name, weight in trainable.items() if weight.grad is not None and _values(weight.grad).any()
            }
        if still := sorted(trainable.keys() - reached - exempt.keys()):
            raise Failed(
                f"at level {level + 1} no gradient reaches {', '.join(still)}; use them in forward without detach(), "
                "or set requires_grad=False"
            )
        if moved := sorted(reached & exempt.keys()):
            raise Failed(
                f"{moved[0]} is expected to get no gradient ({exempt[moved[0]]}), but gets one; take it out of "
                "expected_failures"
            )


def _values(gradient: Tensor) -> Tensor:
    """The numbers of a gradient, which may be row-sparse."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


@of_method("shapes")
def bfloat16(method: Method) -> None:
    """Scores, loss and gradients are finite in bfloat16, which is what training uses on processors that have it."""
    walk = method.midway
    for level in range(walk.model.structure.num_levels):
        step = walk.step(level, range(min(32, len(walk.store))))
        with _training(walk, level) as module:
            for training in (False,) if method.solved else (False, True):
                module.train(training)
                with torch.autocast(device().type, torch.bfloat16):
                    scores = walk.score(step)
                mode = f"level {level + 1} in {'training' if training else 'eval'} mode"
                _expect_finite(f"scores of {mode}", scores.logits)
            if method.solved:
                continue
            loss = _loss(walk, step, scores)
            _expect_finite(f"the loss of {mode}", loss)
            loss.backward()
            for name, weight in module.named_parameters():
                if weight.grad is not None:
                    _expect_finite(f"the gradient of {name}", weight.grad)


def _expect_finite(name: str, found: Tensor) -> None:
    if not _values(found).isfinite().all():
        raise Failed(
            f"{name}: not all finite in bfloat16, which has 8 bits of precision; compute small differences and sums of "
            "many terms in float32"
        )


@of_method("shortlist", "repeatable")
def predictions(method: Method) -> None:
    """Predicted scores lie between 0 and 1 and fall, and no label is there twice, for any text, also an empty one."""
    trained = method.trained
    for text, found in zip(trained.texts, trained.tagger.predict(trained.texts, k=trained.model.task.num_labels)):
        scores, labels = [item.score for item in found], [item.label for item in found]
        about = f"the predictions for {text[:30]!r}"
        if not all(0 <= score <= 1 for score in scores):
            raise Failed(
                f"{about} have scores from {min(scores):.3g} to {max(scores):.3g}, expected 0 to 1; let "
                "Shortlist.prior be probabilities"
            )
        if scores != sorted(scores, reverse=True):
            raise Failed(f"{about} are not sorted by score; let Fusion.forward give one logit for each candidate")
        if len(set(labels)) != len(labels):
            raise Failed(f"{about} name a label twice; let each label have one leaf, and be one candidate")


@of_method("gradients", "true-labels", "shortlist")
def learns(method: Method) -> None:
    """It learns a planted corpus by heart, and beats the most frequent labels on texts it has not seen, or something is
    wrong with it whatever its shapes are."""
    trained = method.trained
    reports = {}
    for split in ("train", "dev"):
        documents = trained.dataset.split(split)
        reports[split] = evaluate_documents(trained.tagger, documents, "planted", (1, 5)).rows
    known = reports["train"]["model"]["P@1"]
    if known < _KNOWN:
        raise Failed(
            f"P@1 is {known:.2f} on the texts that it was trained on, expected {_KNOWN} or more; give options with "
            "which it learns (training.epochs, training.learning_rate), or look at loss and gradients"
        )
    new, common = (reports["dev"][name]["nDCG@5"] for name in ("model", "popularity"))
    if new < _ABOVE_POPULARITY * common:
        raise Failed(
            f"nDCG@5 on dev is {new:.2f}, and {common:.2f} for the most frequent labels alone; expected "
            f"{_ABOVE_POPULARITY} times as much: what it learns does not carry over to new texts"
        )


@of_method("repeatable")
def save(method: Method) -> None:
    """A saved run that was moved predicts what the model predicted in memory, since the run is all that a user
    keeps."""
    trained = method.trained
    labels = trained.model.task.num_labels
    expected = _by_label(*trained.tagger.rank(trained.texts, labels), labels)
    moved = method.folder / "moved"
    if not moved.exists():
        shutil.move(trained.folder, moved)
    found = _by_label(*load_run(moved, method.suite.plugins).rank(trained.texts, labels), labels)
    if not np.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise Failed(
            f"{_difference(expected, found)} between the model in memory and the run that it saved; write in `save` "
            "all that `fit` has made, read it in `restore`, and register tensors as parameters or buffers"
        )


def _by_label(labels: np.ndarray, scores: np.ndarray, size: int) -> np.ndarray:
    """(N, size): the score of each label; nan where a list does not have it."""
    dense = np.full((len(labels), size), np.nan)
    rows, columns = np.nonzero(labels >= 0)
    dense[rows, labels[rows, columns]] = scores[rows, columns]
    return dense


@of_method("trains", "round-trip")
def same_seed(method: Method) -> None:
    """Two trainings with one seed end with the same weights, also in another process, so that results can be
    repeated."""
    run = method.suite.trained_elsewhere(method)
    if error := _text(run.with_suffix(".error")):
        raise Failed(
            f"training in another process ends with {error}; import what is needed, and change no global state"
        )
    if difference := _weights_differ(method.short, run):
        raise Failed(
            f"two trainings with one seed, of which one in another process, have other weights: {difference}; take "
            "random numbers from torch, which is seeded, or from task.seed, and sort sets of strings"
        )


@of_method("same-seed", "save")
def resume(method: Method) -> None:
    """A training that was stopped in the middle of each level goes on to the weights that it would have had, since long
    trainings get killed."""
    out = method.folder / "stopped"
    for level in range(1, method.trained.model.structure.num_levels + 1):
        try:
            method.train_short(out, resume=out.exists(), listener=StopInside(level, method.solved))
        except KeyboardInterrupt:
            continue
        break  # it has fewer levels on the smaller corpus
    if (out / "checkpoints").exists():
        method.train_short(out, resume=True)
    if difference := _weights_differ(method.short, out) or _metrics_differ(method.short, out):
        raise Failed(
            f"a training that was stopped and resumed is not what it is uninterrupted: {difference}; keep what changes "
            "with the steps in parameters or buffers, which checkpoints hold"
        )


def _weights_differ(first: Path, second: Path) -> str:
    """What is different between the weights of two runs; empty for nothing."""
    one, other = (read_tensors(run / "model.safetensors")[0] for run in (first, second))
    if one.keys() != other.keys():
        return f"{sorted(one.keys() ^ other.keys())[0]} is in one of them only"
    for name, value in one.items():
        if value.shape != other[name].shape:
            return f"{name} has shape {tuple(value.shape)} and {tuple(other[name].shape)}"
        if not torch.equal(value, other[name]):
            return f"{name} differs by up to {float((value.double() - other[name].double()).abs().max()):.2g}"
    return ""


def _metrics_differ(first: Path, second: Path) -> str:
    one, other = ((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for run in (first, second))
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} evaluations"
    for left, right in zip(map(json.loads, one), map(json.loads, other)):
        for name in left:
            if left[name] != right.get(name):
                return f"{name} of an evaluation is {left[name]} and {right.get(name)}"
    return ""


# Parts that checks share ----------------------------------------------------------------------------------------------


def _all_steps(method: Method) -> Iterator[tuple[Walk, Step]]:
    walks = (method.trained.dev,) if method.solved else (method.midway, method.trained.dev)
    for walk in walks:
        for level in range(walk.model.structure.num_levels):
            for step in walk.steps(level):
                yield walk, step


def _loss(walk: Walk, step: Step, scores: Scores | None = None) -> Tensor:
    loss: Tensor = walk.model.loss(scores or walk.score(step), step.shortlist, step.targets)
    return loss


def _where(walk: Walk, step: Step) -> str:
    return f"at level {step.level + 1}, in {'training' if walk.training else 'prediction'},"


def _difference(first: np.ndarray, second: np.ndarray) -> str:
    if (np.isnan(first) != np.isnan(second)).any():
        return "the candidates differ"
    return f"scores differ by up to {float(np.nanmax(np.abs(first - second))):.2g}"


def _no_labels(walk: Walk, texts: int) -> csr_matrix:
    return csr_matrix((texts, walk.labels.shape[1]), dtype=np.int8)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


@contextmanager
def _training(walk: Walk, level: int) -> Iterator[nn.Module]:
    """A level in training mode, which then is what it was: buffers may have moved."""
    module = walk.model.level(level)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    try:
        yield module
    finally:
        module.zero_grad(set_to_none=True)
        walk.model.loss.zero_grad(set_to_none=True)
        module.load_state_dict(kept)
        module.eval()
