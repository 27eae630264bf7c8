-- qhnsw: what can be indexed, and that it is found.
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
SET enable_seqscan = off;
SET qhnsw.ef_search = 60;

-- the operator classes are valid and as documented
\dAc qhnsw
SELECT opcname, amvalidate(c.oid) FROM pg_opclass c JOIN pg_am a ON a.oid = opcmethod
WHERE amname = 'qhnsw' AND opcname LIKE 'real%' ORDER BY 1;

-- the three metrics, built at once, and row by row from an empty table
CREATE TABLE item (id int PRIMARY KEY, e real[]);
INSERT INTO item SELECT i, vec(i, 16) FROM generate_series(1, 3000) i;
CREATE INDEX item_l2 ON item USING qhnsw (e);
CREATE INDEX item_cosine ON item USING qhnsw (e real_cosine_ops);
CREATE INDEX item_ip ON item USING qhnsw (e real_ip_ops);
SELECT plan($q$SELECT id FROM item ORDER BY e <-> (SELECT vec(7, 16)) LIMIT 3$q$);
SELECT plan($q$SELECT id FROM item ORDER BY e <=> (SELECT vec(7, 16)) LIMIT 3$q$);
SELECT plan($q$SELECT id FROM item ORDER BY e <#> (SELECT vec(7, 16)) LIMIT 3$q$);
SELECT id FROM item ORDER BY e <-> vec(7, 16) LIMIT 1;
SELECT id FROM item ORDER BY e <=> vec(7, 16) LIMIT 1;
SELECT i, (swarm.qhnsw_recall(i, 50)).recall >= 0.9 AS recall FROM unnest(ARRAY['item_l2', 'item_cosine', 'item_ip']::regclass[]) i;
SELECT i, c.* FROM unnest(ARRAY['item_l2', 'item_cosine', 'item_ip']::regclass[]) i, swarm.qhnsw_check(i) c;
SELECT metric, dims, quantizer, bits, m, ef_construction, linked, levels[1] = linked AS all_on_level_0,
	drift < 0.3 AS little_drift FROM swarm.qhnsw_stats('item_cosine');
-- rows of very different lengths
UPDATE item SET e = (SELECT array_agg(x * (id % 7 + 0.1)) FROM unnest(e) x);
VACUUM item;
REINDEX TABLE item;
SELECT i, (swarm.qhnsw_recall(i, 50)).recall >= 0.9 AS recall FROM unnest(ARRAY['item_l2', 'item_cosine', 'item_ip']::regclass[]) i;

CREATE TABLE grown (id int, e real[]);
CREATE INDEX grown_l2 ON grown USING qhnsw (e);
CREATE INDEX grown_cosine ON grown USING qhnsw (e real_cosine_ops) WITH (fastupdate = off);
CREATE INDEX grown_ip ON grown USING qhnsw (e real_ip_ops);
SELECT id FROM grown ORDER BY e <-> '{1,2}';
SELECT dims IS NULL AS no_dims, linked, bytes_per_row FROM swarm.qhnsw_stats('grown_l2');
INSERT INTO grown SELECT i, vec(i, 16) FROM generate_series(1, 1) i;
SELECT id FROM grown ORDER BY e <-> vec(3, 16);
SELECT id FROM grown ORDER BY e <=> vec(3, 16);
INSERT INTO grown SELECT i, vec(i, 16) FROM generate_series(2, 2000) i;
SELECT pending, linked FROM swarm.qhnsw_stats('grown_l2');
SELECT pending, linked FROM swarm.qhnsw_stats('grown_cosine');
SELECT i, (swarm.qhnsw_recall(i, 50)).recall >= 0.9 AS recall FROM unnest(ARRAY['grown_l2', 'grown_cosine', 'grown_ip']::regclass[]) i;
SELECT i, c.* FROM unnest(ARRAY['grown_l2', 'grown_cosine', 'grown_ip']::regclass[]) i, swarm.qhnsw_check(i) c;
SELECT swarm.qhnsw_flush('grown_l2'), swarm.qhnsw_flush('grown_cosine'), swarm.qhnsw_flush('grown_ip');
SELECT pending, linked FROM swarm.qhnsw_stats('grown_l2');
SELECT i, (swarm.qhnsw_recall(i, 50)).recall >= 0.9 AS recall FROM unnest(ARRAY['grown_l2', 'grown_cosine', 'grown_ip']::regclass[]) i;
SELECT i, c.* FROM unnest(ARRAY['grown_l2', 'grown_cosine', 'grown_ip']::regclass[]) i, swarm.qhnsw_check(i) c;
DROP TABLE grown;

-- every quantizer, with every rerank
DROP INDEX item_l2, item_cosine, item_ip;
CREATE TABLE wide (id int, e real[]);
INSERT INTO wide SELECT i, vec(i, 64) FROM generate_series(1, 1200) i;
SET qhnsw.ef_search = 24;
DO $$
DECLARE
	q text;
	r text;
	s record;
	recall float8;
BEGIN
	FOREACH q IN ARRAY ARRAY['auto', 'sq8', 'rabitq4', 'rabitq2', 'rabitq1', 'half', 'none'] LOOP
		EXECUTE format('CREATE INDEX wide_e ON wide USING qhnsw (e) WITH (quantizer = %s, ef_construction = 60)', q);
		FOREACH r IN ARRAY ARRAY['default', 'off', 'heap'] LOOP
			PERFORM set_config('qhnsw.rerank', r, false);
			recall := (swarm.qhnsw_recall('wide_e', 30)).recall;
			-- one and two bits are worth little in so few dimensions
			IF recall < (CASE WHEN q = 'rabitq1' OR q = 'rabitq2' THEN 0.3 ELSE 0.8 END) THEN
				RAISE WARNING 'quantizer %, rerank %: recall %', q, r, recall;
			END IF;
		END LOOP;
		SELECT * INTO s FROM swarm.qhnsw_stats('wide_e');
		IF EXISTS (SELECT FROM swarm.qhnsw_check('wide_e')) OR s.quantizer <> (CASE q WHEN 'auto' THEN 'rabitq4' ELSE q END) THEN
			RAISE WARNING 'quantizer %: %', q, s;
		END IF;
		DROP INDEX wide_e;
	END LOOP;
END $$;
RESET qhnsw.rerank;
CREATE INDEX wide_e ON wide USING qhnsw (e) WITH (quantizer = rabitq2, rerank = off);
SELECT quantizer, bits, refine_bits, refine_bytes FROM swarm.qhnsw_stats('wide_e');
DROP TABLE wide;
SET qhnsw.ef_search = 60;

-- nulls come last, before them zero vectors under cosine
CREATE TABLE odd (id int, e real[]);
INSERT INTO odd VALUES (1, NULL), (2, '{0,0}'), (3, '{1,0}'), (4, '{-1,0}'), (5, NULL), (6, '{0,1}'), (7, '{0,0}');
CREATE INDEX odd_cosine ON odd USING qhnsw (e real_cosine_ops);
SELECT id, e FROM odd ORDER BY e <=> '{2,0.1}';
INSERT INTO odd VALUES (8, NULL), (9, '{0,0}'), (10, '{1,1}');
SELECT id, e FROM odd ORDER BY e <=> '{2,0.1}';
SELECT linked, pending, odd FROM swarm.qhnsw_stats('odd_cosine');
SELECT * FROM swarm.qhnsw_check('odd_cosine');
-- queries without a direction: every row, in any order
SELECT count(*) FROM (SELECT FROM odd ORDER BY e <=> '{0,0}') s;
SELECT count(*) FROM (SELECT FROM odd ORDER BY e <=> NULL::real[]) s;
SELECT count(*) FROM (SELECT FROM odd ORDER BY e <=> (SELECT NULL::real[])) s;
DELETE FROM odd WHERE id IN (1, 2, 8);
VACUUM odd;
SELECT linked, odd, free FROM swarm.qhnsw_stats('odd_cosine');
SELECT * FROM swarm.qhnsw_check('odd_cosine');
INSERT INTO odd VALUES (11, NULL), (12, '{0,0}'), (13, '{1,2}'), (14, NULL);
SELECT id FROM odd ORDER BY e <=> '{2,0.1}';
SELECT * FROM swarm.qhnsw_check('odd_cosine');
DROP TABLE odd;
-- only nulls; with dims known they are in the index
CREATE TABLE odd (id int, e real[]);
INSERT INTO odd VALUES (1, NULL), (2, NULL);
CREATE INDEX odd_dims ON odd USING qhnsw (e) WITH (dims = 2);
INSERT INTO odd VALUES (3, NULL), (4, '{1,2}');
SELECT id FROM odd ORDER BY e <-> '{1,1}';
SELECT odd, pending FROM swarm.qhnsw_stats('odd_dims');
SELECT * FROM swarm.qhnsw_check('odd_dims');
SELECT error_of($$INSERT INTO odd VALUES (5, '{1,2,3}')$$);
DROP TABLE odd;
-- nulls that came before the dimensions were known, by a build and by inserts,
-- are returned too: last, once, as the snapshot has them
CREATE TABLE odd (id int PRIMARY KEY, tag int, e real[]) WITH (fillfactor = 50);
INSERT INTO odd VALUES (1, 0, NULL), (2, 0, NULL), (3, 0, NULL);
CREATE INDEX odd_nulls ON odd USING qhnsw (e) WHERE id <> 3;
SELECT id FROM odd WHERE id <> 3 ORDER BY e <-> '{1,1}', id;
SELECT id FROM (SELECT id FROM odd WHERE id <> 3 ORDER BY e <-> '{1,1}') s ORDER BY id;
INSERT INTO odd VALUES (4, 0, NULL), (5, 0, '{1,2}'), (6, 0, NULL), (7, 0, '{5,5}');
UPDATE odd SET tag = 1 WHERE id = 2;	-- HOT
UPDATE odd SET e = '{9,9}' WHERE id = 4;
SELECT array_agg(id ORDER BY n) FILTER (WHERE n <= 3) AS first, array_agg(id ORDER BY id) FILTER (WHERE n > 3) AS last
FROM (SELECT id, row_number() OVER () AS n FROM (SELECT id FROM odd WHERE id <> 3 ORDER BY e <-> '{1,1}') s) s;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM odd WHERE id <> 3 ORDER BY e <-> NULL::real[]) s;
SELECT * FROM swarm.qhnsw_check('odd_nulls');
REINDEX INDEX odd_nulls;
SELECT array_agg(id ORDER BY id) FROM (SELECT id FROM odd WHERE id <> 3 ORDER BY e <-> '{1,1}') s;
DROP TABLE odd;

