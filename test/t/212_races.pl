# What happens to a job between two steps of somebody who works on it: others end
# it, retry it, or call for the scheduler while that waits for a lock.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.job_slots = 1024
pg_swarm.job_backoff = '1h'
pg_swarm.job_backoff_max = '1h'
X
my $left = q{SELECT (SELECT count(*) FROM swarm._job_attempt), (SELECT count(*) FROM swarm._job_dep), (SELECT count(*) FROM swarm._job_key)};
my $waits = q{EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner' AND wait_event_type = 'Lock')};

# fault(POINT): who gets there waits, until POINT is disarmed by fault(POINT, 'none').
sub fault
{
	my ($point, $action) = @_;

	$node->safe_psql('postgres', sprintf "SELECT swarm._fault_arm('%s', '%s', 0, 1)", $point, $action || 'wait');
	return;
}

# in_step(WHAT): the scheduler waits at a fault point in that step
sub in_step
{
	my ($what) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'pg_swarm scheduler' AND query = '$what' AND wait_event = 'Extension')",
		"the scheduler waits in step $what");
}

work_table($node);
$node->safe_psql('postgres', q{SELECT swarm.queue_create('batched', batch => 2), swarm.queue_pause('batched')});

# The second job of a batch is cancelled by a transaction that commits when the
# runner wants to record that the job has failed.
fault('job.claimed');
my $ids = $node->safe_psql('postgres', q{
SELECT string_agg(swarm.job_enqueue('work', '{"fail": 5}', queue => 'batched')::text, ',') FROM generate_series(1, 2)});
my ($first, $second) = split /,/, $ids;
$node->safe_psql('postgres', q{SELECT swarm.queue_resume('batched')});	# both at once, for one runner
poll_ok($node, "SELECT state FROM swarm.jobs WHERE id = $first", 'the first job of the batch is announced', 'running');
my $other = start_psql($node);
is(say_psql($other, "BEGIN;\nSELECT swarm.job_cancel($second)"), 't', 'the second one is cancelled');
fault('job.claimed', 'none');
poll_ok($node, "SELECT $waits OR EXISTS (SELECT FROM swarm._job_attempt WHERE id = $second)", 'the runner has come to it');
say_psql($other, 'COMMIT');
poll_ok($node, "SELECT string_agg(state::text, ',' ORDER BY id) FROM swarm.jobs WHERE id IN ($ids)", 'one has failed, one is cancelled', 'failed,cancelled');
poll_ok($node, 'SELECT count(*) FROM swarm._job_running()', '... and the batch is over', '0');
is($node->safe_psql('postgres', $left), '1|0|0', 'what is left is of the failed one');
$node->safe_psql('postgres', "SELECT swarm.job_cancel($first)");
is($node->safe_psql('postgres', $left), '0|0|0', '... and goes with it');

# A job that is retried becomes due by itself, runs and ends, before that commits.
my $id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', run_at => now() + '1 hour')});
say_psql($other, "BEGIN;\nSELECT swarm.job_retry($id)");
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('2 hours')});
poll_ok($node, "SELECT $waits OR EXISTS (SELECT FROM swarm.job_history WHERE id = $id)", 'it has run, or waits to end');
say_psql($other, 'COMMIT');
poll_ok($node, "SELECT state FROM swarm.job_history WHERE id = $id", 'it ends', 'completed');
is($node->safe_psql('postgres', $left), '0|0|0', '... and nothing is left of it');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});

# A job is retried when a sweep has read that it is due much later.
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', run_at => now() + '1 day')});
fault('job.swept');
$node->safe_psql('postgres', q{SELECT swarm.handler_register('another', NULL)});
in_step('sweep');
$node->safe_psql('postgres', "SELECT swarm.job_retry($id)");
fault('job.swept', 'none');
poll_ok($node, "SELECT state FROM swarm.jobs WHERE id = $id", 'it does not wait for a day', 'completed');

# A job is cancelled when a sweep has read it: who waits for it is not deceived by
# what the sweep has put into memory.
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', run_at => now() + '1 day')});
fault('job.swept');
$node->safe_psql('postgres', q{SELECT swarm.handler_drop('another')});
in_step('sweep');
$node->safe_psql('postgres', "SELECT swarm.job_cancel($id)");
fault('job.swept', 'none');
answers($node, 'the sweep is over');
poll_ok($node, q{SELECT depth FROM swarm.queues WHERE queue = 'default'}, '... and memory has what is no more', '1');
is($node->safe_psql('postgres', "SET statement_timeout = '$PostgreSQL::Test::Utils::timeout_default s'; SELECT state FROM swarm.job_wait($id, '1 hour')"),
	'cancelled', 'a wait for a job that has ended');

# Who calls while the scheduler waits for a lock, is heard.
fault('scheduler.step');
$node->safe_psql('postgres', q{SELECT swarm.queue_create('another')});
in_step('settings');
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', run_at => clock_timestamp() + '200 ms')});
fault('scheduler.step', 'none');
poll_ok($node, "SELECT state FROM swarm.jobs WHERE id = $id", 'a job that is due soon', 'completed');

# Events whose NOTIFY fails are sent by the next turn.
my $listener = start_psql($node);
say_psql($listener, 'LISTEN swarm_events');
$node->safe_psql('postgres', q{
SELECT swarm.queue_create('told', notify => true);
SELECT swarm._fault_arm('job.events', 'error', 0, 1)});
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', queue => 'told')});
my $told = '';
for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	$told = say_psql($listener, 'SELECT 1');
	last if $told =~ /swarm_events/;
	select undef, undef, undef, 0.1;
}
like($told, qr/"job": $id, "state": "completed"/, 'an event is told, though not at the first attempt');
like(slurp_file($node->logfile), qr/fault point "job.events" was reached/, '... which has failed');
finish_psql($listener);

# Another database has all of the memory.
$node->safe_psql('postgres', 'CREATE DATABASE full_of_jobs');
$node->safe_psql('full_of_jobs', 'CREATE EXTENSION pg_swarm');
answers($node, 'both are served', 'full_of_jobs');
$node->safe_psql('full_of_jobs', q{
SELECT swarm.queue_create('much', batch => 100);
SELECT swarm.queue_pause('much');
SELECT count(swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', queue => 'much', priority => 'critical')) FROM generate_series(1, 1024)});
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work')});
poll_ok($node, q{SELECT ok FROM swarm.health() WHERE name = 'memory'}, 'a job waits on disk', 'f');
$node->safe_psql('full_of_jobs', q{SELECT swarm.queue_resume('much')});
jobs_end($node, 'the other one has finished its jobs', 'full_of_jobs');
jobs_end($node, '... and then this one finishes its own');

finish_psql($other);
$node->stop;
done_testing();
