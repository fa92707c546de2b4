"""A rate limiter in one atomic step on the Redis server, by its clock, which all workers share."""

import contextlib
import math
import time
from dataclasses import dataclass
from typing import cast

from app.core.config import RedisRateLimiterSettings
from app.core.exceptions import RedisUnavailableError
from app.core.redis import RedisServer
from app.core.resources import getter

# The times (microseconds) of the requests that passed in the last period, newest first. Unlike a counter per window,
# this log admits no more than the limit in any period, wherever it begins.
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

_REPORT_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Quota:
    """The rest of a limit: `remaining` requests, and `reset` seconds until there is one more."""

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
    """Count requests by key. Without its settings every request passes."""

    def __init__(self) -> None:
        self.server = RedisServer("rate limit")
        self._fail_open = True
        self.reported: dict[str, float] = {}
        """When this process last logged that a path has no rule, by its monotonic clock."""

    def open(self, settings: RedisRateLimiterSettings) -> None:
        self._fail_open = settings.RATE_LIMIT_FAIL_OPEN
        self.server.open(settings, "REDIS_RATE_LIMIT", settings.REDIS_RATE_LIMIT_TIMEOUT)

    def reports(self, path: str) -> bool:
        """Tell whether to log that a path has no rule: once an hour."""
        now = time.monotonic()
        if now - self.reported.get(path, -_REPORT_SECONDS) < _REPORT_SECONDS:
            return False
        self.reported[path] = now
        return True

    async def hit(self, key: str, limit: int, period: int) -> Quota | None:
        """Count a request under `key` if fewer than `limit` passed in the last `period` seconds.

        Return None, which lets the request pass, without a limiter or while its server is away. With
        RATE_LIMIT_FAIL_OPEN off, an outage raises RedisUnavailableError.
        """
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
        """Let `remembers` return True for `seconds`."""
        with contextlib.suppress(RedisUnavailableError):
            async with self.server.guard():
                await self.server.client.set(f"remembered:{key}", b"", ex=seconds)

    async def remembers(self, key: str) -> bool:
        with contextlib.suppress(RedisUnavailableError):
            async with self.server.guard():
                return bool(await self.server.client.exists(f"remembered:{key}"))
        return False


limiter_of = getter(RateLimiter)
