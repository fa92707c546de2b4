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
import hashlib
import inspect
import itertools
import logging
import math
import os
import re
import string
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ParamSpec, cast, get_type_hints

from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, serialize_response
from fastapi.security.base import SecurityBase
from fastapi.utils import is_body_allowed_for_status_code
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.config import RedisCacheSettings, settings
from app.core.database import get_reader, on_commit, session_of
from app.core.exceptions import CacheIdentificationInferenceError, InvalidRequestError, RedisUnavailableError
from app.core.redis import RedisServer

logger = logging.getLogger(__name__)

P = ParamSpec("P")

LEASE_SECONDS = 2.5
"""Longer than a statement may take: who waits for one that comes to nothing would else begin another just before it is
known that PostgreSQL is silent.
"""
LEASES_AWAITED = 2
"""Who has waited for so many that came to nothing waits no more: it may be an answer that is not kept, like a 404."""
MAX_ANSWER_BYTES = 256 * 1024
"""Larger answers are not stored: a few readers of long pages could fill the server."""
_LEASE = b"\x00"  # JSON never begins with it
_SEAL_BYTES = 64
_WHITE_SPACE = bytes.maketrans(b"01", b" \t")
_INDEX = "@cache:index:"
_INDEXES = "@cache:indexes"
# What is noted in the scope of a request.
_NOT_STORED = "app.cache.not_stored"
_KEY = "app.cache.key"
_LEASE_TAKEN = "app.cache.lease_taken"
_GLOB = re.compile(r"([*?\[\]\\])")
_LITERAL_START = re.compile(r"(?:[^*?\[\\]|\\.)*", re.DOTALL)

# KEYS: key, its index, the list of indexes. ARGV: lease, its milliseconds, seconds to stay listed, what to replace.
# Answers what is stored or somebody's lease; nil when the caller's lease has been taken. A server that is full may have
# dropped an index, or the list of them: what a pattern may have failed to find since then is not served. Nor is what
# others have put under the key, be it of another type or like a lease that does not end.
_FETCH = """
local function is_listed(i) return type(redis.pcall('ZSCORE', KEYS[i], KEYS[i - 1])) == 'string' end
if not is_listed(3) then
  redis.call('UNLINK', KEYS[2])
elseif is_listed(2) then
  local value = redis.pcall('GET', KEYS[1])
  if type(value) == 'string' and value ~= ARGV[4] then
    if string.byte(value) ~= 0 then return value end
    local left = redis.call('PTTL', KEYS[1])
    if left >= 0 and left <= tonumber(ARGV[2]) then return value end
  end
end
local now = tonumber(redis.call('TIME')[1])
for i = 2, 3 do
  if redis.call('TYPE', KEYS[i]).ok ~= 'zset' then redis.call('UNLINK', KEYS[i]) end
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  redis.call('ZADD', KEYS[i], 'GT', now + ARGV[3], KEYS[i - 1])
  if redis.call('TTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('EXPIRE', KEYS[i], ARGV[3]) end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
# Two scripts end with this: what is not there is not listed, nor is an index without keys. Names that do not exist
# could fill the server with indexes.
_UNLIST = """
local function unlist(index, keys)
  redis.call('UNLINK', unpack(keys))
  redis.pcall('ZREM', index, unpack(keys))
  if redis.call('EXISTS', index) == 0 then redis.pcall('ZREM', KEYS[1], index) end
end
"""
# KEYS: the list of indexes, key, its index. ARGV: lease, what to store, seconds to keep it. Nothing to store gives the
# lease back.
_STORE = f"""{_UNLIST}
local value = redis.pcall('GET', KEYS[2])
if value == ARGV[1] and ARGV[2] ~= '' then
  redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
elseif not value or value == ARGV[1] then
  unlist(KEYS[3], {{KEYS[2]}})
