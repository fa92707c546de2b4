import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import logger as module
from app.core.logger import KeyValueFormatter, request_id, setup_logging

FORMAT = "%(levelname)s %(name)s %(message)s"


def formatted(message: str, **extra: object) -> str:
    record = logging.getLogger("app.test").makeRecord("app.test", logging.INFO, "", 0, message, (), None, extra=extra)
    return KeyValueFormatter(FORMAT).format(record)


@pytest.fixture
def log_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A temporary log file; the logger is restored after the test."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "LOG_FILE", tmp_path / "logs" / "app.log")
        yield module.LOG_FILE
    setup_logging()


class TestFormat:
    def test_values_stand_apart(self) -> None:
        assert formatted("something happened", path="/a b", number=3) == (
            'INFO app.test something happened path="/a b" number=3'
        )

    def test_value_cannot_forge_a_line(self) -> None:
        line = formatted("event", name_given='x"\nERROR app forged')
        assert "\n" not in line
        assert json.loads(line.partition("name_given=")[2]) == 'x"\nERROR app forged'

    def test_value_that_json_does_not_know(self) -> None:
        assert formatted("event", where=Path("/tmp")) == 'INFO app.test event where="/tmp"'  # noqa: S108

    def test_names_the_request(self) -> None:
        token = request_id.set("abc")
        try:
            assert formatted("event") == 'INFO app.test event request_id="abc"'
        finally:
            request_id.reset(token)

    def test_traceback_stands_below(self) -> None:
        try:
            int("no")
        except ValueError:
            record = logging.LogRecord("app", logging.ERROR, "", 0, "failed", (), sys.exc_info())
        record.path = "/x"
        first, second, *_, last = KeyValueFormatter(FORMAT).format(record).split("\n")
        assert first == 'ERROR app failed path="/x"'
        assert (second, last) == (
            "Traceback (most recent call last):",
            "ValueError: invalid literal for int() with base 10: 'no'",
        )


class TestFile:
    def test_gets_what_the_console_gets(self, log_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
        setup_logging()
        logging.getLogger("app.test").warning("event", extra={"path": "/x"})
        logging.getLogger("app.test").debug("detail")
        [line] = log_file.read_text().splitlines()
        assert line.endswith('WARNING app.test event path="/x"')

    def test_importing_writes_none(self, log_file: Path) -> None:
        assert not log_file.exists()

    def test_large_one_is_set_aside(self, log_file: Path) -> None:
        log_file.parent.mkdir()
        with log_file.open("wb") as file:
            file.truncate(module.MAX_BYTES + 1)
        setup_logging()
        assert log_file.stat().st_size == 0
        assert log_file.with_suffix(".log.1").stat().st_size == module.MAX_BYTES + 1

    def test_smaller_one_is_appended_to(self, log_file: Path) -> None:
        log_file.parent.mkdir()
        log_file.write_text("earlier\n")
        setup_logging()
        logging.getLogger("app.test").info("event")
        assert log_file.read_text().startswith("earlier\n")
        assert log_file.read_text().endswith("INFO app.test event\n")

    def test_is_followed_when_it_is_moved_away(self, log_file: Path) -> None:
        setup_logging()
        log_file.rename(log_file.with_suffix(".old"))
        logging.getLogger("app.test").info("event")
        assert "event" in log_file.read_text()

    def test_console_alone_where_it_cannot_be_written(self, log_file: Path) -> None:
        log_file.parent.write_text("a file where the folder should be")
        setup_logging()
        assert [type(handler) for handler in logging.getLogger("app").handlers] == [logging.StreamHandler]
        assert os.path.isfile(log_file.parent)  # noqa: PTH113
