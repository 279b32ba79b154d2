"""Parts that need an extra: a missing package is one clear line that says what to install."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from fedpeft.errors import ConfigError


@contextmanager
def needs(extra: str, what: str) -> Generator[None]:
    """Around imports of packages that only an extra brings.

    Args:
        extra: as in ``pip install 'fedpeft[extra]'``.
        what: what needs them, as the subject of a sentence.

    Raises:
        ConfigError: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise ConfigError(f"{what} needs {package}: pip install 'fedpeft[{extra}]'") from None
