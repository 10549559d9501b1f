"""Open HTTP requests that carry a token or login without following redirects or unencrypted proxies."""

import ipaddress
import urllib.parse
import urllib.request
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Turn a redirect, which would forward the login, into an HTTPError."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _HttpsProxy(urllib.request.ProxyHandler):
    """Use the environment's proxy for https only, as it cannot read that, and never for this machine."""

    def __init__(self) -> None:
        super().__init__({name: url for name, url in urllib.request.getproxies().items() if name == "https"})

    def proxy_open(self, request: urllib.request.Request, proxy: str, scheme: str) -> urllib.request.Request | None:
        return None if _is_loopback(request.host) else super().proxy_open(request, proxy, scheme)


def _is_loopback(host: str) -> bool:
    """Tell whether `host`, with or without a port, is this machine's loopback address or name."""
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


UNREDIRECTED = urllib.request.build_opener(_NoRedirect, _HttpsProxy)
