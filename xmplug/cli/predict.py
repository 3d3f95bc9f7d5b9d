"""`xmplug predict`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import plugin_option

if TYPE_CHECKING:
    from ..data import LabelSet
    from ..inference import Explanation, Prediction
    from ..interfaces import Neighbour


@click.command("predict")
@click.argument("run")
@click.option(
    "--input",
    "source",
    default="-",
    show_default=True,
    help="FILE.jsonl, or a file with a text on each line; - reads lines of text from standard input.",
)
@click.option("--k", type=click.IntRange(1), default=5, show_default=True, help="Labels for each text.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.0, help="Leave out labels with a lower score.")
@click.option("--format", "shape", type=click.Choice(["text", "jsonl", "tsv"]), default="jsonl", show_default=True)
@click.option(
    "--explain",
    is_flag=True,
    help="Show what carried each label: the words that did most (by attention; of a linear method by what they add; "
    "else by gradient x input), the training documents like the text. Of an ensemble, what the member with the largest "
    "weight has to say.",
)
@plugin_option
def command(
    run: str, source: str, k: int, threshold: float, shape: str, explain: bool, plugin_files: tuple[str, ...]
) -> None:
    """Label texts with the model in RUN, best labels first.

    A score is the model's probability that the label applies to the text: the sigmoid of the label's logit, in a tree
    times those of the nodes on the path to it; in an ensemble the mean over the members, or what its --method says; in
    a calibrated run what `xmplug calibrate` made of it. Scores of different labels are independent: they do not sum to
    1.

    text: for reading. jsonl: {"id", "labels": [{"label", "name", "score"}]}. tsv: id, label, name, score.
    """
    from ..api import load

    tagger = load(run, plugin_files)
    if explain:
        for name, text in _documents(source):
            found = [item for item in tagger.explain(text, k) if item.prediction.score >= threshold]
            _print(
                shape, name, text, [item.prediction for item in found], found, tagger.neighbours(text), tagger.labels
            )
    else:
        documents, again = tee(_documents(source))
        for (name, text), predictions in zip(
            again, tagger.predict_stream((text for _, text in documents), k, threshold)
        ):
            _print(shape, name, text, predictions)


def _documents(source: str) -> Iterator[tuple[str, str]]:
    from ..data import read_documents
    from ..data.files import lines

    if source != "-" and ".jsonl" in source:
        for document in read_documents(source, labelled=False):
            yield document.id, document.text
    else:
        for number, line in lines(Path("/dev/stdin" if source == "-" else source)):
            yield str(number), line


def _print(
    shape: str,
    name: str,
    text: str,
    predictions: list[Prediction],
    explained: Sequence[Explanation] = (),
    neighbours: Sequence[Neighbour] | None = None,
    known: LabelSet | None = None,
) -> None:
    words = [[(word, round(weight, 4)) for word, _, _, weight in item.words or []] for item in explained]
    like = [[found.document for found in item.neighbours or []] for item in explained]
    if shape == "tsv":
        for at, label in enumerate(predictions):
            row = [name, label.label, label.name, f"{label.score:.4f}"]
            if explained and explained[at].words is not None:
                row.append(" ".join(word for word, _ in words[at]))
            if explained and explained[at].neighbours is not None:
                row.append(", ".join(like[at]))
            click.echo("\t".join(" ".join(cell.split()) for cell in row))
    elif shape == "jsonl":
        record: dict[str, Any] = {"id": name, "labels": []}
        for at, label in enumerate(predictions):
            entry: dict[str, Any] = {"label": label.label, "name": label.name, "score": round(label.score, 4)}
            if explained and explained[at].words is not None:
                entry["words"] = [{"word": word, "weight": weight} for word, weight in words[at]]
            if explained and explained[at].neighbours is not None:
                entry["neighbours"] = like[at]
            record["labels"].append(entry)
        if neighbours is not None and known is not None:
            record["neighbours"] = [
                {
                    "document": found.document,
                    "similarity": round(found.similarity, 4),
                    "beginning": found.beginning,
                    "labels": [known.ids[label] for label in found.labels],
                    "inferred": [known.ids[label] for label in found.inferred],
                }
                for found in neighbours
            ]
        click.echo(json.dumps(record, ensure_ascii=False))
    else:
        click.echo(f"{name}: {text[:100]}{'...' if len(text) > 100 else ''}")
        for at, label in enumerate(predictions):
            weights = "   " + ", ".join(f"{word} {weight:.2f}" for word, weight in words[at]) if explained else ""
            sources = "   from " + ", ".join(like[at]) if explained and like[at] else ""
            click.echo(f"    {label.score:.3f}  {label.name}{weights.rstrip()}{sources}")
        for found in neighbours or []:
            assert known is not None
            above = f" < {'; '.join(known.names[label] for label in found.inferred)}" if found.inferred else ""
            click.echo(f"    like {found.document} ({found.similarity:.2f}): {found.beginning}")
            click.echo(f"         {'; '.join(known.names[label] for label in found.labels)}{above}")
