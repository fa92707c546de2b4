"""The requests, the same for every service. Each connection asks for a different user or page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.load import CONNECTIONS
from scripts.servers import HOST

USERS = 1000
POSTS_PER_USER = 10
NUMBERS = range(1, CONNECTIONS + 1)
PASSWORD = "a password of the bench"  # noqa: S105


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None = None
    body: str = ""

    @property
    def headers(self) -> dict[str, str]:
        kind = {"Content-Type": "application/json"} if self.body else {}
        return kind | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def encode(self) -> bytes:
        length = {"Content-Length": str(len(self.body))} if self.method != "GET" else {}
        headers = {"Host": HOST, "Accept": "*/*", **self.headers, **length}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", self.body]).encode()


@dataclass(frozen=True)
class Endpoint:
    title: str
    status: int
    requests: Sequence[Request]


NAMES = ("constant", "user", "users", "cached", "me", "task", "task-token", "patch")


def endpoints(tokens: Sequence[str]) -> Mapping[str, Endpoint]:
    """Return the endpoints by name, with the tokens of the first users."""
    signed = list(zip(NUMBERS, tokens, strict=True))
    # Read one post and change the other, so that the changes do not invalidate the cached answer.
    post, other_post = (
        {number: f"/api/v1/user{number}/post/{(number - 1) * POSTS_PER_USER + which}" for number in NUMBERS}
        for which in (1, 2)
    )
    task, body = "/api/v1/tasks/task?message=hello", '{"title": "A title that was changed"}'
    all_ = (
        Endpoint("constant JSON", 200, [Request("GET", "/health") for _ in NUMBERS]),
        Endpoint("GET user", 200, [Request("GET", f"/api/v1/user/user{number}") for number in NUMBERS]),
        Endpoint(
            "GET users", 200, [Request("GET", f"/api/v1/users?page={number}&items_per_page=10") for number in NUMBERS]
        ),
        Endpoint("cached GET, hit", 200, [Request("GET", post[number]) for number in NUMBERS]),
        Endpoint("GET me", 200, [Request("GET", "/api/v1/user/me", token) for _, token in signed]),
        Endpoint("POST task, anonymous", 201, [Request("POST", task) for _ in NUMBERS]),
        Endpoint("POST task, token", 201, [Request("POST", task, token) for _, token in signed]),
        Endpoint("PATCH post", 200, [Request("PATCH", other_post[number], token, body) for number, token in signed]),
    )
    return dict(zip(NAMES, all_, strict=True))
