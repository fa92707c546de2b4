"""How many requests may pass in a period, decided in one step on the clock of the server that all workers share."""

import contextlib
import ipaddress
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from fastapi.requests import HTTPConnection

from app.core.config import AppSettings, RedisRateLimiterSettings
from app.core.exceptions import RedisUnavailableError
from app.core.redis import RedisServer

# The times (microseconds) of the requests that passed in the last period, newest first. A log, unlike a counter for
# each window, lets no more than the limit through in any period, wherever it begins.
_SCRIPT = """
local limit, period = tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local oldest = redis.call('LINDEX', KEYS[1], -1)
while oldest and now - oldest >= period do
  redis.call('RPOP', KEYS[1])
  oldest = redis.call('LINDEX', KEYS[1], -1)
end
local used = redis.call('LLEN', KEYS[1])
if used < limit then
  redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', period / 1000))
  return {1, limit - used - 1, period - (now - (oldest or now))}
end
local blocking = limit > 0 and redis.call('LINDEX', KEYS[1], limit - 1) or now
return {0, 0, period - (now - blocking)}
"""
# uvicorn puts the forwarded address in the peer's place when the peer is this one, unless the environment says
# otherwise: https://www.uvicorn.org/settings/#http
_BELIEVED_BY_SERVER = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a limit: `remaining` requests, and `reset` seconds until there is one more."""

    allowed: bool
    limit: int
    period: int
    remaining: int
    reset: int

    def headers(self, policy: str) -> dict[str, str]:
        """The IETF RateLimit fields (draft-ietf-httpapi-ratelimit-headers-10), and Retry-After when refused."""
        fields = {
            "RateLimit-Policy": f'"{policy}";q={self.limit};w={self.period}',
            "RateLimit": f'"{policy}";r={self.remaining};t={self.reset}',
        }
        return fields if self.allowed else {**fields, "Retry-After": str(self.reset)}


class RateLimiter:
    def __init__(self) -> None:
        self.server = RedisServer("rate limit")
        self._fail_open = True

    @property
    def is_open(self) -> bool:
        return self.server.is_open

    def open(self, settings: RedisRateLimiterSettings) -> None:
        self._fail_open = settings.RATE_LIMIT_FAIL_OPEN
        self.server.open(
            settings.REDIS_RATE_LIMIT_HOST,
            settings.REDIS_RATE_LIMIT_PORT,
            settings.REDIS_RATE_LIMIT_DB,
            settings.REDIS_RATE_LIMIT_PASSWORD,
            settings.REDIS_RATE_LIMIT_TIMEOUT,
        )

    async def hit(self, key: str, limit: int, period: int) -> Quota | None:
        """Count a request under `key` if fewer than `limit` passed in the last `period` seconds.

        None, and thus a pass, without a limiter or when its server is away; with RATE_LIMIT_FAIL_OPEN off,
        RedisUnavailableError.
        """
        if not self.is_open:
            return None
        try:
            async with self.server.guard():
                answer = await self.server.script(_SCRIPT)([f"rate_limit:{key}"], [limit, period])
        except RedisUnavailableError:
            if self._fail_open:
                return None
            raise
        allowed, remaining, reset = cast(tuple[int, int, int], answer)
        return Quota(bool(allowed), limit, period, remaining, max(1, math.ceil(reset / 1_000_000)))

    async def uncount(self, key: str) -> None:
        """Take back what `hit` counted last under `key`."""
        with contextlib.suppress(RedisUnavailableError):
            async with self.server.guard():
                await self.server.client.execute_command("LPOP", f"rate_limit:{key}")  # type: ignore[no-untyped-call]

    async def remember(self, key: str, seconds: int) -> None:
        """Let `remembers` say yes for so long."""
        with contextlib.suppress(RedisUnavailableError):
            async with self.server.guard():
                await self.server.client.set(f"remembered:{key}", b"", ex=seconds)

    async def remembers(self, key: str) -> bool:
        try:
            async with self.server.guard():
                return bool(await self.server.client.exists(f"remembered:{key}"))
        except RedisUnavailableError:
            return False


limiter = RateLimiter()


def sanitize_path(path: str) -> str:
    """Name a route template as rate limits store it: `/api/v1/tasks/task` is `api_v1_tasks_task`."""
    return path.strip("/").replace("/", "_")


def route_template(connection: HTTPConnection) -> str:
    """The path of the route that was matched, with its prefixes and with `{names}` in place of values."""
    included = connection.scope.get("fastapi", {}).get("effective_route_context")
    template: str = (included or connection.scope["route"]).path
    return template


def client_address(connection: HTTPConnection, settings: AppSettings) -> str:
    """The address to count an anonymous client under; one that owns an IPv6 network is counted once.

    `X-Forwarded-For` is read from its end, where proxies add, as long as the address before is a trusted proxy's.
    """
    address, port = connection.client or (_BELIEVED_BY_SERVER, 0)
    if not settings.proxies_handled_by_server:
        proxies = settings.FORWARDED_ALLOW_IPS
        hops = [_split(part) for part in ",".join(connection.headers.getlist("x-forwarded-for")).split(",")]
        # The server puts 0 for an address that comes without a port; a peer's own port never is.
        if (port == 0 or (address, port) in hops) and not _is_trusted(_BELIEVED_BY_SERVER, proxies):
            address = _BELIEVED_BY_SERVER
        while hops and _is_trusted(address, proxies):
            address = hops.pop()[0] or address
    return _counted_as(address)


@lru_cache(maxsize=4096)
def _counted_as(address: str) -> str:
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


@lru_cache(maxsize=4096)
def _is_trusted(address: str, proxies: str) -> bool:
    parsed = _parse(address)
    return any(
        proxy == "*" or (parsed is not None and parsed in ipaddress.ip_network(proxy, strict=False))
        for proxy in map(str.strip, proxies.split(","))
        if proxy
    )
