-- Distances of real[]: values, errors, and every SIMD level against double
-- precision.  Nothing here prints what depends on the processor.
SELECT '{1,2,3}'::real[] <-> '{4,6,3}' AS l2, '{1,2,3}'::real[] <#> '{4,5,6}' AS nip,
	   '{1,0}'::real[] <=> '{0,1}' AS orthogonal, '{1,2}'::real[] <=> '{2,4}' AS same,
	   '{1,2}'::real[] <=> '{-1,-2}' AS opposite;
SELECT swarm.l2_distance('{0}', '{-3}'), swarm.inner_product('{1,2,3}', '{4,5,6}'),
	   swarm.cosine_distance('{3,4}', '{4,3}');
-- zero vectors, values whose squares leave the range of real
SELECT '{0,0}'::real[] <=> '{1,1}' AS zero, '{0,0}'::real[] <-> '{0,0}' AS l2, '{0,0}'::real[] <#> '{1,1}' AS nip;
SELECT '{3e38,0}'::real[] <-> '{-3e38,0}' AS l2, '{1e30,1e30}'::real[] <=> '{1e30,0}' AS big,
	   '{1e-30,1e-30}'::real[] <=> '{1e-30,0}' AS small, '{1e25,1}'::real[] <#> '{1e25,1}' AS nip,
	   '{1e-44}'::real[] <-> '{0}' AS subnormal;
-- not finite: what IEEE 754 says
SELECT '{Infinity}'::real[] <-> '{0}' AS a, '{NaN}'::real[] <-> '{0}' AS b, '{Infinity}'::real[] <-> '{Infinity}' AS c,
	   '{Infinity,1}'::real[] <#> '{1,1}' AS d, '{Infinity,1}'::real[] <=> '{1,1}' AS e;
-- bounds do not matter, a null bitmap without nulls neither
SELECT '[0:1]={1,2}'::real[] <-> '[5:6]={1,2}' AS bounds, (ARRAY[1, NULL]::real[])[1:1] <-> '{3}' AS bitmap;
SELECT NULL::real[] <-> '{1}' AS a, '{1}'::real[] <=> NULL AS b;

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
	$c$SELECT '{1,2,3}'::real[] <-> '{1,2,3,4}'$c$,
	$c$SELECT '{1}'::real[] <=> '{1,2}'$c$,
	$c$SELECT '{1}'::real[] <#> '{1,2}'$c$,
	$c$SELECT '{1,NULL}'::real[] <-> '{1,2}'$c$,
	$c$SELECT '{1,2}'::real[] <=> '{1,NULL}'$c$,
	$c$SELECT '{{1,2},{3,4}}'::real[] <-> '{1,2}'$c$,
	$c$SELECT '{}'::real[] <-> '{}'$c$,
	$c$SELECT '{1}'::real[] <#> '{}'$c$]) c;

-- stored in every way: short header, long, compressed, out of line
CREATE TABLE stored (id int, v real[]);
INSERT INTO stored SELECT d, array_agg((i % 7)::real ORDER BY i)
FROM unnest(ARRAY[1, 3, 20, 40, 500, 3000]) d, generate_series(1, d) i GROUP BY d;
ALTER TABLE stored ALTER v SET STORAGE external;
INSERT INTO stored SELECT d + 1, array_agg((i % 7)::real ORDER BY i)
FROM unnest(ARRAY[500, 3000]) d, generate_series(1, d + 1) i GROUP BY d;
SELECT id, v <-> v AS l2, abs(v <=> v) < 1e-6 AS cos, v <#> v AS nip FROM stored ORDER BY id;

