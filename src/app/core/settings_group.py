"""How settings are read, and how wrong ones end the process. `config.py` says which settings there are."""

import os
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AfterValidator, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

SRC = Path(__file__).resolve().parents[2]


class SettingsGroup(BaseSettings):
    """Base of the groups: reads the environment, then `src/.env`, then `.env` beside `src`.

    Empty values and those that begin with `#` are absent: Docker Compose takes a comment after `NAME=` for the value.
    ENV_FILE in the environment names another file instead; empty: no file, as in the tests.
    """

    model_config = SettingsConfigDict(
        env_file=os.environ["ENV_FILE"] or None if "ENV_FILE" in os.environ else (SRC.parent / ".env", SRC / ".env"),
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        case_sensitive=True,
        hide_input_in_errors=True,
        defer_build=True,  # only the combined class is used
    )

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[Any, ...]:
        for source in (sources["env_settings"], sources["dotenv_settings"]):
            values = source.env_vars.items()
            source.env_vars = {name: value for name, value in values if re.match(r"\s*[^\s#]", value or "")}
        return tuple(sources.values())


def comma_separated(value: str) -> list[str]:
    """Return the parts of a comma-separated setting."""
    return [name for name in map(str.strip, value.split(",")) if name]


def each_matches(pattern: str, accepted: str) -> AfterValidator:
    """Check each part of a comma-separated setting; `accepted` says in the error what a part may be."""

    def check(value: str) -> str:
        if not all(re.fullmatch(pattern, name) for name in comma_separated(value)):
            raise ValueError(f"only {accepted} are accepted")
        return value

    return AfterValidator(check)


AnySettings = TypeVar("AnySettings", bound=SettingsGroup)


def load(settings_class: type[AnySettings], *needed: type[SettingsGroup]) -> AnySettings:
    """Read settings that have these groups, or end the process with one line for each variable that is refused."""
    try:
        settings = settings_class()
    except ValidationError as error:
        lines = [": ".join([*map(str, item["loc"]), item["msg"]]) for item in error.errors(include_input=False)]
    except UnicodeDecodeError as error:
        lines = [f".env or src/.env is not UTF-8 ({error.reason})"]
    except OSError as error:
        lines = [f".env or src/.env cannot be read ({error.strerror})"]
    else:
        require(settings, *needed)
        return settings
    raise _refusal(lines)


def require(settings: SettingsGroup, *groups: type[SettingsGroup]) -> None:
    """End the process with one line for each of these groups that the settings lack."""
    missing = [group.__name__ for group in groups if not isinstance(settings, group)]
    if missing:
        raise _refusal([f"{name} is needed here: let the class Settings inherit it" for name in missing])


def _refusal(lines: list[str]) -> SystemExit:
    message = "\n  ".join(["Settings refused, the service does not start:", *lines])
    if "gunicorn.arbiter" not in sys.modules:
        return SystemExit(message)
    print(message, file=sys.stderr)  # noqa: T201
    return SystemExit(3)  # gunicorn stops instead of starting another worker
