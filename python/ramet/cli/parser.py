"""What can be typed: nouns, verbs, options, examples.

Imports errors only; the modules of the verbs are imported when one is chosen. Invariant: -p, --json and
--no-wait are accepted before the noun and after the verb.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

import ramet
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
        found = getattr(importlib.import_module(f"ramet.cli.{module}"), function)
        return found(arguments)

    return run


def _common(last: bool) -> argparse.ArgumentParser:
    # After the verb, absent options must not overwrite what stood before the noun.
    missing: Any = argparse.SUPPRESS if last else None
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-p", "--pool", metavar="POOL", default=missing, help="the pool's directory; else RAMET_POOL"
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
    top.add_argument("--version", action="version", version=f"ramet {ramet.__version__}")
    nouns = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    after = _common(True)

    def verb(under: Any, name: str, run: tuple[str, str], text: str, example: str) -> Any:
        made = under.add_parser(
            name,
            parents=[after],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=raw,
        )
        made.set_defaults(run=_later(*run))
        return made

    _add_pool(nouns, verb)
    _add_volume(nouns, verb)
    _add_snapshot(nouns, verb)
    _add_objects(nouns, verb)
    return top


def _add_pool(nouns: Any, verb: Any) -> None:
    it = verb(nouns, "init", ("init", "init"), "make an empty pool", "ramet init /srv/pool")
    it.add_argument("directory", metavar="POOL", help="an empty or new directory")
    it.add_argument("--segment-size", metavar="SIZE", help="1MiB to 256MiB; default 64MiB")
    it = verb(
        nouns,
        "serve",
        ("serve", "serve"),
        "hold a pool, serve it over NBD, take commands",
        "ramet -p /srv/pool serve",
    )
    it.add_argument("--nbd", metavar="unix:PATH", help="default POOL/nbd.sock")
    it.add_argument("--api", metavar="unix:PATH", help="default POOL/api.sock")
    verb(nouns, "stats", ("stats", "stats"), "show the pool's figures", "ramet -p /srv/pool stats")
    verb(nouns, "tree", ("tree", "tree"), "show who was taken from whom", "ramet -p /srv/pool tree")
    it = verb(
        nouns,
        "demo",
        ("demo", "demo"),
        "show snapshots and clones of a real disk image, and prove them",
        "ramet demo --image debian.qcow2",
    )
    it.add_argument("--image", metavar="FILE", help="raw or qcow2; else an ext4 image is made")
    it.add_argument("--directory", "--pool-directory", dest="directory", help=argparse.SUPPRESS)
    it.add_argument("--clones", type=int, default=1000, metavar="N", help="default 1000")


def _add_volume(nouns: Any, verb: Any) -> None:
    volume = nouns.add_parser("volume", help="make, show, change, import and export volumes")
    verbs = volume.add_subparsers(title="verbs", metavar="VERB", required=True)
    it = verb(
        verbs,
        "create",
        ("volume", "create"),
        "make empty volumes",
        "ramet -p /srv/pool volume create 'data-{n}' --size 10GiB --count 100",
    )
    it.add_argument("names", nargs="+", metavar="NAME", help="a name, or a pattern with {n}")
    it.add_argument("--size", required=True, help="bytes, or with a unit: 10GiB")
    it.add_argument("--count", type=int, metavar="N", help="how many of a pattern")
    _add_list_and_show(verb, verbs, "volume", "vm-1")
    it = verb(
        verbs,
        "rename",
        ("volume", "rename"),
        "give a volume or snapshot another name",
        "ramet -p /srv/pool volume rename vm-1 web",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument("new_name", metavar="NEW_NAME")
    it = verb(
        verbs,
        "revert",
        ("volume", "revert"),
        "give a volume a snapshot's content; what it had is kept as a snapshot",
        "ramet -p /srv/pool volume revert vm-1 golden@1",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument("snapshot", metavar="SNAPSHOT")
    it.add_argument("--keep", metavar="NAME", help="name of the snapshot of what is discarded")
    it.add_argument("--discard", action="store_true", help="keep nothing of what is discarded")
    it.add_argument("--take-size", action="store_true", help="take the snapshot's size too")
    it.add_argument("--force", action="store_true", help="close its connections first")
    it = verb(
        verbs,
        "import",
        ("transfer", "import_image"),
        "make a volume from a disk image (raw or qcow2)",
        "ramet -p /srv/pool volume import debian.qcow2 golden",
    )
    it.add_argument("file", metavar="FILE")
    it.add_argument("name", metavar="NAME")
    it = verb(
        verbs,
        "export",
        ("transfer", "export_image"),
        "write a volume or snapshot to a file (raw, or qcow2 by its name)",
        "ramet -p /srv/pool volume export golden@1 golden.qcow2",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument("file", metavar="FILE")
    it.add_argument("--force", action="store_true", help="replace FILE")


def _add_snapshot(nouns: Any, verb: Any) -> None:
    snapshot = nouns.add_parser("snapshot", help="take and show snapshots")
    verbs = snapshot.add_subparsers(title="verbs", metavar="VERB", required=True)
    it = verb(
        verbs,
        "create",
        ("snapshot", "create"),
        "take one instant of one, several or all volumes",
        "ramet -p /srv/pool snapshot create --all --name '{volume}@nightly'",
    )
    it.add_argument("volumes", nargs="*", metavar="VOLUME")
    it.add_argument("--all", action="store_true", dest="all_volumes", help="all volumes")
    it.add_argument("--name", metavar="PATTERN", help="with {volume}, {n}, {time}; else VOLUME@N")
    _add_list_and_show(verb, verbs, "snapshot", "golden@1")


def _add_list_and_show(verb: Any, verbs: Any, kind: str, name: str) -> None:
    verb(verbs, "list", (kind, "list_all"), f"list the {kind}s", f"ramet -p /srv/pool {kind} list")
    it = verb(
        verbs, "show", (kind, "show"), f"describe one {kind}", f"ramet -p /srv/pool {kind} show {name}"
    )
    it.add_argument("name", metavar="NAME")


def _add_objects(nouns: Any, verb: Any) -> None:
    it = verb(
        nouns,
        "clone",
        ("clone", "clone"),
        "make volumes that start as a snapshot or another volume",
        "ramet -p /srv/pool clone golden@1 'vm-{n}' --count 1000",
    )
    it.add_argument("source", metavar="SOURCE")
    it.add_argument("names", nargs="+", metavar="NAME", help="a name, or a pattern with {n}")
    it.add_argument("--count", type=int, metavar="N", help="how many of a pattern")
    it.add_argument("--size", help="larger than the source, if wanted")
    it = verb(
        nouns,
        "delete",
        ("delete", "delete"),
        "delete volumes and snapshots, in any order",
        "ramet -p /srv/pool delete vm-1 golden@1",
    )
    it.add_argument("names", nargs="+", metavar="NAME")
    it.add_argument("--force", action="store_true", help="close their connections first")
