"""`@cache`: GET endpoints answer with stored bytes, other endpoints remove them once their change is committed.

Why a stored answer is never older than a write that has answered: whoever misses first puts a *lease* under the key,
then reads the database, and stores the answer only if that lease is still there. A write removes keys after its
commit, leases included, so nothing read before the commit is stored after it. Whoever finds a lease waits for the
answer: many simultaneous misses run the endpoint once.

Each key is listed in an index named by its part before the first colon, and served only while it is listed there.
A pattern looks keys up in the indexes, so that an invalidation does not depend on how many other keys there are.
"""

import asyncio
import functools
import inspect
import logging
import os
import re
import string
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, ParamSpec, cast, get_type_hints

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, serialize_response
from fastapi.security.base import SecurityBase

from app.core.config import RedisCacheSettings
from app.core.database import on_commit, session_of
from app.core.exceptions import CacheIdentificationInferenceError, InvalidRequestError, RedisUnavailableError
from app.core.redis import RedisServer

logger = logging.getLogger(__name__)

P = ParamSpec("P")

LEASE_SECONDS = 2
MAX_ANSWER_BYTES = 256 * 1024
"""Larger answers are not stored: a few readers of long pages could fill the server."""
_LEASE = b"\x00"  # JSON never begins with it
_INDEX = "@cache:index:"
_INDEXES = "@cache:indexes"
_NOT_STORED = "app.cache.not_stored"
_GLOB = re.compile(r"([*?\[\]\\])")
_LITERAL_START = re.compile(r"(?:[^*?\[\\]|\\.)*", re.DOTALL)

