# At every fault point of insert, fold, vacuum and build: an error, and kill -9.
# After that the index has every committed row once, and everything works.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = hnsw_cluster('main');
my $id = 2000;

# Rows for both kinds of insert.  A fold comes with more than 64 kB, and with
# vacuum.  Equal rows die with and without their node.
sub insert_some
{
	my ($n, @tables) = @_;
	my $sql = "SET qhnsw.pending_list_limit = 64;\n";

	$sql .= "INSERT INTO $_ SELECT i, vec(i) FROM generate_series($id + 1, $id + $n) i;\n" for @tables;
	$id += $n;
	return $sql;
}

sub delete_some
{
	my ($i) = @_;

	return join "\n", map { "DELETE FROM $_ WHERE id % 7 = $i % 7 AND id < $id - 900; DELETE FROM $_ WHERE id % 8 = 0 AND id / 8 % 20 = $i % 20;" } qw(fast slow);
}

# what a walk finds, without going on when its candidates are used up
sub walked
{
	my ($t) = @_;

	return $node->safe_psql('postgres',
		"SET enable_seqscan = off; SET qhnsw.iterative_scan = off; SELECT count(*) FROM (SELECT id FROM $t ORDER BY e <-> vec(1) LIMIT 40) s");
}

hnsw_table($node, 'fast', $id, '');
hnsw_table($node, 'slow', $id, 'fastupdate = off, m = 4, ef_construction = 40');
hnsw_table($node, 'built', 1500, '');
same_rows($node, $_, "$_ at the begin") for qw(fast slow built);

my @faults = (
	# point, what meets it, passes before
	[ 'hnsw.insert', 'insert', [ 0, 250 ] ],
	[ 'hnsw.insert.store', 'insert', [ 0, 250 ] ],
	[ 'hnsw.fold', 'insert', [ 0, 100 ] ],
	[ 'hnsw.link.links', 'insert', [ 0, 130 ] ],
	[ 'hnsw.link.back', 'insert', [ 0, 1000 ] ],
	[ 'hnsw.link.finish', 'insert', [ 0, 130 ] ],
	[ 'hnsw.vacuum.mark', 'vacuum', [ 0, 20 ] ],
	[ 'hnsw.vacuum.mend', 'vacuum', [ 0, 3 ] ],
	[ 'hnsw.vacuum.repair', 'vacuum', [ 0, 100 ] ],
	[ 'hnsw.vacuum.free', 'vacuum', [ 0, 10 ] ],
	[ 'hnsw.build', 'build', [ 0, 700 ] ],
	[ 'hnsw.build.write', 'build', [ 0, 20 ] ]);
my $round = 0;

for my $fault (@faults)
{
	my ($point, $where, $skips) = @$fault;

	for my $action (qw(error kill))
	{
		for my $skip (@$skips)
		{
			my $name = "$action at $point after $skip";
			my $crashes = crash_is_over($node);
			my @order = $round++ % 2 ? qw(fast slow) : qw(slow fast);
			my $sql;

			if ($where eq 'insert')
			{
				$sql = insert_some(700, @order);
			}
			elsif ($where eq 'vacuum')
			{
				$node->safe_psql('postgres', delete_some($round));
				$sql = join ";\n", map { "VACUUM $_" } @order;
			}
			else
			{
				$sql = $skip ? 'REINDEX INDEX built_e' : 'BEGIN; DROP INDEX built_e; CREATE INDEX built_e ON built USING qhnsw (e real_l2_ops); COMMIT';
			}
			$node->safe_psql('postgres', "SELECT swarm._fault_arm('$point', '$action', $skip, 1)");
			my ($rc, $out, $err) = $node->psql('postgres', $sql, on_error_stop => 0);

			like($err, $action eq 'error' ? qr/fault point "\Q$point\E" was reached/ : qr/terminat|crash|closed|connection/, $name);
			ok(crash_is_over($node, $crashes), "$name: the server comes back") if $action eq 'kill';
			$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');

			for my $t ($where eq 'build' ? 'built' : qw(fast slow))
			{
				is(difference($node, $t), '', "$name: $t has its rows");
				$node->safe_psql('postgres', insert_some(100, $t) . "DELETE FROM $t WHERE id > $id - 5; VACUUM $t;");
				same_rows($node, $t, "$name: $t after more and VACUUM");
			}
		}
	}
}

