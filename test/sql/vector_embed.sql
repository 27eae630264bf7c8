-- swarm.embed: the same bits everywhere, UTF-8, limits.
-- The md5 sums below are the format: a change of one is a change of every
-- embedding that users have stored.
CREATE FUNCTION bits(v real[]) RETURNS text LANGUAGE sql AS
$$ SELECT md5(string_agg(float4send(x), '' ORDER BY i)) FROM unnest(v) WITH ORDINALITY u(x, i) $$;
CREATE FUNCTION len(v real[]) RETURNS float8 LANGUAGE sql AS
$$ SELECT sqrt(sum(x::float8 * x::float8)) FROM unnest(v) x $$;

CREATE TABLE texts (id int PRIMARY KEY, t text);
INSERT INTO texts VALUES
	(1, 'PostgreSQL'),
	(2, 'How do I find out which index is never used?'),
	(3, 'VACUUM reclaims storage occupied by dead tuples.'),
	(4, U&'na\00EFve caf\00E9 \00C5ngstr\00F6m stra\00DFe \0152uvre \0141\00F3d\017A'),
	(5, U&'\0391\03B8\03AE\03BD\03B1 \03BA\03B1\03BB\03B7\03BC\03AD\03C1\03B1 \03BA\03CC\03C3\03BC\03BF\03C2'),
	(6, U&'\041F\0440\0438\0432\0435\0442, \0451\043B\043A\0430 \0439\043E\0434'),
	(7, U&'\65E5\672C\8A9E\306E\6587\7AE0\3067\3059\3002'),
	(8, U&'\D55C\AD6D\C5B4 \BB38\C7A5'),
	(9, U&'\0E20\0E32\0E29\0E32\0E44\0E17\0E22'),
	(10, U&'\+01F600\+01F680 \2764\FE0F'),
	(11, U&'\0627\0644\0639\0631\0628\064A\0629'),
	(12, '12345 67 890'),
	(13, 'a'),
	(14, repeat('x', 1000)),
	(15, 'max_connections = 100 -- pg_stat_user_indexes'),
	(16, repeat('the quick brown fox jumps over the lazy dog. ', 50));
SELECT id, bits(swarm.embed(t)) AS "384", bits(swarm.embed(t, 8)) AS "8", bits(swarm.embed(t, 1000)) AS "1000"
FROM texts ORDER BY id;
SELECT bits(swarm.embed(string_agg(md5(i::text), ' ' ORDER BY i), 384)) FROM generate_series(1, 5000) i;
SELECT bits(swarm.embed('sixteen thousand', 16000));

-- unit length, the dimensions that were asked for, one array
SELECT bool_and(abs(len(swarm.embed(t, d)) - 1) < 1e-6 AND cardinality(swarm.embed(t, d)) = d
	AND array_ndims(swarm.embed(t, d)) = 1 AND array_lower(swarm.embed(t, d), 1) = 1)
FROM texts, unnest(ARRAY[8, 9, 63, 64, 100, 384, 1536, 16000]) d;

-- nothing to embed: the zero vector
SELECT swarm.embed(t, 8), len(swarm.embed(t)) = 0 AS zero
FROM unnest(ARRAY['', ' ', E'\t\n', '.,;:!?', '---', U&'\3000\FF01\200B', '''']) t;
SELECT swarm.embed(NULL) IS NULL AS a, swarm.embed('x', NULL) IS NULL AS b;

-- what is folded
SELECT a, b, swarm.embed(a) = swarm.embed(b) AS same
FROM (VALUES
	('Index', 'INDEX'), ('index scan', '  index,  scan!'),
	('indexes', 'index'), ('queries', 'query'), ('dropped', 'dropping'), ('created', 'creates'),
	('status', 'statu'), ('string', 'str'), ('caching', 'cached'), ('tables', 'table'),
	(U&'caf\00E9', 'cafe'), (U&'caf\00E9', U&'cafe\0301'), (U&'STRASSE', U&'stra\00DFe'),
	(U&'\1EA1', 'a'), (U&'\FF21\FF22\FF23', 'abc'), ('don''t', U&'don\2019t'),
	(U&'\0391\0398\0397\039D\0391', U&'\0391\03B8\03AE\03BD\03B1'),
	(U&'\03BA\03CC\03C3\03BC\03BF\03C2', U&'\039A\039F\03A3\039C\039F\03A3'),
	(U&'\0401\041B\041A\0410', U&'\0435\043B\043A\0430'), (U&'\0439', U&'\0438\0306'),
	(U&'\+01F44D', U&'\+01F44D\+01F3FD'),
	('index', 'table'), ('dead rows', 'rows dead')) v(a, b);

-- meaning: related texts are nearer than unrelated ones
SELECT swarm.embed('create an index on a table') <=> swarm.embed('creating indexes on tables')
	 < swarm.embed('create an index on a table') <=> swarm.embed('streaming replication slots') AS stems,
	   swarm.embed('postgresql configuration') <=> swarm.embed('postgersql configuratoin')
	 < swarm.embed('postgresql configuration') <=> swarm.embed('backup and restore') AS typos,
	   swarm.embed('the of and is to which', 384) <=> swarm.embed('vacuum') > 0.5 AS stop_words;

-- properties: any bytes that the server lets in, any cut, any length
DO $$
DECLARE
	t text;
	v real[];
BEGIN
	PERFORM setseed(0.5);
	FOR i IN 1 .. 300 LOOP
		SELECT string_agg(chr(CASE WHEN r < 0.5 THEN 32 + (r * 180)::int
							  WHEN r < 0.9 THEN 160 + (r * 9000)::int
							  ELSE 65536 + (r * 100000)::int END), '')
		INTO t FROM (SELECT random() AS r FROM generate_series(1, (random() * 100)::int)) s;
		v := swarm.embed(coalesce(t, ''), 64);
		ASSERT v = swarm.embed(coalesce(t, ''), 64);
		ASSERT cardinality(v) = 64 AND array_position(v, 'NaN') IS NULL;
		ASSERT len(v) = 0 OR abs(len(v) - 1) < 1e-6, t;
	END LOOP;
	-- megabytes: characters cross the blocks, the table is emptied on the way
	FOR i IN 0 .. 3 LOOP
		v := swarm.embed(repeat('x', i) || repeat(U&' \20AC\+01F600\00E9t\00E9', 100000), 64);
		ASSERT abs(len(v) - 1) < 1e-6;
	END LOOP;
	SELECT swarm.embed(string_agg('w' || i, ' '), 64) INTO v FROM generate_series(1, 300000) i;
	ASSERT abs(len(v) - 1) < 1e-6;
END $$;

-- in an index expression and in a generated column: it is immutable
CREATE TABLE docs (body text, e real[] GENERATED ALWAYS AS (swarm.embed(body, 32)) STORED);
INSERT INTO docs VALUES ('index scan'), ('replication');
SELECT body FROM docs ORDER BY e <=> swarm.embed('scan of an index', 32) LIMIT 1;
SELECT provolatile, proparallel, proisstrict FROM pg_proc WHERE oid = 'swarm.embed'::regproc;

-- errors
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
SELECT error_of(c) FROM unnest(ARRAY[
	$c$SELECT swarm.embed('x', 7)$c$,
	$c$SELECT swarm.embed('x', 16001)$c$,
	$c$SELECT swarm.embed('x', -1)$c$]) c;
DROP TABLE docs, texts;
DROP FUNCTION bits, len, error_of;
