"""Live progress of a training."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from ..training import Listener, Progress

_SECONDS_BETWEEN_LINES = 30.0


class _Screen(Listener):
    """A bar that moves on a terminal; elsewhere a line now and then. Evaluations stay as lines in both."""

    def __init__(self, console: Console, bar: Bar):
        self.console, self.bar = console, bar
        self.task = bar.add_task("", total=1, visible=False)
        self.last_line = time.monotonic()

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def step(self, progress: Progress) -> None:
        metric = "-" if progress.metric is None else f"{100 * progress.metric:.2f}"
        text = (
            f"level {progress.level}/{progress.levels}  epoch {progress.epoch}/{progress.epochs}  "
            f"{progress.documents_per_second:,.0f} documents/s  loss {progress.loss:.3f}  dev {metric}  "
            f"{_clock(progress.seconds_left)} left"
        )
        if self.console.is_terminal:
            self.bar.update(
                self.task,
                completed=progress.step,
                total=progress.steps,
                description=text,
                visible=progress.step < progress.steps,
            )
        elif time.monotonic() - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(text, highlight=False, soft_wrap=True)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        values = "  ".join(
            f"{name} {100 * record[name]:.2f}" for name in record if "@" in name and name[:2] in ("P@", "nD")
        )
        steps = f" epoch {record['epoch']}: loss {record['loss']:.3f}," if "epoch" in record else ":"
        self.console.print(
            f"level {record['level']}{steps} dev {values}",
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def show_training(out: str) -> Iterator[Listener]:
    """Shows a training while the block runs. The first Ctrl-C ends it after the present step, with a checkpoint."""
    console = Console(file=sys.stderr)
    bar = Bar(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
    screen = _Screen(console, bar)

    def stop(number: int, frame: Any) -> None:
        screen.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.print("stopping after this step; once more to stop at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        with bar if console.is_terminal else nullcontext():
            yield screen
    except KeyboardInterrupt:
        one_run = (Path(out) / "checkpoints").is_dir()
        hint = f"xmplug train --resume {out}" if one_run else "the same command"
        console.print(f"stopped; go on with: {hint}", highlight=False, soft_wrap=True, markup=False)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