# A new centre: where it is stored, and while rows are coded with it.  Rows of an
# index that had another centre are found meanwhile, and the next fold ends it.
for my $fault ([ 'hnsw.train.model', 0 ], [ 'hnsw.train.recode', 0 ], [ 'hnsw.train.recode', 300 ])
{
	my ($point, $skip) = @$fault;

	for my $action (qw(error kill))
	{
		my $name = "$action at $point after $skip";
		my $crashes = crash_is_over($node);

		$node->safe_psql('postgres', q{
			DROP TABLE IF EXISTS moved;
			CREATE TABLE moved (id int, e real[]);
			ALTER TABLE moved SET (autovacuum_enabled = off);
			INSERT INTO moved SELECT i, vec(i) FROM generate_series(1, 300) i;
			CREATE INDEX moved_e ON moved USING qhnsw (e real_l2_ops);
			SET qhnsw.flush_after = -1;
			INSERT INTO moved SELECT i, (SELECT array_agg(x + 2) FROM unnest(vec(i)) x) FROM generate_series(301, 1300) i});
		$node->safe_psql('postgres', "SELECT swarm._fault_arm('$point', '$action', $skip, 1)");
		my ($rc, $out, $err) = $node->psql('postgres', q{SELECT swarm.qhnsw_flush('moved_e')});

		like($err, $action eq 'error' ? qr/fault point "\Q$point\E" was reached/ : qr/terminat|crash|closed|connection/, $name);
		ok(crash_is_over($node, $crashes), "$name: the server comes back") if $action eq 'kill';
		$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
		is(difference($node, 'moved'), '', "$name: all rows are there");
		$node->safe_psql('postgres', q{SELECT swarm.qhnsw_flush('moved_e')});
		same_rows($node, 'moved', "$name: after another flush");
		is($node->safe_psql('postgres', q{SELECT generation > 0, pending FROM swarm.qhnsw_stats('moved_e')}), 't|0', "$name: by the new centre");
	}
}

# All rows go, and others come.
for my $t (qw(fast slow))
{
	$node->safe_psql('postgres', "DELETE FROM $t; VACUUM $t; VACUUM $t;" . insert_some(3500, $t));
	same_rows($node, $t, "$t emptied and filled again");
	is(walked($t), '40', "$t: a walk finds its rows");
}

# All rows are dead and vacuum stops before they are freed: new rows are found by
# a walk nevertheless.
for my $t (qw(fast slow))
{
	$node->safe_psql('postgres', "DELETE FROM $t");
	$node->safe_psql('postgres', "SELECT swarm._fault_arm('hnsw.vacuum.free', 'error', 0, 1)");
	sql_fails($node, "VACUUM $t", qr/fault point "hnsw.vacuum.free"/, "$t: VACUUM stops before it frees");
	$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
	$node->safe_psql('postgres', insert_some(3500, $t));
	is(difference($node, $t), '', "$t: filled while all others are dead");
	$node->safe_psql('postgres', "VACUUM $t");
	same_rows($node, $t, "$t: filled while all others were dead");
	is(walked($t), '40', "$t: a walk finds its rows");
}

# Families of equal rows die as a whole, and vacuum stops after their chains went
# around the dead twins and before these were detached: the first nodes look like
# nodes without twins then.
$node->safe_psql('postgres', q{
	CREATE TABLE equal (id int, e real[]);
	ALTER TABLE equal SET (autovacuum_enabled = off);
	INSERT INTO equal SELECT i, vec(i % 10) FROM generate_series(1, 1000) i;
	CREATE INDEX equal_e ON equal USING qhnsw (e real_l2_ops);
	DELETE FROM equal WHERE id % 10 < 3});
for my $action (qw(error kill))
{
	my $crashes = crash_is_over($node);

	$node->safe_psql('postgres', "SELECT swarm._fault_arm('hnsw.vacuum.mend', '$action', 0, 1)");
	my ($rc, $out, $err) = $node->psql('postgres', 'VACUUM equal');

	ok(crash_is_over($node, $crashes), 'the server comes back') if $action eq 'kill';
	isnt($rc, 0, "$action while families that died are mended");
	$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
	$node->safe_psql('postgres', 'VACUUM equal');
	is($node->safe_psql('postgres', q{SELECT * FROM swarm.qhnsw_check('equal_e')}), '', "$action while families are mended: the next VACUUM does it");
	$node->safe_psql('postgres', 'DELETE FROM equal WHERE id % 10 < 6');
}

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|signal 11/, 'no crash but those that were asked for');
done_testing();
