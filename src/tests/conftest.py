"""Start the servers before any module imports the application. The fixtures are in `tests/fixtures.py`."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.core import logger
from scripts.servers import throw_away_servers
from tests.environment import choose_databases, make_template, reset_settings

pytest.register_assert_rewrite(
    "tests.factories", "tests.fixtures", "tests.helper", "tests.in_between", "tests.specimen"
)

_exit_stack = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        reset_settings()
        os.environ.update(_exit_stack.enter_context(throw_away_servers()))
        make_template()
        if getattr(config.option, "dist", "no") != "no":
            return  # this process only distributes the tests
    choose_databases(os.environ.get("PYTEST_XDIST_WORKER", "main"))
    folder = _exit_stack.enter_context(tempfile.TemporaryDirectory())
    logger.LOG_FILE = Path(folder) / "app.log"
    config.pluginmanager.import_plugin("tests.fixtures")
    config.pluginmanager.import_plugin("tests.in_between")


def pytest_unconfigure() -> None:
    _exit_stack.close()
