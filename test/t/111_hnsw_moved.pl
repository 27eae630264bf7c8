# Rows that change their node under a scan: a scan that waits between two rows
# while VACUUM folds equal rows and lets one of them take the node of a dead row
# returns each row once, wherever it waits.  And a row that joins a family of
# dead ones while VACUUM looks for these: it takes their node, and leaves its own.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = hnsw_cluster('main');
my $query = "SELECT id FROM moved ORDER BY e <-> '{1, 1, 1, 1}'";

for my $rerank (qw(index heap off))
{
	for my $skip (0 .. 6)
	{
		my $name = "rerank = $rerank, $skip rows before";
		my $s = start_psql($node, undef);

		$node->safe_psql('postgres', q{
CREATE TABLE moved (id int, e real[]);
INSERT INTO moved SELECT i, ARRAY[1, i, i, i] FROM generate_series(1, 20) i;
CREATE INDEX moved_e ON moved USING qhnsw (e real_l2_ops);
DELETE FROM moved WHERE id = 1;
VACUUM (INDEX_CLEANUP off) moved;	-- the scan will have the page pinned
INSERT INTO moved SELECT 100 + i, '{1, 1, 1, 1}' FROM generate_series(1, 4) i});
		my $pid = say_psql($s, "SET enable_seqscan = off; SET enable_sort = off; SET qhnsw.rerank = $rerank; SET qhnsw.iterative_scan = relaxed; SELECT pg_backend_pid();");
		$node->safe_psql('postgres', "SELECT swarm._fault_arm('hnsw.scan.next', 'wait', $skip, 1)");
		$s->{out} = '';
		$s->{in} .= "$query;\n\\q\n";
		$s->{run}->pump_nb;
		ok(poll_sql($node, "SELECT wait_event_type = 'Extension' AND state = 'active' FROM pg_stat_activity WHERE pid = $pid"), "$name: it waits");
		$node->safe_psql('postgres', 'VACUUM (INDEX_CLEANUP on) moved');
		$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
		is(join(' ', sort { $a <=> $b } split ' ', finish_psql($s)), join(' ', 2 .. 20, 101 .. 104), "$name: every row once");
		$node->safe_psql('postgres', 'DROP TABLE moved');
	}
}

my $vacuum = start_psql($node, undef);

$node->safe_psql('postgres', q{
CREATE TABLE joined (id int, e real[]);
INSERT INTO joined SELECT i, ARRAY[1, i, i, i] FROM generate_series(1, 20) i;
INSERT INTO joined VALUES (21, '{1, 1, 1, 1}');
CREATE INDEX joined_e ON joined USING qhnsw (e real_l2_ops) WITH (fastupdate = off);
DELETE FROM joined WHERE id IN (1, 21)});
my $pid = say_psql($vacuum, 'SELECT pg_backend_pid();');
$node->safe_psql('postgres', q{SELECT swarm._fault_arm('hnsw.vacuum.mark', 'wait', 0, 1)});
$vacuum->{in} .= "VACUUM (INDEX_CLEANUP on) joined;\n\\q\n";
$vacuum->{run}->pump_nb;
ok(poll_sql($node, "SELECT wait_event_type = 'Extension' AND state = 'active' FROM pg_stat_activity WHERE pid = $pid"), 'VACUUM waits');
$node->safe_psql('postgres', q{INSERT INTO joined VALUES (101, '{1, 1, 1, 1}')});
$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
finish_psql($vacuum);
same_rows($node, 'joined', 'a row that joined a dead family');

$node->stop;
done_testing();
