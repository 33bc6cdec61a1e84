# SPDX-License-Identifier: Apache-2.0
"""What is right: what the guest is to see, what the host is to find, and where the original differs."""

from typing import Final, NamedTuple

ROOT_FILE: Final = ["0o100644", 0, 0, 1]

GUEST: Final[dict[str, object]] = {
    "mounted": ["9p", True],
    "made_by_host": [["0o40751", 0, 33, 3], "of the host", ["0o100640", 4321, 1234, 1], "the host"],
    "files": ["one\ntw", ROOT_FILE, 5 << 20, "EEXIST", "ENOENT"],
    "file_modes": [["0o100640", 0, 0, 1], ["0o100440", 0, 0, 1]],
    "directories": [["0o40755", 0, 0, 3], ["moved"], "ENOTEMPTY", "EINVAL", "leaf"],
    "names": [True, "ENAMETOOLONG"],
    "owners": [["0o100644", 1234, 5679, 1], ["0o40700", 4000000000, 1000, 2], ["0o120777", 1235, 5678, 1]],
    "special_bits": [["0o106755", 0, 0, 1], ["0o100755", 1000, 1000, 1], ["0o41777", 0, 0, 2]],
    "setgid_directory": [["0o42777", 0, 4242, 3], ["0o100644", 0, 4242, 1], ["0o42755", 0, 4242, 2]],
    "setgid_directory_of_others": [
        ["0o42777", 0, 4242, 3], ["0o100644", 1000, 4242, 1], ["0o42755", 1000, 4242, 2],
    ],
    "devices": [["0o20640", 0, 0, 1], ["0o60600", 0, 0, 1], [[1, 3], [259, 1048575]], ""],
    "fifo": [["0o10600", 0, 0, 1], "through the pipe"],
    "unix_socket": [["0o140755", 0, 0, 1], "through the socket"],
    "symlinks": [
        ["the guest's", "the guest's", "one\ntw"], [True, True, 4000], ["0o120777", 0, 0, 1], "ELOOP",
    ],
    "symlinks_by_host": ["/", "written by the guest", True],
    "hard_links": [["0o100644", 0, 0, 2], True, "hard", "EPERM", "EEXIST"],
    "xattrs": [
        ["user.binary", "user.large", "user.plain"], True, "EEXIST", "ENODATA", "ENODATA", "ENODATA", "EPERM",
    ],
    "empty_xattr": [[], "ENODATA"],
    "acls": [
        ["user::rw-", "user:1234:rw-", "group::---", "group:77:r--", "mask::rw-", "other::---"],
        ["user::rw-", "user:1234:rwx", "group::r-x", "mask::rw-", "other::---"],
        ["user::rwx", "user:1234:rwx", "group::r-x", "mask::rwx", "other::---"],
        "for 1234",
        "EACCES",
    ],
    "rename_over_open": ["old", "new", False],
    "rename_open": ["first second", "EISDIR", "ENOTDIR"],
    "unlinked_open": ["still here", False],
    "unlinked_fstat": 0,
    "large_file": [True, 16 << 20],
    "large_file_by_host": True,
    "many_entries": [2000, True],
    "many_entries_by_host": [2000, True, 2000],
    "times_now": [True, True],
    "times_by_host": [1_000_000_000_123_456_789, 1_234_567_890_987_654_321],
    "other_user": [
        None, [[1000, 1000]] * 4, ["EACCES", "EACCES", "EACCES", "EPERM", "EPERM", "EACCES", "EPERM"],
        "EACCES", "theirs",
    ],
    "sticky_directory": ["EPERM", None],
    "private_mapping": "one",
    "git": [True, "", "", "Second\nFirst"],
    "sqlite": [["delete", "ok", "300|1009"], False],
    "swapped_for_link": ["ENOENT", None],
    "swapped_for_fifo": "cat: can't open 'swap': No such device or address",
    "afterwards": "still served",
}  # fmt: skip
"""Item of the workload to its value. Not here, for they have no constant: statfs and times."""


