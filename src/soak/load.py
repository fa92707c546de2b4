"""The users that put load on the service and check its answers.

All users run in one process, so each reader knows which writes had been acknowledged when its read began. Every later
read must return the result of a write that got a 2xx. A write that got a 503 or lost its connection is in doubt: until
the user has settled it, reads may return the state before or after it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx

from soak import resources
from soak.report import BOUND_SECONDS, Report
from soak.service import GRACE_SECONDS, LIMIT, PERIOD

THINK_SECONDS = 0.1
SETTLE_SECONDS = 10.0
"""Longer than all timeouts of the service, so that no write in doubt can still happen."""
CLOSE = 0.1
"""Share of requests that close their connection: a new worker gets load from new connections only."""
FEW, MANY = 3, 10  # living posts of a user
GONE = 10**9
"""The version of a deleted post, higher than every other."""
PASSWORD = "correct horse 4 staples"  # noqa: S105


class Api:
    """A client that sends requests to the service and reports the answers; `paths` are those of the service."""

    def __init__(self, client: httpx.AsyncClient, report: Report, paths: Collection[str]) -> None:
        self.client = client
        self.report = report
        self.paths = paths
        self.random = Random(0)

    async def ask(
        self, method: str, path: str, *expected: int, token: str = "", needs: str = "PostgreSQL", **body: Any
    ) -> httpx.Response | None:
        """Return the answer if it is expected; None: the outcome of the request is in doubt."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if self.random.random() < CLOSE:
            headers["Connection"] = "close"
        path = path if path.startswith(("/api/", "/health")) else f"/api/v1{path}"
        asked, answer, tries = time.monotonic(), None, 1
        for tries in range(1, 3 if method == "GET" else 2):  # noqa: B007  (counted below)
            self.client.cookies.clear()  # all users share this client; each keeps its own tokens
            try:
                answer = await self.client.request(method, path, headers=headers, **body)
                break
            except httpx.TimeoutException:
                break
            except httpx.TransportError:  # retry: the server may have closed the idle connection (RFC 9112, 9.3.1)
                continue
        status = answer.status_code if answer else None
        self.report.answered(f"{method} {path}", asked, status, expected, needs.split(", "), tries)
        return answer if status in expected else None

    def check(self, holds: bool, what: str) -> None:
        self.report.reads += 1
        if not holds:
            self.report.breaks("stale reads", what)


@dataclass
class Post:
    """The acceptable states of a post: a version from `oldest` to `newest`, or none once its deletion has begun."""

    id: int
    oldest: int = 0
    newest: int = 0
    is_erased: bool = False

    @property
    def is_in_doubt(self) -> bool:
        return self.is_erased and self.oldest != GONE


