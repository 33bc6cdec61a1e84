# SPDX-License-Identifier: Apache-2.0
"""The command virtfs: `virtfs run` starts a guest with a share, `virtfs client` looks into one without.

Each subcommand is imported when it is asked for: `virtfs run` runs as root and must not load a client.
"""

import sys

from virtfs_proxy import __version__

USAGE = """\
usage: virtfs [-h] [-v] COMMAND ...

  virtfs run EXPORT [options] -- qemu-system-x86_64 ...   start QEMU with EXPORT shared, as an ordinary user
  virtfs client SOCKET [COMMAND ...]                      look into the export behind a helper's socket

virtfs COMMAND --help tells more.
"""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    :param argv: arguments without the program's name; None takes sys.argv.
    :returns: the exit status; 2 for a usage error.
    """
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if command == "client":
        from virtfs_proxy.cli.client import main as client

        return client.main(rest)
    if command == "run":
        from virtfs_proxy.cli import run

        return run.main(rest)
    if command in {"-h", "--help", "help"}:
        print(USAGE, end="")
    elif command in {"-v", "--version"}:
        print(f"virtfs {__version__}")
    else:
        wrong = f"no command {command!r}" if command else "a command is missing"
        print(f"{USAGE}virtfs: {wrong}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