# KEYS: key, its index, the list of indexes. ARGV: lease, its milliseconds, seconds to stay listed.
# Answers the stored bytes or somebody's lease; nil when the caller's lease has been taken. A server that is full may
# have dropped an index, or the list of them: what a pattern may have failed to find since then is not served.
_FETCH = """
if not redis.call('ZSCORE', KEYS[3], KEYS[2]) then
  redis.call('UNLINK', KEYS[2])
elseif redis.call('ZSCORE', KEYS[2], KEYS[1]) then
  local value = redis.call('GET', KEYS[1])
  if value then return value end
end
local now = tonumber(redis.call('TIME')[1])
for i = 2, 3 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  redis.call('ZADD', KEYS[i], 'GT', now + ARGV[3], KEYS[i - 1])
  if redis.call('TTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[i], ARGV[3]) end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
# KEYS: key, its index, the list of indexes. ARGV: lease, answer, seconds to keep it. An empty answer gives the lease
# back, and nothing is left: names that do not exist could fill the server with indexes.
_STORE = """
local value = redis.call('GET', KEYS[1])
if value == ARGV[1] and ARGV[2] ~= '' then return redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) end
if value and value ~= ARGV[1] then return end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('ZREM', KEYS[3], KEYS[2]) end
"""


class CacheStore:
    """Answers on one Redis server. While it is away, or has just been, endpoints run as if there were no cache."""

    RETRY_SECONDS = 0.1

    def __init__(self) -> None:
        self._reads = RedisServer("cache")
        self._removals = RedisServer("cache invalidation", sends_many=True)
        self._must_clear = False
        self._clearing: asyncio.Task[None] | None = None
        # Time for every worker to clear, after an outage, what it could not remove: an attempt may just have begun.
        self._distrust_seconds = 0.0

    @property
    def is_open(self) -> bool:
        return self._reads.is_open

    @property
    def server(self) -> RedisServer:
        return self._reads

    def open(self, settings: RedisCacheSettings) -> None:
        address = (
            settings.REDIS_CACHE_HOST,
            settings.REDIS_CACHE_PORT,
            settings.REDIS_CACHE_DB,
            settings.REDIS_CACHE_PASSWORD,
        )
        self._reads.open(*address, settings.REDIS_CACHE_TIMEOUT)
        self._removals.open(*address, settings.REDIS_CACHE_REMOVAL_TIMEOUT)
        self._distrust_seconds = settings.REDIS_CACHE_REMOVAL_TIMEOUT + 1.0
        # The process before this one may have been killed over a removal, or have ended while the server was away.
        self._must_clear = True
        self._clearing = asyncio.create_task(self._clear())

    async def close(self) -> None:
        if self._clearing is not None:
            self._clearing.cancel()
        await self._reads.close()
        await self._removals.close()

    async def fetch(self, key: str, lease: bytes, expiration: int) -> bytes | None:
        """Return the stored answer, or None and the right to store one under `lease`.

        Raises RedisUnavailableError when the cache cannot be used, or when another's answer does not come.
        """
        fetch = self._reads.script(_FETCH)
        keys = [key, _index(key), _INDEXES]
        args: list[bytes | int] = [lease, LEASE_SECONDS * 1000, expiration + LEASE_SECONDS + 1]
        deadline, pause = time.monotonic() + LEASE_SECONDS, 0.005
        while True:
            self._refuse_distrusted()
            async with self._reads.guard():
                value = cast(bytes | None, await fetch(keys, args))
            self._refuse_distrusted()
            if value is None or not value.startswith(_LEASE):
                return value
            if time.monotonic() > deadline:
                raise RedisUnavailableError("The answer that another request is preparing did not come")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.05)

    async def store(self, key: str, lease: bytes, answer: bytes, expiration: int) -> None:
        """Keep the answer unless its lease was removed meanwhile; an empty answer gives the lease back."""
        try:
            async with self._reads.guard():
                await self._reads.script(_STORE)([key, _index(key), _INDEXES], [lease, answer, expiration])
        except RedisUnavailableError:
            pass  # the lease ends by itself

    async def remove(self, keys: Iterable[str], patterns: Iterable[str]) -> None:
        """Remove keys, and all that match a pattern. If that fails, everything goes as soon as the server is back."""
        if not self.is_open:  # there is no cache among the settings
            return
        removed = False
        try:
            if self._clearing is None:
                async with self._removals.guard():
                    found = {key.encode() for key in keys}
                    for pattern in patterns:
                        found.update([key async for key in self._matching(pattern)])
                    if found:
                        await self._removals.client.unlink(*found)
                removed = True
        except RedisUnavailableError:
            pass
        finally:  # also when the request is given up
            if not removed:
                self._must_clear = True
                self._clearing = self._clearing or asyncio.create_task(self._clear())

    def _refuse_distrusted(self) -> None:
        if self._clearing is not None or time.monotonic() < self._reads.back_since + self._distrust_seconds:
            raise RedisUnavailableError("The cache server has just been away")

    async def _clear(self) -> None:
        try:
            while self._must_clear:
                self._must_clear = False
                try:
                    async with self._removals.guard(probe=True):
                        await self._removals.client.delete(_INDEXES)  # nothing is served that is not listed
                except RedisUnavailableError:
                    self._must_clear = True
                    await asyncio.sleep(self.RETRY_SECONDS)
        finally:
            self._clearing = None

    async def _matching(self, pattern: str) -> AsyncIterator[bytes]:
        client = self._removals.client
        start = _LITERAL_START.match(pattern)
        literal = re.sub(r"\\(.)", r"\1", start[0] if start else "")
        if ":" in literal:
            indexes = [_index(literal)]
        else:
            indexes = [name.decode() for name in await client.zrange(_INDEXES, 0, -1)]
        for index in indexes:
            async for key, _ in client.zscan_iter(index, match=pattern, count=1000):
                yield key


def _index(key: str) -> str:
    return _INDEX + key.partition(":")[0]


store = CacheStore()


class _Options:
    """What one use of `@cache` says, checked against its endpoint's signature."""

    def __init__(
        self,
        endpoint: Callable[..., Any],
        key_prefix: str,
        resource_id_name: str | None,
        resource_id_type: type,
        extra_keys: Mapping[str, str],
        extra_patterns: Iterable[str],
    ) -> None:
        self.endpoint = endpoint
        self._hints = get_type_hints(endpoint)
        self._parameters = inspect.signature(endpoint).parameters
        self.request_name = self._find_request()
        id_name = resource_id_name or self._infer_id_name(resource_id_type)
        self._key = f"{key_prefix}:{{{id_name}}}"
        self._extra_keys = [f"{prefix}:{resource_id}" for prefix, resource_id in extra_keys.items()]
        self._extra_patterns = list(extra_patterns)
        for template in (self._key, *self._extra_keys):
            self._check_names(template)
        self._pattern_names = {name for template in self._extra_patterns for name in self._check_names(template)}

    def key(self, arguments: Mapping[str, Any]) -> str:
        return self._key.format_map(arguments)

    def keys(self, arguments: Mapping[str, Any]) -> list[str]:
        return [template.format_map(arguments) for template in (self._key, *self._extra_keys)]

    def patterns(self, arguments: Mapping[str, Any]) -> list[str]:
        escaped = {name: _GLOB.sub(r"\\\1", str(arguments[name])) for name in self._pattern_names}
        return [template.format_map(escaped) for template in self._extra_patterns]

    @functools.cache  # noqa: B019  (one object for each decorated endpoint, alive as long as the process)
    def check_method(self, method: str) -> None:
        """Refuse what cannot work on a GET endpoint."""
        if method != "GET":
            return
        if self._extra_keys or self._extra_patterns:
            raise InvalidRequestError(
                f"{self.endpoint.__name__}: to_invalidate_extra and pattern_to_invalidate_extra do not work on GET"
            )
        if _looks_at_caller(get_dependant(path="/", call=self.endpoint)):
            raise InvalidRequestError(
                f"{self.endpoint.__name__}: its answer may depend on who asks, and @cache would give it to everybody"
            )

    def _find_request(self) -> str:
        for name, hint in self._hints.items():
            if isinstance(hint, type) and issubclass(hint, Request):
                return name
        raise InvalidRequestError(f"{self.endpoint.__name__}: @cache needs the parameter `request: Request`")

    def _infer_id_name(self, kind: type) -> str:
        names = [name for name in self._parameters if self._hints.get(name) is kind]
        if kind is int:
            names = [name for name in names if "id" in name.split("_")]
        if len(names) != 1:
            raise CacheIdentificationInferenceError(
                f"{self.endpoint.__name__}: {len(names)} parameters could be the {kind.__name__} that identifies the "
                "cached resource; name it with resource_id_name"
            )
        return names[0]

    def _check_names(self, template: str) -> list[str]:
        """Return the parameters that the template names."""
        names: list[str] = []
        for _, name, specification, conversion in string.Formatter().parse(template):
            if name is None:
                continue
            if name not in self._parameters or specification or conversion:
                raise InvalidRequestError(f"{self.endpoint.__name__}: {{{name}}} in {template!r} is no parameter")
            names.append(name)
        return names