end
"""
# KEYS: the list of indexes, then the index of each thing to remove. ARGV: for each a key and '', or a pattern and where
# in the index to look on, at first '0'. Answers where to look on next, '0' when all has been looked at.
_REMOVE = f"""{_UNLIST}
local next = {{}}
for i = 2, #KEYS do
  local index, found, cursor = KEYS[i], {{ARGV[2 * i - 3]}}, ARGV[2 * i - 2]
  if cursor ~= '' then
    local page = redis.pcall('ZSCAN', index, cursor, 'MATCH', found[1], 'COUNT', 1000)
    cursor, found = page[1] or '0', {{}}
    for j = 1, #(page[2] or found), 2 do found[#found + 1] = page[2][j] end
  end
  if #found > 0 then unlist(index, found) end
  next[i - 1] = cursor
end
return next
"""
_AT_ONCE = 100
"""So many keys and patterns go with one call of the script: the server does nothing else meanwhile."""


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
        self._process = b""
        self._numbers = itertools.count()

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
        self._process = os.urandom(12)  # here, not at import: a process may be a copy of one that has imported this
        # The process before this one may have been killed over a removal, or have ended while the server was away.
        self._must_clear = True
        self._clearing = asyncio.create_task(self._clear())

    async def close(self) -> None:
        if self._clearing is not None:
            self._clearing.cancel()
        await self._reads.close()
        await self._removals.close()

    def new_lease(self) -> bytes:
        """A value that nobody else, in whichever process, puts under a key."""
        return b"%b%b%x" % (_LEASE, self._process, next(self._numbers))

    async def fetch(self, key: str, lease: bytes, expiration: int) -> bytes | None:
        """Return the stored answer, or None and the right to store one under `lease`.

        Raises RedisUnavailableError when the cache cannot be used, or when another's answer does not come.
        """
        fetch = self._reads.script(_FETCH)
        keys = [key, _index(key), _INDEXES]
        args: list[bytes | int] = [lease, round(LEASE_SECONDS * 1000), expiration + math.ceil(LEASE_SECONDS) + 1]
        deadline, pause = time.monotonic() + LEASE_SECONDS, 0.005
        leases = set[bytes]()
        while True:
            self._refuse_distrusted()
            async with self._reads.guard():
                value = cast(bytes | None, await fetch(keys, args))
            self._refuse_distrusted()
            if value is None:
                return None
            answer = value[:-_SEAL_BYTES]
            if value[-_SEAL_BYTES:] == seal(key, answer):
                return answer
            is_lease = value.startswith(_LEASE)
            if is_lease:
                leases.add(value)
            if time.monotonic() > deadline or len(leases) > LEASES_AWAITED:
                raise RedisUnavailableError("The answer that another request is preparing did not come")
            if is_lease:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.05)
            else:  # cut, of another key, or not ours at all
                args[3:] = [value]

    async def store(self, key: str, lease: bytes, answer: bytes, expiration: int) -> None:
        """Keep the answer unless its lease was removed meanwhile; an empty answer gives the lease back."""
        value = answer + seal(key, answer) if answer else b""
        try:
            async with self._reads.guard():
                await self._reads.script(_STORE)([_INDEXES, key, _index(key)], [lease, value, expiration])
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
                    await self._remove(keys, patterns)
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

    async def _remove(self, keys: Iterable[str], patterns: Iterable[str]) -> None:
        left = [(_index(key), key, b"") for key in keys]
        for pattern in patterns:
            left += [(index, pattern, b"0") for index in await self._indexes_of(pattern)]
        remove = self._removals.script(_REMOVE)
        while left:
            now, left = left[:_AT_ONCE], left[_AT_ONCE:]
            indexes = [index for index, _, _ in now]
            cursors = await remove([_INDEXES, *indexes], [word for _, name, cursor in now for word in (name, cursor)])
            left += [
                (index, name, cursor)
                for (index, name, _), cursor in zip(now, cursors, strict=True)
                if cursor not in (b"", b"0")
            ]

    async def _indexes_of(self, pattern: str) -> list[str]:
        """The indexes that may list what the pattern matches: one, if it says which, or all."""
        start = _LITERAL_START.match(pattern)
        literal = re.sub(r"\\(.)", r"\1", start[0] if start else "")
        if ":" in literal:
            return [_index(literal)]
        return [name.decode() for name in await self._removals.client.zrange(_INDEXES, 0, -1)]


def _index(key: str) -> str:
    return _INDEX + key.partition(":")[0]


def seal(key: str, answer: bytes) -> bytes:
    """What follows the answer that is stored under this key, and says that this process or one like it stored it.

    White space, each a bit: what is stored is JSON as it was.
    """
    name = key.encode()
    message = b"%d:%b%b" % (len(name), name, answer)
    digest = hashlib.blake2b(message, key=_seal_key(), digest_size=_SEAL_BYTES // 8).digest()
    return f"{int.from_bytes(digest):0{_SEAL_BYTES}b}".encode().translate(_WHITE_SPACE)


@functools.cache
def _seal_key() -> bytes:
    return hashlib.blake2b(settings.secret_key.encode(), person=b"cached answers").digest()


store = CacheStore()


class CacheOptions:
    """What one use of `@cache` says, checked against its endpoint's signature."""

    def __init__(
        self,
        endpoint: Callable[..., Any],
        key_prefix: str,
        resource_id_name: str | None,
        resource_id_type: type,
        extra_keys: Mapping[str, str],
        extra_patterns: Iterable[str],
        expiration: int,
    ) -> None:
        self.endpoint = endpoint
        self.expiration = expiration
        self._hints = get_type_hints(endpoint)
        self._parameters = inspect.signature(endpoint).parameters
        self.request_name = self._find_request()
        id_name = resource_id_name or self._infer_id_name(resource_id_type)
        self.key_template = f"{key_prefix}:{{{id_name}}}"
        self.extra_key_templates = [f"{prefix}:{resource_id}" for prefix, resource_id in extra_keys.items()]
        self.extra_pattern_templates = list(extra_patterns)
        self.key_names = self._check_names(self.key_template)
        for template in self.extra_key_templates:
            self._check_names(template)
        self._pattern_names = {
            name for template in self.extra_pattern_templates for name in self._check_names(template)
        }

    def key(self, arguments: Mapping[str, Any]) -> str:
        return self.key_template.format_map(arguments)

    def keys(self, arguments: Mapping[str, Any]) -> list[str]:
        return [template.format_map(arguments) for template in (self.key_template, *self.extra_key_templates)]

    def patterns(self, arguments: Mapping[str, Any]) -> list[str]:
        escaped = {name: _escape(str(arguments[name])) for name in self._pattern_names}
        return [template.format_map(escaped) for template in self.extra_pattern_templates]

    @functools.cache  # noqa: B019  (one object for each decorated endpoint, alive as long as the process)
    def check_method(self, method: str) -> None:
        """Refuse what cannot work on a GET endpoint."""
        if method != "GET":
            return
        if self.extra_key_templates or self.extra_pattern_templates:
            raise InvalidRequestError(
                f"{self.endpoint.__name__}: to_invalidate_extra and pattern_to_invalidate_extra do not work on GET"
            )
        if looks_at_caller(get_dependant(path="/", call=self.endpoint)):
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


