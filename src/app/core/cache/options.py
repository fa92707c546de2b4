"""The arguments of one `@cache`, checked against the signature of its endpoint."""

import functools
import inspect
import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant
from fastapi.security.base import SecurityBase

from app.core.exceptions import CacheIdentificationInferenceError, InvalidRequestError

ONLY_ONE = "all"  # the resource id of an endpoint without path and query parameters, such as a short list
_GLOB = re.compile(r"([*?\[\]\\])")


class CacheOptions:
    """The keys and patterns of one decorated endpoint. Raises InvalidRequestError for arguments that cannot work."""

    def __init__(
        self,
        endpoint: Callable[..., Any],
        key_prefix: str,
        resource_id_name: str | None,
        resource_id_type: type,
        extra_keys: Mapping[str, str],
        extra_patterns: Iterable[str] | None,
    ) -> None:
        self.endpoint = endpoint
        if not inspect.iscoroutinefunction(endpoint):
            raise InvalidRequestError(f"{endpoint.__name__}: @cache needs an `async def`")
        if isinstance(extra_patterns, str):
            raise InvalidRequestError(f"{endpoint.__name__}: pattern_to_invalidate_extra is a list of patterns")
        self._hints = get_type_hints(endpoint)
        self._parameters = inspect.signature(endpoint).parameters
        requests = [name for name, hint in self._hints.items() if isinstance(hint, type) and issubclass(hint, Request)]
        if not requests:
            raise InvalidRequestError(f"{endpoint.__name__}: @cache needs the parameter `request: Request`")
        self.request_name = requests[0]
        if resource_id_name is None and not takes_parameters(get_dependant(path="/", call=endpoint)):
            self.key_template = f"{key_prefix}:{ONLY_ONE}"
        else:
            self.key_template = f"{key_prefix}:{{{resource_id_name or self._infer_id_name(resource_id_type)}}}"
        self.extra_key_templates = [f"{prefix}:{resource_id}" for prefix, resource_id in extra_keys.items()]
        # A list may grow until the first request: modules that are imported later may add patterns of their own.
        self.extra_pattern_templates = extra_patterns if isinstance(extra_patterns, list) else [*(extra_patterns or ())]
        self.key_names = self._check_names(self.key_template)
        for template in (*self.extra_key_templates, *self.extra_pattern_templates):
            self._check_names(template)

    def key(self, arguments: Mapping[str, Any]) -> str:
        return self.key_template.format_map(arguments)

    def keys(self, arguments: Mapping[str, Any]) -> list[str]:
        return [template.format_map(arguments) for template in (self.key_template, *self.extra_key_templates)]

    def patterns(self, arguments: Mapping[str, Any]) -> list[str]:
        names = {name for template in self.extra_pattern_templates for name in self._check_names(template)}
        escaped = {name: _GLOB.sub(r"\\\1", str(arguments[name])) for name in names}
        return [template.format_map(escaped) for template in self.extra_pattern_templates]

    @functools.cache  # noqa: B019  (one object per decorated endpoint, alive as long as the process)
    def check_method(self, method: str) -> None:
        """Raise InvalidRequestError for options that cannot work on a GET endpoint."""
        fault = None
        if method == "GET" and (self.extra_key_templates or self.extra_pattern_templates):
            fault = "to_invalidate_extra and pattern_to_invalidate_extra do not work on GET"
        elif method == "GET" and depends_on_caller(get_dependant(path="/", call=self.endpoint)):
            fault = "its answer may depend on who asks, and @cache would give it to everybody"
        if fault is not None:
            raise InvalidRequestError(f"{self.endpoint.__name__}: {fault}")

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


def depends_on_caller(dependant: Dependant) -> bool:
    """Tell whether the endpoint or a dependency reads headers, cookies or credentials."""
    return (
        isinstance(dependant.call, SecurityBase)
        or bool(dependant.header_params or dependant.cookie_params)
        or any(map(depends_on_caller, dependant.dependencies))
    )


def takes_parameters(dependant: Dependant) -> bool:
    """Tell whether the endpoint or a dependency takes path or query parameters."""
    return bool(dependant.path_params or dependant.query_params) or any(map(takes_parameters, dependant.dependencies))
