-- qhnsw: scans in all the ways that the executor has.
SET client_min_messages = warning;
-- the nodes of a plan, as all versions call them
CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
		IF line ~ '^ *(->  )?(Limit|Sort|Aggregate|Merge Append|Nested Loop|[A-Z][a-z]+ (Only )?Scan)' AND line !~ 'Sort Key' THEN
			RETURN NEXT rtrim(line);
		END IF;
	END LOOP;
END $$;
CREATE FUNCTION vec(i int, d int) RETURNS real[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS
	$$ SELECT array_agg(((hashint4(i * 20011 + j) & 65535) / 65536.0 - 0.5)::real ORDER BY j) FROM generate_series(1, d) j $$;
CREATE TABLE item (id int PRIMARY KEY, tag int, e real[]);
INSERT INTO item SELECT i, i % 1000, vec(i, 16) FROM generate_series(1, 4000) i;
CREATE INDEX item_e ON item USING qhnsw (e);
ANALYZE item;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_sort = off;
SET qhnsw.ef_search = 80;

-- the planner: for ORDER BY only, and honest without LIMIT
SELECT plan($q$SELECT id FROM item ORDER BY e <-> (SELECT vec(7, 16)) LIMIT 3$q$);
SELECT plan($q$SELECT count(*) FROM item$q$);
SELECT plan($q$SELECT id FROM item WHERE e <-> (SELECT vec(7, 16)) < 1$q$);
SELECT plan($q$SELECT id FROM item ORDER BY e <-> (SELECT vec(7, 16)) DESC LIMIT 3$q$);
SELECT plan($q$SELECT id FROM item ORDER BY e <=> (SELECT vec(7, 16)) LIMIT 3$q$);
RESET enable_seqscan;
RESET enable_sort;
SELECT plan($q$SELECT id FROM item ORDER BY e <-> (SELECT vec(7, 16)) LIMIT 3$q$);
SELECT plan($q$SELECT id FROM item WHERE id = 7 ORDER BY e <-> (SELECT vec(7, 16)) LIMIT 3$q$);
SET enable_seqscan = off;
SET enable_sort = off;

-- more rows than ef_search, in order; all rows in relaxed mode
CREATE FUNCTION in_order(query text, OUT rows int, OUT ids int, OUT falls int) LANGUAGE plpgsql AS $$
DECLARE
	r record;
	before float8 = '-infinity';
	seen int[] = '{}';
BEGIN
	rows := 0;
	falls := 0;
	FOR r IN EXECUTE query LOOP
		rows := rows + 1;
		-- codes put rows of nearly equal distance in any order
		IF r.d < before - 0.05 THEN
			falls := falls + 1;
		END IF;
		before := greatest(before, r.d);
		seen := seen || r.id;
	END LOOP;
	ids := (SELECT count(DISTINCT x) FROM unnest(seen) x);
END $$;
SELECT * FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d LIMIT 40');
SELECT * FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d LIMIT 300');
SET qhnsw.iterative_scan = relaxed;
SELECT rows, ids FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d LIMIT 300');
SELECT rows, ids FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d');
SET qhnsw.iterative_scan = strict;
SELECT rows = ids AS distinct, rows > 3900 AS nearly_all, falls FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d');
SET qhnsw.iterative_scan = off;
SELECT * FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d');
RESET qhnsw.iterative_scan;
SET qhnsw.max_scan_tuples = 55;
SELECT rows, ids FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d');
SET qhnsw.max_scan_tuples = 0;
SELECT count(*) FROM (SELECT FROM item ORDER BY e <-> vec(7, 16) LIMIT 5) s;
RESET qhnsw.max_scan_tuples;
-- with little memory the last phase takes several turns
SET work_mem = '64kB';
SET qhnsw.iterative_scan = relaxed;
SELECT rows, ids FROM in_order('SELECT id, e <-> vec(7, 16) AS d FROM item ORDER BY d');
RESET qhnsw.iterative_scan;
RESET work_mem;
-- by rows: the exact order
SET qhnsw.rerank = heap;
SELECT bool_and(d >= before) AS exact FROM (SELECT d, lag(d) OVER () AS before FROM
	(SELECT e <-> vec(7, 16) AS d FROM item ORDER BY d LIMIT 50) s) s;
SELECT fetched >= 50 AS fetched FROM swarm.qhnsw_scan_stats();
RESET qhnsw.rerank;

-- filters that few rows pass still fill their LIMIT
SET qhnsw.iterative_scan = relaxed;
SELECT count(*) FROM (SELECT FROM item WHERE tag = 77 ORDER BY e <-> vec(7, 16) LIMIT 4) s;
SELECT id FROM item WHERE id = 3333 OR tag = -1 ORDER BY e <-> vec(7, 16) LIMIT 1;
RESET qhnsw.iterative_scan;
SELECT count(*) FROM (SELECT FROM item WHERE id % 10000 = 1234 ORDER BY e <-> vec(7, 16) LIMIT 1) s;
SELECT count(*) FROM (SELECT FROM item WHERE false ORDER BY e <-> vec(7, 16) LIMIT 1) s;
SELECT count(*) FROM (SELECT FROM item WHERE id < 0 ORDER BY e <-> vec(7, 16) LIMIT 1) s;

-- OFFSET continues where LIMIT ended
SELECT array_agg(id) = ARRAY(SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 10 OFFSET 90) AS same
FROM (SELECT id FROM (SELECT id, row_number() OVER () AS n FROM (SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 100) s) s WHERE n > 90) s;

-- cursors; settings changed between fetches do not disturb an open scan
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id FROM item ORDER BY e <-> vec(7, 16);
FETCH 1 FROM c;
MOVE 60 FROM c;
-- a second scan of the same index meanwhile
SELECT id FROM item ORDER BY e <-> vec(8, 16) LIMIT 1;
SET LOCAL qhnsw.ef_search = 1;
SET LOCAL qhnsw.iterative_scan = off;
SET LOCAL qhnsw.rerank = off;
MOVE 200 FROM c;
FETCH FIRST FROM c;
FETCH RELATIVE 0 FROM c;
MOVE ABSOLUTE 261 FROM c;
FETCH BACKWARD ALL FROM c \g /dev/null
DELETE FROM item WHERE id = 7;
FETCH FIRST FROM c;
FETCH NEXT FROM c \g /dev/null
CLOSE c;
ROLLBACK;
BEGIN;
DECLARE h CURSOR WITH HOLD FOR SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 3;
COMMIT;
FETCH 1 FROM h;
CLOSE h;

-- inner side of a nested loop, and correlated subqueries
EXPLAIN (COSTS OFF) SELECT q.id, n.id FROM generate_series(1, 5) q (id) CROSS JOIN LATERAL
	(SELECT id FROM item ORDER BY e <-> vec(q.id, 16) LIMIT 1) n;
SELECT q.id, n.id FROM generate_series(1, 5) q (id) CROSS JOIN LATERAL
	(SELECT id FROM item ORDER BY e <-> vec(q.id, 16) LIMIT 1) n;
SELECT count(*), sum((q.id = n.id)::int) >= 195 AS itself FROM generate_series(1, 200) q (id) CROSS JOIN LATERAL
	(SELECT id FROM item ORDER BY e <-> vec(q.id, 16) LIMIT 5) n;
SELECT id, (SELECT n.id FROM item n WHERE n.id <> item.id ORDER BY n.e <-> item.e LIMIT 1) IS NOT NULL AS has FROM item
WHERE id < 4;
-- the query may be null, and another dimension is an error in the middle
SELECT count(*) FROM (VALUES (vec(1, 16)), (NULL), (vec(2, 16))) q (e) CROSS JOIN LATERAL
	(SELECT id FROM item ORDER BY e <-> q.e LIMIT 2) n;
SELECT count(*) FROM (VALUES (vec(1, 16)), (vec(1, 15))) q (e) CROSS JOIN LATERAL
	(SELECT id FROM item ORDER BY e <-> q.e LIMIT 2) n;

-- prepared statements, custom and generic
PREPARE nearest (real[], int) AS SELECT id FROM item ORDER BY e <-> $1 LIMIT $2;
SET plan_cache_mode = force_generic_plan;
SELECT plan($q$EXECUTE nearest (vec(5, 16), 1)$q$);
EXECUTE nearest (vec(5, 16), 1);
EXECUTE nearest (vec(6, 16), 1);
SET plan_cache_mode = force_custom_plan;
EXECUTE nearest (vec(5, 16), 1);
RESET plan_cache_mode;
DEALLOCATE nearest;

-- counters
SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;
SELECT hops > 0 AS hops, pages > 0 AS pages, scored >= hops AS scored, fetched FROM swarm.qhnsw_scan_stats();

-- what is deleted or not yet committed is not seen; old snapshots see it
BEGIN ISOLATION LEVEL REPEATABLE READ;
DELETE FROM item WHERE id = 7;
INSERT INTO item VALUES (10007, 0, vec(7, 16));
SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;
SAVEPOINT s;
UPDATE item SET e = vec(70000, 16) WHERE id = 10007;
SELECT id IN (7, 10007) AS seen FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;
ROLLBACK TO s;
SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;
ROLLBACK;
SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;
SELECT * FROM swarm.qhnsw_check('item_e');
-- HOT
UPDATE item SET tag = -tag WHERE id = 7;
SELECT id, tag FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;
SELECT * FROM swarm.qhnsw_check('item_e');

-- partitions
CREATE TABLE part (id int, e real[]) PARTITION BY LIST ((id % 3));
CREATE TABLE part0 PARTITION OF part FOR VALUES IN (0);
CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
CREATE TABLE part2 PARTITION OF part FOR VALUES IN (2);
INSERT INTO part SELECT id, e FROM item WHERE id <= 300;
CREATE INDEX part_e ON part USING qhnsw (e);
SELECT plan($q$SELECT id FROM part ORDER BY e <-> (SELECT vec(7, 16)) LIMIT 3$q$);
SELECT id FROM part ORDER BY e <-> vec(7, 16) LIMIT 1;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM part ORDER BY e <-> vec(7, 16)) s;
UPDATE part SET id = 1001 WHERE id = 7;
SELECT id FROM part ORDER BY e <-> vec(7, 16) LIMIT 1;
SELECT i, c.* FROM unnest(ARRAY['part0_e_idx', 'part1_e_idx', 'part2_e_idx']::regclass[]) i, swarm.qhnsw_check(i) c;
DROP TABLE part;

