"""Passwords in the address of a store: left out of errors and log lines."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import unquote

__all__ = ["mask", "masked_calls", "masked_logs"]

# Packages whose log lines may contain the address.
_PACKAGES = ("mlflow", "sqlalchemy", "alembic", "urllib3", "requests")
_PASSWORD_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# A shorter password is not replaced elsewhere: most of its occurrences would be by chance.
_MIN_LENGTH = 4


def mask(text: str, uri: str) -> str:
    """Replace the passwords of an address, and whatever looks like one, by ``***``.

    Args:
        text: A text about the address, or the address itself.
        uri: The address.

    Returns:
        The text without passwords.
    """
    # The passwords themselves, wherever they occur in the text.
    user, _, password = uri.partition("://")[2].rpartition("@")[0].partition(":")
    secrets = {password or user}
    secrets.update(part.partition("=")[2] for part in re.split(r"[?&;#]", uri)[1:])
    secrets.update(os.environ.get(name, "") for name in _PASSWORD_VARIABLES)
    secrets.update([unquote(secret) for secret in secrets])
    # The longest first, since a password may contain another one.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _MIN_LENGTH:
            text = text.replace(secret, "***")
    # What has the form of one: the user part of an address, user:password@, and ?name=value.
    text = re.sub(r"""(://)[^\s'"]*@""", r"\1***@", text)
    text = re.sub(r"""[^\s'":/@]+:[^\s'"/@]+@""", "***@", text)
    return re.sub(r"""([?&;#][^\s=&'"]+=)[^\s&'"]+""", r"\1***", text)


@contextmanager
def masked_calls(uri: str, error_type: type[Exception]) -> Generator[None, None, None]:
    """Mask the errors and log lines of the calls inside the block.

    Args:
        uri: The address of the store.
        error_type: The errors to mask.

    Yields:
        Nothing.

    Raises:
        ConnectionError: In place of an error of this type; its text, and what it came from, are
            masked.
    """
    with masked_logs(uri):
        try:
            yield
        except error_type as error:
            message = (
                f"MLflow must take what is measured, got from {mask(uri, uri)}: "
                f"{mask(str(error), uri)}"
            )
            raise ConnectionError(message) from None


@contextmanager
def masked_logs(uri: str) -> Generator[None, None, None]:
    """Mask the log lines that MLflow and its libraries write inside the block.

    Args:
        uri: The address of the store.

    Yields:
        Nothing.
    """

    def mask_record(record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in _PACKAGES:
            record.msg, record.args = mask(record.getMessage(), uri), ()
            if record.exc_info:
                trace = logging.Formatter().formatException(record.exc_info)
                record.exc_text = mask(trace, uri)
        return True

    # A filter of a logger would not see the records of its children, one of a handler does.
    handlers = set(logging.getLogger().handlers)
    for package in _PACKAGES:
        handlers.update(logging.getLogger(package).handlers)
    if logging.lastResort is not None:
        handlers.add(logging.lastResort)
    for handler in handlers:
        handler.addFilter(mask_record)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(mask_record)
