"""Finds GET routes under `@cache` whose answers grow stale, or are given to whoever asked something else.

It knows what the routes say; what a job removes by hand it does not see.
"""

import dis
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import pairwise
from types import CodeType
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.core.cache import CacheOptions, cache_options, looks_at_caller

_ANY_VALUE = defaultdict[str, str](lambda: "\N{REPLACEMENT CHARACTER}")
_CALLER = {"auth", "client", "cookies", "headers", "session", "user"}
_QUESTION = {"base_url", "path_params", "query_params", "url"}


def find_cache_faults(routes: Iterable[BaseRoute]) -> list[str]:
    """Return one sentence for each fault, which says what to do about it."""
    cached = [
        (route, options)
        for route in routes
        if isinstance(route, APIRoute) and (options := cache_options(route)) is not None
    ]
    writes = [options for route, options in cached if (route.methods or set()) - {"GET", "HEAD"}]
    faults = []
    for route, options in cached:
        if "GET" in (route.methods or ()):
            faults += [f"GET {route.path}: {fault}" for fault in _faults(route, options, writes)]
    return faults


def _faults(route: APIRoute, options: CacheOptions, writes: Iterable[CacheOptions]) -> Iterator[str]:
    key = options.key_template
    if not any(_removes(write, key) for write in writes):
        yield (
            f"no route that writes removes what is stored under {key!r}; name it, or a pattern that matches it, in the "
            "@cache of the routes that change what is shown"
        )
    dependant = get_dependant(path=route.path, call=options.endpoint)
    for name in _missing(dependant, options.key_names):
        yield (
            f"the answer may depend on {name!r}, which is not in the key {key!r}; make it a parameter of the endpoint "
            f"and put {{{name}}} into the key"
        )
    if looks_at_caller(dependant):
        yield "the answer may depend on who asks, and is given to everybody; take @cache away"
        return
    for looker, attribute in _looks_at_request(dependant):
        part = "who asks" if attribute in _CALLER else "what its key does not name"
        yield (
            f"{looker} looks at request.{attribute}, so the answer may depend on {part}; declare a parameter instead, "
            "and put it into the key"
        )


def _removes(write: CacheOptions, key: str) -> bool:
    """Whether the write ends what is stored under the key, whatever stands for their placeholders."""
    filled = key.format_map(_ANY_VALUE)
    if filled in {template.format_map(_ANY_VALUE) for template in (write.key_template, *write.extra_key_templates)}:
        return True
    patterns = [template.format_map(_ANY_VALUE) for template in write.extra_pattern_templates]
    # As Redis writes them, which differs in two things from `fnmatch`.
    return any(fnmatchcase(filled, re.sub(r"\\(.)", r"[\1]", pattern).replace("[^", "[!")) for pattern in patterns)


def _missing(dependant: Dependant, names: Collection[str]) -> Iterator[str]:
    """The parameters of the path, the query and the body that are not in the key, those of dependencies among them.

    A dependency whose own value is in the key needs nothing else there.
    """
    fields = [*dependant.path_params, *dependant.query_params, *dependant.body_params]
    in_key = {field.alias for field in fields if field.name in names}
    pending = [dependant]
    found: dict[str, str] = {}
    while pending:
        each = pending.pop()
        for field in (*each.path_params, *each.query_params, *each.body_params):
            if field.alias not in in_key:
                found[field.alias] = field.name
        pending += [inner for inner in each.dependencies if each is not dependant or inner.name not in names]
    yield from found.values()


def _looks_at_request(dependant: Dependant) -> Iterator[tuple[str, str]]:
    """Which function reads which attribute of the request itself, as far as its own instructions show it."""
    request_name = dependant.request_param_name or dependant.http_connection_param_name
    function = _function_of(dependant.call)
    if request_name is not None and function is not None:
        looked_at = {
            second.argval
            for code in _codes(function.__code__)
            for first, second in pairwise(dis.get_instructions(code))
            if second.opname in {"LOAD_ATTR", "LOAD_METHOD"} and _loads(first, request_name)
        }
        for attribute in sorted(looked_at & (_CALLER | _QUESTION)):
            yield function.__qualname__, attribute
    for inner in dependant.dependencies:
        yield from _looks_at_request(inner)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Its own, and those of the functions and generator expressions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _loads(instruction: dis.Instruction, name: str) -> bool:
    last = instruction.argval[-1] if isinstance(instruction.argval, tuple) else instruction.argval  # two in one: 3.13
    return instruction.opname.startswith("LOAD_") and last == name


def _function_of(call: Callable[..., Any] | None) -> Any:
    """Whose instructions run when FastAPI calls this; None if they are not Python's."""
    function: Any = call
    if not inspect.isroutine(call):
        function = call.__init__ if inspect.isclass(call) else type(call).__call__
    function = inspect.unwrap(function)
    return function if hasattr(function, "__code__") else None
