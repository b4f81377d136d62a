"""A line on stderr that shows how far something long is, with its rate and the time that is left.

Imports rich where it is needed. Called by check.py, scrub.py, streams.py and verify.py.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int | None], None]
"""Called with what is done now, bytes done so far, and bytes in all; None: not known."""
Show = Callable[[int, int | None], None]
"""The same, of what is done from beginning to end."""


@contextmanager
def show_progress() -> Iterator[Progress | None]:
    """Give what shows how far something is, where somebody looks at stderr; else None.

    Example: show_progress()
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("opening", total=None)
        yield lambda doing, done, total: bar.update(
            task, description=doing, completed=done, total=total
        )


@contextmanager
def show_bytes(doing: str) -> Iterator[Show]:
    """Give what shows how far one thing is; it may always be called.

    Example: show_bytes("sending")
    """
    with show_progress() as progress:
        if progress is None:
            yield lambda *_: None
        else:
            yield lambda done, total: progress(doing, done, total)