-- each level that this processor has, all lengths to 130 and some more,
-- within the error of a float sum of n terms; exact where sums are exact
CREATE FUNCTION check_level(level text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	a real[];
	b real[];
	l2 float8;
	ip float8;
	na float8;
	nb float8;
	cosine float8;
BEGIN
	EXECUTE format('SET LOCAL qhnsw.simd = %L', level);
	ASSERT swarm._simd_level() = level;
	PERFORM setseed(0.25);
	FOR n IN 1 .. 140 LOOP
		CONTINUE WHEN n > 130 AND n % 3 <> 0;
		SELECT array_agg((random() - 0.5)::real), array_agg((random() - 0.5)::real)
		INTO a, b FROM generate_series(1, CASE WHEN n > 130 THEN n * 11 ELSE n END);
		SELECT sqrt(sum((x::float8 - y) ^ 2)), sum(x::float8 * y), sqrt(sum(x::float8 * x)), sqrt(sum(y::float8 * y))
		INTO l2, ip, na, nb FROM unnest(a, b) u(x, y);
		cosine := 1 - ip / (na * nb);
		ASSERT abs((a <-> b) - l2) <= 1e-5 * (1 + l2), format('%s l2 %s', level, n);
		ASSERT abs(swarm.inner_product(a, b) - ip) <= 1e-5 * (1 + na * nb), format('%s ip %s', level, n);
		ASSERT (a <#> b) = -swarm.inner_product(a, b);
		ASSERT abs((a <=> b) - cosine) <= 1e-5, format('%s cosine %s', level, n);
		ASSERT (a <-> b) = (b <-> a) AND (a <=> b) = (b <=> a) AND (a <#> b) = (b <#> a);
		ASSERT (a <-> a) = 0 AND (a <=> a) < 1e-6 AND (a <=> b) BETWEEN 0 AND 2;
		-- small integers: every order of the additions gives the same
		SELECT array_agg(i % 5), array_agg(i % 3) INTO a, b FROM generate_series(1, n) i;
		SELECT sum((x - y) ^ 2), sum(x * y) INTO l2, ip FROM unnest(a, b) u(x, y);
		ASSERT (a <-> b) = sqrt(l2) AND swarm.inner_product(a, b) = ip;
	END LOOP;
	-- range, on every level
	ASSERT ('{1e-30,0,0,0,0,0,0,0,0,1e-30}'::real[] <-> '{0,0,0,0,0,0,0,0,0,0}') BETWEEN 1.41e-30 AND 1.42e-30;
	ASSERT ('{1,2,3,4,5,6,7,8,9,NaN}'::real[] <-> '{0,0,0,0,0,0,0,0,0,0}') = 'NaN';
END $$;
SELECT count(check_level(l)) > 0 AS levels FROM unnest(swarm._simd_levels()) l;
SELECT 'scalar' = ANY (swarm._simd_levels()) AS scalar, swarm._simd_level() = ANY (swarm._simd_levels()) AS usable;

-- the setting
SHOW qhnsw.simd;
SET qhnsw.simd = 'scalar';
SELECT swarm._simd_level();
RESET qhnsw.simd;
SELECT error_of('SET qhnsw.simd = mmx') ~ '22023.*invalid value.*qhnsw.simd' AS refused;
DO $$
DECLARE
	missing text;
BEGIN
	FOREACH missing IN ARRAY ARRAY['scalar', 'sse', 'avx2', 'avx512', 'avx512vnni', 'neon'] LOOP
		CONTINUE WHEN missing = ANY (swarm._simd_levels());
		BEGIN
			EXECUTE format('SET qhnsw.simd = %L', missing);
			ASSERT false, missing || ' was accepted';
		EXCEPTION WHEN invalid_parameter_value THEN
			NULL;
		END;
	END LOOP;
END $$;

-- operators are where CREATE EXTENSION put them; <#> works for everyone
SELECT oprname, oprnamespace::regnamespace = (SELECT extnamespace FROM pg_extension WHERE extname = 'pg_swarm')::regnamespace AS here,
	   oprcode, oprcom <> 0 AS commutes
FROM pg_operator WHERE oprleft = 'real[]'::regtype AND oprname IN ('<->', '<=>', '<#>') ORDER BY 1;
SELECT has_function_privilege('public', 'swarm._negative_inner_product(real[], real[])', 'EXECUTE') AS open,
	   has_function_privilege('public', 'swarm._simd_level()', 'EXECUTE') AS closed;
DROP TABLE stored;
DROP FUNCTION check_level, error_of;
