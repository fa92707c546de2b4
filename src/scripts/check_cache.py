"""Find GET routes with `@cache` whose answers grow stale, or depend on more than their key: `python -m
scripts.check_cache` prints one line for each fault, and then has the exit status 1.

It knows what routes declare and what their functions read from the request; jobs that remove keys are unknown to it.
"""

import ast
import functools
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from types import FunctionType
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import APIRoute, iter_route_contexts

from app.core.cache.decorator import cache_options
from app.core.cache.options import CacheOptions, depends_on_caller
from app.main import app

_ANY_VALUE = defaultdict[str, str](lambda: "\N{REPLACEMENT CHARACTER}")
_CALLER = {"auth", "client", "cookies", "headers", "session", "user"}
_URL = {"base_url", "path_params", "query_params", "url"}


def find_cache_faults(application: FastAPI) -> list[str]:
    """Return one sentence for each fault, which says what to do about it."""
    cached = [
        (f"GET {context.path}", context.original_route, options)
        for context in iter_route_contexts(application.routes)
        if isinstance(context.original_route, APIRoute)
        and (options := cache_options(context.original_route)) is not None
    ]
    writes = [options for _, route, options in cached if (route.methods or set()) - {"GET", "HEAD"}]
    return [
        f"{name}: {fault}"
        for name, route, options in cached
        if "GET" in (route.methods or ())
        for fault in _faults(route, options, writes)
    ]


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
    if depends_on_caller(dependant):
        yield "the answer may depend on who asks, and is given to everybody; take @cache away"
        return
    for reader, attribute in _request_reads(dependant):
        part = "who asks" if attribute in _CALLER else "what its key does not name"
        yield (
            f"{reader} looks at request.{attribute}, so the answer may depend on {part}; declare a parameter instead, "
            "and put it into the key"
        )


def _removes(write: CacheOptions, key: str) -> bool:
    """Whether the write removes the key, whatever values are filled in."""
    filled = key.format_map(_ANY_VALUE)
    if filled in {template.format_map(_ANY_VALUE) for template in (write.key_template, *write.extra_key_templates)}:
        return True
    patterns = [template.format_map(_ANY_VALUE) for template in write.extra_pattern_templates]
    # Redis patterns differ from those of `fnmatch` in escapes and in negated sets.
    return any(fnmatchcase(filled, re.sub(r"\\(.)", r"[\1]", pattern).replace("[^", "[!")) for pattern in patterns)


def _missing(dependant: Dependant, names: Collection[str]) -> Iterator[str]:
    """The path, query and body parameters that are not in the key, those of dependencies included.

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


def _request_reads(dependant: Dependant) -> Iterator[tuple[str, str]]:
    """Which function reads which attribute of the request, as far as its own source shows it."""
    request_name = dependant.request_param_name or dependant.http_connection_param_name
    for function in _functions_of(dependant.call) if request_name is not None else ():
        attributes = {
            node.attr
            for statement in _body_of(function)
            for node in ast.walk(statement)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and isinstance(node.value, ast.Name)
            and node.value.id == request_name
        }
        for attribute in sorted(attributes & (_CALLER | _URL)):
            yield function.__qualname__, attribute
    for inner in dependant.dependencies:
        yield from _request_reads(inner)


def _functions_of(call: Callable[..., Any] | None) -> Iterator[FunctionType]:
    """The Python functions that run when FastAPI calls this: a decorator's wrapper, then the function it wraps."""
    function: Any = call
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = function.__init__ if inspect.isclass(function) else type(function).__call__
    while function is not None:
        function = getattr(function, "__func__", function)  # of a method
        if isinstance(function, FunctionType):
            yield function
        function = getattr(function, "__wrapped__", None)


def _body_of(function: FunctionType) -> list[ast.AST]:
    """The syntax trees of its body; none for a function without source, such as the `__init__` of a dataclass."""
    code = function.__code__
    try:
        # The whole file: the lines of a lambda, or of a function with an unindented text, may be no valid source.
        tree = ast.parse("".join(inspect.findsource(code)[0]))
    except (OSError, TypeError, SyntaxError, ValueError):
        return []
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            if (node.lineno, "<lambda>") == (code.co_firstlineno, code.co_name):
                found.append(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(each.lineno for each in (*node.decorator_list, node))
            if (first, node.name) == (code.co_firstlineno, code.co_name):
                found += node.body
    return found


def main() -> int:
    faults = find_cache_faults(app)
    print(*faults or ["no fault found in the uses of @cache"], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
