# Memory where a worker of logical replication writes it: the cache goes by what
# is visible, and who waits is woken; rows, TRUNCATE, and prepared transactions that the
# worker ends, also those of before a restart.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $from = swarm_cluster('from', init => { allows_streaming => 'logical' });
my $node = swarm_cluster('to', init => { allows_streaming => 'logical' });
my $T = "$PostgreSQL::Test::Utils::timeout_default s";

$_->safe_psql('postgres', q{SELECT swarm.namespace_create('n')}) foreach $from, $node;
$from->safe_psql('postgres', q{
SELECT pg_create_logical_replication_slot('memory', 'pgoutput', false, true);
CREATE PUBLICATION memory FOR TABLE swarm._memory});
my $connection = $from->connstr('postgres') =~ s/'/''/gr;
$node->safe_psql('postgres', qq{CREATE SUBSCRIPTION memory CONNECTION '$connection' PUBLICATION memory
WITH (create_slot = false, slot_name = 'memory', copy_data = false, two_phase = true)});

# The value through the cache, twice: filled, and hit.
sub cached
{
	my ($key) = @_;

	return $node->safe_psql('postgres', "SELECT swarm.memory_get('n', '$key'); SELECT swarm.memory_get('n', '$key')");
}

sub becomes
{
	my ($key, $value, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	poll_ok($node, "SELECT coalesce((SELECT value::text FROM swarm._memory WHERE key = '$key'), 'none')", "$name: it has come", $value);
	return is(cached($key), $value eq 'none' ? "\n" : "$value\n$value", "$name: and is what the cache gives");
}

sub hits { return $node->safe_psql('postgres', 'SELECT hits FROM swarm.stat_cache') }

# The worker may still be ending a transaction that is visible: polled.
sub is_kept
{
	my ($key, $name) = @_;
	my $hits = hits();

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, "SELECT hits > $hits FROM swarm.stat_cache, swarm.memory_get('n', '$key')", "$name: the cache has it");
}

# Rows
$from->safe_psql('postgres', q{SELECT swarm.memory_store('n', 'k', '1')});
becomes('k', '1', 'INSERT');
is_kept('k', 'INSERT');
my $waits = start_psql($node, "SELECT value FROM swarm.memory_wait('n', 'k', '$T', 1)");
poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'memory_wait' AND pid <> pg_backend_pid()
	AND wait_event_type = 'Extension'}, 'one waits', '1');
$from->safe_psql('postgres', q{SELECT swarm.memory_store('n', 'k', '2')});
is(finish_psql($waits), "2\n", 'woken by the worker');
becomes('k', '2', 'UPDATE');
$from->safe_psql('postgres', q{UPDATE swarm._memory SET value = '3', version = 3 WHERE key = 'k'});
becomes('k', '3', 'direct UPDATE');
$from->safe_psql('postgres', q{SELECT swarm.memory_delete('n', 'k')});
becomes('k', 'none', 'DELETE');
$from->safe_psql('postgres', q{SELECT swarm.memory_store('n', 'k', '4')});
becomes('k', '4', 'INSERT');
$from->safe_psql('postgres', q{TRUNCATE swarm._memory});
becomes('k', 'none', 'TRUNCATE');

# Prepared transactions
sub prepare
{
	my ($gid, $key, $value) = @_;

	$from->safe_psql('postgres', qq{BEGIN; SELECT swarm.memory_store('n', '$key', '$value'); PREPARE TRANSACTION '$gid'});
	return poll_ok($node, q{SELECT count(*) FROM pg_prepared_xacts}, "$gid is prepared there", '1');
}
$from->safe_psql('postgres', q{SELECT swarm.memory_store('n', 'p', '1'), swarm.memory_store('n', 'q', '1')});
becomes('p', '1', 'before');
becomes('q', '1', 'before');
is_kept($_, 'before') foreach qw(p q);
prepare('commit', 'p', '2');
is(cached('p'), "1\n1", 'not yet visible');
my $hits = hits();
is(cached('q'), "1\n1", 'another key');
is(hits() - $hits, 2, '... still comes from the cache');
$from->safe_psql('postgres', q{COMMIT PREPARED 'commit'});
becomes('p', '2', 'COMMIT PREPARED');
is_kept('p', 'COMMIT PREPARED');
prepare('rollback', 'p', '3');
$from->safe_psql('postgres', q{ROLLBACK PREPARED 'rollback'});
poll_ok($node, q{SELECT count(*) FROM pg_prepared_xacts}, 'rolled back', '0');
is(cached('p'), "2\n2", 'ROLLBACK PREPARED: nothing has changed');
is_kept('p', 'ROLLBACK PREPARED');

# More keys than are guarded one by one
$from->safe_psql('postgres', q{
BEGIN;
SELECT count(swarm.memory_store('n', CASE i WHEN 70 THEN 'p' ELSE 'many' || i END, '"many"')) FROM generate_series(1, 100) i;
PREPARE TRANSACTION 'many'});
poll_ok($node, q{SELECT count(*) FROM pg_prepared_xacts}, 'many keys are prepared there', '1');
is(cached('p'), "2\n2", 'not yet visible');
$from->safe_psql('postgres', q{COMMIT PREPARED 'many'});
becomes('p', '"many"', 'many keys');

# Prepared, then a restart, then a crash
foreach my $how (qw(restart crash))
{
	prepare($how, 'p', qq{"$how"});
	if ($how eq 'restart')
	{
		$node->restart;
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
	cached('p');
	$from->safe_psql('postgres', "COMMIT PREPARED '$how'");
	becomes('p', qq{"$how"}, "COMMIT PREPARED after a $how");
	is_kept('p', "COMMIT PREPARED after a $how");
}

# The subscriber ends one by itself, in a session.
prepare('here', 'p', '5');
my $gid = $node->safe_psql('postgres', q{SELECT gid FROM pg_prepared_xacts});
is(cached('p'), qq{"crash"\n"crash"}, 'not yet visible');
$node->safe_psql('postgres', 'ALTER SUBSCRIPTION memory DISABLE');
$node->safe_psql('postgres', "COMMIT PREPARED '$gid'");
is(cached('p'), "5\n5", 'ended by a session');
$from->safe_psql('postgres', q{ROLLBACK PREPARED 'here'});
$node->safe_psql('postgres', q{ALTER SUBSCRIPTION memory SET (slot_name = NONE); DROP SUBSCRIPTION memory});

done_testing();
