"""Recognise secrets, in names of variables and in addresses, to refuse them in settings and mask them in messages."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from metatrain.validation import require

_NAME = re.compile(
    r"TOKEN|PASSW|PASSPHRASE|PGPASS|SECRET|KEY|CREDENTIAL|AUTH(?!OR|_MODE)|(^|_)(PASS|PWD|PAT|DSN)(_|$)", re.IGNORECASE
)
_PLACE = re.compile(r"(FILE|PATH|DIR)$|^GOOGLE_APPLICATION_CREDENTIALS$", re.IGNORECASE)
_USER = re.compile(r"(?<=://)(?:[^/?#\s\"'<>]+|(?!\[)[^/?#@:\s\"'<>]*:(?!\d+(?:[/?#]|$))[^\s\"'<>]*)@")
"""The user part of an address, also with a password in which "/", "?" or "@" is not escaped."""
_FIELD = re.compile(
    r"((?:^|[?&;\s\"'])[\w.-]*(?:passw(?:or)?d|passphrase|pwd|token|secret|credentials?|api_?key|access_?key(?:_?id)?|"
    r"private_?key|signature|(?<=[?&;\s\"'])(?:key|auth|pass|sig))=)([^&;#\s\"'<>]+)",
    re.IGNORECASE,
)
"""A field of a query, or of an ODBC connection, whose value is a secret."""
_HTTP = re.compile(r"(https?|ray)://[^/?#]*@", re.IGNORECASE)
HIDDEN = "…"


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable of this name and value holds a secret, rather than the place of one."""
    return bool(_NAME.search(name) and not _PLACE.search(name)) or holds_login(value)


def holds_login(text: str) -> bool:
    """Return whether a text is an address with a password, or another secret, in its user part or its query.

    A name alone is none for a database, which may ask its client for the password; for http it may be a token.
    """
    if "://" not in text:
        return False
    user = _USER.search(text)
    named = user is not None and (user[0][:-1].partition(":")[2] != "" or _HTTP.match(text) is not None)
    return named or _FIELD.search(unquote(text)) is not None


def mask(text: str) -> str:
    """Return a text without the user parts of the addresses in it, and with other secrets of theirs hidden."""
    if "://" not in text:
        return text
    hidden = _FIELD.sub(rf"\g<1>{HIDDEN}", _USER.sub("", text))
    return hidden if _FIELD.search(unquote(hidden).replace(f"={HIDDEN}", "")) is None else _without_query(hidden)


def require_no_login(key: str, text: str, remedy: str) -> None:
    """Check that a setting holds no password. ValueError: it does, which is not repeated."""
    require(not holds_login(text), f"{key}: has a password, which every run would keep: remove it, and {remedy}")


def require_no_logins(tree: Any, where: str = "") -> None:
    """Check every text in a plain tree. ValueError: an address among them has a password; its key is named."""
    for key, text in find_texts(tree, where):
        s3 = text.startswith("s3://")
        variables = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if s3 else "set it in the environment"
        require_no_login(key, text, variables)


def _without_query(text: str) -> str:
    """Drop what follows a "?" in the addresses of a text: an encoded field in it holds a secret."""
    return re.sub(r"(://[^\s?]*)\?[^\s\"'<>]*", rf"\1?{HIDDEN}", text)


def find_texts(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a plain tree, keys included, with the dotted key that it stands at."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield where, str(key)
            yield from find_texts(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from find_texts(value, where)
    elif isinstance(tree, str):
        yield where, tree
