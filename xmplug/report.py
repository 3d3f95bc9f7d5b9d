"""What a comparison shows: lines of figures, a table in Markdown, plots, and a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .comparison import CURVE, KS
from .errors import ConfigError
from .metrics import GROUPS

BASELINE = "popularity"
_QUALITY = [f"{measure}@{k}" for measure in ("P", "nDCG", "PSP") for k in KS] + [f"{group} R@5" for group in GROUPS]
_BARS = ("P@1", "P@5", "nDCG@5", "PSP@5", *(f"{group} R@5" for group in GROUPS))
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Told apart by colour-blind readers too (Okabe and Ito)."""
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Line:
    """A line of the table. cells: the text of each column; best: the columns whose mean is the highest."""

    name: str
    cells: list[str]
    best: frozenset[int] = frozenset()


def columns(result: Mapping[str, Any]) -> list[str]:
    """The heads of the columns: the entries, and before them the baseline where there is a figure."""
    return ([BASELINE] if result["baseline"] else []) + [entry["name"] for entry in result["entries"]]


def lines(result: Mapping[str, Any]) -> list[Line]:
    """What `comparison.results` holds, as mean and standard deviation over seeds: quality in percent, then costs."""
    entries, baseline = result["entries"], result["baseline"]
    made = []
    for name in _QUALITY:
        values = [[100 * baseline["values"][name]] if baseline["values"][name] is not None else []] if baseline else []
        values += [quality(entry, name) for entry in entries]
        means = [round(float(np.mean(each)), 2) if each else -math.inf for each in values]
        best = frozenset(at for at, mean in enumerate(means) if mean == max(means) > -math.inf)
        made.append(Line(name, [spread(each) for each in values], best))

    def cost(name: str, cells: Sequence[str]) -> None:
        made.append(Line(name, ([""] if baseline else []) + list(cells)))

    def each(read: Any, digits: int) -> list[str]:
        return [spread([read(run) for run in entry["runs"].values()], digits) for entry in entries]

    cost("seeds", [f"{len(entry['runs'])} of {result['seeds']}" for entry in entries])
    cost("minutes of training", each(lambda run: run["minutes"], 2))
    cost("processor minutes", each(lambda run: run["processor"], 2))
    cost("epochs begun", [_epochs(entry["runs"].values()) for entry in entries])
    cost("peak memory, GiB", each(lambda run: run["memory"]["main"] / 2**30, 2))
    if any("device" in run["memory"] for entry in entries for run in entry["runs"].values()):
        cost("peak memory of the GPU, GiB", each(lambda run: run["memory"].get("device", 0) / 2**30, 2))
    cost("run on disk, MiB", each(lambda run: run["disk"] / 2**20, 1))
    cost("prediction, texts/s", each(lambda run: run["speed"]["texts"] / run["speed"]["seconds"], 0))
    return made


def quality(entry: Mapping[str, Any], name: str) -> list[float]:
    """A measure of each seed, in percent; without those where there is nothing to measure."""
    values = [run["evaluation"]["model"]["values"][name] for run in entry["runs"].values()]
    return [100 * value for value in values if value is not None]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation: "81.20 ± 0.31"; "-" for nothing."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _epochs(runs: Any) -> str:
    """How far the last level came, of how many epochs: "3 of 8", or "3-4 of 8"; "-" for what is solved at once."""
    made = {run["dev"][-1].get("epoch") for run in runs} - {None}
    if not made:
        return "-"
    asked = {run["epochs"][min(run["dev"][-1]["level"] - 1, len(run["epochs"]) - 1)] for run in runs}
    return f"{'-'.join(map(str, sorted({min(made), max(made)})))} of {max(asked)}"


