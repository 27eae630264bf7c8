# An idle server does nothing for us: no transaction, no WAL, and no process of
# ours is woken.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

use constant WINDOW => 5;

my $node = swarm_cluster('main', create => 0, conf => <<'X');
autovacuum = off
checkpoint_timeout = 1h
wal_level = minimal
max_wal_senders = 0
track_activities = on
pg_swarm.runner_idle_timeout = '100ms'
X
my $database = q{SELECT xact_commit + xact_rollback, tup_returned, tup_fetched, blks_hit + blks_read
FROM pg_stat_database WHERE datname = 'served'};
my $wal = 'SELECT pg_current_wal_insert_lsn(), wal_records FROM pg_stat_wal';

# how often each of our processes was put to sleep so far
sub sleeps
{
	my %n;

	for my $pid (split /\n/, $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_swarm %'}))
	{
		($n{$pid}) = slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	}
	return join ' ', map { "$_:$n{$_}" } sort keys %n;
}

# All of the server's own start-up work is over when nothing has changed for a
# while.  A single window may meet something rare, so there are a few: whatever
# polls shows in all of them.
sub idle_is_idle
{
	my ($name) = @_;
	my ($before, $after);
	my $proc = -e "/proc/$$/status";

	for (1 .. 4)
	{
		my $awake = $proc ? sleeps() : '';

		$before = $node->safe_psql('postgres', $database) . '|' . $node->safe_psql('postgres', $wal);
		sleep WINDOW;
		$after = $node->safe_psql('postgres', $database) . '|' . $node->safe_psql('postgres', $wal);
		$before .= "|$awake";
		$after .= '|' . ($proc ? sleeps() : '');
		last if $before eq $after;
	}
	return is($after, $before, "$name: no transaction, no WAL, no wake-up in " . WINDOW . ' s');
}

# the queries above are in another database than the one that is served
$node->safe_psql('postgres', 'CREATE DATABASE served');
$node->safe_psql('served', 'CREATE EXTENSION pg_swarm');
work_table($node, 'served');
poll_ok($node, workers('served', 'runner'), 'a runner waits', '1');
idle_is_idle('nothing was ever done');

# Jobs were run; others wait for their time, a parent, a queue, a worker outside.
$node->safe_psql('served', q{
SELECT swarm.handler_register('outside', NULL);
SELECT swarm.queue_create('held'), swarm.queue_create('limited', rate_limit => 5, rate_period => '1 day');
SELECT swarm.queue_pause('held');
SELECT swarm.job_enqueue('work') FROM generate_series(1, 50);
SELECT swarm.job_enqueue('work', run_at => now() + '1 day') AS later \gset
SELECT swarm.job_enqueue('work', depends_on => ARRAY[:later]);
SELECT swarm.job_enqueue('work', queue => 'held');
SELECT swarm.job_enqueue('outside');
SELECT swarm.job_enqueue('work', queue => 'limited') FROM generate_series(1, 10)});
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed' AND queue = 'default'}, 'fifty are done', '50', 'served');
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state IN ('running', 'ready') AND queue = 'default'}, '... one is for others', '1', 'served');
poll_ok($node, workers('served', 'runner'), 'all runners but one have ended', '1');
idle_is_idle('jobs were done');

# It is not dead, only asleep.
answers($node, 'a job is run at once', 'served');

$node->stop;
done_testing();
