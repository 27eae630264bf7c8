-- swarm.simhash: the same bits everywhere, what they say about angles.
SELECT swarm.simhash('{1,2,3}', 64);
SELECT swarm.simhash('{-1,-2,-3}', 64);
SELECT swarm.simhash('{0.5,-1.25,3e10,1e-20}', 20) AS "20", swarm.simhash('{1}', 1) AS "1";
SELECT md5(swarm.simhash(swarm.embed('PostgreSQL'))::text) AS "256",
	   md5(swarm.simhash(swarm.embed('PostgreSQL'), 1024)::text) AS "1024",
	   md5(swarm.simhash(swarm.embed('PostgreSQL', 16000), 16384)::text) AS "16384",
	   md5(swarm.simhash(swarm.embed('PostgreSQL', 65), 777)::text) AS "777";
SELECT md5(swarm.simhash(array_agg((i * 0.7 - 100)::real ORDER BY i), 300)::text) FROM generate_series(1, 300) i;

-- length; a prefix of a longer hash; scaling does not matter, sign does
DO $$
DECLARE
	v real[];
	h bit varying;
BEGIN
	PERFORM setseed(0.5);
	FOR i IN 1 .. 60 LOOP
		SELECT array_agg((random() - 0.5)::real) INTO v FROM generate_series(1, i * 7);
		h := swarm.simhash(v, i * 17);
		ASSERT length(h) = i * 17;
		ASSERT h = substring(swarm.simhash(v, 2048) FROM 1 FOR i * 17);
		ASSERT h = swarm.simhash((SELECT array_agg(4::real * x ORDER BY o) FROM unnest(v) WITH ORDINALITY u(x, o)), i * 17);
		ASSERT h = ~ swarm.simhash((SELECT array_agg(-x ORDER BY o) FROM unnest(v) WITH ORDINALITY u(x, o)), i * 17);
		ASSERT abs(bit_count(swarm.simhash(v, 2048)) - 1024) < 6 * sqrt(512);
	END LOOP;
END $$;
SELECT swarm.simhash('{0,0,0}', 16) AS zero;

-- the share of differing bits is the angle divided by pi, for few dimensions
-- and many, within 5 standard deviations of independent bits
WITH pairs AS (
	SELECT d, i, array_agg(cos(i * o)::real) AS a, array_agg((cos(i * o) + 0.5 * sin(i * o * 1.7 + i))::real) AS b
	FROM unnest(ARRAY[2, 3, 30, 64, 100, 384]) d, generate_series(1, 20) i, generate_series(1, d) o GROUP BY d, i)
SELECT d, max(abs(bit_count(swarm.simhash(a, 4096) # swarm.simhash(b, 4096)) / 4096.0
	- acos(1 - (a <=> b)) / pi())) < 5 * 0.5 / sqrt(4096) AS follows
FROM pairs GROUP BY d ORDER BY d;

-- near texts stay near
SELECT bit_count(swarm.simhash(swarm.embed('create an index on a table')) # swarm.simhash(swarm.embed('creating indexes on tables')))
	 < bit_count(swarm.simhash(swarm.embed('create an index on a table')) # swarm.simhash(swarm.embed('streaming replication'))) AS near;
SELECT swarm.simhash(NULL) IS NULL AS a, swarm.simhash('{1}', NULL) IS NULL AS b, pg_typeof(swarm.simhash('{1}'));
CREATE TABLE hashes (h bit varying(256));
INSERT INTO hashes VALUES (swarm.simhash('{1,2}'));
SELECT h = swarm.simhash('{1,2}') AS stored FROM hashes;

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
	$c$SELECT swarm.simhash('{1}', 0)$c$,
	$c$SELECT swarm.simhash('{1}', 16385)$c$,
	$c$SELECT swarm.simhash('{}')$c$,
	$c$SELECT swarm.simhash('{1,NULL}')$c$,
	$c$SELECT swarm.simhash('{{1},{2}}')$c$,
	$c$SELECT swarm.simhash('{1,NaN}')$c$,
	$c$SELECT swarm.simhash('{-Infinity}')$c$,
	$c$SELECT swarm.simhash(array_fill(1::real, ARRAY[16001]))$c$]) c;
DROP TABLE hashes;
DROP FUNCTION error_of;
