# The server stops immediately, or a backend is killed, at random moments under
# load: every committed row is found afterwards, once.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $rounds = $ENV{PG_SWARM_CRASHES} || 4;
my $node = hnsw_cluster('main', conf => "max_connections = 50\nshared_buffers = 16MB");

$node->safe_psql('postgres', q{
CREATE SEQUENCE ids START 100001 CACHE 100;
CREATE TABLE done (t text, n bigint);
INSERT INTO done VALUES ('fast', 0), ('slow', 0)});
hnsw_table($node, 'fast', 3000, '');
hnsw_table($node, 'slow', 3000, 'fastupdate = off, m = 6, ef_construction = 40');
hnsw_table($node, 'fleeting', 3000, '', 'UNLOGGED');

# load: three sorts of clients, until the server is gone
sub load
{
	my %scripts;

	for my $t (qw(fast slow fleeting))
	{
		$scripts{"insert_$t"} = [ "SET qhnsw.pending_list_limit = 64;\nINSERT INTO $t SELECT i, vec(i) FROM (SELECT nextval('ids') AS i FROM generate_series(1, 20)) s;\n", 4 ];
		$scripts{"update_$t"} = [ "UPDATE $t SET e = vec(id + 1) WHERE id = (SELECT id FROM $t WHERE id > 50000 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);\n", 2 ];
		$scripts{"delete_$t"} = [ "DELETE FROM $t WHERE id IN (SELECT id FROM $t ORDER BY id LIMIT 20 FOR UPDATE SKIP LOCKED);\n", 3 ];
	}
	return (
		pgbench_start($node, 600, 6, \%scripts, '--max-tries=1'),
		pgbench_start($node, 600, 1, { vacuum => "VACUUM (INDEX_CLEANUP on) fast;\nVACUUM (INDEX_CLEANUP on) slow;\nVACUUM (INDEX_CLEANUP on) fleeting;\n" }));
}

# until so many rows were inserted since: the moment of the crash
sub wait_for_rows
{
	my ($n) = @_;
	my $now = $node->safe_psql('postgres', 'SELECT last_value FROM ids');

	return poll_sql($node, "SELECT last_value > $now + $n FROM ids");
}

srand($ENV{PG_SWARM_SEED} || 1);
for my $round (1 .. $rounds)
{
	for my $how ('immediate stop', 'kill -9')
	{
		my $crashes = crash_is_over($node);
		my @load = load();

		wait_for_rows(2000 + int(rand(6000)));
		if ($how eq 'kill -9')
		{
			my $what = $round % 2 ? 'VACUUM' : 'INSERT';

			my $pid;

			for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
			{
				$pid = $node->safe_psql('postgres', "SELECT max(pid) FROM pg_stat_activity WHERE query LIKE '$what%' AND state = 'active'");
				last if $pid;
			}
			kill 'KILL', $pid;
			ok(crash_is_over($node, $crashes), "round $round: kill -9 of a backend in $what");
		}
		else
		{
			$node->stop('immediate');
			pass("round $round: immediate stop");
		}
		pgbench_stop($_) for @load;
		$node->start if $how ne 'kill -9';

		for my $t (qw(fast slow))
		{
			is(difference($node, $t), '', "round $round, $how: $t has its rows");
			$node->safe_psql('postgres', "VACUUM $t");
			same_rows($node, $t, "round $round, $how: $t after VACUUM");
		}
		is($node->safe_psql('postgres', 'SELECT count(*) FROM fleeting'), '0', "round $round, $how: the unlogged table is empty");
		is($node->safe_psql('postgres', "SET enable_seqscan = off; SELECT count(*) FROM (SELECT * FROM fleeting ORDER BY e <-> vec(1)) s"), '0', '... its index too');
		$node->safe_psql('postgres', "INSERT INTO fleeting SELECT i, vec(i) FROM generate_series(1, 3000) i; VACUUM fleeting");
		same_rows($node, 'fleeting', '... and can be used');
		for my $t (qw(fast slow))
		{
			# so that there is something to delete
			$node->safe_psql('postgres', "INSERT INTO $t SELECT i, vec(i) FROM (SELECT nextval('ids') AS i FROM generate_series(1, 500)) s");
		}
	}
}

# An empty unlogged table, and one that a crash finds in the middle of its first fold
$node->safe_psql('postgres', q{
TRUNCATE fleeting;
CREATE UNLOGGED TABLE never (id bigint PRIMARY KEY, e real[]);
CREATE INDEX never_e ON never USING qhnsw (e real_l2_ops)});
$node->stop('immediate');
$node->start;
for my $t (qw(fleeting never))
{
	$node->safe_psql('postgres', "INSERT INTO $t SELECT i, vec(i, 5) FROM generate_series(1, 1000) i; VACUUM $t");
	same_rows($node, $t, "$t: other dimensions after a crash");
}

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|signal 11|XX00/, 'no crash but those that were asked for');
done_testing();
