"""The address that an anonymous client is counted under, also behind proxies."""

import ipaddress

from fastapi.requests import HTTPConnection

from app.core.config import AppSettings

# uvicorn puts the forwarded address in the peer's place when the peer is this one, unless the environment says
# otherwise: https://www.uvicorn.org/settings/#http
_TRUSTED_BY_SERVER = "127.0.0.1"


def client_address(connection: HTTPConnection, settings: AppSettings) -> str:
    """The address of the client; an IPv6 client is counted by its /64 network, which one host owns.

    `X-Forwarded-For` is read from its end, where proxies add, as long as the address before is a trusted proxy's.
    """
    address, port = connection.client or (_TRUSTED_BY_SERVER, 0)
    if not settings.proxies_handled_by_server:
        proxies = settings.FORWARDED_ALLOW_IPS
        hops = [_split(part) for part in ",".join(connection.headers.getlist("x-forwarded-for")).split(",")]
        # The server sets port 0 for an address that it took from the header; a peer's own port never is 0.
        if (port == 0 or (address, port) in hops) and not _is_trusted(_TRUSTED_BY_SERVER, proxies):
            address = _TRUSTED_BY_SERVER
        while hops and _is_trusted(address, proxies):
            address = hops.pop()[0] or address
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed or "unknown")


def _split(hop: str) -> tuple[str, int]:
    """Divide address and port, which some proxies add: `192.0.2.1:1234`, `[2001:db8::1]:1234`; without one, 0."""
    hop = hop.strip()
    host, _, port = hop.rpartition(":")
    if host.startswith("[") == host.endswith("]") and (host.startswith("[") or ":" not in host):
        try:
            return host.strip("[]"), int(port)
        except ValueError:
            pass
    return hop.strip("[]"), 0


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _is_trusted(address: str, proxies: str) -> bool:
    parsed = _parse(address)
    return any(
        proxy == "*" or (parsed is not None and parsed in ipaddress.ip_network(proxy, strict=False))
        for proxy in map(str.strip, proxies.split(","))
        if proxy
    )
