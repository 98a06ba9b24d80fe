"""Bars that show how far something is."""

import contextlib
from collections.abc import Callable, Iterator


def make_progress():
    """Make the bars that all tools show.

    Returns:
        rich.progress.Progress: Its tasks need a ``total`` and a ``note``.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn('{task.description:>22}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('{task.fields[note]}'),
    )


@contextlib.contextmanager
def progressing(progress, label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of :func:`make_progress`.

    Args:
        progress (rich.progress.Progress): Where the bar is shown.
        label (str): What is left of it.

    Yields:
        Callable: To be called with the number done, and of all.
    """
    task = progress.add_task(label, total=None, note='')

    def advance(done: int, number: int) -> None:
        progress.update(task, completed=done, total=number)

    yield advance
    if progress.tasks[task].total is None:  # there was nothing to do
        progress.update(task, completed=1, total=1)
