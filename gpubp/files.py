"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gpubp.errors import GpubpError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file by way of a neighbour that takes its place; on any failure the old file stays as it was.

    Raises:
        GpubpError: The file can't be written; nothing is left behind.
    """
    path = path.resolve()  # a link's target is what is written
    if path.exists() and not path.is_file():
        raise GpubpError(f"can't write {path}: it is there and is no regular file")
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise GpubpError(
            f"can't write {path}: {error.strerror or error}. The file there before, if any, is untouched"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
