"""CONTRACT: parts of pipeq that need more packages: is this one installed, and what installs it?"""

from __future__ import annotations

from pipeq.contract.errors import MissingPackageError
from pipeq.contract.schemes import SCHEMES


def require(scheme: str) -> None:
    """Says what to install where the package is missing that reads a scheme; imports nothing of it.

    Raises:
        MissingPackageError: the sentence says what to install.
    """
    from importlib.util import find_spec  # not at the top: most callers never need it

    row = SCHEMES.get(scheme)
    if row is not None and row.package is not None and find_spec(row.package) is None:
        raise MissingPackageError(
            f"{scheme}:// needs the package {row.package}, which is not installed: pip install 'pipeq[{row.extra}]'"
        )
