"""What web pages may do here: nothing, but for those whose origin is named in the settings.

A browser on this machine reaches loopback for any page that it shows.  Three things tell such a request from a client's own:

- its ``Host`` is a name that others own, where a page's name was bound to our address (DNS rebinding): names are those of
  loopback, the address that we listen on and ``hosts``.  An address is no name that anybody could bind;
- its ``Origin`` is another than the host that it asks, and no browser lets a page change that;
- a page may send a body without being asked for leave beforehand (a form, text, bytes without a type), but not JSON by its type.

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.types import Scope

from pipeline.gateway.errors import GatewayError
from pipeline.gateway.settings import ANY, is_loopback

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:@/\[\]\s]+))(?::\d*)?")  # RFC 9110, section 7.2
JSON = "application/json"
FROM_BROWSER = (b"origin", b"sec-fetch-site", b"sec-fetch-mode")


class Names:
    """The names that a listener at ``bound`` goes by."""

    def __init__(self, bound: str, hosts: Iterable[str], *, open_to_all: bool) -> None:
        named = {host.lower().rstrip(".") for host in hosts}
        # Beyond loopback a key keeps pages out, and a cluster gives a service many names.
        self._any = ANY in named or (not named and not open_to_all and not is_loopback(bound))
        self._named = named | {"localhost", bound.lower()}

    def check(self, scope: Scope) -> None:
        """Raise :class:`GatewayError` for a request to a host that we are not."""
        if self._any:
            return
        for value in values(scope, b"host"):
            host = _host(value)
            if not (host in self._named or host.endswith(".localhost") or _is_address(host)):
                raise GatewayError(
                    403,
                    f"this is not the host {host[:100]!r}; where it is a name of this gateway, add it to deploy.hosts",
                    code="unknown_host",
                    reason="forbidden",
                )


def check_origin(scope: Scope, origins: Iterable[str]) -> None:
    """Raise :class:`GatewayError` for a request of a page that is neither our own nor named in ``origins``."""
    allowed = set(origins)
    found = values(scope, b"origin")
    if ANY in allowed or not found:
        # A browser that leaves the origin out says all the same where a request comes from.
        if not found and "cross-site" in values(scope, b"sec-fetch-site") and scope["method"] == "POST":
            raise _foreign("another site")
        return
    ours = {f"{scope['scheme']}://{value}" for value in values(scope, b"host")}
    for origin in found:
        if origin not in allowed | ours:
            raise _foreign(origin)


def check_type(scope: Scope) -> None:
    """Raise :class:`GatewayError` for a body that is not sent as JSON.

    Triton's own HTTP client names no type; what has none is taken from those who are no browser.
    """
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return
    types = values(scope, b"content-type")
    if not types:
        names = {name for name, _ in scope["headers"]}
        bodied = b"transfer-encoding" in names or values(scope, b"content-length") not in ([], ["0"])
        if not (bodied and names.intersection(FROM_BROWSER)):
            return
    if any(each.partition(";")[0].strip().lower() != JSON for each in types) or not types:
        said = f"not {types[0][:100]!r}" if types else "which is missing"
        raise GatewayError(
            415,
            f"the Content-Type of a request must be {JSON}, {said} (curl: -H 'Content-Type: {JSON}')",
            code="unsupported_media_type",
            reason="invalid",
        )


def values(scope: Scope, name: bytes) -> list[str]:
    """All values of a header; what is no ASCII stays to be told."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _foreign(origin: str) -> GatewayError:
    return GatewayError(
        403,
        f"pages of {origin[:100]} may not ask here; where they should, add that origin to deploy.cors_origins",
        code="origin_not_allowed",
        reason="forbidden",
    )


def _host(value: str) -> str:
    """The name or address of a ``Host`` header, without port and brackets; what is neither as it is."""
    found = HOST.fullmatch(value)
    return (found[1] or found[2]).lower().rstrip(".") if found else value


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