-- parallel queries
SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query') ORDER BY name;
SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;

-- The rows get a new model while a cursor is open: it stays in order.
CREATE TABLE moved (id int, e real[]);
INSERT INTO moved SELECT i, vec(i, 12) FROM generate_series(1, 1000) i;
CREATE INDEX moved_e ON moved USING qhnsw (e) WITH (m = 4, ef_construction = 16);
CREATE FUNCTION moved_order(OUT rows int, OUT wrong int, OUT generation int) LANGUAGE plpgsql AS $$
DECLARE
	c CURSOR FOR SELECT e <-> vec(7, 12) AS d FROM moved ORDER BY e <-> vec(7, 12);
	d float8;
	last float8 = 0;
BEGIN
	rows = 0;
	wrong = 0;
	OPEN c;
	LOOP
		FETCH c INTO d;
		EXIT WHEN NOT FOUND;
		rows = rows + 1;
		IF rows = 5 THEN
			INSERT INTO moved SELECT i, (SELECT array_agg(x + 2) FROM unnest(vec(i, 12)) x) FROM generate_series(1001, 4100) i;
			PERFORM swarm.qhnsw_flush('moved_e');
			last = 0;
		END IF;
		wrong = wrong + (d < last - 0.1)::int;
		last = greatest(d, last);
	END LOOP;
	generation = (swarm.qhnsw_stats('moved_e')).generation;
