"""What can be typed: nouns, verbs, options, examples.

Pure. Called by parser.py. A verb is listed with its module and function; the module is imported
when the verb is chosen.
"""

from collections.abc import Callable
from typing import Any

from ramet.cli.grammar_locks import add_clock, add_locking
from ramet.cli.grammar_policies import add_policies
from ramet.cli.grammar_trash import add_trash

# Adds a verb: where, its name, (module, function), what it does, an example. Result: its parser.
AddVerb = Callable[[Any, str, tuple[str, str], str, str], Any]


def add_nouns(nouns: Any, verb: AddVerb) -> None:
    """Add everything that `ramet` takes.

    Example: add_nouns(parser.add_subparsers(), verb)
    """
    _add_pool(nouns, verb)
    volume = nouns.add_parser("volume", help="make, show, change, import and export volumes")
    verbs = volume.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_making(verbs, verb)
    _add_showing(verbs, verb, "volume", "vm-1")
    _add_changing(verbs, verb)
    _add_transfer(verbs, verb)
    snapshot = nouns.add_parser("snapshot", help="take, show and tag snapshots")
    verbs = snapshot.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_taking(verbs, verb)
    _add_showing(verbs, verb, "snapshot", "golden@1")
    add_locking(verbs, verb)
    add_clock(nouns, verb)
    _add_objects(nouns, verb)
    add_trash(nouns, verb)
    add_policies(nouns, verb)


def _add_pool(nouns: Any, verb: AddVerb) -> None:
    it = verb(nouns, "init", ("init", "init"), "make an empty pool", "init /srv/pool")
    it.add_argument("directory", metavar="POOL", help="an empty or new directory")
    it.add_argument("--segment-size", metavar="SIZE", help="1MiB to 256MiB; default 64MiB")
    it = verb(
        nouns,
        "serve",
        ("serve", "serve"),
        "hold a pool, serve it over NBD, take commands",
        "-p /srv/pool serve",
    )
    _add_listening(it)
    it.add_argument(
        "--exit-when-poisoned",
        action="store_true",
        help="end when a write or sync of the pool's files fails, with exit code 6",
    )
    it.add_argument(
        "--space-low", metavar="PERCENT", help="warn from so much in use on; default 85"
    )
    it.add_argument("--space-critical", metavar="PERCENT", help="and once more; default 95")
    verb(nouns, "stats", ("stats", "stats"), "show the pool's figures", "-p /srv/pool stats")
    it = verb(
        nouns,
        "check",
        ("check", "check"),
        "hold every byte of the pool against the format, and name what is damaged",
        "-p /srv/pool check",
    )
    it.add_argument("--quick", action="store_true", help="leave the bytes of blocks out")
    it.add_argument(
        "--accept-loss",
        nargs="?",
        const="",
        metavar="POOL",
        help="go back to before the damage of a log; the pool's name, without it you are asked",
    )
    it.add_argument(
        "--secret-file", metavar="FILE", help="has the lock secret, if locked snapshots may be lost"
    )
    _add_space(nouns, verb)
    verb(nouns, "tree", ("tree", "tree"), "show who was taken from whom", "-p /srv/pool tree")
    it = verb(
        nouns,
        "demo",
        ("demo", "demo"),
        "show snapshots and clones of a real disk image, and prove them",
        "demo --image debian.qcow2",
    )
    it.add_argument("--image", metavar="FILE", help="raw or qcow2; else an ext4 image is made")
    it.add_argument("--clones", type=int, default=1000, metavar="N", help="default 1000")


def _add_space(nouns: Any, verb: AddVerb) -> None:
    it = verb(
        nouns,
        "reclaim",
        ("reclaim", "reclaim"),
        "give the space of what is dead back now",
        "-p /srv/pool reclaim --all",
    )
    it.add_argument("--all", action="store_true", help="also where little of a file comes back")
    it = verb(
        nouns,
        "scrub",
        ("scrub", "scrub"),
        "read everything that is held, to find damage before somebody needs it",
        "-p /srv/pool scrub --rate 200MiB",
    )
    it.add_argument(
        "--rate", metavar="SIZE|none", default="64MiB", help="bytes a second; default 64MiB"
    )
    it = verb(
        nouns,
        "limit",
        ("limit", "limit"),
        "have the pool take no more than so much space",
        "-p /srv/pool limit 100GiB",
    )
    it.add_argument("size", metavar="SIZE|none", help="bytes, or with a unit; none: no limit")


def _add_making(verbs: Any, verb: AddVerb) -> None:
    it = verb(
        verbs,
        "create",
        ("volume", "create"),
        "make empty volumes",
        "-p /srv/pool volume create 'data-{n}' --size 10GiB --count 100",
    )
    it.add_argument("names", nargs="+", metavar="NAME", help="a name, or a pattern with {n}")
    it.add_argument("--size", required=True, help="bytes, or with a unit: 10GiB")
    it.add_argument("--count", type=int, metavar="N", help="how many of a pattern")
    _add_set_tag(it)


