"""CONTRACT: checks whether the package that a part of pipeq needs is installed, and says how to install it."""

from __future__ import annotations

from pipeq.contract.errors import MissingPackageError
from pipeq.contract.schemes import SCHEMES


def require(scheme: str) -> None:
    """Checks that the package that reads a scheme is installed, without importing it.

    Raises:
        MissingPackageError: it is not; the sentence says what to install.
    """
    from importlib.util import find_spec  # not at the top: most callers never need it

    row = SCHEMES.get(scheme)
    if row is not None and row.package is not None and find_spec(row.package) is None:
        raise MissingPackageError(
            f"{scheme}:// needs the package {row.package}, which is not installed: pip install 'pipeq[{row.extra}]'"
        )
