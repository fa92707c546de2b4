"""Millions of users and posts, loaded in bulk, and the expected contents of their lists.

The first user has written a fifth of all posts. The others have four or five each, which are not adjacent in the table.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from bench.services import LIMIT, TIER, USER, Bench, password_hash

POSTS_PER_USER = 5
POST = """
INSERT INTO post (id, created_by_user_id, title, text, uuid, created_at, is_deleted)
SELECT n, CASE WHEN n % 5 = 0 THEN 1 ELSE 2 + (n - n / 5 - 1) % ($3::int - 1) END, 'Post ' || n,
       repeat('This is the content of a post. ', 4), gen_random_uuid(),
       timestamptz '2026-02-01 00:00:00.123456Z' + n * interval '1 second', false
FROM generate_series($1::int, $2::int) AS n
"""
# While loading, skip triggers and foreign keys; build the indexes after the last row.
PREPARE = (
    "SET session_replication_role = replica",
    "SET maintenance_work_mem = '1GB'",
    "SET work_mem = '256MB'",
)
LEAVE_INDEXES = """
UPDATE pg_index SET indisready = false WHERE indrelid IN ('"user"'::regclass, 'post'::regclass)
"""
FINISH = (
    ('REINDEX TABLE "user"', "SELECT keep_row_count('user')"),
    (
        "REINDEX TABLE post",
        "SELECT setval(pg_get_serial_sequence('post', 'id'), max(id)) FROM post",
        "SELECT keep_row_count('post', 'created_by_user_id')",
    ),
)


@dataclass(frozen=True)
class Content:
    """The contents of the tables. Pages have ten rows."""

    users: int

    @property
    def posts(self) -> int:
        return POSTS_PER_USER * self.users

    @property
    def pages(self) -> int:
        """The number of pages of all users, and also of the first user's posts."""
        return -(-self.users // 10)

    def users_on(self, page: int) -> list[int]:
        return list(range(1, self.users + 1)[10 * page - 10 : 10 * page])

    def posts_on(self, page: int) -> list[int]:
        """Return the ids of the first user's posts on a page."""
        return [5 * number for number in self.users_on(page)]

    def posts_of(self, user: int) -> list[int]:
        """Return the ids of all posts of another user."""
        return [number + number // 4 + 1 for number in range(user - 2, 4 * self.users, self.users - 1)]


async def _load(url: str, content: Content) -> None:
    half = content.posts // 2
    hashed = password_hash()
    loads: Sequence[Sequence[tuple[str, *tuple[object, ...]]]] = (
        ((USER, content.users, hashed), (POST, 1, half, content.users)),
        ((POST, half + 1, content.posts, content.users),),
    )
    connections = [await asyncpg.connect(url) for _ in loads]

    async def run(number: int, statements: Sequence[tuple[str, *tuple[object, ...]]]) -> None:
        for statement, *values in statements:
            await connections[number].execute(statement, *values)

    for statement in (TIER, LIMIT, LEAVE_INDEXES):
        await connections[0].execute(statement)
    for connection in connections:
        for statement in PREPARE:
            await connection.execute(statement)
    await asyncio.gather(*(run(number, statements) for number, statements in enumerate(loads)))
    await asyncio.gather(*(run(number, [(each,) for each in statements]) for number, statements in enumerate(FINISH)))
    await connections[0].execute("VACUUM (ANALYZE, PARALLEL 2)")
    for connection in connections:
        await connection.close()


def load(bench: Bench, content: Content) -> float:
    """Fill the empty tables; return how many seconds it took."""
    began = time.perf_counter()
    asyncio.run(_load(bench.environment["DATABASE_URL"], content))
    return time.perf_counter() - began
