"""Keep row counts and index living rows

Revision ID: b1d7f0c2a4e8
Revises: 6710f069b016
Create Date: 2026-11-23 07:55:12.402118+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = 'b1d7f0c2a4e8'
down_revision: str | Sequence[str] | None = '6710f069b016'
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# A transaction changes a slot that no other one holds, or adds one: writers never wait for each other. Now and then it
# folds another free slot into it, so that those added by many at once become few again. `row_count.held_…` is where the
# transaction left the slot that it changed last, of every 64th owner: found by key, it would come after all its older
# versions, and ten thousand rows written one by one would take seconds. There are no more such settings: a session
# never forgets one. Above READ COMMITTED, a slot that was changed meanwhile would be an error: there one is added.
ADD_TO_ROW_COUNT = """
CREATE FUNCTION add_to_row_count(counted text, whose bigint, change bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  setting text := 'row_count.held_' || (whose & 63);
  place text := current_setting(setting, true);
  held tid;
  slot bigint;
  surplus bigint;
  remaining bigint;
BEGIN
  IF place <> '' THEN
    held := place;
    UPDATE row_count SET rows = rows + change WHERE ctid = held AND relation = counted AND owner = whose
    RETURNING ctid, rows INTO held, remaining;
  END IF;
  IF remaining IS NULL THEN
    SELECT id INTO slot FROM row_count
    WHERE relation = counted AND owner = whose AND current_setting('transaction_isolation') = 'read committed'
    LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF slot IS NULL THEN
      INSERT INTO row_count (relation, owner, rows) VALUES (counted, whose, change)
      RETURNING ctid, rows INTO held, remaining;
    ELSE
      IF random() < 0.1 THEN
        DELETE FROM row_count WHERE relation = counted AND owner = whose AND id = (
          SELECT id FROM row_count WHERE relation = counted AND owner = whose AND id <> slot
          LIMIT 1 FOR UPDATE SKIP LOCKED
        ) RETURNING rows INTO surplus;
      END IF;
      UPDATE row_count SET rows = rows + change + coalesce(surplus, 0)
      WHERE relation = counted AND owner = whose AND id = slot
      RETURNING ctid, rows INTO held, remaining;
    END IF;
  END IF;
  IF remaining = 0 THEN
    DELETE FROM row_count WHERE ctid = held;
  END IF;
  place := set_config(setting, held::text, true);
  RETURN remaining;
END $$
"""

# `SELECT keep_row_count('post', 'created_by_user_id')` counts a table's living rows, of each owner or (without a
# column) in all, and keeps the counts by triggers. Once more, it counts anew. Bulk statements are counted once, soft
# deletions by row: an UPDATE of other columns costs nothing. The triggers find what they name whatever the writer's
# search_path is: pg_restore has an empty one. `enable_seqscan` is off, since the planner would rather read a row_count
# of one page whole than go to a place in it, and stay with that plan while a transaction fills a hundred pages.
KEEP_ROW_COUNT = """
CREATE FUNCTION keep_row_count(counted text, owner_column text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  function_name text := 'count_rows_of_' || counted;
  soft boolean := EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = quote_ident(counted)::regclass AND attname = 'is_deleted'
  );
  changing text := concat_ws(', ', CASE WHEN soft THEN 'is_deleted' END, quote_ident(owner_column));
  -- For a row of a table, for OLD and for NEW.
  places text[] := ARRAY['', 'OLD.', 'NEW.'];
  owner text[] := ARRAY(SELECT coalesce(place || quote_ident(owner_column), '0') FROM unnest(places) AS place);
  living text[] := ARRAY(
    SELECT concat_ws(
      ' AND ', 'true', CASE WHEN soft THEN 'NOT ' || place || 'is_deleted' END,
      place || quote_ident(owner_column) || ' IS NOT NULL'
    ) FROM unnest(places) AS place
  );
BEGIN
  EXECUTE format('LOCK TABLE %I IN SHARE ROW EXCLUSIVE MODE', counted);
  EXECUTE format('DROP FUNCTION IF EXISTS %I CASCADE', function_name);
  EXECUTE format($function$
    CREATE FUNCTION %1$I() RETURNS trigger LANGUAGE plpgsql
    SET search_path FROM CURRENT SET enable_seqscan = off AS $body$
    DECLARE
      whose bigint;
      many bigint;
    BEGIN
      IF TG_OP = 'INSERT' THEN
        FOR whose, many IN SELECT %3$s, count(*) FROM new_rows WHERE %4$s GROUP BY 1 LOOP
          many := add_to_row_count(%2$L, whose, many);
        END LOOP;
      ELSIF TG_OP = 'DELETE' THEN
        FOR whose, many IN SELECT %3$s, count(*) FROM old_rows WHERE %4$s GROUP BY 1 LOOP
          many := add_to_row_count(%2$L, whose, -many);
        END LOOP;
      ELSIF TG_OP = 'UPDATE' THEN
        IF %6$s THEN many := add_to_row_count(%2$L, %5$s, -1); END IF;
        IF %8$s THEN many := add_to_row_count(%2$L, %7$s, 1); END IF;
      ELSE
        DELETE FROM row_count WHERE relation = %2$L;
      END IF;
      RETURN NULL;
    END $body$
  $function$, function_name, counted, owner[1], living[1], owner[2], living[2], owner[3], living[3]);
  EXECUTE format(
    'CREATE TRIGGER count_inserted AFTER INSERT ON %I REFERENCING NEW TABLE AS new_rows EXECUTE FUNCTION %I()',
    counted, function_name
  );
  EXECUTE format(
    'CREATE TRIGGER count_deleted AFTER DELETE ON %I REFERENCING OLD TABLE AS old_rows EXECUTE FUNCTION %I()',
    counted, function_name
  );
  EXECUTE format('CREATE TRIGGER count_truncated AFTER TRUNCATE ON %I EXECUTE FUNCTION %I()', counted, function_name);
  IF changing <> '' THEN
    EXECUTE format(
      'CREATE TRIGGER count_changed AFTER UPDATE OF %1$s ON %2$I FOR EACH ROW '
      'WHEN (ROW(OLD.%3$s) IS DISTINCT FROM ROW(NEW.%4$s)) EXECUTE FUNCTION %5$I()',
      changing, counted, replace(changing, ', ', ', OLD.'), replace(changing, ', ', ', NEW.'), function_name
    );
  END IF;
  DELETE FROM row_count WHERE relation = counted;
  EXECUTE format(
    'INSERT INTO row_count (relation, owner, rows) SELECT %2$L, %3$s, count(*) FROM %1$I WHERE %4$s GROUP BY 2',
    counted, counted, owner[1], living[1]
  );
END $$
"""
STAY_IN_THIS_SCHEMA = """
DO $$ BEGIN EXECUTE format('ALTER FUNCTION keep_row_count SET search_path = %I', current_schema()); END $$
"""


def upgrade() -> None:
    op.create_table('row_count',
    sa.Column('relation', sa.String(length=63), nullable=False),
    sa.Column('owner', sa.BigInteger(), nullable=False),
    sa.Column('id', sa.BigInteger(), sa.Identity(always=False), nullable=False),
    sa.Column('rows', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('relation', 'owner', 'id', name=op.f('pk_row_count')),
    postgresql_with={'fillfactor': 50}
    )
    op.execute(ADD_TO_ROW_COUNT)
    op.execute(KEEP_ROW_COUNT)
    op.execute(STAY_IN_THIS_SCHEMA)
    op.execute("SELECT keep_row_count('user')")
    op.execute("SELECT keep_row_count('post', 'created_by_user_id')")
    op.create_index('ix_user_living', 'user', ['id'], unique=False, postgresql_where=sa.text('NOT is_deleted'))
    op.create_index('ix_user_deleted', 'user', ['tier_id'], unique=False, postgresql_where=sa.text('is_deleted'))
    op.create_index('ix_user_superuser', 'user', ['id'], unique=False, postgresql_where=sa.text('is_superuser AND NOT is_deleted'))
    op.create_index('ix_post_living', 'post', ['created_by_user_id', 'id'], unique=False, postgresql_where=sa.text('NOT is_deleted'))
    op.create_index('ix_post_created_by_user_id', 'post', ['created_by_user_id'], unique=False)
    op.drop_index(op.f('ix_post_created_by_user_id_id'), table_name='post')
    op.create_index('ix_password_reset_expires_at', 'password_reset', ['expires_at'], unique=False)


def downgrade() -> None:
    op.drop_index('ix_password_reset_expires_at', table_name='password_reset')
    op.create_index(op.f('ix_post_created_by_user_id_id'), 'post', ['created_by_user_id', 'id'], unique=False)
    op.drop_index('ix_post_created_by_user_id', table_name='post')
    op.drop_index('ix_post_living', table_name='post')
    op.drop_index('ix_user_superuser', table_name='user')
    op.drop_index('ix_user_deleted', table_name='user')
    op.drop_index('ix_user_living', table_name='user')
    op.execute('DROP FUNCTION count_rows_of_post CASCADE')
    op.execute('DROP FUNCTION count_rows_of_user CASCADE')
    op.execute('DROP FUNCTION keep_row_count')
    op.execute('DROP FUNCTION add_to_row_count')
    op.drop_table('row_count')
