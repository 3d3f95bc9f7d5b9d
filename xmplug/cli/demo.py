"""`xmplug demo`."""

from __future__ import annotations

from pathlib import Path

import click

_TYPED = "A small library to read and write PNG images from Python programs."


@click.command("demo")
@click.option("--out", default="runs/demo", show_default=True, help="Folder for the run; made anew.")
def command(out: str) -> None:
    """Train AttentionXML on Debian's package descriptions, measure it, and show what it predicts."""
    import shutil
    import time
    from itertools import islice

    from rich.console import Console

    from ..api import train
    from ..data import load_dataset
    from ..errors import RunError
    from ..evaluation import evaluate_documents
    from ..metrics import table
    from ..saving import read_manifest, write_json
    from .progress import show_training

    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()):
        before = read_manifest(folder)
        if (before.get("preset"), before.get("data", {}).get("name")) != ("demo", "debtags"):
            raise RunError(f"{out!r} holds another run; choose another --out")
        shutil.rmtree(folder)
    begun = time.perf_counter()
    click.echo("1. Training AttentionXML on debtags: which tags does a Debian package carry?\n")
    with show_training(out) as listener:
        tagger = train("attentionxml", "debtags", out, preset="demo", listener=listener)
    trained = time.perf_counter()

    click.echo("\n2. Measuring on packages whose sources the model has never seen\n")
    test = load_dataset("debtags").split("test")
    result = evaluate_documents(tagger, test, "debtags", (1, 3, 5))
    Console().print(table(result.rows))
    write_json(folder / "evaluation-test.json", result.as_dict())

    click.echo("\n3. Five of those packages, and a sentence typed by hand (* = a true tag)\n")
    step = max(1, len(test) // 5)
    shown = list(islice(test, step // 2, None, step))[:5]
    for document, labels in zip(shown, tagger.predict([document.text for document in shown])):
        title, _, rest = document.text.partition("\n")
        click.echo(f"{document.id}: {title}\n    {rest.strip()[:90]}...")
        for label in labels:
            click.echo(f"  {'*' if label.label in document.labels else ' '} {label.score:.2f}  {label.name}")
    click.echo(f"typed: {_TYPED}")
    for label in tagger.predict([_TYPED])[0]:
        click.echo(f"    {label.score:.2f}  {label.name}")
    seconds = time.perf_counter() - begun
    click.echo(f"\n{seconds / 60:.1f} minutes, of which {(trained - begun) / 60:.1f} training. The model is in {out}:")
    click.echo(f"  echo 'your own sentence' | xmplug predict {out} --format text --explain")
