# A streaming standby runs nothing, refuses what writes, and shows what there is;
# promoted, it goes on where the primary stopped.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $primary = swarm_cluster('primary', init => { allows_streaming => 1 });

work_table($primary);
$primary->safe_psql('postgres', q{
SELECT swarm.handler_register('outside', NULL);
SELECT swarm.queue_create('side');
SELECT swarm.job_enqueue('work') FROM generate_series(1, 10)});
jobs_end($primary, 'the primary runs jobs');
$primary->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'b', has_streaming => 1);
$standby->start;

# some that run, for as long as they are let; some ready; some for later
$primary->safe_psql('postgres', q{
SELECT swarm.job_enqueue('work', '{"sleep": 600}', timeout => NULL) FROM generate_series(1, 4);
SELECT swarm.job_enqueue('work', '{}', unique_key => 'u' || i) FROM generate_series(1, 20) i;
SELECT swarm.job_enqueue('work', '{}', run_at => now() + '1 hour') FROM generate_series(1, 3);
SELECT swarm.job_enqueue('work', depends_on => array(SELECT id FROM swarm.jobs WHERE run_at > now() + '1 min'))});
poll_ok($primary, q{SELECT count(*) FROM swarm.jobs WHERE state = 'running'}, 'four jobs run', '4');
$primary->safe_psql('postgres', q{UPDATE swarm._job SET args = '{}' WHERE args = '{"sleep": 600}'});
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

# Nothing runs there.
is($standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_swarm%'}),
	'0', 'no process of ours on the standby');
is(states($standby), 'blocked 1, completed 10, ready 24, scheduled 3', 'its views show the jobs, none running');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM swarm.workers'), '0', '... no workers');
is($standby->safe_psql('postgres', q{SELECT string_agg(queue, ',' ORDER BY queue COLLATE "C") FROM swarm.queues}),
	'default,side', '... and the queues');
is($standby->safe_psql('postgres', q{SELECT count(*) FROM swarm.job_history}), '10', '... and the history');
is($standby->safe_psql('postgres', q{SELECT ok, detail ~ 'standby' FROM swarm.health() WHERE name = 'primary'}),
	'f|t', 'health() says that it is a standby');
is($standby->safe_psql('postgres', q{SELECT state FROM swarm.job_wait((SELECT max(id) FROM swarm.job_history), '1 min')}),
	'completed', 'job_wait() gives the status of a finished job');

# What writes is refused.
my $id = $standby->safe_psql('postgres', q{SELECT min(id) FROM swarm.jobs WHERE state = 'ready'});
my %refused = (
	q{job_enqueue('work')} => 'job_enqueue',
	q{job_enqueue_many('[{"kind": "work"}]')} => 'job_enqueue',
	qq{job_cancel($id)} => '',
	qq{job_retry($id)} => '',
	q{job_claim('default')} => '',
	q{handler_register('more', NULL)} => '',
	q{handler_drop('outside')} => '',
	q{queue_create('more')} => '',
	q{queue_pause('default')} => '',
	q{queue_resume('default')} => '',
	q{queue_drop('side')} => '');
for my $call (sort keys %refused)
{
	sql_fails($standby, "SELECT swarm.$call", qr/25006: cannot execute $refused{$call}/, "refused: $call");
}

# The primary dies, the standby takes over: what was in flight is run there.
$primary->stop('immediate');
$standby->promote;
poll_ok($standby, workers('postgres', 'scheduler'), 'promoted: work starts', '1');
poll_ok($standby, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed'}, '... all that was ready or running', '34');
is(states($standby), 'blocked 1, completed 34, scheduled 3', '... the rest waits for its time');
$standby->safe_psql('postgres', q{SELECT swarm._clock_advance('2 hours')});
jobs_end($standby, '... which comes');
$standby->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});
once_each($standby, 38, '... each job once');
answers($standby, 'the new primary takes new jobs');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

$standby->stop;
done_testing();
