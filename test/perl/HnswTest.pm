# HnswTest: what the TAP tests of qhnsw have in common.
#
# The measure of nearly all of them is same_rows(): an index scan without a limit
# returns the rows of the table, each once.

package HnswTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

our @EXPORT = qw(hnsw_cluster hnsw_functions hnsw_table same_rows all_reached difference index_problems pgbench_start pgbench_stop);

# hnsw_cluster(NAME, conf =>, init =>): a server with the extension and the
# functions below; nothing vacuums by itself.
sub hnsw_cluster
{
	my ($name, %p) = @_;

	$p{conf} = "autovacuum = off\npg_swarm.databases = 'none'\nmax_wal_size = 2GB\n" . ($p{conf} || '');
	my $node = swarm_cluster($name, %p);
	hnsw_functions($node, 'postgres');
	return $node;
}

# vec(i, dims): the i-th vector, the same everywhere.  One in eight is one of 20,
# so that there are equal ones; one in 64 is null.
#
# rows_differ(t): how the rows that an index scan of t(id, e) gives differ from the
# table's; '' when they do not.  To be called with one snapshot.
sub hnsw_functions
{
	my ($node, $db) = @_;

	$node->safe_psql($db, <<'X');
CREATE FUNCTION vec(i bigint, dims int DEFAULT 8) RETURNS real[] LANGUAGE sql IMMUTABLE AS $$
SELECT CASE WHEN i % 64 = 63 THEN NULL ELSE array_agg(((hashint8extended(
	CASE WHEN i % 8 = 0 THEN i / 8 % 20 ELSE i END * 20000 + d, 0) & 4095) / 4095.0)::real ORDER BY d) END
FROM generate_series(1, dims) d $$;

CREATE FUNCTION rows_differ(t regclass) RETURNS text LANGUAGE plpgsql
SET enable_seqscan = off SET enable_sort = off SET enable_bitmapscan = off SET jit = off
SET qhnsw.iterative_scan = relaxed AS $$
DECLARE
	q text;
	query text := format('SELECT id FROM %s ORDER BY e <-> $1', t);
	plan text;
	result text;
BEGIN
	EXECUTE format('SELECT e::text FROM %s WHERE e IS NOT NULL ORDER BY id LIMIT 1', t) INTO q;
	IF q IS NULL THEN
		RETURN '';
	END IF;
	query := replace(query, '$1', quote_literal(q));
	FOR plan IN EXECUTE 'EXPLAIN ' || query LOOP
		EXIT WHEN plan ~ 'Index Scan using';
		RETURN 'the plan is ' || plan;
	END LOOP;
	EXECUTE format('WITH i AS MATERIALIZED (%s), t AS MATERIALIZED (SELECT id FROM %s),
d AS (SELECT id, count(*) AS n FROM i GROUP BY id)
SELECT concat_ws(%L, %L || nullif((SELECT count(*) FROM t WHERE NOT EXISTS (SELECT FROM d WHERE d.id = t.id)), 0),
	%L || nullif((SELECT count(*) FROM d WHERE NOT EXISTS (SELECT FROM t WHERE d.id = t.id)), 0),
	%L || nullif((SELECT count(*) FROM d WHERE n > 1), 0),
	%L || (SELECT string_agg(id::text, %L) FROM (SELECT id FROM t WHERE NOT EXISTS (SELECT FROM d WHERE d.id = t.id) ORDER BY id LIMIT 10) s))',
		query, t, ', ', 'missing ', 'not in the table ', 'twice ', 'for example ', ' ') INTO result;
	RETURN result;
END $$;

-- A node that cannot be reached is none: inserts leave some until the next
-- vacuum, more when they are many; see all_reached().
CREATE FUNCTION problems(i regclass) RETURNS SETOF text LANGUAGE sql AS $$
SELECT c::text FROM swarm.qhnsw_check(i) c WHERE problem <> 'node cannot be reached' $$;
X
	return;
}

# hnsw_table(NODE, TABLE, ROWS, WITH, KIND ['']): a table with an index TABLE_e.
sub hnsw_table
{
	my ($node, $table, $rows, $with, $kind) = @_;

	$with = $with ? "WITH ($with)" : '';
	$kind ||= '';
	$node->safe_psql('postgres', qq{
CREATE $kind TABLE $table (id bigint PRIMARY KEY, e real[]);
INSERT INTO $table SELECT i, vec(i) FROM generate_series(1, $rows) i;
CREATE INDEX ${table}_e ON $table USING qhnsw (e real_l2_ops) $with});
	return;
}

# difference(NODE, TABLE, DATABASE): see rows_differ
sub difference
{
	my ($node, $table, $db) = @_;

	return $node->safe_psql($db || 'postgres',
		"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT rows_differ('$table'); COMMIT");
}

sub index_problems
{
	my ($node, $index, $db) = @_;

	return $node->safe_psql($db || 'postgres', "SELECT problems('$index')");
}

# same_rows(NODE, TABLE, NAME, DATABASE): a test that the index TABLE_e gives the
# rows of the table, and that the check has no complaint.
sub same_rows
{
	my ($node, $table, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $differ = difference($node, $table, $db);
	my $problems = index_problems($node, "${table}_e", $db);

	return is("$differ$problems", '', "$name: the index has the rows of the table, and no problem");
}

# all_reached(NODE, INDEX, NAME): a test that a walk can find every node, for an
# index that was built, or vacuumed with a dead row in it.
sub all_reached
{
	my ($node, $index, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql($db || 'postgres', "SELECT count(*) FROM swarm.qhnsw_check('$index') WHERE problem = 'node cannot be reached'"),
		'0', "$name: every node can be reached");
}

# pgbench_start(NODE, SECONDS, CLIENTS, {NAME => SCRIPT}, ARGUMENTS): in the
# background; SCRIPT may be [SCRIPT, WEIGHT].
sub pgbench_start
{
	my ($node, $seconds, $clients, $scripts, @args) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my %h = (out => '', err => '');
	my @files;

	for my $name (sort keys %$scripts)
	{
		my $s = $scripts->{$name};
		my ($text, $weight) = ref $s ? @$s : ($s, 1);

		append_to_file("$dir/$name.sql", $text);
		push @files, '-f', "$dir/$name.sql\@$weight";
	}
	$h{run} = IPC::Run::start(
		[ $node->installed_command('pgbench'), '-n', '-c', $clients, '-j', 2, '-T', $seconds, @files, @args,
			$node->connstr('postgres') ],
		'<', \'', '>', \$h{out}, '2>', \$h{err});
	return \%h;
}

# pgbench_stop(H): wait for its end; its errors, or that it did nothing.
sub pgbench_stop
{
	my ($h) = @_;

	$h->{run}->finish;
	return "no transaction\n$h->{err}" if $h->{out} !~ /actually processed: [1-9]/;
	return join "\n", grep { /ERROR|FATAL|PANIC|aborted/ } split /\n/, $h->{err};
}

1;
