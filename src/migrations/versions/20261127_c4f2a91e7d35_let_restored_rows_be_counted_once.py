"""Let restored rows be counted once

Revision ID: c4f2a91e7d35
Revises: b1d7f0c2a4e8
Create Date: 2026-11-27 11:58:09.271364+00:00
"""

from collections.abc import Sequence
from pathlib import Path

from alembic import context, op

revision: str = 'c4f2a91e7d35'
down_revision: str = 'b1d7f0c2a4e8'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

STATEMENTS = (Path(__file__).parents[1] / 'row_count.sql').read_text(encoding='utf-8').split('\n\n')
# Writers lock their table before `row_count`: in the other order, this migration and a writer could wait for each other.
LOCK = 'LOCK TABLE "user", post IN SHARE ROW EXCLUSIVE MODE'
COUNT_ANEW = "SELECT keep_row_count('user'), keep_row_count('post', 'created_by_user_id')"


def upgrade() -> None:
    op.execute(LOCK)
    for statement in STATEMENTS:
        op.execute(statement)
    op.execute(COUNT_ANEW)


def downgrade() -> None:
    op.execute(LOCK)
    op.execute('DROP FUNCTION discard_row CASCADE')
    op.execute('DROP FUNCTION keep_row_count, add_to_row_count')
    former = context.script.get_revision(down_revision).module
    for statement in (former.ADD_TO_ROW_COUNT, former.KEEP_ROW_COUNT, former.STAY_IN_THIS_SCHEMA):
        op.execute(statement)
    op.execute(COUNT_ANEW)
