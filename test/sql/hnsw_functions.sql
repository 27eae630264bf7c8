-- qhnsw: the functions that look into indexes.
SET qhnsw.flush_after = -1;	-- the counts below are of rows that nobody else links
SET client_min_messages = warning;
CREATE FUNCTION error_of(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE command;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' | ', SQLSTATE, message, nullif(detail, ''), nullif(hint, ''));
END $$;
CREATE TABLE item (id int PRIMARY KEY, e real[]);
CREATE INDEX item_e ON item USING qhnsw (e);
CREATE INDEX item_hash ON item USING hash (id);
CREATE TABLE part (e real[]) PARTITION BY HASH (e);
CREATE INDEX part_e ON part USING qhnsw (e);

-- an empty index
SELECT * FROM swarm.qhnsw_check('item_e');
SELECT * FROM swarm.qhnsw_recall('item_e');
SELECT swarm.qhnsw_prewarm('item_e'), swarm.qhnsw_flush('item_e');
SELECT * FROM swarm.qhnsw_scan_stats();
\pset null null
\x
SELECT * FROM swarm.qhnsw_stats('item_e');
INSERT INTO item SELECT i, ARRAY[i, i * i % 17, i * i % 23] FROM generate_series(1, 100) i;
INSERT INTO item VALUES (101, NULL), (102, '{1,1,1}');
SELECT linked, twins, pending, joining, odd, dead, free, levels, entry, bytes_per_row > 0 AS bytes_per_row,
	dims, metric, quantizer, bits, refine_bits, m, ef_construction, generation, trained, drift > 0 AS drift
FROM swarm.qhnsw_stats('item_e');
SELECT swarm.qhnsw_flush('item_e');
SELECT linked, twins, pending, joining, odd, dead, free, levels[1], entry IS NOT NULL AS entry
FROM swarm.qhnsw_stats('item_e');
SELECT meta_bytes + model_bytes + node_bytes + upper_bytes + refine_bytes = pg_relation_size('item_e') AS all_bytes
FROM swarm.qhnsw_stats('item_e');
\x
SELECT * FROM swarm.qhnsw_check('item_e');
SELECT * FROM swarm.qhnsw_check('item_e', false);
SELECT recall > 0.9 AS recall, index_ms > 0 AS index_ms, exact_ms > 0 AS exact_ms, queries FROM swarm.qhnsw_recall('item_e', 20, 5);
SELECT queries FROM swarm.qhnsw_recall('item_e', 1000, 1000);
SELECT swarm.qhnsw_prewarm('item_e') * current_setting('block_size')::int = pg_relation_size('item_e') AS all_blocks;
SET enable_seqscan = off;
SELECT id FROM item ORDER BY e <-> '{50,1,1}' LIMIT 1 \g /dev/null
SELECT hops, pages > 0 AS pages, scored, fetched FROM swarm.qhnsw_scan_stats();
RESET enable_seqscan;

-- strict
SELECT swarm.qhnsw_stats(NULL) IS NULL AS stats, swarm.qhnsw_prewarm(NULL) AS prewarm, swarm.qhnsw_flush(NULL) AS flush,
	swarm.qhnsw_recall('item_e', NULL) IS NULL AS recall;
SELECT count(*) FROM swarm.qhnsw_check(NULL);

-- a check finds what the index does not have, and what the table does not
CREATE TABLE other (LIKE item);
INSERT INTO other VALUES (1, '{1,2,3}'), (2, '{4,5,6}'), (3, '{7,8,9}');
CREATE INDEX other_e ON other USING qhnsw (e) WHERE id <> 2;
SELECT * FROM swarm.qhnsw_check('other_e');
UPDATE pg_index SET indpred = NULL WHERE indexrelid = 'other_e'::regclass;
SELECT problem, node, detail FROM swarm.qhnsw_check('other_e');
SELECT problem, node, detail FROM swarm.qhnsw_check('other_e', false);
DROP TABLE other;