-- what is refused
CREATE TABLE refused (id int, e real[]);
CREATE INDEX refused_e ON refused USING qhnsw (e);
CREATE INDEX refused_c ON refused USING qhnsw (e real_cosine_ops);
SELECT error_of(c) FROM unnest(ARRAY[
	$$INSERT INTO refused VALUES (1, '{NaN,1,2}')$$,
	$$INSERT INTO refused VALUES (1, '{1,Infinity}')$$,
	$$INSERT INTO refused VALUES (1, '{1,-Infinity}')$$,
	$$INSERT INTO refused VALUES (1, '{1,NULL}')$$,
	$$INSERT INTO refused VALUES (1, '{}')$$,
	$$INSERT INTO refused VALUES (1, '{{1,2},{3,4}}')$$,
	$$INSERT INTO refused VALUES (1, '{3e38,1}')$$,
	$$INSERT INTO refused VALUES (1, array_fill(1::real, ARRAY[16001]))$$,
	-- none of them has fixed the dimensions
	$$INSERT INTO refused VALUES (1, '{1,2}')$$,
	$$INSERT INTO refused VALUES (2, '{1,2,3}')$$,
	$$INSERT INTO refused VALUES (2, '{1}')$$,
	$$SELECT FROM refused ORDER BY e <-> '{1,2,3}'$$,
	$$SELECT FROM refused ORDER BY e <=> '{1}'$$,
	$$SELECT FROM refused ORDER BY e <-> '{1,NaN}'$$,
	$$SELECT FROM refused ORDER BY e <-> '{}'$$,
	$$SELECT FROM refused ORDER BY e <-> '{1,NULL}'$$]) c;
