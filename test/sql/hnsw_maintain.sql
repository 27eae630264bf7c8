-- qhnsw: indexes of all kinds, and what is done to them.
SET qhnsw.flush_after = -1;	-- the counts below are of rows that nobody else links
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
CREATE FUNCTION good(index regclass) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	found float8 = (swarm.qhnsw_recall(index, 40)).recall;
	problem record;
BEGIN
	FOR problem IN SELECT * FROM swarm.qhnsw_check(index) LIMIT 3 LOOP
		RAISE WARNING '%: %', index, problem;
	END LOOP;
	RETURN CASE WHEN found >= 0.9 THEN 'good' ELSE 'recall ' || found END;
END $$;
SET enable_seqscan = off;
SET qhnsw.ef_search = 40;
CREATE TABLE item (id int PRIMARY KEY, tag int, e real[]);
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(1, 2500) i;

-- delete, vacuum, use again: the index does not grow and stays good
CREATE INDEX item_e ON item USING qhnsw (e) WITH (ef_construction = 64);
SELECT pg_relation_size('item_e') AS size \gset
SELECT good('item_e');
DELETE FROM item WHERE id % 5 = 0;
SELECT good('item_e');
VACUUM item;
SELECT linked, dead, free FROM swarm.qhnsw_stats('item_e');
SELECT good('item_e');
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(3001, 3500) i;
SELECT pending, free FROM swarm.qhnsw_stats('item_e');
VACUUM item;
SELECT linked, pending, free FROM swarm.qhnsw_stats('item_e');
SELECT good('item_e');
UPDATE item SET e = vec(id + 10000, 12) WHERE id % 5 = 1;
VACUUM item;
SELECT linked, pending, dead FROM swarm.qhnsw_stats('item_e');
SELECT good('item_e');
UPDATE item SET e = vec(id + 20000, 12) WHERE id % 5 = 2;
VACUUM item;
UPDATE item SET e = vec(id + 30000, 12) WHERE id % 5 = 3;
VACUUM item;
SELECT good('item_e');
SELECT pg_relation_size('item_e') <= 1.3 * :size AS as_big_as_before;
-- an empty graph begins again
DELETE FROM item;
VACUUM item;
SELECT linked, dead, entry FROM swarm.qhnsw_stats('item_e');
SELECT * FROM swarm.qhnsw_check('item_e');
SELECT count(*) FROM (SELECT FROM item ORDER BY e <-> vec(7, 12)) s;
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(1, 1500) i;
SELECT swarm.qhnsw_flush('item_e');
SELECT good('item_e');
TRUNCATE item;
SELECT count(*) FROM (SELECT FROM item ORDER BY e <-> vec(7, 12)) s;
SELECT * FROM swarm.qhnsw_check('item_e');
INSERT INTO item SELECT i, i % 10, vec(i, 5) FROM generate_series(1, 3) i;
SELECT id FROM item ORDER BY e <-> vec(2, 5) LIMIT 1;
TRUNCATE item;
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(1, 1500) i;

-- a short pending list is folded by inserts
SET qhnsw.pending_list_limit = 64;
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(1501, 2500) i;
SELECT pending < 1000 AS folded, linked + pending FROM swarm.qhnsw_stats('item_e');
-- each of them a part of it
RESET qhnsw.pending_list_limit;
DELETE FROM item WHERE id > 1500;
VACUUM item;
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(1501, 2499) i;
SET qhnsw.pending_list_limit = 100;
INSERT INTO item VALUES (2500, 0, vec(2500, 12));
SELECT pending FROM swarm.qhnsw_stats('item_e');
RESET qhnsw.pending_list_limit;
-- fastupdate can be switched, old rows wait on
ALTER INDEX item_e SET (fastupdate = off);
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(2501, 2600) i;
SELECT linked + pending FROM swarm.qhnsw_stats('item_e');
SELECT good('item_e');
VACUUM item;
SELECT linked, pending FROM swarm.qhnsw_stats('item_e');
SELECT good('item_e');
ALTER INDEX item_e RESET (fastupdate);

