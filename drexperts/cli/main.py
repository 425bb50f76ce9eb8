"""The entry of `drx`.

It imports next to nothing, so that Ctrl-C is answered from the first moment on.
"""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status.

    The status is 0 when the work is done, 1 when it is done and a gate failed, 2 for a mistake of
    the user and for output that cannot be written, 70 for a bug of ours, 130 when interrupted, 141
    when the reader of the output has gone, and 143 when terminated.
    """
    try:
        from drexperts.cli.dispatch import exit_status

        return exit_status(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # outside a verb, such as while modules are imported
        print("drx: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