class Difference(NamedTuple):
    """A value that the original gives instead, and why ours is another."""

    original: object
    reason: str


DIFFERENCES: Final[dict[str, Difference]] = {
    "setgid_directory": Difference(
        "failed: OSError(5, 'Input/output error')",
        "a request as 0:G, G not 0, costs the original its capabilities, and the next one its life",
    ),
    "swapped_for_fifo": Difference("stalled", "the original opens FIFOs, and waits for the other end"),
    "afterwards": Difference("stalled", "and nothing else is served meanwhile"),
}


class Entry(NamedTuple):
    """What lstat(2) of a path in the export says on the host; the type is in the mode."""

    mode: int
    owner: tuple[int, int] = (0, 0)
    nlink: int = 1
    rdev: tuple[int, int] = (0, 0)
    content: bytes | None = None


HOST: Final[dict[str, Entry]] = {
    "file": Entry(0o100644, content=b"one\ntw"),
    "sparse": Entry(0o100644, content=bytes(5 << 20)),
    "umasked": Entry(0o100640),
    "readonly": Entry(0o100440),
    "directory": Entry(0o40755, nlink=3),
    "directory/moved/b": Entry(0o40750, nlink=2),
    "directory/moved/b/leaf": Entry(0o100644, content=b"leaf"),
    "owned": Entry(0o100644, (1234, 5679), content=b"owned"),
    "owned-directory": Entry(0o40700, (4000000000, 1000), nlink=2),
    "owned-link": Entry(0o120777, (1235, 5678), content=b"nowhere"),
    "setuid": Entry(0o106755, content=b"#!/bin/sh\n"),
    "cleared": Entry(0o100755, (1000, 1000)),
    "sticky": Entry(0o41777, nlink=2),
    "setgid/file": Entry(0o100644, (1000, 4242)),
    "setgid/below": Entry(0o42755, (1000, 4242), nlink=2),
    "char": Entry(0o20640, rdev=(1, 3)),
    "block": Entry(0o60600, rdev=(259, 1048575)),
    "fifo": Entry(0o10600),
    "socket": Entry(0o140755),
    "relative": Entry(0o120777, content=b"file"),
    "long": Entry(0o120777, content=b"x" * 4000),
    "hard2": Entry(0o100644, nlink=2, content=b"hard"),
    "acl": Entry(0o100660, content=b"for 1234"),
    "acl-directory/inherits": Entry(0o100660),
    "victim": Entry(0o100644, content=b"new"),
    "after": Entry(0o100644, content=b"first second"),
    "many": Entry(0o40755, nlink=2),
    "many/entry-1999": Entry(0o100644),
    "open/theirs": Entry(0o100644, (1000, 1000), content=b"theirs"),
    "open/directory": Entry(0o40755, (1000, 1000), nlink=2),
    "open/link": Entry(0o120777, (1000, 1000), content=b"theirs"),
    "open/fifo": Entry(0o10644, (1000, 1000)),
    "closed/secret": Entry(0o100644, content=b"secret"),
    "others-read-only": Entry(0o100644, content=b"read only"),
    "clone/file-9": Entry(0o100644, content=b"9\n" * 100),
}

ABSENT: Final = (
    "winner", "before", "hard", "unlinked", "unlinked2", "directory/a", "directory/gone", "closed/new",
    "open/device", "sticky/theirs", "repository/file-0", "base.db-journal",
)  # fmt: skip

ACLS: Final = {
    ("acl", "-a"): ["user::rw-", "user:1234:rw-", "group::---", "group:77:r--", "mask::rw-", "other::---"],
    ("acl-directory", "-d"): ["user::rwx", "user:1234:rwx", "group::r-x", "mask::rwx", "other::---"],
    ("acl-directory/below", "-d"): ["user::rwx", "user:1234:rwx", "group::r-x", "mask::rwx", "other::---"],
}
"""Path and getfacl's option to what it prints on the host."""