SELECT id FROM refused ORDER BY e <-> '{1,2}';
SELECT * FROM swarm.qhnsw_check('refused_e');
-- subnormal and very small numbers, negative zero
INSERT INTO refused VALUES (2, '{1e-45,-0}'), (3, '{1e-30,2e-30}'), (4, '{0,0}'), (5, '{1e17,0}');
SELECT id FROM refused ORDER BY e <-> '{1,2}';
SELECT id FROM refused ORDER BY e <=> '{1,2}';
SELECT i, c.* FROM unnest(ARRAY['refused_e', 'refused_c']::regclass[]) i, swarm.qhnsw_check(i) c;
DROP TABLE refused;
CREATE TABLE refused (e real[], t text, i int);
INSERT INTO refused VALUES ('{1,NaN}');
SELECT error_of(c) FROM unnest(ARRAY[
	'CREATE INDEX ON refused USING qhnsw (e)',
	'CREATE INDEX ON refused USING qhnsw (e, e)',
	'CREATE UNIQUE INDEX ON refused USING qhnsw (e)',
	'CREATE INDEX ON refused USING qhnsw (t)',
	'CREATE INDEX ON refused USING qhnsw (e) INCLUDE (i)',
	'CREATE INDEX ON refused USING qhnsw (e DESC)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (m = 1)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (m = 101)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (ef_construction = 3)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (quantizer = pq)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (rerank = maybe)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (dims = 16001)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (layout = wide)',
	'CREATE INDEX ON refused USING qhnsw (e) WITH (lists = 100)',
	'SET qhnsw.ef_search = 0',
	'SET qhnsw.iterative_scan = maybe',
	'SET qhnsw.rerank = maybe',
	'SET qhnsw.nothing = 1']) c;
