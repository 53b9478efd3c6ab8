"""Which ``whisper_flash_attention`` a process measures: a hash of its code. Imports no torch."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from .errors import BadInputError

PACKAGE = "whisper_flash_attention"
# Of the compiled step the sources: the library is made from them, and differs from compiler to compiler.
SOURCES = {".py", ".cpp", ".h"}


class SamePackageError(BadInputError):
    """Both sides are one package, whose hash is given."""

    def __init__(self, package_hash: object) -> None:
        super().__init__(
            f"BASE and HEAD are the same package ({package_hash}): there is no change to judge; --same, of compare and"
            " ab, compares them all the same and shows what noise does"
        )


def hash_package(folder: Path) -> str:
    """A short hash of the names and contents of a package's source files; ``folder`` is the package's."""
    return hash_files(folder, (path for path in folder.rglob("*.*") if path.suffix in SOURCES))


def hash_files(folder: Path, paths: Iterable[Path]) -> str:
    """A short hash of the names (relative to ``folder``) and contents of ``paths``, in whatever order they come."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:12]
