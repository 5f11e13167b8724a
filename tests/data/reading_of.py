"""What comes of reading a file that may be damaged."""

from __future__ import annotations

from gpubp.errors import DataError


def outcome(read, path):
    """What was read, and the message of the error, empty without one."""
    try:
        return read(path), ""
    except DataError as error:
        return None, str(error)