def _escape(value: str) -> str:
    return value if value.isalnum() else _GLOB.sub(r"\\\1", value)


def looks_at_caller(dependant: Dependant) -> bool:
    return (
        isinstance(dependant.call, SecurityBase)
        or bool(dependant.header_params or dependant.cookie_params)
        or any(map(looks_at_caller, dependant.dependencies))
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
        options = CacheOptions(
            endpoint,
            key_prefix,
            resource_id_name,
            resource_id_type,
            to_invalidate_extra or {},
            pattern_to_invalidate_extra or (),
            expiration,
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

        wrapper.cache_options = options  # type: ignore[attr-defined]  # read by cache_options
        return wrapper

    return decorator


def do_not_store(request: Request) -> None:
    """Let the endpoint that runs under `@cache` answer with what is not worth keeping, such as an empty page."""
    request.scope[_NOT_STORED] = True


def prepare_cached_route(route: APIRoute) -> None:
    """Raise InvalidRequestError when `@cache` on the route's endpoint cannot work for its methods; let it serve what is
    stored before FastAPI reads and checks the request, where that can be told from the URL.
    """
    options = cache_options(route)
    if options is None:
        return
    for method in route.methods or ():
        options.check_method(method)
    if "GET" in (route.methods or ()):
        _check_answer(route)
    # A dependency may refuse a request, or count it; a reader does nothing.
    is_plain = all(each.call is get_reader for each in route.dependant.dependencies) and route.body_field is None
    if route.methods == {"GET"} and is_plain:
        route.app = _KnownUrls(route.app, options.expiration, route.status_code)


def _check_answer(route: APIRoute) -> None:
    """Refuse answers of which the stored bytes are not all, or not what a route without a cache would send."""
    answers = route.response_class
    answers = answers.value if isinstance(answers, DefaultPlaceholder) else answers
    fault = None
    if not is_body_allowed_for_status_code(route.status_code):
        fault = f"an answer of status {route.status_code} has no body that could be stored"
    elif not issubclass(answers, JSONResponse):
        fault = f"@cache stores JSON, but the route answers with {answers.__name__}"
    elif route.dependant.response_param_name is not None:
        fault = "what it sets on its `Response` would be lost where the answer is stored"
    if fault is not None:
        raise InvalidRequestError(f"{route.name}: {fault}")


class _KnownUrls:
    """Remembers under which key what was asked for by a URL is stored, and serves that to the next who asks so."""

    AT_MOST = 4096
    MAX_LENGTH = 200

    def __init__(self, app: ASGIApp, expiration: int, status: int | None) -> None:
        self._app = app
        self._expiration = expiration
        self._status = status or 200
        self._keys: dict[tuple[str, bytes], str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        url = scope["path"], scope["query_string"]
        key = self._keys.get(url)
        if key is not None and store.is_open:
            body, scope[_LEASE_TAKEN] = await _look_up(key, self._expiration)
            if body is not None:
                await _answer(body, self._status)(scope, receive, send)
                return
        await self._app(scope, receive, send)
        if key is None and _KEY in scope and sum(map(len, url)) <= self.MAX_LENGTH:
            if len(self._keys) >= self.AT_MOST:
                self._keys.clear()
            self._keys[url] = scope[_KEY]


def cache_options(route: APIRoute) -> CacheOptions | None:
    """What `@cache` on the route's endpoint says, if it is there."""
    options = getattr(route.endpoint, "cache_options", None)
    return options if isinstance(options, CacheOptions) else None


async def _look_up(key: str, expiration: int) -> tuple[bytes | None, bytes]:
    """What is stored under the key, and the lease under which it may be; none while the cache cannot be used."""
    lease = store.new_lease()
    try:
        return await store.fetch(key, lease, expiration), lease
    except RedisUnavailableError:
        return None, b""


async def _serve(key: str, expiration: int, request: Request, endpoint: Callable[[], Awaitable[Any]]) -> Any:
    if _LEASE_TAKEN in request.scope:
        body, lease = None, request.scope[_LEASE_TAKEN]
    else:
        body, lease = await _look_up(key, expiration)
    if not lease:
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
    request.scope[_KEY] = key
    return _answer(body, cast(APIRoute, request.scope["route"]).status_code or 200)


def _answer(body: bytes, status: int) -> Response:
    return Response(body, status, media_type="application/json")


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