def _add_showing(verbs: Any, verb: AddVerb, kind: str, name: str) -> None:
    it = verb(verbs, "list", (kind, "list_all"), f"list the {kind}s", f"-p /srv/pool {kind} list")
    _add_tag(it, "only those with this tag")
    it.add_argument("--space", action="store_true", help="with what is its own of each, and shared")
    text = f"describe one {kind}, and say how to attach it"
    it = verb(verbs, "show", (kind, "show"), text, f"-p /srv/pool {kind} show {name}")
    it.add_argument("name", metavar="NAME")
    example = f"-p /srv/pool {kind} tag {name} --set-tag env=prod --remove-tag old"
    it = verb(verbs, "tag", (kind, "tag"), f"set and remove tags of {kind}s", example)
    it.add_argument("names", nargs="+", metavar="NAME")
    _add_set_tag(it)
    it.add_argument("--remove-tag", metavar="K", action="append", default=[])


def _add_changing(verbs: Any, verb: AddVerb) -> None:
    it = verb(
        verbs,
        "rename",
        ("volume", "rename"),
        "give a volume or snapshot another name",
        "-p /srv/pool volume rename vm-1 web",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument("new_name", metavar="NEW_NAME")
    it = verb(
        verbs,
        "resize",
        ("volume", "resize"),
        "give a volume another size",
        "-p /srv/pool volume resize vm-1 20GiB",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument("size", metavar="SIZE")
    it.add_argument("--shrink", action="store_true", help="allow a smaller size; cuts off the end")
    it.add_argument("--force", action="store_true", help="if smaller, close its connections first")
    it = verb(
        verbs,
        "freeze",
        ("volume", "freeze"),
        "turn volumes into snapshots, for good",
        "-p /srv/pool volume freeze golden",
    )
    it.add_argument("names", nargs="+", metavar="NAME")
    it.add_argument("--force", action="store_true", help="close their connections first")
    it = verb(
        verbs,
        "revert",
        ("volume", "revert"),
        "give a volume a snapshot's content, or many at once with --to; what they had is kept",
        "-p /srv/pool volume revert vm-1 golden@1\n"
        "  ramet -p /srv/pool volume revert vm-1 vm-2 --to '{volume}@nightly'",
    )
    it.add_argument("names", nargs="+", metavar="NAME", help="VOLUME SNAPSHOT; volumes with --to")
    it.add_argument("--to", metavar="PATTERN", help="the snapshot of each volume: with {volume}")
    it.add_argument("--keep", metavar="PATTERN", help="names the snapshot of what is discarded")
    it.add_argument("--discard", action="store_true", help="keep nothing of what is discarded")
    it.add_argument("--take-size", action="store_true", help="take the snapshot's size too")
    it.add_argument("--force", action="store_true", help="close their connections first")


def _add_transfer(verbs: Any, verb: AddVerb) -> None:
    it = verb(
        verbs,
        "import",
        ("transfer", "import_image"),
        "make a volume from a disk image (raw or qcow2)",
        "-p /srv/pool volume import debian.qcow2 golden",
    )
    it.add_argument("file", metavar="FILE")
    it.add_argument("name", metavar="NAME")
    it = verb(
        verbs,
        "export",
        ("transfer", "export_image"),
        "write a volume or snapshot to a file (raw, or qcow2 by its name)",
        "-p /srv/pool volume export golden@1 golden.qcow2",
    )
    it.add_argument("name", metavar="NAME")
    it.add_argument("file", metavar="FILE")
    it.add_argument("--force", action="store_true", help="replace FILE")


def _add_listening(it: Any) -> None:
    it.add_argument(
        "--nbd",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="unix:PATH or tcp:HOST:PORT; repeat; default POOL/nbd.sock",
    )
    it.add_argument("--api", metavar="unix:PATH", help="default POOL/api.sock")
    it.add_argument("--socket-mode", metavar="MODE", help="of NBD unix sockets; default 600")
    it.add_argument("--socket-group", metavar="GROUP", help="of NBD unix sockets")
    it.add_argument("--tls-cert", metavar="FILE", help="the server's certificates, for TCP")
    it.add_argument("--tls-key", metavar="FILE", help="the key of the first of them")
    it.add_argument(
        "--tls-clients", metavar="FILE", help="authorities of the certificates that clients need"
    )
    it.add_argument(
        "--tls-allow", metavar="FILE", help="lines of a client's name and what it may open"
    )
    it.add_argument(
        "--plain-tcp",
        action="store_true",
        help="serve TCP without TLS too, to other machines as well",
    )


def _add_taking(verbs: Any, verb: AddVerb) -> None:
    it = verb(
        verbs,
        "create",
        ("snapshot", "create"),
        "take one instant of one, several or all volumes",
        "-p /srv/pool snapshot create --all --name '{volume}@nightly'",
    )
    it.add_argument("volumes", nargs="*", metavar="VOLUME")
    it.add_argument("--all", action="store_true", dest="all_volumes", help="all volumes")
    _add_tag(it, "all volumes with this tag")
    it.add_argument("--name", metavar="PATTERN", help="with {volume}, {n}, {time}; else VOLUME@N")
    _add_set_tag(it)


def _add_objects(nouns: Any, verb: AddVerb) -> None:
    it = verb(
        nouns,
        "clone",
        ("clone", "clone"),
        "make volumes that start as a snapshot or another volume",
        "-p /srv/pool clone golden@1 'vm-{n}' --count 1000",
    )
    it.add_argument("source", metavar="SOURCE")
    it.add_argument("names", nargs="+", metavar="NAME", help="a name, or a pattern with {n}")
    it.add_argument("--count", type=int, metavar="N", help="how many of a pattern")
    it.add_argument("--size", help="larger than the source, if wanted")
    _add_set_tag(it)
    it = verb(
        nouns,
        "delete",
        ("delete", "delete"),
        "delete volumes and snapshots, in any order",
        "-p /srv/pool delete vm-1 golden@1",
    )
    it.add_argument("names", nargs="+", metavar="NAME")
    it.add_argument("--force", action="store_true", help="close their connections first")
    it.add_argument("--now", action="store_true", help="without the trash: nothing restores them")
    it.add_argument("--dry-run", action="store_true", help="only say what would come back")
    it = verb(
        nouns,
        "verify",
        ("verify", "verify"),
        "read and hash every block of snapshots, in a pool or in files that `send` wrote",
        "-p /srv/pool verify db@1\n  ramet verify db@1.stream db@2.stream",
    )
    _add_signing(it)
    _add_streams(nouns, verb)
    it = verb(
        nouns,
        "diff",
        ("diff", "diff"),
        "show the extents in which two volumes or snapshots differ",
        "-p /srv/pool diff golden@1 vm-1",
    )
    it.add_argument("before", metavar="A")
    it.add_argument("after", metavar="B")


def _add_streams(nouns: Any, verb: AddVerb) -> None:
    it = verb(
        nouns,
        "send",
        ("streams", "send"),
        "write snapshots to stdout, or what differs from those that the other side has",
        "-p /srv/pool send db@2 --from db@1 | ssh host ramet -p /srv/pool receive",
    )
    it.add_argument("snapshots", nargs="+", metavar="SNAPSHOT")
    it.add_argument(
        "--from", dest="bases", nargs="+", default=[], metavar="BASE", help="one for each; -: none"
    )
    it.add_argument("--zstd", action="store_true", help="compress data")
    it.add_argument("--resume", metavar="TOKEN", help="what `receive --position` printed, if any")
    it.add_argument("--rate", metavar="SIZE", help="at most so many bytes a second: 10MiB")
    it = verb(
        nouns,
        "receive",
        ("streams", "receive"),
        "take in a stream from stdin: its snapshots appear when all of it is here, and proved",
        "-p /srv/pool receive < db@1.stream",
    )
    it.add_argument("--name", metavar="PATTERN", help="names here; {name}: the sender's")
    what = it.add_mutually_exclusive_group()
    what.add_argument(
        "--position",
        nargs="?",
        const="",
        metavar="WHAT",
        help="print where an incomplete transfer is to be resumed; of several, which",
    )
    what.add_argument("--list", action="store_true", help="list what arrived in part")
    what.add_argument(
        "--abandon", metavar="WHAT", help="give up a transfer, by its name or a snapshot's"
    )


def _add_signing(it: Any) -> None:
    it.add_argument("names", nargs="+", metavar="SNAPSHOT|FILE")
    what = it.add_mutually_exclusive_group()
    what.add_argument("--sign", metavar="KEY", help="sign what was read with this private key")
    what.add_argument(
        "--statement", action="store_true", help="print what is to be signed, for `ssh-keygen -Y`"
    )
    what.add_argument("--check-signature", metavar="FILE", help="hold what was read against it")
    it.add_argument("--key", metavar="PUBLIC", help="the signer's public key")
    it.add_argument("-o", "--output", metavar="FILE", help="where signatures go; else stdout")


def _add_tag(it: Any, text: str) -> None:
    it.add_argument("--tag", metavar="K[=V]", action="append", default=[], help=f"{text}; repeat")


def _add_set_tag(it: Any) -> None:
    it.add_argument(
        "--set-tag", metavar="K=V", action="append", default=[], help="a tag to set; repeat"
    )
