"""Random operations on two processes with one cache and on a model: each read equals the model."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis import Redis

from scripts.servers import HOST, Valkey
from tests.factories import PASSWORD
from tests.fixtures import RunServer
from tests.integration.own_app import sealed
from tests.integration.test_faults import NO_LIMITS
from tests.specimen.main import SPECIMEN

pytestmark = pytest.mark.drill

API = "/api/v1"
NAMES = ["ann", "bob", "cem"]
POSTS_READ = 5
ANY = st.integers(0, 59)
"""An index into a list, taken modulo its length."""
Made = TypeVar("Made")


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


def choose(things: Sequence[Made], which: int) -> Made:
    return things[which % len(things)]


@dataclass
class Blog:
    """The expected state of a user."""

    name: str
    headers: dict[str, str]
    moths: dict[int, str] = field(default_factory=dict)
    """Titles by id."""


class Service(RuleBasedStateMachine):
    clients: ClassVar[list[httpx.Client]]
    cache: ClassVar["Redis"]
    admin: ClassVar[dict[str, str]]
    served: ClassVar[int] = 0
    """The number of answers that can be stored."""
    _numbers = count()

    @initialize()
    def begin(self) -> None:
        # Other users of an example may reuse a name; the next example may not.
        suffix = f"x{next(self._numbers)}"
        self.names = [name + suffix for name in NAMES]
        self.taken: set[str] = set()
        self.living: dict[str, Blog] = {}
        self.moth_ids: list[int] = []
        self.through = 0
        for which in (0, 1):
            self.sign_up(which, which)
            self.create(which, 0)

    # -------- writing --------
    @rule(
        what=st.lists(
            st.sampled_from(["create", "patch", "delete", "hard_delete", "rename", "delete_user", "sign_up"]),
            min_size=1,
            max_size=3,
        ),
        through=st.integers(0, 1),
        who=ANY,
        which=ANY,
    )
    def write(self, what: list[str], through: int, who: int, which: int) -> None:
        """Make some writes through one of the two processes; the next reads go to the other."""
        self.through = through
        for each in what:
            if self.living or each == "sign_up":
                getattr(self, each)(who, which)
        self.through = 1 - through

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.clients[self.through].request(method, f"{API}/{path}", **options)

    def sign_up(self, who: int, which: int) -> None:
        name = choose(self.names, which)
        email = f"{next(self._numbers)}@example.com"
        body = {"name": "Some User", "username": name, "email": email, "password": PASSWORD}
        status = self.ask("POST", "user", json=body).status_code
        assert status == (409 if name in self.taken else 201)
        if status == 201:
            answer = self.ask("POST", "login", data={"username": name, "password": PASSWORD})
            self.taken.add(name)
            self.living[name] = Blog(name, {"Authorization": f"Bearer {answer.json()['access_token']}"})

    def create(self, who: int, which: int) -> None:
        blog = self.blog(who)
        body = {"title": f"title {next(self._numbers)}", "text": "text"}
        answer = self.ask("POST", f"{blog.name}/moth", json=body, headers=blog.headers)
        assert answer.status_code == 201
        self.moth_ids.append(answer.json()["id"])
        blog.moths[self.moth_ids[-1]] = body["title"]

    def patch(self, who: int, which: int) -> None:
        blog, moth_id = self.blog(who), choose(self.moth_ids, which)
        body = {"title": f"title {next(self._numbers)}"}
        answer = self.ask("PATCH", f"{blog.name}/moth/{moth_id}", json=body, headers=blog.headers)
        assert answer.status_code == (200 if moth_id in blog.moths else 404)
        if moth_id in blog.moths:
            blog.moths[moth_id] = body["title"]

    def delete(self, who: int, which: int) -> None:
        blog, moth_id = self.blog(who), choose(self.moth_ids, which)
        answer = self.ask("DELETE", f"{blog.name}/moth/{moth_id}", headers=blog.headers)
        assert answer.status_code == (200 if moth_id in blog.moths else 404)
        blog.moths.pop(moth_id, None)

    def hard_delete(self, who: int, which: int) -> None:
        blog, moth_id = self.blog(who), choose(self.moth_ids, which)
        answer = self.ask("DELETE", f"{blog.name}/db_moth/{moth_id}", headers=self.admin)
        assert answer.status_code == 200 or moth_id not in blog.moths  # a repeated deletion
        blog.moths.pop(moth_id, None)

    def rename(self, who: int, which: int) -> None:
        blog, name = self.blog(who), choose(self.names, which)
        if name != blog.name:
            answer = self.ask("PATCH", f"user/{blog.name}", json={"username": name}, headers=blog.headers)
            assert answer.status_code == (409 if name in self.taken else 200)
            if name not in self.taken:
                self.forget(blog)
                blog.name = name
                self.living[name] = blog
                self.taken.add(name)

    def delete_user(self, who: int, which: int) -> None:
        blog = self.blog(who)
        path, headers = choose([("user", blog.headers), ("db_user", self.admin)], which)
        assert self.ask("DELETE", f"{path}/{blog.name}", headers=headers).status_code == 200
        self.forget(blog)
        if path == "user":
            self.taken.add(blog.name)

    def blog(self, who: int) -> Blog:
        return choose(list(self.living.values()), who)

    def forget(self, blog: Blog) -> None:
        """Remove the blog from the model, and free its name."""
        del self.living[blog.name]
        self.taken.remove(blog.name)

    # -------- reading --------
    @invariant()
    def all_is_as_it_should_be(self) -> None:
        for name in self.names:
            for page, size in ((1, 10), (2, 1)):
                self.read_moths(name, page, size)
            for moth_id in self.moth_ids[-POSTS_READ:]:
                self.read_moth(name, moth_id)

    def read_moths(self, name: str, page: int, size: int) -> None:
        blog = self.living.get(name)
        answer = self.ask("GET", f"{name}/moths?page={page}&items_per_page={size}")
        if blog is None:
            assert answer.status_code == 404
            return
        shown = list(blog.moths.items())[(page - 1) * size : page * size]
        body = answer.json()
        assert [(moth["id"], moth["title"]) for moth in body["data"]] == shown
        assert body["total_count"] == len(blog.moths)
        if shown:
            self.look_for(answer)

    def read_moth(self, name: str, moth_id: int) -> None:
        blog = self.living.get(name)
        answer = self.ask("GET", f"{name}/moth/{moth_id}")
        if blog is None or moth_id not in blog.moths:
            assert answer.status_code == 404
            return
        assert answer.json()["title"] == blog.moths[moth_id]
        self.look_for(answer)

    def look_for(self, answer: httpx.Response) -> None:
        """Assert that the cache holds this answer for the next request."""
        type(self).served += 1
        keys = [key.decode() for key in self.cache.scan_iter(_type="string")]
        assert any(self.cache.get(key) == sealed(key, answer.content) for key in keys)

    # -------- the cache's own --------
    @rule(which=ANY, damage=st.sampled_from([None, b"", b'{"title":"foreign"}', b'{"data":[]}', b"\x00"]))
    def lose_or_damage_a_key(self, which: int, damage: bytes | None) -> None:
        keys = sorted(self.cache.scan_iter())
        if keys and damage is None:
            self.cache.delete(choose(keys, which))
        elif keys:
            self.cache.set(choose(keys, which), damage or b"")

    @rule()
    def lose_all(self) -> None:
        self.cache.flushall()


@pytest.fixture
async def clients(tmp_path: Path, run_server: RunServer, superuser_headers: dict[str, str]) -> AsyncIterator[None]:
    with Valkey(tmp_path / "valkey") as valkey:
        environment = {**NO_LIMITS, **valkey.environment("CACHE"), "REDIS_CACHE_DB": "0"}
        servers = await asyncio.gather(*(run_server(app=SPECIMEN, environment=environment) for _ in range(2)))
        Service.admin = superuser_headers
        with ExitStack() as stack:
            Service.cache = stack.enter_context(closing(Redis(host=HOST, port=valkey.port)))
            Service.clients = [
                stack.enter_context(httpx.Client(base_url=server.url, trust_env=False)) for server in servers
            ]
            yield


@pytest.mark.usefixtures("clients")
async def test_each_read_equals_the_model() -> None:
    bounds = settings(
        max_examples=20,
        stateful_step_count=15,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    Service.served = 0
    await asyncio.to_thread(run_state_machine_as_test, Service, settings=bounds)
    assert Service.served > 300