class User:
    def __init__(self, number: int, api: Api, crowd: "list[User]") -> None:
        self.api = api
        self.crowd = crowd
        self.random = Random(number)
        self.number = number
        self.token = self.refresh_token = ""
        self.name = f"u{number}n0"
        self.next_name = ""
        """The new name while a rename is in progress or in doubt."""
        self.renames = self.visitors = 0
        self.posts: dict[int, Post] = {}
        self.jobs: list[str] = []
        """Ids of jobs that are not known to have ended."""
        self.hits: deque[tuple[float, float, bool | None]] = deque(maxlen=20 * LIMIT)
        """Requests to the limited route: time sent, time answered, and whether accepted (None: in doubt)."""
        self.writes = 0
        self.is_writing = False
        self.reads, self.actions = self.possible(READS), self.possible(READS | WRITES)
        self.doubt_until = 0.0
        """When writes in doubt can be settled; 0 if none is in doubt."""

    def possible(self, actions: "dict[Action, int]") -> "dict[Action, int]":
        """Leave out the actions whose resource the service does not have."""
        paths = self.api.paths
        return {each: often for each, often in actions.items() if NEEDS.get(each) is None or NEEDS[each] in paths}

    async def live(self, end: asyncio.Event) -> None:
        await self.sign_up(self.name)
        while not end.is_set():
            await asyncio.sleep(self.random.uniform(0, THINK_SECONDS))
            if not self.token:
                await self.sign_in()
            elif self.doubt_until and time.monotonic() > self.doubt_until:
                await self.settle()
            else:
                # Half of the users continue to write while a write is in doubt; the others only read.
                actions = self.actions if not self.doubt_until or self.number % 2 else self.reads
                await self.random.choices([*actions], [*actions.values()])[0](self)

    async def write(self, method: str, path: str, *expected: int, **body: Any) -> httpx.Response | None:
        self.writes += 1
        self.is_writing = True
        answer = await self.api.ask(method, path, *expected, token=self.token, **body)
        self.is_writing = False
        if answer is None:
            self.doubt_until = time.monotonic() + SETTLE_SECONDS
        return answer

    async def settle(self) -> None:
        """Read the outcome of the writes in doubt, and take it as the known state."""
        names = {self.name, self.next_name}
        if (me := await self.api.ask("GET", "/user/me", 200, token=self.token)) is None:
            return
        self.name, self.next_name = me.json()["username"], ""
        self.api.check(self.name in names, f"{self.name} was named {names}")
        if resources.POSTS not in self.api.paths:
            self.doubt_until = 0
            return
        done = [await self.read_posts(self), *[await self.read_posts(self, post) for post in self.recent_posts()]]
        if all(done) and not any(post.is_in_doubt for post in self.posts.values()):
            self.doubt_until = 0

    # -------- accounts --------
    async def sign_up(self, name: str) -> httpx.Response | None:
        body = {"name": "Soak User", "username": name, "email": f"{name}@example.com", "password": PASSWORD}
        return await self.api.ask("POST", "/user", 201, json=body)

    async def sign_in(self) -> None:
        """Sign in with the e-mail address, which stays the same when the name changes."""
        form = {"username": f"u{self.number}n0@example.com", "password": PASSWORD}
        if answer := await self.api.ask("POST", "/login?refresh_in_body=true", 200, data=form):
            self.take_tokens(answer)

    def take_tokens(self, answer: httpx.Response) -> None:
        self.token, self.refresh_token = answer.json()["access_token"], answer.json()["refresh_token"]

    async def sign_out(self) -> None:
        token, self.token = self.token, ""
        if await self.api.ask("POST", "/logout", 204, token=token):
            await self.api.ask("GET", "/user/me", 401, token=token)

    async def refresh(self) -> None:
        """Exchange the refresh token. After a lost answer, retry with the same token within the grace period."""
        repeated_until = time.monotonic() + GRACE_SECONDS - BOUND_SECONDS
        while True:
            over = [401] if time.monotonic() > repeated_until else []
            body = {"refresh_token": self.refresh_token}
            if answer := await self.api.ask("POST", "/refresh", 200, *over, json=body):
                break
            await asyncio.sleep(THINK_SECONDS)
        if answer.status_code == 200:
            self.take_tokens(answer)
        else:
            self.token = ""

    async def replay_spent_token(self) -> None:
        """Present a refresh token that was spent long ago, as a thief would: the session must end."""
        stolen = self.refresh_token
        await self.refresh()
        await self.refresh()
        if self.token:
            token, self.token = self.token, ""
            if await self.api.ask("POST", "/refresh", 401, json={"refresh_token": stolen}):
                await self.api.ask("GET", "/user/me", 401, token=token)

    async def sign_in_with_wrong_password(self) -> None:
        await self.api.ask("POST", "/login", 401, data={"username": self.name, "password": "a wrong password"})

    async def read_me(self) -> None:
        names = {self.name, self.next_name}
        if answer := await self.api.ask("GET", "/user/me", 200, token=self.token):
            self.api.check(answer.json()["username"] in names, f"{answer.json()['username']} was named {names}")

    async def read_users(self) -> None:
        if answer := await self.api.ask("GET", "/users", 200):
            self.api.check(answer.json()["total_count"] >= len(self.crowd), "users are missing")

    async def rename(self) -> None:
        if not self.next_name:
            self.renames += 1
            old, self.next_name = self.name, f"u{self.number}n{self.renames}"
            if await self.write("PATCH", f"/user/{old}", 200, json={"username": self.next_name}):
                self.name, self.next_name = self.next_name, ""
                await self.check_no_posts(old)

    async def check_no_posts(self, name: str) -> None:
        if resources.POSTS not in self.api.paths:
            return
        if answer := await self.api.ask("GET", resources.POSTS.format(username=name), 200, 404):
            self.api.check(answer.status_code == 404, f"posts of {name}, a name without an owner")

    async def sign_up_and_leave(self) -> None:
        """Sign up as a new user, write a post, and delete the account."""
        self.visitors += 1
        name = f"v{self.number}n{self.visitors}"
        form, post = {"username": name, "password": PASSWORD}, {"title": "Hello", "text": "0:"}
        if not await self.sign_up(name) or not (answer := await self.api.ask("POST", "/login", 200, data=form)):
            return
        token = answer.json()["access_token"]
        if (
            resources.POSTS in self.api.paths
            and await self.api.ask("POST", resources.POST.format(username=name), 201, token=token, json=post)
            and (answer := await self.api.ask("GET", resources.POSTS.format(username=name), 200))
        ):
            self.api.check(answer.json()["total_count"] == 1, f"{answer.json()['total_count']} posts of {name}")
        if await self.api.ask("DELETE", f"/user/{name}", 200, token=token):
            await self.check_no_posts(name)
            await self.api.ask("GET", "/user/me", 401, token=token)

    # -------- posts --------
    def content(self, version: int) -> dict[str, str]:
        return {"text": f"{version}:{'x' * self.random.randrange(2000)}"}

    def path_of(self) -> str:
        return resources.POST.format(username=self.name)

    def living_posts(self) -> list[Post]:
        return [post for post in self.posts.values() if not post.is_erased]

    def recent_posts(self) -> list[Post]:
        return [*self.posts.values()][-2 * MANY :]

    def extra_statuses(self) -> list[int]:
        """Return further acceptable statuses: 404 while a rename may have freed the name in the path."""
        return [404] if self.next_name else []

    async def write_post(self) -> None:
        if len(self.living_posts()) < MANY:
            body = {"title": "A title", **self.content(0)}
            answer = await self.write("POST", self.path_of(), 201, *self.extra_statuses(), json=body)
            if answer and answer.status_code == 201:
                self.posts[answer.json()["id"]] = Post(answer.json()["id"])

    async def patch_post(self) -> None:
        if posts := self.living_posts():
            post = self.random.choice(posts)
            post.newest += 1
            version, path = post.newest, f"{self.path_of()}/{post.id}"
            answer = await self.write("PATCH", path, 200, *self.extra_statuses(), json=self.content(version))
            if answer and answer.status_code == 200:
                post.oldest = version

    async def erase_post(self) -> None:
        if len(posts := self.living_posts()) > FEW:
            post = self.random.choice(posts)
            post.is_erased = True
            answer = await self.write("DELETE", f"{self.path_of()}/{post.id}", 200, *self.extra_statuses())
            if answer and answer.status_code == 200:
                post.oldest = GONE

    async def read_a_post(self) -> None:
        owner = self.random.choice([self, self.random.choice(self.crowd)])
        if posts := owner.recent_posts():
            await self.read_posts(owner, self.random.choice(posts))

    async def read_a_list(self) -> None:
        await self.read_posts(self.random.choice([self, self.random.choice(self.crowd)]))

    async def read_posts(self, owner: "User", only: Post | None = None) -> bool:
        """Read all posts of the owner or only one, and check their versions; return whether there was an answer."""
        began, name, writes = time.monotonic(), owner.name, owner.writes
        may_have_changed_name, was_still = bool(owner.next_name), owner.doubt_until < began and not owner.is_writing
        oldest = {post.id: post.oldest for post in ([only] if only else owner.posts.values())}
        path = (
            f"{resources.POST.format(username=name)}/{only.id}"
            if only
            else f"{resources.POSTS.format(username=name)}?items_per_page=50"
        )
        answer = await self.api.ask("GET", path, 200, 404)
        if answer is None or may_have_changed_name or owner.next_name or owner.name != name:
            return answer is not None
        self.api.check(only is not None or answer.status_code == 200, f"{path} is not there")
        body = answer.json()
        shown = {post["id"]: post for post in ([body] if only else body["data"])} if answer.status_code == 200 else {}
        # Without a write in progress or in doubt, the versions in this answer are final: later reads may not be older.
        is_settled = was_still and owner.writes == writes
        for number in oldest.keys() | shown.keys():
            if number not in owner.posts:
                self.api.check(bool(owner.doubt_until) or owner.is_writing, f"{path} has the unknown post {number}")
                if not is_settled:
                    continue
                owner.posts[number] = Post(number)
            post = owner.posts[number]
            seen = int(shown[number]["text"].partition(":")[0]) if number in shown else GONE
            known = oldest.get(number, 0) <= seen <= (GONE if post.is_erased else post.newest)
            self.api.check(known, f"{path} has version {seen} of {number}, known: {oldest.get(number)} and {post}")
            if is_settled:
                post.oldest, post.is_erased = max(post.oldest, seen), seen == GONE
        return True

    # -------- tasks, and their limit --------
    async def queue_task(self) -> None:
        asked, needs = time.monotonic(), "PostgreSQL, queue"
        answer = await self.api.ask("POST", f"{resources.TASK}?message=soak", 201, 429, token=self.token, needs=needs)
        answered, passed = time.monotonic(), answer.status_code == 201 if answer else None
        # The limiter accepts all requests while its server is unavailable, and a restarted server has lost the counts.
        if passed is not None and not self.api.report.was_away(["rate limit"], asked, PERIOD):
            self.check_limit(asked, answered, passed)
        self.hits.append((asked, answered, passed))
        if answer and passed:
            self.jobs.append(answer.json()["id"])
            self.api.report.jobs.append(answer.json()["id"])

    def check_limit(self, asked: float, answered: float, passed: bool) -> None:
        """Check that the limiter was right to accept or refuse: it counts a request at some time before its answer."""
        if passed:
            right = sum(began > answered - PERIOD for began, _, hit in self.hits if hit) < LIMIT
        else:
            right = sum(ended > asked - PERIOD for _, ended, hit in self.hits if hit is not False) >= LIMIT
        if not right:
            self.api.report.breaks("wrong limits", f"user {self.number} {'passed' if passed else 'was refused'}")

    async def read_task(self) -> None:
        if self.jobs:
            job = self.random.choice(self.jobs)
            path, needs = f"{resources.TASK}/{job}", "PostgreSQL, queue"
            answer = await self.api.ask("GET", path, 200, token=self.token, needs=needs)
            if answer and answer.json()["status"] == "complete":
                self.jobs.remove(job)
                if answer.json()["result"] != "Task soak is complete!":
                    self.api.report.breaks("failed jobs", f"{job}: {answer.json()['result']}")

    # -------- health --------
    async def read_health(self) -> None:
        await self.api.ask("GET", "/health", 200, needs="")

    async def read_readiness(self) -> None:
        await self.api.ask("GET", "/health/ready", 200)


Action = Callable[[User], Awaitable[None]]
# The resource of each action that needs one.
NEEDS: dict[Action, str] = {
    **dict.fromkeys(
        (User.read_a_post, User.read_a_list, User.write_post, User.patch_post, User.erase_post), resources.POSTS
    ),
    **dict.fromkeys((User.queue_task, User.read_task), resources.TASK),
}
# The relative frequency of each action.
READS: dict[Action, int] = {
    User.read_a_post: 30,
    User.read_a_list: 20,
    User.read_me: 8,
    User.read_users: 4,
    User.sign_in_with_wrong_password: 1,
    User.sign_out: 2,
    User.refresh: 3,
    User.replay_spent_token: 1,
    User.read_task: 8,
    User.read_health: 2,
    User.read_readiness: 1,
}
WRITES: dict[Action, int] = {
    User.patch_post: 12,
    User.write_post: 6,
    User.erase_post: 6,
    User.queue_task: 8,
    User.rename: 2,
    User.sign_up_and_leave: 1,
}