-- rolled back inserts
BEGIN;
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(2601, 2700) i;
SELECT swarm.qhnsw_flush('item_e') >= 100 AS folded;
ROLLBACK;
SELECT good('item_e');
VACUUM item;
SELECT linked, dead, free FROM swarm.qhnsw_stats('item_e');
SELECT good('item_e');

-- storage options
ALTER INDEX item_e SET (ef_search = 1);
RESET qhnsw.ef_search;
SET qhnsw.iterative_scan = off;
SELECT count(*) < 64 AS few FROM (SELECT FROM item ORDER BY e <-> vec(7, 12) LIMIT 100) s;
-- the setting wins, also with its default value
SET qhnsw.ef_search = 64;
SELECT count(*) >= 64 AS more FROM (SELECT FROM item ORDER BY e <-> vec(7, 12) LIMIT 100) s;
ALTER INDEX item_e RESET (ef_search);
RESET qhnsw.iterative_scan;
SET qhnsw.ef_search = 40;
ALTER INDEX item_e SET (quantizer = half, m = 8);
SELECT quantizer, m FROM swarm.qhnsw_stats('item_e');
REINDEX INDEX item_e;
SELECT quantizer, m FROM swarm.qhnsw_stats('item_e');
SELECT good('item_e');
REINDEX INDEX CONCURRENTLY item_e;
SELECT good('item_e');
ALTER INDEX item_e SET (lists = 3);
ALTER INDEX item_e SET (ef_search = -1);
CREATE INDEX CONCURRENTLY item_c ON item USING qhnsw (e real_cosine_ops);
SELECT good('item_c');
REINDEX TABLE CONCURRENTLY item;
SELECT good('item_c');
ALTER TABLE item ALTER tag TYPE bigint;
VACUUM FULL item;
CLUSTER item USING item_pkey;
SELECT good('item_e'), good('item_c');
CLUSTER item USING item_e;
DROP INDEX item_c;

-- too little memory to build: what does not fit is inserted (a NOTICE says so)
SET maintenance_work_mem = '1MB';
INSERT INTO item SELECT i, i % 10, vec(i, 12) FROM generate_series(10001, 14000) i;
CREATE INDEX item_small ON item USING qhnsw (e) WITH (ef_construction = 40, quantizer = none);
RESET maintenance_work_mem;
SELECT linked + pending AS rows FROM swarm.qhnsw_stats('item_small');
SELECT good('item_small');
DROP INDEX item_small;

-- expression and partial indexes
CREATE FUNCTION twice(real[]) RETURNS real[] LANGUAGE sql IMMUTABLE STRICT AS
	$$ SELECT array_agg(2 * x ORDER BY o) FROM unnest($1) WITH ORDINALITY u(x, o) $$;
CREATE TABLE odd AS SELECT id, tag, e FROM item WHERE id <= 1500;
CREATE INDEX odd_partial ON odd USING qhnsw (e) WHERE tag = 3;
CREATE INDEX odd_expression ON odd USING qhnsw (twice(e)) WHERE tag < 3;
SELECT plan($q$SELECT id FROM odd WHERE tag = 3 ORDER BY e <-> (SELECT vec(13, 12)) LIMIT 1$q$);
SELECT plan($q$SELECT id FROM odd WHERE tag < 3 ORDER BY twice(e) <-> (SELECT vec(13, 12)) LIMIT 1$q$);
SELECT id FROM odd WHERE tag = 3 ORDER BY e <-> vec(13, 12) LIMIT 1;
SELECT good('odd_partial'), good('odd_expression');
SET qhnsw.rerank = heap;
SELECT good('odd_partial'), good('odd_expression');
RESET qhnsw.rerank;
UPDATE odd SET tag = 3 - tag;
INSERT INTO odd VALUES (-1, 3, NULL), (-2, 2, NULL);
SELECT good('odd_partial'), good('odd_expression');
VACUUM odd;
SELECT good('odd_partial'), good('odd_expression');
DROP TABLE odd;
DROP FUNCTION twice;