DROP TABLE refused;

-- duplicates by the thousand; pruning and repair may leave a node of such data without a way to it
SET qhnsw.iterative_scan = relaxed;
CREATE TABLE same (id int, e real[]);
INSERT INTO same SELECT i, CASE WHEN i <= 2000 THEN '{1,2,3}' ELSE vec(i, 3) END FROM generate_series(1, 2500) i;
CREATE INDEX same_e ON same USING qhnsw (e);
INSERT INTO same SELECT i, '{1,2,3}' FROM generate_series(2501, 4000) i;
SELECT swarm.qhnsw_flush('same_e');
SELECT linked, twins FROM swarm.qhnsw_stats('same_e');
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM same ORDER BY e <-> '{1,2,3}' LIMIT 3500) s WHERE id <= 2000 OR id > 2500;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM same ORDER BY e <-> '{1,2,3}' LIMIT 4000) s;
SELECT * FROM swarm.qhnsw_check('same_e');
DELETE FROM same WHERE id % 3 <> 0;
VACUUM same;
SELECT linked, twins, dead, free FROM swarm.qhnsw_stats('same_e');
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM same ORDER BY e <-> '{1,2,3}') s;
SELECT * FROM swarm.qhnsw_check('same_e');
DELETE FROM same WHERE id <= 2000 OR id > 2500;
VACUUM same;
SELECT linked, twins, dead FROM swarm.qhnsw_stats('same_e');
SELECT count(*) FROM (SELECT id FROM same ORDER BY e <-> '{1,2,3}') s;
SELECT * FROM swarm.qhnsw_check('same_e');
DROP TABLE same;
RESET qhnsw.iterative_scan;

-- dimensions
DO $$
DECLARE
	d int;
	c text;
	problem record;
BEGIN
	FOREACH d IN ARRAY ARRAY[1, 2, 3, 31, 768, 1536, 4096, 16000] LOOP
		FOREACH c IN ARRAY ARRAY['real_l2_ops', 'real_cosine_ops', 'real_ip_ops'] LOOP
			CREATE TABLE dim (id int, e real[]);
			INSERT INTO dim SELECT i, vec(i, d) FROM generate_series(1, 5) i;
			EXECUTE format('CREATE INDEX dim_e ON dim USING qhnsw (e %s)', c);
			INSERT INTO dim SELECT i, vec(i, d) FROM generate_series(6, 12) i;
			PERFORM swarm.qhnsw_flush('dim_e');
			FOR problem IN SELECT * FROM swarm.qhnsw_check('dim_e') LOOP
				RAISE WARNING '% dimensions, %: %', d, c, problem;
			END LOOP;
			-- twelve rows, and in many dimensions all are about as far: a few of 36 change places with the seed
			IF (swarm.qhnsw_recall('dim_e', 12, 3)).recall < 0.75 THEN
				RAISE WARNING '% dimensions, %: recall %', d, c, (swarm.qhnsw_recall('dim_e', 12, 3)).recall;
			END IF;
			DROP TABLE dim;
		END LOOP;
	END LOOP;
END $$;
CREATE TABLE dim (e real[]);
INSERT INTO dim VALUES (vec(1, 16000));
SELECT error_of(c) FROM unnest(ARRAY[
	'CREATE INDEX ON dim USING qhnsw (e) WITH (quantizer = none)',
	'CREATE INDEX ON dim USING qhnsw (e) WITH (m = 100)',
	'CREATE INDEX ON dim USING qhnsw (e) WITH (quantizer = rabitq1, refine_bits = 7)',
	'CREATE INDEX ON dim USING qhnsw (e) WITH (quantizer = rabitq1)']) c;
DROP TABLE dim;
DROP TABLE item;
DROP FUNCTION vec, error_of, plan;