def caption(result: Mapping[str, Any]) -> list[str]:
    """How the figures came about, a sentence or two each: data, budget, who chose what, machine, versions."""
    data, seeds = result["data"], result["seeds"]
    minutes = set(result["budget"].values())
    said = [
        f"Data: {data['name']}, {data[data['split']]:,} documents of {data['split']}; {data['train']:,} training and "
        f"{data['dev']:,} dev documents, {data['labels']:,} labels.",
        *(f"{note[0].upper()}{note[1:]}." for note in result["notes"]),
    ]
    if minutes == {None}:
        said.append("Budget: the epochs of each entry, without a limit of time.")
    elif len(minutes) == 1:
        said.append(
            f"Budget: each training ends after {minutes.pop():g} minutes by the clock, fitting and evaluations on dev "
            "included, or with its last epoch where that is sooner. It then evaluates once more, which may go beyond."
        )
    else:
        said.append("Budget: entries have limits of time of their own, or none: these are not under one budget.")
    said.append(f"The weights with the best {' or '.join(result['metric'])} on dev were kept.")
    if data["split"] == "test":
        said.append("Test chose nothing here. Whether it had a part in how entries got their options, is not known.")
    else:
        said.append(f"These are figures of {data['split']}, which are better than those of unseen texts.")
    said.append(
        f"Mean ± sample standard deviation of {seeds} seeds, which vary weights and order, not the data."
        if seeds > 1
        else "One seed: how much is chance cannot be told."
    )
    said.append("Bold: the highest mean, even where it is within the spread of others.")
    for machine in result["machines"]:
        said.append(
            f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['vector_code']}, "
            f"{machine['memory'] / 2**30:.0f} GiB; threads: {machine['threads']}; device: {machine['device']}. "
            "Minutes are by the clock: what else ran there counts. Processor minutes are those of all threads."
        )
    versions = [f"{name} {'/'.join(each)}".strip() for name, each in result["versions"].items()]
    said += [f"Versions: {', '.join(versions)}."] if versions else []
    said.append(
        "P, nDCG, PSP in percent, PSP by inverse propensity. Head, torso, tail R@5: of the true labels with 100 or "
        "more, 10 to 99, 1 to 9 training documents, the share among the first 5. Popularity: the most frequent labels "
        "for each text. Prediction: raw texts to labels, by a run that is loaded."
    )
    return said


def errors(result: Mapping[str, Any]) -> list[str]:
    """A line for each run that failed."""
    return [
        f"{entry['name']}, seed {seed}: {message}"
        for entry in result["entries"]
        for seed, message in entry["errors"].items()
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The table and how it came about."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    heads = columns(result)
    text = [row(["", *heads]), "|---|" + "---:|" * len(heads)]
    for line in lines(result):
        cells = [f"**{cell}**" if at in line.best else cell for at, cell in enumerate(line.cells)]
        text.append(row([line.name, *cells]))
    text += ["", *caption(result), ""]
    text += [f"Failed: {error}" for error in errors(result)]
    text += ["", "```", result["command"], *(entry["command"] for entry in result["entries"]), "```"]
    return "\n".join(text) + "\n"


def check_libraries() -> None:
    """Raises ConfigError where what draws and writes the report is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the report needs {error.name}, not found here: pip install 'xmplug[report]'") from None


def html(result: Mapping[str, Any]) -> str:
    """The page: plots, table, caption, entries with their command lines. Nothing in it is loaded from elsewhere."""
    from jinja2 import Environment

    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    plots = [(title, base64.b64encode(image).decode()) for title, image in _plots(result)]
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            result=result,
            columns=columns(result),
            lines=lines(result),
            caption=caption(result),
            errors=errors(result),
            plots=plots,
        )
    )


def _plots(result: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Title and SVG of each plot; none before the first run is done."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    def image(figure: Figure) -> bytes:
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "xmplug"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()

    entries = [
        (entry, _COLOURS[at % len(_COLOURS)], _MARKERS[at % len(_MARKERS)])
        for at, entry in enumerate(result["entries"])
        if entry["runs"]
    ]
    if not entries:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for entry, colour, marker in entries:
        for number, run in enumerate(entry["runs"].values()):
            last = max(line["level"] for line in run["dev"])  # above it nodes are ranked, not labels
            course = [(line["minutes"], 100 * line[CURVE]) for line in run["dev"] if line["level"] == last]
            label = entry["name"] if number == 0 else None
            axes.plot(*zip(*course), color=colour, marker=marker, markersize=4, linewidth=1.2, alpha=0.8, label=label)
    axes.set(xlabel="minutes of training", ylabel=f"{CURVE} on dev, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    yield f"{CURVE} on dev against minutes: a point for each evaluation, a line for each seed", image(figure)

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(entries)
    for at, (entry, colour, _) in enumerate(entries):
        places, means, deviations = [], [], []
        for place, name in enumerate(_BARS):
            if values := quality(entry, name):
                places.append(place + (at - (len(entries) - 1) / 2) * width)
                means.append(float(np.mean(values)))
                deviations.append(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
        axes.bar(places, means, width, yerr=deviations, capsize=2, color=colour, label=entry["name"])
    axes.set_xticks(range(len(_BARS)), _BARS)
    axes.set(ylabel=f"{result['data']['split']}, %", ylim=(0, None))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(fontsize=8, loc="outside upper center", ncols=4)
    yield "Quality: mean over seeds, whiskers of one standard deviation", image(figure)
