"""Requests that carry a token or a login go to the server that was named, and to no other."""

import urllib.request
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect, which would take the login along, is an HTTPError and not followed."""

    def redirect_request(self, *_: Any) -> None:
        return None


UNREDIRECTED = urllib.request.build_opener(_NoRedirect)