-- errors
SELECT c, error_of(c) FROM unnest(ARRAY[
	$$SELECT swarm.qhnsw_stats('item')$$,
	$$SELECT swarm.qhnsw_stats('item_pkey')$$,
	$$SELECT * FROM swarm.qhnsw_check('item_hash')$$,
	$$SELECT swarm.qhnsw_prewarm('part_e')$$,
	$$SELECT swarm.qhnsw_flush('part')$$,
	$$SELECT swarm.qhnsw_stats(4294967295::oid::regclass)$$,
	$$SELECT swarm.qhnsw_recall('item_e', 0)$$,
	$$SELECT swarm.qhnsw_recall('item_e', 100001)$$,
	$$SELECT swarm.qhnsw_recall('item_e', 1, 0)$$,
	$$SELECT swarm.qhnsw_recall('item_e', 1, 10001)$$]) c;
BEGIN READ ONLY;
SELECT swarm.qhnsw_flush('item_e');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM item;
SELECT * FROM swarm.qhnsw_check('item_e');
ROLLBACK;

-- rights
CREATE ROLE regress_hnsw_owner;
CREATE ROLE regress_hnsw_reader;
CREATE ROLE regress_hnsw_monitor;
CREATE ROLE regress_hnsw_none;
GRANT pg_stat_scan_tables TO regress_hnsw_monitor;
ALTER TABLE item OWNER TO regress_hnsw_owner;
GRANT SELECT ON item TO regress_hnsw_reader;
GRANT EXECUTE ON FUNCTION error_of TO PUBLIC;
CREATE FUNCTION rights(role name) RETURNS TABLE (call text, result text) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('role', role, true);
	RETURN QUERY SELECT c, error_of(c) FROM unnest(ARRAY[
		$c$SELECT swarm.qhnsw_stats('item_e')$c$,
		$c$SELECT swarm.qhnsw_check('item_e')$c$,
		$c$SELECT swarm.qhnsw_recall('item_e')$c$,
		$c$SELECT swarm.qhnsw_prewarm('item_e')$c$,
		$c$SELECT swarm.qhnsw_flush('item_e')$c$,
		$c$SELECT swarm.qhnsw_scan_stats()$c$]) c;
	PERFORM set_config('role', 'none', true);
