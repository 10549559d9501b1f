"""Send HTTP requests to a Ray dashboard with its token, to the named address only.

Ray's own client sends them to RAY_API_SERVER_ADDRESS where that is set, whatever address it is given, and without a
timeout.
"""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

from metatrain.no_redirect import UNREDIRECTED
from metatrain.redact import mask
from metatrain.validation import require

_TIMEOUT_S = 15.0


class Unavailable(Exception):
    """No answer, or a server error; a later request may succeed."""


class ServerError(Unavailable):
    """The cluster answered with a status of 500 or above."""


class NotFound(ValueError):
    """The cluster answered 404."""


class Token(NamedTuple):
    """A cluster's token and where it was found, for messages."""

    text: str
    source: str


class Dashboard:
    """Client of the dashboard at `address`, http(s)://HOST:PORT or HOST:PORT. ValueError: it is no such address."""

    def __init__(self, address: str, token: Token | None) -> None:
        self.address = normalize_address(address)
        self.headers = {"Authorization": f"Bearer {_check_token(token)}"} if token else {}
        self._token = token
        try:
            parts = urllib.parse.urlsplit(self.address)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            valid = valid and parts.username is None and not parts.query  # no login: requests have the token
        except ValueError:
            valid = False
        require(
            valid,
            f"--address: '{mask(address)}' is not http://HOST:PORT of a Ray dashboard, whose port is 8265 by default: "
            "use that, or set it in a profile",
        )

    def get(self, path: str) -> Any:
        """Return the JSON at `path`; raises as `request` does."""
        return self.request("GET", path)

    def request(self, method: str, path: str, body: bytes | Mapping[str, Any] | None = None) -> Any:
        """Send a request and return the JSON of the answer, None if it is empty.

        Raises NotFound for 404, Unavailable without an answer or for 500 and above, ValueError for other refusals.
        """
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        headers = {**self.headers, "Content-Type": kind}
        request = urllib.request.Request(self.address + path, content, headers, method=method)
        try:
            with UNREDIRECTED.open(request, timeout=_TIMEOUT_S if content is None else 4 * _TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._explain_refusal(error, error.read(5000).decode(errors="replace")) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise Unavailable(f"no Ray cluster answers at {self.address} ({reason})") from error
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ValueError(self.not_ray()) from error

    def not_ray(self) -> str:
        """Return the message for a server that is not a Ray dashboard."""
        return f"what answers at {self.address} is not a Ray dashboard: use its address, whose port is 8265 by default"

    def _explain_refusal(self, error: urllib.error.HTTPError, text: str) -> Exception:
        code = error.code
        if code in (401, 403):
            return ValueError(
                f"the cluster at {self.address} does not accept the token from {self._token.source}: it has another; "
                "copy the auth_token of its head"
                if self._token is not None
                else f"the cluster at {self.address} asks for a token, and none was found: put the cluster's into "
                "~/.ray/auth_token or RAY_AUTH_TOKEN, or set token_file in a profile"
            )
        if code in (301, 302, 303, 307, 308):
            target = mask(error.headers.get("Location", "elsewhere"))
            return ValueError(f"{self.address} redirects to {target}: if you trust that, use it as the address")
        if code == 404:
            return NotFound(self.not_ray())
        answer = f"{self.address} answers {code} ({summarize_error(text)})"
        return ServerError(f"the cluster at {answer}") if code >= 500 else ValueError(f"{answer}: look into its logs")


def normalize_address(address: str) -> str:
    """Return `address` with a scheme (http by default) and without a slash at its end."""
    return (address if "://" in address else f"http://{address}").rstrip("/")


def summarize_error(text: str) -> str:
    """Return the first line of a message, or the last of a traceback, cut to 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines and lines[0].startswith("Traceback") else "".join(lines[:1]))[:300]


def _check_token(token: Token) -> str:
    text = token.text.strip()
    require(
        text.isascii() and text.isprintable() and " " not in text,
        f"the token from {token.source} has characters that no token has: copy the auth_token of the cluster's head",
    )
    return text
