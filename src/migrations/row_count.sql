-- Triggers keep the number of living rows of a table in `row_count`; docs/decisions/0018-row-counts.md has the reasons.
--
-- Interface: `SELECT keep_row_count('post', 'created_by_user_id')` in a migration counts the living rows of `post` for
-- each author and creates the triggers that keep the counts. Without a column, all rows of the table are one count, of
-- owner 0. Called again, it counts anew. A row is living unless it has a column `is_deleted` that is true, or has no
-- owner.
--
-- Slots: a count is the sum of `rows` over the slots of one relation and owner, that is, the rows of `row_count`. A
-- transaction changes a slot that no other transaction has locked, or adds one. Writers never wait for each other.
--
-- Migrations execute this file statement by statement; an empty line ends a statement. To change a function, edit it
-- here and add a migration that executes the file again. All statements may be repeated. An argument keeps its name:
-- CREATE OR REPLACE refuses another one.
--
-- add_to_row_count: change the count of one owner. It returns the new `rows` of the slot.
--
-- 1. The setting `row_count.held_N` is the ctid of the slot that this transaction changed last, for the owners whose
--    number has the remainder N. An index would find the slot only after all versions of it that the transaction has
--    left behind: 16,000 soft deletions, one by one, took 6 s instead of 0.3 s. There are 64 settings and no more,
--    because a session never forgets one.
-- 2. Otherwise lock a free slot. One time in ten, add a second free slot to it and delete that one: concurrent writers
--    leave many slots, which become few again. Above READ COMMITTED, changing a slot could fail with a serialization
--    error: add a slot instead.
-- 3. Without a free slot, insert one. Its key may exist after a restore, which sets the identity column's sequence back.
CREATE OR REPLACE FUNCTION add_to_row_count(counted text, whose bigint, change bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  setting text := 'row_count.held_' || (whose & 63);
  place text := current_setting(setting, true);
  held tid;
  slot bigint;
  merged bigint;
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
      ON CONFLICT (relation, owner, id) DO UPDATE SET rows = row_count.rows + excluded.rows
      RETURNING ctid, rows INTO held, remaining;
    ELSE
      IF random() < 0.1 THEN
        DELETE FROM row_count WHERE relation = counted AND owner = whose AND id = (
          SELECT id FROM row_count WHERE relation = counted AND owner = whose AND id <> slot
          LIMIT 1 FOR UPDATE SKIP LOCKED
        ) RETURNING rows INTO merged;
      END IF;
      UPDATE row_count SET rows = rows + change + coalesce(merged, 0)
      WHERE relation = counted AND owner = whose AND id = slot
      RETURNING ctid, rows INTO held, remaining;
    END IF;
  END IF;
  IF remaining = 0 THEN
    DELETE FROM row_count WHERE ctid = held;
  END IF;
  place := set_config(setting, held::text, true);
  RETURN remaining;
END $$;

-- keep_row_count: create the trigger function `count_rows_of_<table>` and its four triggers, and count the table.
--
-- - An INSERT or DELETE is counted once per statement and owner, an UPDATE per row, and only if it changes `is_deleted`
--   or the owner: one of other columns costs nothing.
-- - The trigger function finds `row_count` whatever the writer's `search_path` is; pg_restore has an empty one.
-- - `enable_seqscan` is off in it. The planner would read a `row_count` of one page whole rather than go to a ctid in
--   it, and keep that plan while a transaction fills a hundred pages.
-- - It calls add_to_row_count in assignments, which PL/pgSQL evaluates faster than PERFORM.
CREATE OR REPLACE FUNCTION keep_row_count(counted text, owner_column text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  function_name text := 'count_rows_of_' || counted;
  soft boolean := EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = quote_ident(counted)::regclass AND attname = 'is_deleted'
  );
  changing text := concat_ws(', ', CASE WHEN soft THEN 'is_deleted' END, quote_ident(owner_column));
  -- Each of the next two has three expressions: for a row of the table, for OLD and for NEW.
  prefixes text[] := ARRAY['', 'OLD.', 'NEW.'];
  owner text[] := ARRAY(SELECT coalesce(prefix || quote_ident(owner_column), '0') FROM unnest(prefixes) AS prefix);
  living text[] := ARRAY(
    SELECT concat_ws(
      ' AND ', 'true', CASE WHEN soft THEN 'NOT ' || prefix || 'is_deleted' END,
      prefix || quote_ident(owner_column) || ' IS NOT NULL'
    ) FROM unnest(prefixes) AS prefix
  );
BEGIN
  EXECUTE format('LOCK TABLE %I IN SHARE ROW EXCLUSIVE MODE', counted);
  EXECUTE format('DROP FUNCTION IF EXISTS %I CASCADE', function_name);
  EXECUTE format($function$
    CREATE FUNCTION %1$I() RETURNS trigger LANGUAGE plpgsql
    SET search_path FROM CURRENT SET enable_seqscan = off AS $body$
    DECLARE
      owner_id bigint;
      number bigint;
    BEGIN
      IF TG_OP = 'INSERT' THEN
        FOR owner_id, number IN SELECT %3$s, count(*) FROM new_rows WHERE %4$s GROUP BY 1 LOOP
          number := add_to_row_count(%2$L, owner_id, number);
        END LOOP;
      ELSIF TG_OP = 'DELETE' THEN
        FOR owner_id, number IN SELECT %3$s, count(*) FROM old_rows WHERE %4$s GROUP BY 1 LOOP
          number := add_to_row_count(%2$L, owner_id, -number);
        END LOOP;
      ELSIF TG_OP = 'UPDATE' THEN
        IF %6$s THEN number := add_to_row_count(%2$L, %5$s, -1); END IF;
        IF %8$s THEN number := add_to_row_count(%2$L, %7$s, 1); END IF;
      ELSE  -- TRUNCATE
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
  PERFORM set_config('row_count.recount', 'on', true);  -- see discard_copied
  EXECUTE format(
    'INSERT INTO row_count (relation, owner, rows) SELECT %2$L, %3$s, count(*) FROM %1$I WHERE %4$s GROUP BY 2',
    counted, counted, owner[1], living[1]
  );
  PERFORM set_config('row_count.recount', '', true);
END $$;

-- The schema of the tables, for keep_row_count and the trigger functions that it creates.
DO $$ BEGIN EXECUTE format('ALTER FUNCTION keep_row_count SET search_path = %I', current_schema()); END $$;

CREATE OR REPLACE FUNCTION discard_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;

-- discard_copied: ignore the slots in a dump of the data. `pg_restore --data-only` loads the slots beside the rows that
-- the triggers count: the totals would be twice what they should be. Only an INSERT or COPY by a client comes here, at
-- trigger depth 0. A restore of the whole database creates triggers last, and `--disable-triggers` turns off this one
-- with those that count: in both the slots of the dump are the counts.
CREATE OR REPLACE TRIGGER discard_copied BEFORE INSERT ON row_count FOR EACH ROW
WHEN (pg_trigger_depth() = 0 AND coalesce(current_setting('row_count.recount', true), '') <> 'on')
EXECUTE FUNCTION discard_row();
