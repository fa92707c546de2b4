"""Two processes and one cache, driven at random beside a model of what is to be seen: each read equals the model."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from scripts.servers import HOST, Valkey
from tests.factories import PASSWORD
from tests.fixtures import RunServer
from tests.integration.own_app import sealed
from tests.integration.test_faults import NO_LIMITS

API = "/api/v1"
EITHER = st.integers(0, 1)
NAMES = st.sampled_from(["ann", "bob", "cem"])


@dataclass
class Blog:
    """What there is to be seen of a user; `name` is None once deleted."""

    name: str | None
    headers: dict[str, str]
    posts: dict[int, str] = field(default_factory=dict)
    """Titles by id."""


class Service(RuleBasedStateMachine):
    """`through` says which of the two processes is asked."""

    clients: ClassVar[list[httpx.Client]]
    cache: ClassVar["Redis"]
    admin: ClassVar[dict[str, str]]
    _numbers = count()

    blogs = Bundle[Blog]("blogs")
    posts = Bundle[tuple[Blog, int]]("posts")

    @initialize()
    def begin(self) -> None:
        # Names are used again by others, but not by the next example.
        self.suffix = f"x{next(self._numbers)}"
        self.taken: set[str] = set()
        self.living: dict[str, Blog] = {}

    # -------- writing --------
    def ask(self, through: int, method: str, path: str, **options: Any) -> httpx.Response:
        return self.clients[through].request(method, f"{API}/{path}", **options)

    @rule(target=blogs, through=EITHER, name=NAMES)
    def sign_up(self, through: int, name: str) -> Any:
        name += self.suffix
        body = {
            "name": "Some User", "username": name, "email": f"{next(self._numbers)}@example.com", "password": PASSWORD
        }  # fmt: skip
        status = self.ask(through, "POST", "user", json=body).status_code
        assert status == (409 if name in self.taken else 201)
        if status == 409:
            return multiple()
        answer = self.ask(through, "POST", "login", data={"username": name, "password": PASSWORD})
        self.taken.add(name)
        self.living[name] = Blog(name, {"Authorization": f"Bearer {answer.json()['access_token']}"})
        return self.living[name]

    @rule(target=posts, through=EITHER, blog=blogs)
    def create(self, through: int, blog: Blog) -> Any:
        if blog.name is None:
            return multiple()
        title = f"title {next(self._numbers)}"
        answer = self.ask(
            through, "POST", f"{blog.name}/post", json={"title": title, "text": "text"}, headers=blog.headers
        )
        assert answer.status_code == 201
        blog.posts[answer.json()["id"]] = title
        return blog, answer.json()["id"]

    @rule(through=EITHER, post=posts)
    def patch(self, through: int, post: tuple[Blog, int]) -> None:
        blog, post_id = post
        if blog.name is not None:
            title = f"title {next(self._numbers)}"
            path = f"{blog.name}/post/{post_id}"
            answer = self.ask(through, "PATCH", path, json={"title": title}, headers=blog.headers)
            assert answer.status_code == (200 if post_id in blog.posts else 404)
            if post_id in blog.posts:
                blog.posts[post_id] = title

    @rule(through=EITHER, post=posts, hard=st.booleans())
    def delete(self, through: int, post: tuple[Blog, int], hard: bool) -> None:
        blog, post_id = post
        if blog.name is not None:
            path, headers = ("db_post", self.admin) if hard else ("post", blog.headers)
            answer = self.ask(through, "DELETE", f"{blog.name}/{path}/{post_id}", headers=headers)
            assert answer.status_code == 200 or post_id not in blog.posts
            blog.posts.pop(post_id, None)

    @rule(through=EITHER, blog=blogs, name=NAMES)
    def rename(self, through: int, blog: Blog, name: str) -> None:
        name += self.suffix
        if blog.name not in {None, name}:
            answer = self.ask(through, "PATCH", f"user/{blog.name}", json={"username": name}, headers=blog.headers)
            assert answer.status_code == (409 if name in self.taken else 200)
            if answer.status_code == 200:
                self.forget(blog)
                blog.name = name
                self.living[name] = blog
                self.taken.add(name)

    @rule(through=EITHER, blog=consumes(blogs), hard=st.booleans())
    def delete_user(self, through: int, blog: Blog, hard: bool) -> None:
        if blog.name is not None:
            path, headers = ("db_user", self.admin) if hard else ("user", blog.headers)
            assert self.ask(through, "DELETE", f"{path}/{blog.name}", headers=headers).status_code == 200
            name = blog.name
            self.forget(blog)
            if not hard:
                self.taken.add(name)

    def forget(self, blog: Blog) -> None:
        """Its name is free, and it is nobody's."""
        assert blog.name is not None
        del self.living[blog.name]
        self.taken.remove(blog.name)
        blog.name = None

    # -------- reading --------
    @rule(name=NAMES, size=st.sampled_from([1, 2, 10]), page=st.integers(1, 2), first=EITHER)
    def read_posts(self, name: str, size: int, page: int, first: int) -> None:
        blog = self.living.get(name + self.suffix)
        for through in (first, 1 - first):
            path = f"{name}{self.suffix}/posts?page={page}&items_per_page={size}"
            answer = self.ask(through, "GET", path)
            if blog is None:
                assert answer.status_code == 404
            else:
                shown = list(blog.posts.items())[(page - 1) * size : page * size]
                body = answer.json()
                assert [(post["id"], post["title"]) for post in body["data"]] == shown
                assert body["total_count"] == len(blog.posts)
                if shown:
                    self.look_for(answer)

    @rule(name=NAMES, post=posts, first=EITHER)
    def read_post(self, name: str, post: tuple[Blog, int], first: int) -> None:
        blog, post_id = post
        for shown_name in {name + self.suffix, blog.name} - {None}:
            for through in (first, 1 - first):
                answer = self.ask(through, "GET", f"{shown_name}/post/{post_id}")
                if shown_name == blog.name and post_id in blog.posts:
                    assert answer.json()["title"] == blog.posts[post_id]
                    self.look_for(answer)
                else:
                    assert answer.status_code == 404

    def look_for(self, answer: httpx.Response) -> None:
        """What has been answered is what is stored, for whoever asks next."""
        keys = [key.decode() for key in self.cache.scan_iter(_type="string")]
        assert any(self.cache.get(key) == sealed(key, answer.content) for key in keys)

    # -------- the cache's own --------
    @rule(which=st.integers(0, 1000), damage=st.sampled_from([None, b"", b'{"title":"foreign"}', b"\x00"]))
    def lose_or_damage_a_key(self, which: int, damage: bytes | None) -> None:
        keys = sorted(self.cache.scan_iter())
        if keys and damage is None:
            self.cache.delete(keys[which % len(keys)])
        elif keys:
            self.cache.set(keys[which % len(keys)], damage or b"")

    @rule()
    def lose_all(self) -> None:
        self.cache.flushall()


@pytest.fixture
async def clients(tmp_path: Path, run_server: RunServer, superuser_headers: dict[str, str]) -> AsyncIterator[None]:
    with Valkey(tmp_path / "valkey") as valkey:
        environment = {**NO_LIMITS, **valkey.environment("CACHE"), "REDIS_CACHE_DB": "0"}
        servers = await asyncio.gather(*(run_server(environment=environment) for _ in range(2)))
        Service.admin = superuser_headers
        Service.cache = Redis(host=HOST, port=valkey.port)
        Service.clients = [httpx.Client(base_url=server.url, trust_env=False) for server in servers]
        yield
        Service.cache.close()
        for client in Service.clients:
            client.close()


@pytest.mark.usefixtures("clients")
async def test_each_read_equals_the_model() -> None:
    bounds = settings(
        max_examples=40,
        stateful_step_count=50,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    await asyncio.to_thread(run_state_machine_as_test, Service, settings=bounds)
