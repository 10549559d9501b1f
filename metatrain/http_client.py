"""Requests that carry a token or a login go to the server that was named, and to no other."""

import ipaddress
import urllib.parse
import urllib.request
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect, which would take the login along, is an HTTPError and not followed."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _SealedProxy(urllib.request.ProxyHandler):
    """The environment's proxy for https alone, of which it reads nothing; none for http, nor for this machine."""

    def __init__(self) -> None:
        super().__init__({name: url for name, url in urllib.request.getproxies().items() if name == "https"})

    def proxy_open(self, request: urllib.request.Request, proxy: str, scheme: str) -> urllib.request.Request | None:
        return None if _is_here(request.host) else super().proxy_open(request, proxy, scheme)


def _is_here(host: str) -> bool:
    """Whether `host`, with a port or without, is this machine's own name for itself."""
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


UNREDIRECTED = urllib.request.build_opener(_NoRedirect, _SealedProxy)
