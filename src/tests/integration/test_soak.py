"""The checks of `make soak`: they pass on a correct service, and fail on a faulty one."""

import asyncio
import time

import httpx
import pytest
from fastapi import FastAPI

from soak import faults, load, resources
from soak.__main__ import schedule
from soak.load import Api, User
from soak.report import BOUND_SECONDS, CALM, Report
from tests.helper import running


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


async def live(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, reads: int = 200) -> Report:
    """Run three users until they have checked `reads` reads; return their report."""
    moths = "/api/v1/{username}/moths"
    needs = {action: moths if path == resources.POSTS else path for action, path in load.NEEDS.items()}
    monkeypatch.setattr(load, "NEEDS", needs)
    monkeypatch.setattr(resources, "POSTS", moths)
    monkeypatch.setattr(resources, "POST", "/api/v1/{username}/moth")
    monkeypatch.setattr(load, "THINK_SECONDS", 0)
    monkeypatch.setattr(load, "WRITES", dict.fromkeys(load.WRITES, 1))
    report, end, crowd = Report(0), asyncio.Event(), list[User]()
    crowd += [User(number, Api(client, report, [moths]), crowd) for number in range(3)]
    async with running(*(user.live(end) for user in crowd)) as lives:
        async with asyncio.timeout(60):
            while report.reads < reads:  # noqa: ASYNC110  (the users increment the counter)
                await asyncio.sleep(0.01)
        end.set()
        await asyncio.gather(*lives)
    return report


class TestUsers:
    async def test_find_nothing_wrong(self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        report = await live(client, monkeypatch)
        assert report.details == []

    async def test_see_a_cache_that_is_not_invalidated(
        self, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def forget(*_: object) -> None: ...

        monkeypatch.setattr(app.state.resources.cache, "remove", forget)
        report = await live(client, monkeypatch)
        assert report.broken["stale reads"] > 0

    async def test_leave_out_what_the_service_does_not_have(
        self, app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load, "THINK_SECONDS", 0)
        report = Report(0)
        user = User(0, Api(client, report, []), [])
        assert {User.read_me, User.rename} <= user.actions.keys()
        assert not user.actions.keys() & load.NEEDS.keys()
        await user.sign_up(user.name)
        await user.sign_in()
        for action in (User.rename, User.sign_up_and_leave, User.settle):
            await action(user)
        assert report.details == []
        assert len(resources.left_out([])) == 2
        assert resources.left_out(resources.NEEDS) == []

    @pytest.mark.parametrize(("passed", "hits"), [(True, 5), (False, 4)])
    def test_see_a_limit_that_is_another(self, client: httpx.AsyncClient, passed: bool, hits: int) -> None:
        user = User(0, Api(client, Report(0), []), [])
        now = time.monotonic()
        user.hits.extend([(now, now, True)] * (hits - 1 if passed else hits + 1))
        user.check_limit(now, now, passed)
        assert not user.api.report.broken
        user.hits.clear()
        user.hits.extend([(now, now, True)] * hits)
        user.check_limit(now, now, passed)
        assert user.api.report.broken["wrong limits"] == 1


class TestReport:
    def answer(self, report: Report, status: int | None, *, wait: float = 0) -> dict[str, int]:
        report.answered("GET /", time.monotonic() - wait, status, [200], ["queue"])
        return dict(report.broken)

    def test_answers_that_a_fault_excuses(self) -> None:
        report = Report(0)
        assert self.answer(report, 503) == {"unexpected answers": 1}
        report.goes_away("queue")
        assert self.answer(report, 503) == {"unexpected answers": 1}
        assert self.answer(report, 500) == {"unexpected answers": 2}
        assert self.answer(report, None) == {"unexpected answers": 3}
        report.goes_away("gunicorn")
        assert self.answer(report, None) == {"unexpected answers": 3}

    def test_slow_answers(self) -> None:
        report = Report(0)
        assert self.answer(report, 200, wait=BOUND_SECONDS - 1) == {}
        assert self.answer(report, 200, wait=BOUND_SECONDS + 1) == {"slow answers": 1}

    def test_table(self) -> None:
        report = Report(0)
        self.answer(report, 200)
        report.enter("a fault")
        self.answer(report, 404)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.table().splitlines()]
        assert [row[0] for row in rows if not row[0].startswith("-")] == ["phase", CALM, "a fault", "all"]
        total = dict(zip(rows[0], rows[-1], strict=True))
        assert (total["2xx"], total["4xx"], total["500"]) == ("1", "1", "0")


def test_every_server_fails_in_the_short_form_too() -> None:
    assert {fault.role for fault in schedule(60)[0]} == {fault.role for fault in faults.ALL}
    assert len(schedule(60)[0]) * schedule(60)[1] < 60
    assert {fault.name for fault in schedule(1200)[0]} == {fault.name for fault in faults.ALL}
    assert len(schedule(1200)[0]) * schedule(1200)[1] < 1200
