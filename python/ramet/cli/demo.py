"""`ramet demo`."""

import sys
import tempfile
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from ramet.cli.output import print_json
from ramet.demo import Report, run_demo
from ramet.errors import ConflictError


def demo(arguments: Namespace) -> None:
    """Show what the product does, on a real image, and prove it."""
    with ExitStack() as stack:
        if arguments.pool:
            directory = Path(arguments.pool)
            if directory.exists() and any(directory.iterdir()):
                raise ConflictError(
                    "demo_directory", f"'{directory}' is not empty; hint: a new one"
                )
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ramet-demo-")))
        image = Path(arguments.image) if arguments.image else None
        report = run_demo(directory, image, arguments.clones, _say)
    if arguments.json:
        print_json(report.figures)
    else:
        _print(report)


def _say(text: str) -> None:
    print(f"- {text}", file=sys.stderr, flush=True)


def _print(report: Report) -> None:
    width = max(len(title) for title, _ in report.rows)
    print()
    for title, text in report.rows:
        print(f"{title:{width}}  {text}")
