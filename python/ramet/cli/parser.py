"""How a command line is read; what can be typed is in grammar.py.

Imports errors only; the modules of the verbs are imported when one is chosen. Invariant: -p, --json
and --no-wait are accepted before the noun and after the verb.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from ramet import __version__
from ramet.cli.grammar import add_nouns
from ramet.errors import InvalidError

DESCRIPTION = "Ramet: fork() for disks. Snapshot and clone thousands of volumes at once."
EPILOG = """examples:
  ramet init /srv/pool
  ramet -p /srv/pool serve
  ramet -p /srv/pool volume import debian.qcow2 golden
  ramet -p /srv/pool snapshot create golden --name 'golden@1'
  ramet -p /srv/pool clone golden@1 'vm-{n}' --count 1000
  export RAMET_POOL=/srv/pool; ramet snapshot create --all --name '{volume}@nightly'
"""

Arguments = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would exit, so that bad input ends as every other error does."""

    def error(self, message: str) -> Any:
        raise InvalidError("bad_arguments", f"{message}; hint: {self.prog} --help")


def parse(arguments: list[str]) -> Arguments:
    """Parse a command line. Result: its options, and `run`, the function that performs it.

    Exits where help or the version is asked for, and where the arguments are wrong.
    Example: parse(["-p", "/srv/pool", "volume", "list"])
    """
    from ramet.cli.output import print_error

    try:
        return _build().parse_args(arguments)
    except InvalidError as error:
        print_error(error, "--json" in arguments)
        raise SystemExit(error.exit_code) from error


def _later(module: str, function: str) -> Callable[[Arguments], int | None]:
    def run(arguments: Arguments) -> int | None:
        call: Callable[[Arguments], int | None] = getattr(
            importlib.import_module(f"ramet.cli.{module}"), function
        )
        return call(arguments)

    return run


def _common(last: bool) -> argparse.ArgumentParser:
    # After the verb, absent options must not overwrite what stood before the noun.
    missing: Any = argparse.SUPPRESS if last else None
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-p",
        "--pool",
        metavar="POOL",
        default=missing,
        help="the pool's directory; else RAMET_POOL",
    )
    flag = argparse.SUPPRESS if last else False
    common.add_argument("--json", action="store_true", default=flag, help="print one JSON value")
    common.add_argument(
        "--no-wait", action="store_true", default=flag, help="do not wait for another command"
    )
    return common


def _build() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = _Parser("ramet", description=DESCRIPTION, epilog=EPILOG, parents=[_common(False)])
    top.formatter_class = raw
    top.add_argument("--version", action="version", version=f"ramet {__version__}")
    nouns = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    after = _common(True)

    def verb(under: Any, name: str, run: tuple[str, str], text: str, example: str) -> Any:
        made = under.add_parser(
            name,
            parents=[after],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  ramet {example}",
            formatter_class=raw,
        )
        made.set_defaults(run=_later(*run))
        return made

    add_nouns(nouns, verb)
    return top