-- other kinds of tables
CREATE UNLOGGED TABLE quick (id int, e real[]);
CREATE INDEX quick_e ON quick USING qhnsw (e);
INSERT INTO quick SELECT i, vec(i, 12) FROM generate_series(1, 1200) i;
SELECT good('quick_e');
ALTER TABLE quick SET LOGGED;
SELECT good('quick_e');
DROP TABLE quick;
CREATE TEMP TABLE quick (id int, e real[]) ON COMMIT DELETE ROWS;
CREATE INDEX quick_e ON quick USING qhnsw (e);
BEGIN;
INSERT INTO quick SELECT i, vec(i, 12) FROM generate_series(1, 1000) i;
SELECT good('quick_e');
COMMIT;
BEGIN;
INSERT INTO quick SELECT i, vec(i, 40) FROM generate_series(1, 1000) i;
SELECT id FROM quick ORDER BY e <-> vec(5, 40) LIMIT 1;
SELECT good('quick_e');
ROLLBACK;
DROP TABLE quick;
BEGIN;
CREATE TABLE quick (id int, e real[]);
CREATE INDEX quick_e ON quick USING qhnsw (e);
INSERT INTO quick SELECT i, vec(i, 12) FROM generate_series(1, 100) i;
TRUNCATE quick;
INSERT INTO quick SELECT i, vec(i, 3) FROM generate_series(1, 100) i;
SAVEPOINT s;
TRUNCATE quick;
INSERT INTO quick SELECT i, vec(i, 4) FROM generate_series(1, 100) i;
ROLLBACK TO s;
SELECT id FROM quick ORDER BY e <-> vec(5, 3) LIMIT 1;
SELECT good('quick_e');
COMMIT;
SELECT good('quick_e');
DROP TABLE quick;
-- generated columns, values out of line
CREATE TABLE quick (id int, e real[] GENERATED ALWAYS AS (vec(id, 1536)) STORED);
INSERT INTO quick SELECT i FROM generate_series(1, 100) i;
CREATE INDEX quick_e ON quick USING qhnsw (e real_cosine_ops);
SELECT id FROM quick ORDER BY e <=> vec(42, 1536) LIMIT 1;
SELECT good('quick_e');
DROP TABLE quick;

-- nothing is left of a build that fails
CREATE TABLE quick (e real[]);
INSERT INTO quick VALUES ('{1,2}'), ('{1,2,3}');
CREATE INDEX quick_e ON quick USING qhnsw (e);
CREATE INDEX CONCURRENTLY quick_e ON quick USING qhnsw (e);
SELECT swarm.qhnsw_stats('quick_e');
INSERT INTO quick VALUES ('{1,2}');

-- A parallel VACUUM cannot code rows anew, in the leader or a worker; the next one can.
CREATE TABLE grown (id int PRIMARY KEY, e real[]);
INSERT INTO grown SELECT i, vec(i, 12) FROM generate_series(1, 100) i;
CREATE INDEX grown_e ON grown USING qhnsw (e) WITH (m = 4, ef_construction = 16);
INSERT INTO grown SELECT i, (SELECT array_agg(x + 2) FROM unnest(vec(i, 12)) x) FROM generate_series(101, 1000) i;
SET min_parallel_index_scan_size = 0;
VACUUM (PARALLEL 2) grown;
SELECT linked, pending, generation FROM swarm.qhnsw_stats('grown_e');
VACUUM (PARALLEL 0) grown;
SELECT generation, trained FROM swarm.qhnsw_stats('grown_e');
RESET min_parallel_index_scan_size;
SELECT good('grown_e');
DROP TABLE grown;

-- Equal rows stay of one code when they are coded anew, also if the first is dead.
CREATE TABLE alike (id int, e real[]);
INSERT INTO alike SELECT i, vec(i % 10, 12) FROM generate_series(1, 100) i;
CREATE INDEX alike_e ON alike USING qhnsw (e) WITH (m = 4, ef_construction = 16, quantizer = rabitq2);
DELETE FROM alike WHERE id <= 5 OR id > 95;
INSERT INTO alike SELECT i, (SELECT array_agg(x + 2) FROM unnest(vec(i, 12)) x) FROM generate_series(101, 500) i;
SELECT swarm.qhnsw_flush('alike_e');
SELECT twins, generation FROM swarm.qhnsw_stats('alike_e');
SELECT * FROM swarm.qhnsw_check('alike_e');
DROP TABLE alike;
DROP TABLE quick;
DROP TABLE item;
DROP FUNCTION vec, good, plan;
