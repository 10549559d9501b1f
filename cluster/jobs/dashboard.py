"""Requests to a Ray cluster's dashboard, with its token: to the address that was named, and to no other.

Ray's own client would send them to RAY_API_SERVER_ADDRESS where that is set, whatever address it is given, and waits
for answers without end. What goes wrong is a ValueError with the remedy where the request was wrong, and `NoAnswer`
where there is none.
"""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

from metatrain.http_client import UNREDIRECTED
from metatrain.validation import require

_ANSWER_S = 15.0


class NoAnswer(Exception):
    """Nobody answers, or the cluster fails; it may do better later."""


class Failing(NoAnswer):
    """It answers that it fails."""


class Unknown(ValueError):
    """What was asked for is not there."""


class Token(NamedTuple):
    """A cluster's token, and where it was found, for messages."""

    text: str
    source: str


class Dashboard:
    """The one at `address`: http(s)://host:port, or host:port alone."""

    def __init__(self, address: str, token: Token | None) -> None:
        self.address = full_address(address)
        self.headers = {"Authorization": f"Bearer {_plain(token)}"} if token else {}
        self._token = token
        try:
            parts = urllib.parse.urlsplit(self.address)
            named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            named = False
        require(
            named,
            f"--address: '{address}' is not http://HOST:PORT of a Ray dashboard, whose port is 8265 by default: give "
            "that, or name it in a profile",
        )

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: bytes | Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON, None where it has none. Unknown: 404. NoAnswer. ValueError: a refusal."""
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        request = urllib.request.Request(
            self.address + path, sent, {**self.headers, "Content-Type": kind}, method=method
        )
        try:
            with UNREDIRECTED.open(request, timeout=_ANSWER_S if sent is None else 4 * _ANSWER_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, error.read(5000).decode(errors="replace")) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise NoAnswer(f"no Ray cluster answers at {self.address} ({reason})") from error
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ValueError(self.not_ray()) from error

    def not_ray(self) -> str:
        """What to say of somebody else's server."""
        return f"what answers at {self.address} is not a Ray dashboard: give its address, whose port is 8265 by default"

    def _refused(self, error: urllib.error.HTTPError, text: str) -> Exception:
        code = error.code
        if code in (401, 403) and self._token is None:
            return ValueError(
                f"the cluster at {self.address} asks for a token, and none was found: put the cluster's into "
                "~/.ray/auth_token or RAY_AUTH_TOKEN, or name its file as token_file in a profile"
            )
        if code in (401, 403) and self._token is not None:
            return ValueError(
                f"the cluster at {self.address} does not accept the token from {self._token.source}: it has another; "
                "copy the auth_token of its head"
            )
        if code in (301, 302, 303, 307, 308):
            elsewhere = error.headers.get("Location", "elsewhere")
            return ValueError(f"{self.address} sends us on to {elsewhere}: if you trust that, give it as the address")
        if code == 404:
            return Unknown(self.not_ray())
        told = f"{self.address} answers {code} ({reason_in(text)})"
        return Failing(f"the cluster at {told}") if code >= 500 else ValueError(f"{told}: look into its logs")


def full_address(address: str) -> str:
    """With its scheme, without a slash at its end."""
    return (address if "://" in address else f"http://{address}").rstrip("/")


def reason_in(text: str) -> str:
    """The first line of a message, the last of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines and lines[0].startswith("Traceback") else "".join(lines[:1]))[:300]


def _plain(token: Token) -> str:
    text = token.text.strip()
    require(
        text.isascii() and text.isprintable() and " " not in text,
        f"the token from {token.source} is none: it has letters that no token has; copy the auth_token of the head",
    )
    return text
