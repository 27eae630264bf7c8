# Ten rounds of replacing a fifth of the rows: recall stays within one point of
# that of a fresh build, and the index hardly grows.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = hnsw_cluster('main');
my ($rows, $dims, $next) = (4000, 24, 4000);

# points around 100 centres, so that neighbours mean something
$node->safe_psql('postgres', qq{
CREATE FUNCTION point(i bigint) RETURNS real[] LANGUAGE sql IMMUTABLE AS \$\$
SELECT array_agg(((hashint8extended(i % 100 * 100 + d, 1) & 4095) / 4095.0 + (hashint8extended(i * 100 + d, 2) & 4095) / 8190.0)::real ORDER BY d)
FROM generate_series(1, $dims) d \$\$;
CREATE TABLE queries AS SELECT n, point(-n) AS q FROM generate_series(1, 200) n;
-- the share of the 10 nearest of 200 queries that a walk finds
CREATE FUNCTION recall(t regclass) RETURNS float8 LANGUAGE plpgsql SET qhnsw.iterative_scan = off SET qhnsw.ef_search = 40 AS \$\$
DECLARE
	exact text := format('SELECT array_agg(a ORDER BY n) FROM (SELECT n, to_jsonb(ARRAY(SELECT id FROM %s ORDER BY e <-> q LIMIT 10)) AS a FROM queries) s', t);
	want jsonb[];
	got jsonb[];
BEGIN
	SET LOCAL enable_indexscan = off;
	EXECUTE exact INTO want;
	SET LOCAL enable_indexscan = on;
	SET LOCAL enable_seqscan = off;
	EXECUTE exact INTO got;
	RETURN (SELECT sum((SELECT count(*) FROM jsonb_array_elements(w) x WHERE g \@> x)) / 2000.0 FROM unnest(want, got) u(w, g));
END \$\$});

for my $with ('', 'fastupdate = off')
{
	my $t = $with ? 'slow' : 'fast';

	$node->safe_psql('postgres', "CREATE TABLE $t (id bigint PRIMARY KEY, e real[]); INSERT INTO $t SELECT i, point(i) FROM generate_series(1, $rows) i");
	$node->safe_psql('postgres', "CREATE INDEX ${t}_e ON $t USING qhnsw (e real_l2_ops)" . ($with ? " WITH ($with)" : ''));
	my $size = $node->safe_psql('postgres', "SELECT pg_relation_size('${t}_e')");
	my $built = $node->safe_psql('postgres', "SELECT recall('$t')");

	for my $round (0 .. 9)
	{
		$node->safe_psql('postgres', "DELETE FROM $t WHERE hashint8extended(id, $round) & 1023 < 205; VACUUM $t");
		my $missing = $rows - $node->safe_psql('postgres', "SELECT count(*) FROM $t");

		$node->safe_psql('postgres', "INSERT INTO $t SELECT i, point(i) FROM generate_series($next + 1, $next + $missing) i; VACUUM $t");
		$next += $missing;
	}
	same_rows($node, $t, "$t after ten rounds");
	my $after = $node->safe_psql('postgres', "SELECT recall('$t')");
	my $grown = $node->safe_psql('postgres', "SELECT pg_relation_size('${t}_e')");

	$node->safe_psql('postgres', "REINDEX INDEX ${t}_e");
	my $fresh = $node->safe_psql('postgres', "SELECT recall('$t')");

	note "$t: recall $built, after ten rounds $after, built anew $fresh; bytes $size, after ten rounds $grown";
	cmp_ok($after, '>=', $fresh - 0.01, "$t: recall is within one point of a fresh build");
	cmp_ok($grown, '<=', $size * 1.05, "$t: the index has not grown");
	cmp_ok($fresh, '>=', 0.95, "$t: which is good");
}

# A table that was empty at CREATE INDEX has the recall of one that was full, and a
# table that most rows were deleted from that of a new one.
$node->safe_psql('postgres', q{
CREATE TABLE late (id bigint PRIMARY KEY, e real[]);
CREATE INDEX late_e ON late USING qhnsw (e real_l2_ops);
INSERT INTO late SELECT i, point(i) FROM generate_series(1, 8000) i;
VACUUM late});
my $late = $node->safe_psql('postgres', "SELECT recall('late')");
$node->safe_psql('postgres', 'REINDEX INDEX late_e');
my $fresh = $node->safe_psql('postgres', "SELECT recall('late')");
note "inserted: $late, built: $fresh";
cmp_ok($late, '>=', $fresh - 0.01, 'rows inserted one by one: recall within one point of a build');
$node->safe_psql('postgres', 'DELETE FROM late WHERE id % 4 <> 0; VACUUM late');
my $few = $node->safe_psql('postgres', "SELECT recall('late')");
note "three quarters deleted: $few";
cmp_ok($few, '>=', $fresh - 0.02, 'three quarters deleted: recall within two points');
same_rows($node, 'late', 'three quarters deleted');

# A scan that may go on chooses its rows from all that the walk scored, not only
# from its ef_search best: never worse, and with two bits a dimension better.
$node->safe_psql('postgres', q{
CREATE TABLE rough (id bigint PRIMARY KEY, e real[]);
INSERT INTO rough SELECT i, point(i) FROM generate_series(1, 4000) i;
CREATE INDEX rough_e ON rough USING qhnsw (e real_l2_ops) WITH (quantizer = rabitq2);
CREATE FUNCTION found(OUT hits int, OUT fetched int) LANGUAGE plpgsql SET qhnsw.ef_search = 10 SET qhnsw.rerank = heap AS $$
DECLARE
	query record;
	want bigint[];
	got bigint[];
BEGIN
	hits := 0;
	fetched := 0;
	FOR query IN SELECT q FROM queries LOOP
		SET LOCAL enable_indexscan = off;
		SET LOCAL enable_seqscan = on;
		EXECUTE 'SELECT ARRAY(SELECT id FROM rough ORDER BY e <-> $1 LIMIT 10)' INTO want USING query.q;
		SET LOCAL enable_indexscan = on;
		SET LOCAL enable_seqscan = off;
		EXECUTE 'SELECT ARRAY(SELECT id FROM rough ORDER BY e <-> $1 LIMIT 10)' INTO got USING query.q;
		hits := hits + (SELECT count(*) FROM unnest(got) g WHERE g = ANY (want));
		fetched := fetched + (SELECT s.fetched FROM swarm.qhnsw_scan_stats() s);
	END LOOP;
END $$});
my ($off_hits, $off_fetched) = split /\|/, $node->safe_psql('postgres', 'SET qhnsw.iterative_scan = off; SELECT * FROM found()');
my ($hits, $fetched) = split /\|/, $node->safe_psql('postgres', 'SET qhnsw.iterative_scan = strict; SELECT * FROM found()');
note "ef_search 10: $off_hits of 2000 found with $off_fetched rows read, $hits with $fetched";
cmp_ok($off_fetched, '<=', 2000, 'a scan of one walk looks at its ef_search best');
cmp_ok($fetched, '>', $off_fetched, 'a scan that may go on looks at what came near them, too');
cmp_ok($hits, '>', $off_hits, 'and finds more');

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|was terminated by signal|XX00/, 'no crash');
done_testing();