END $$;
SELECT * FROM rights('regress_hnsw_owner');
SELECT * FROM rights('regress_hnsw_reader');
SELECT * FROM rights('regress_hnsw_monitor');
SELECT * FROM rights('regress_hnsw_none');
-- what a check evaluates, it evaluates as the owner of the table
CREATE FUNCTION spy(real[]) RETURNS real[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF current_user <> 'regress_hnsw_owner' THEN
		RAISE EXCEPTION 'evaluated as %', current_user;
	END IF;
	RETURN $1;
END $$;
GRANT CREATE ON SCHEMA public TO regress_hnsw_owner;
CREATE INDEX item_spy ON item USING qhnsw (spy(e));
SELECT * FROM swarm.qhnsw_check('item_spy');
-- row-level security hides rows from others than the owner
ALTER TABLE item ENABLE ROW LEVEL SECURITY;
SET ROLE regress_hnsw_reader;
SELECT error_of($$SELECT swarm.qhnsw_recall('item_e')$$);
RESET ROLE;

-- many queries in one call: by the index directly, and by a statement where
-- policies or children are involved; both alike
CREATE TABLE many (id int PRIMARY KEY, e real[]);
INSERT INTO many SELECT i, ARRAY[i, i * i % 17, i * i % 23] FROM generate_series(1, 900) i;
INSERT INTO many VALUES (901, NULL);
CREATE INDEX many_e ON many USING qhnsw (e) WITH (quantizer = none);
DELETE FROM many WHERE id = 5;
CREATE VIEW many_found AS SELECT m.query, m.distance, many.id
	FROM swarm.search_many('many', 'e', '{{4,1,1},{600,5,5},{880,5,5}}', 3) m JOIN many ON many.ctid = m.row_id;
CREATE TABLE by_scan AS SELECT * FROM many_found;
SELECT query, count(*), count(DISTINCT id) AS ids, bool_or(id = 5) AS deleted,
	bool_and(d = distance) AS exact, array_agg(d ORDER BY n) = array_agg(d ORDER BY d) AS in_order
FROM (SELECT m.*, e <-> ARRAY(SELECT unnest(('{{4,1,1},{600,5,5},{880,5,5}}'::real[])[query:query])) AS d, row_number() OVER () AS n
	FROM many_found m JOIN many USING (id)) s GROUP BY query ORDER BY query;
SELECT count(*), count(distance) FROM swarm.search_many('many', 'e', '{{4,1,1}}', 1000);
SELECT count(*) FROM swarm.search_many('many', 'e', '{}');
SELECT error_of($$SELECT swarm.search_many('many', 'e', '{{1,2}}')$$);
SELECT error_of($$SELECT swarm.search_many('many', 'id', '{{1,2,3}}')$$);
SELECT error_of($$SELECT swarm.search_many('many', 'x', '{{1,2,3}}')$$);
SELECT error_of($$SELECT swarm.search_many('many', 'e', '{1,2,3}')$$);
SELECT error_of($$SELECT swarm.search_many('many', 'e', '{{1,2,NULL}}')$$);
SELECT error_of($$SELECT swarm.search_many('many', 'e', '{{1,2,3}}', 0)$$);
-- a row that this transaction has not committed, then one that it has removed
BEGIN;
INSERT INTO many VALUES (902, '{880,5,5}');
SELECT id FROM many_found WHERE query = 3 ORDER BY distance LIMIT 1;
DELETE FROM many WHERE id = 902;
SELECT id FROM many_found WHERE query = 3 ORDER BY distance LIMIT 1;
ROLLBACK;
-- a child's rows belong to it
CREATE TABLE many_child () INHERITS (many);
CREATE INDEX ON many_child USING qhnsw (e);
INSERT INTO many_child VALUES (903, '{880,5,5}');
SELECT distance FROM swarm.search_many('many', 'e', '{{880,5,5}}', 1);
DROP TABLE many_child;
-- rights are those of SELECT, policies hold
SET ROLE regress_hnsw_reader;
SELECT error_of($$SELECT swarm.search_many('many', 'e', '{{1,2,3}}')$$);
RESET ROLE;
GRANT SELECT ON many TO regress_hnsw_reader;
ALTER TABLE many ENABLE ROW LEVEL SECURITY;
CREATE POLICY odd ON many USING (id % 2 = 1);
GRANT SELECT ON by_scan TO regress_hnsw_reader;
SET ROLE regress_hnsw_reader;
SELECT query, count(*), bool_and(id % 2 = 1) AS policy FROM (SELECT m.query, many.id
	FROM swarm.search_many('many', 'e', '{{4,1,1},{600,5,5}}', 3) m JOIN many ON many.ctid = m.row_id) s
GROUP BY query ORDER BY query;
RESET ROLE;
DROP POLICY odd ON many;
CREATE POLICY everything ON many USING (true);
SET ROLE regress_hnsw_reader;
SELECT array_agg(distance ORDER BY query, distance) = (SELECT array_agg(distance ORDER BY query, distance) FROM by_scan) AS same
FROM swarm.search_many('many', 'e', '{{4,1,1},{600,5,5},{880,5,5}}', 3);
RESET ROLE;
DROP VIEW many_found;
DROP TABLE many, by_scan;
DROP TABLE item, part;
DROP FUNCTION error_of, spy, rights;
REVOKE CREATE ON SCHEMA public FROM regress_hnsw_owner;
DROP ROLE regress_hnsw_owner, regress_hnsw_reader, regress_hnsw_monitor, regress_hnsw_none;
