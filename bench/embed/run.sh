#!/bin/bash
# Quality and speed of swarm.embed and swarm.simhash on the PostgreSQL manual.
#
#   bench/embed/run.sh [HTMLDIR] [HALF]
#
# Works in the database that psql reaches by default (PGHOST, PGDATABASE, ...);
# everything it makes is in schema embed_bench, dropped at the start.  HALF is
# 1 for the reporting half (the default), 0 for the half that tuning used.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
html=${1:-/usr/share/doc/postgresql-doc-15/html}
half=${2:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sql() { psql -X -q -v ON_ERROR_STOP=1 -A -t -F ' ' -v half="$half" "$@"; }

python3 "$here/corpus.py" "$html" >"$work/corpus.tsv"
python3 "$here/baseline.py" "$work/corpus.tsv" "$here/questions.tsv" "$half"

sql <<'X'
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_swarm;
DROP SCHEMA IF EXISTS embed_bench CASCADE;
CREATE SCHEMA embed_bench;
CREATE TABLE embed_bench.section (id int PRIMARY KEY, half int, label text, page text, title text, body text);
CREATE TABLE embed_bench.question (half int, question text, pages text);
X
sed 's/\\/\\\\/g' "$work/corpus.tsv" | sql -c "COPY embed_bench.section FROM STDIN"
sed 's/\\/\\\\/g' "$here/questions.tsv" | sql -c "COPY embed_bench.question FROM STDIN"

for dims in 128 384 1024; do
	sql -v dims="$dims" <<'X'
SET client_min_messages = warning;
SET search_path = embed_bench, public;
DROP TABLE IF EXISTS v CASCADE;
CREATE TABLE v AS SELECT id, half, label, page, swarm.embed(title || ' ' || body, :dims) AS e FROM section;
ANALYZE v;
SELECT format('embed %s: nn %s of %s', :dims, round(avg((n.label = v.label)::int), 3), count(*))
FROM v CROSS JOIN LATERAL (SELECT o.label FROM v o WHERE o.half = :half AND o.page <> v.page ORDER BY o.e <=> v.e LIMIT 1) n
WHERE v.half = :half;
WITH ranked AS (
	SELECT q.question, q.pages, v.page, rank() OVER (PARTITION BY q.question ORDER BY v.e <=> q.e) AS r
	FROM (SELECT *, swarm.embed(question, :dims) AS e FROM question WHERE half = :half OFFSET 0) q CROSS JOIN v),
best AS (SELECT question, min(r) AS r FROM ranked WHERE page = ANY (string_to_array(pages, ' ')) GROUP BY question)
SELECT format('embed %s: hit1 %s/%s hit5 %s mrr %s', :dims, count(*) FILTER (WHERE r = 1), count(*),
			  count(*) FILTER (WHERE r <= 5), round(avg(1.0 / r), 3)) FROM best;
X
	[ "$dims" = 384 ] || continue
	for bits in 256 1024; do
		sql -v bits="$bits" <<'X'
SET client_min_messages = warning;
SET search_path = embed_bench, public;
DROP TABLE IF EXISTS b;
CREATE TABLE b AS SELECT id, half, label, page, e, swarm.simhash(e, :bits) AS h FROM v;
ANALYZE b;
SELECT format('simhash %s of embed 384: nn %s', :bits, round(avg((n.label = b.label)::int), 3))
FROM b CROSS JOIN LATERAL (SELECT o.label FROM b o WHERE o.half = :half AND o.page <> b.page ORDER BY bit_count(o.h # b.h), o.id LIMIT 1) n
WHERE b.half = :half;
-- ground truth by exact distance for 1,000 sections; the best c by Hamming
-- distance, reordered by exact distance
SELECT format('simhash %s: recall@10 of 1,000 queries over %s rows with %s candidates: %s', :bits, (SELECT count(*) FROM b), c,
			  round(avg((SELECT count(*) FROM (SELECT id FROM b o ORDER BY o.e <-> q.e, id LIMIT 10) t
			   WHERE t.id IN (SELECT id FROM b o ORDER BY bit_count(o.h # q.h), id LIMIT c)) / 10.0), 3))
FROM (SELECT * FROM b ORDER BY md5(id::text) LIMIT 1000) q, unnest(ARRAY[10, 40, 100]) c GROUP BY c ORDER BY c;
X
	done
done

for _ in 1 2 3 4 5; do
	sql <<'X'
SET client_min_messages = warning;
SET search_path = embed_bench, public;
SET max_parallel_workers_per_gather = 0;
\set text '(SELECT string_agg(body, \' \') FROM (SELECT body FROM section ORDER BY id LIMIT 40 OFFSET 600) s)'
CREATE TEMP TABLE t AS SELECT left(:text, 5000) AS t FROM generate_series(1, 1000);
CREATE TEMP TABLE m AS SELECT left(string_agg(body, ' '), 4000000) AS t FROM section;
CREATE TEMP TABLE r (what text, us float8);
DO $$
DECLARE
	s timestamptz := clock_timestamp();
	n int;
	b int := 0;
BEGIN
	PERFORM swarm.embed(t || ctid::text) FROM t;
	INSERT INTO r VALUES ('embed 5,000 characters, us', extract(epoch FROM clock_timestamp() - s) * 1e6 / 1000);
	s := clock_timestamp();
	PERFORM swarm.embed(left(t, 50) || ctid::text) FROM t;
	INSERT INTO r VALUES ('embed a question of 50 characters, us', extract(epoch FROM clock_timestamp() - s) * 1e6 / 1000);
	s := clock_timestamp();
	PERFORM swarm.embed(t) FROM m;
	INSERT INTO r VALUES ('embed 4,000,000 characters, us', extract(epoch FROM clock_timestamp() - s) * 1e6);
	s := clock_timestamp();
	PERFORM swarm.simhash(e, 256) FROM v LIMIT 2000;
	INSERT INTO r VALUES ('simhash of 1024 dimensions to 256 bits, us', extract(epoch FROM clock_timestamp() - s) * 1e6 / 2000);
END $$;
SELECT what, round(us::numeric, 1) FROM r;
X
done | sort | awk '{ v = $NF; sub(/ [^ ]*$/, ""); if ($0 != last) { if (last) print line; line = $0 ":"; last = $0 } line = line " " v } END { print line }'

sql <<'X'
SET client_min_messages = warning;
SET search_path = embed_bench, public;
SET max_parallel_workers_per_gather = 0;
CREATE TEMP TABLE d AS SELECT swarm.embed(left(body, 300), 384) AS e FROM section;
CREATE TEMP TABLE r (what text, ns float8);
DO $$
DECLARE
	l text;
	s timestamptz;
BEGIN
	FOR run IN 1 .. 5 LOOP
		FOREACH l IN ARRAY swarm._simd_levels() LOOP
			EXECUTE format('SET LOCAL qhnsw.simd = %L', l);
			s := clock_timestamp();
			PERFORM min(a.e <=> b.e) FROM d a, (SELECT e FROM d LIMIT 300) b;
			INSERT INTO r VALUES (l, extract(epoch FROM clock_timestamp() - s) * 1e9 / (300 * (SELECT count(*) FROM d)));
		END LOOP;
	END LOOP;
END $$;
SELECT format('cosine of 384 dimensions in SQL, %s, ns: %s', what, string_agg(round(ns::numeric)::text, ' ' ORDER BY ns)) FROM r GROUP BY what ORDER BY min(ns) DESC;
DROP SCHEMA embed_bench CASCADE;
X
