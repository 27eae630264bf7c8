# A fold that stops in the middle: searches and inserts go on, another fold waits
# for it, and VACUUM does.
use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = hnsw_cluster('main');
my $id = 2000;

sub more
{
	my ($n, $limit) = @_;
	my $sql = "SET qhnsw.flush_after = -1; SET qhnsw.pending_list_limit = $limit;"
	  . "INSERT INTO item SELECT i, vec(i) FROM generate_series($id + 1, $id + $n) i";

	$id += $n;
	return $sql;
}

# how many rows of more() are not null
sub vectors
{
	my ($n) = @_;

	return scalar grep { $_ % 64 != 63 } $id - $n + 1 .. $id;
}

sub launch
{
	my ($sql, $err) = @_;

	return IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $sql ], '>', \my $out, '2>', $err);
}

hnsw_table($node, 'item', $id, '');
my $pending = q{SELECT pending FROM swarm.qhnsw_stats('item_e')};

for my $call (q{SELECT swarm.qhnsw_flush('item_e')}, 'VACUUM item')
{
	my ($err, $err2) = ('', '');

	$node->safe_psql('postgres', more(400, "'8MB'"));
	my $left = vectors(400) - 150;

	$node->safe_psql('postgres', q{SELECT swarm._fault_arm('hnsw.fold', 'wait', 150, 1)});
	my $first = launch(q{SELECT swarm.qhnsw_flush('item_e')}, \$err);

	poll_ok($node, $pending, "a fold waits in the middle ($call)", $left);
	is(difference($node, 'item'), '', 'a scan has the rows of both lists');
	$node->safe_psql('postgres', more(300, "'8MB'"));
	$left += vectors(300);
	is(difference($node, 'item'), '', 'and those that come meanwhile');
	$node->safe_psql('postgres', more(1, "'64kB'"));
	$left += vectors(1);
	is($node->safe_psql('postgres', $pending), $left, 'an insert that finds the list too long leaves it to the fold');

	my $second = launch($call, \$err2);

	poll_ok($node, "SELECT count(*) FROM pg_stat_activity WHERE query = \$\$$call\$\$ AND wait_event_type = 'Lock' AND wait_event = 'page'", "$call waits for the fold", 1);
	$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
	$first->finish;
	$second->finish;
	is($err . $err2, '', 'both end');
	is($node->safe_psql('postgres', $pending), 0, 'nothing is left');
	same_rows($node, 'item', "after a fold and $call");
}

$node->stop;
done_testing();