def _looks_at_caller(dependant: Dependant) -> bool:
    return (
        isinstance(dependant.call, SecurityBase)
        or bool(dependant.header_params or dependant.cookie_params)
        or any(map(_looks_at_caller, dependant.dependencies))
    )


def cache(
    key_prefix: str,
    resource_id_name: str | None = None,
    expiration: int = 3600,
    resource_id_type: type = int,
    to_invalidate_extra: Mapping[str, str] | None = None,
    pattern_to_invalidate_extra: Iterable[str] | None = None,
) -> Callable[[Callable[P, Awaitable[Any]]], Callable[P, Awaitable[Any]]]:
    """Cache a GET endpoint's answer for `expiration` seconds under `"{key_prefix}:{resource id}"`.

    On any other endpoint: remove that key, those of `to_invalidate_extra` (prefix: id) and those that match
    `pattern_to_invalidate_extra`, after the commit of the request's session. `{name}` in any of
    them stands for an argument. Raises CacheIdentificationInferenceError and InvalidRequestError on wrong use.
    """

    def decorator(endpoint: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
        options = _Options(
            endpoint,
            key_prefix,
            resource_id_name,
            resource_id_type,
            to_invalidate_extra or {},
            pattern_to_invalidate_extra or (),
        )

        @functools.wraps(endpoint)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            request = cast(Request, kwargs[options.request_name])
            options.check_method(request.method)
            if not store.is_open:
                return await endpoint(*args, **kwargs)
            if request.method == "GET":
                call = functools.partial(endpoint, *args, **kwargs)
                return await _serve(options.key(kwargs), expiration, request, call)
            answer = await endpoint(*args, **kwargs)
            remove = functools.partial(store.remove, options.keys(kwargs), options.patterns(kwargs))
            session = session_of(request)
            if session is None:
                await remove()
            else:
                on_commit(session, remove, even_if_unknown=True)
            return answer

        wrapper.cache_options = options  # type: ignore[attr-defined]  # read by check_cached_route
        return wrapper

    return decorator


def do_not_store(request: Request) -> None:
    """Let the endpoint that runs under `@cache` answer with what is not worth keeping, such as an empty page."""
    request.scope[_NOT_STORED] = True


def check_cached_route(route: APIRoute) -> None:
    """Raise InvalidRequestError when `@cache` on the route's endpoint cannot work for its methods."""
    options = getattr(route.endpoint, "cache_options", None)
    if isinstance(options, _Options):
        for method in route.methods or ():
            options.check_method(method)


async def _serve(key: str, expiration: int, request: Request, endpoint: Callable[[], Awaitable[Any]]) -> Any:
    lease = _LEASE + os.urandom(16)
    try:
        body = await store.fetch(key, lease, expiration)
    except RedisUnavailableError:
        return await endpoint()
    if body is None:
        body = b""
        try:
            answer = await endpoint()
            if isinstance(answer, Response):
                return answer
            body = await _render(request, answer)
        finally:
            is_kept = len(body) <= MAX_ANSWER_BYTES and _NOT_STORED not in request.scope
            await store.store(key, lease, body if is_kept else b"", expiration)
    status = cast(APIRoute, request.scope["route"]).status_code
    return Response(body, status or 200, media_type="application/json")


async def _render(request: Request, answer: Any) -> bytes:
    """Validate and encode an answer as FastAPI does for the route."""
    route = cast(APIRoute, request.scope["route"])
    # FastAPI types its own field as always there; it is None without a response model.
    body: Any = await serialize_response(
        field=route.response_field,
        response_content=answer,
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
        dump_json=True,
    )
    return body if isinstance(body, bytes) else bytes(JSONResponse(body).body)