END $$;
BEGIN;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_sort = off;
SET LOCAL qhnsw.ef_search = 10;
SET LOCAL qhnsw.iterative_scan = relaxed;
SELECT rows, wrong < 50 AS in_order, generation FROM moved_order();
COMMIT;
DROP FUNCTION moved_order;
DROP TABLE moved;
-- More rows than ef_search, with rows that are not in the graph yet: those wait
-- aside, and the walk goes on as if they were not there.
CREATE TABLE aside (id int PRIMARY KEY, e real[]);
CREATE FUNCTION aside_vec(i int) RETURNS real[] LANGUAGE sql IMMUTABLE AS $$
	SELECT array_agg((hashint8(i * 1000::bigint + d)::float8 / 2147483648)::real) FROM generate_series(1, 16) d
$$;
INSERT INTO aside SELECT i, aside_vec(i) FROM generate_series(1, 6000) i;
CREATE INDEX aside_e ON aside USING qhnsw (e real_l2_ops);
CREATE FUNCTION aside_recall(k int, rerank text, iterative text, OUT rows numeric, OUT recall numeric) LANGUAGE plpgsql AS $$
DECLARE
	q real[];
BEGIN
	PERFORM set_config('qhnsw.rerank', rerank, true), set_config('qhnsw.iterative_scan', iterative, true);
	rows = 0;
	recall = 0;
	FOR i IN 1 .. 10 LOOP
		q = aside_vec(-i);
		SELECT rows + count(*), recall + count(*) FILTER (WHERE s.id IN (SELECT id FROM aside ORDER BY (e <-> q) + 0 LIMIT k))
		FROM (SELECT id FROM aside ORDER BY e <-> q LIMIT k) s INTO rows, recall;
	END LOOP;
	rows = rows / 10;
	recall = recall / (10.0 * k);
END $$;
BEGIN;
INSERT INTO aside SELECT i, aside_vec(i) FROM generate_series(6001, 7000) i;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_sort = off;
SET LOCAL qhnsw.ef_search = 10;
SELECT (swarm.qhnsw_stats('aside_e')).pending;
SELECT rerank, iterative, round(rows) AS rows, recall > 0.9 AS good
FROM unnest('{index,heap,off}'::text[]) rerank, unnest('{strict,relaxed}'::text[]) iterative, aside_recall(100, rerank, iterative) ORDER BY 1, 2;
SELECT rerank, rows < 20 AS few FROM unnest('{index,heap,off}'::text[]) rerank, aside_recall(100, rerank, 'off') ORDER BY 1;
COMMIT;
DROP TABLE aside;
DROP FUNCTION aside_vec, aside_recall;
DROP TABLE item;
DROP FUNCTION vec, in_order, plan;
