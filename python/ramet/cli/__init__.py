"""The command `ramet`: parse, call, print.

Imports what the verb needs, when it is needed: `ramet --version` loads nothing. Called by the
console script. Invariants: stdout is data, stderr is talk; the exit code says the kind of error.
"""

import sys

EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Result: the exit code, see `ramet.errors`.

    Example: main(["--version"])
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        from ramet import __version__

        print(f"ramet {__version__}")
        return 0
    return _run(given)


def _run(arguments: list[str]) -> int:
    from ramet.cli.output import print_error
    from ramet.cli.parser import parse
    from ramet.errors import RametError

    parsed = parse(arguments)
    try:
        code = parsed.run(parsed)
        sys.stdout.flush()
    except RametError as error:
        print_error(error, parsed.json)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has gone (head, grep -q): not an error of ours.
        sys.stderr.close()
        return 0
    return 0 if code is None else int(code)
