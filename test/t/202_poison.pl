# Jobs that kill the server process are quarantined after max_attempts; the rest
# goes on.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main');
# the shell that COPY starts kills its parent, the runner
my $poison = q{COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID; sleep 1'};

work_table($node);
$node->safe_psql('postgres', qq{
CREATE FUNCTION poison(j swarm.job) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
    COPY (SELECT 1) TO PROGRAM 'kill -9 \$PPID; sleep 1';
END \$\$;
SELECT swarm.handler_register('poison', 'poison')});

# Three attempts are three crashes, and a job that depends on it is cancelled.
# (A queue waits until its jobs are there: whoever lets it go on may lose his
# connection in the crash before he has the answer.)
my ($id, $child) = split /\n/, $node->safe_psql('postgres', q{
SELECT swarm.queue_pause('default') \g /dev/null
BEGIN;
SELECT swarm.job_enqueue('poison', max_attempts => 3, unique_key => 'p') AS id \gset
SELECT :id;
SELECT swarm.job_enqueue('work', depends_on => ARRAY[:id]);
SELECT swarm.job_enqueue('work', '{"sleep": 0.01}', max_attempts => 100) AS n FROM generate_series(1, 200) \g /dev/null
COMMIT});
$node->psql('postgres', q{SELECT swarm.queue_resume('default')});
my $status = "SELECT state, attempts, error FROM swarm.jobs WHERE id = $id";
poll_ok($node, $status, 'the job is dead after max_attempts crashes', 'dead|3|the server crashed while the job ran');
is(crash_is_over($node), 3, '... the server crashed that often');
poll_ok($node, "SELECT state FROM swarm.jobs WHERE id = $child", 'what depends on it is cancelled', 'cancelled');
jobs_end($node, 'all others end');
is( $node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT job), (SELECT count(*) FROM swarm.job_history WHERE kind = 'work' AND state = 'completed') FROM work}),
	'200|200|200', '... and take effect once');
is(crash_is_over($node), 3, '... and crash nothing more');
answers($node, 'the queue is in order');

# It can be tried again, and keeps its id; by then it is harmless.
$node->safe_psql('postgres', 'CREATE OR REPLACE FUNCTION poison(j swarm.job) RETURNS void LANGUAGE sql AS $$ $$');
$node->safe_psql('postgres', "SELECT swarm.job_retry($id)");
is($node->safe_psql('postgres', "SELECT state, attempts FROM swarm.job_wait($id)"), 'completed|1', 'job_retry() after a repair');

# A poison job in a batch: only it is to blame, as what crashed is run one by one.
$node->safe_psql('postgres', qq{
SELECT swarm.queue_create('batched', batch => 50);
SELECT swarm.queue_pause('batched');
BEGIN;
SELECT swarm.job_enqueue('work', '{}', queue => 'batched', max_attempts => 4) FROM generate_series(1, 30);
SELECT swarm.job_enqueue('sql', jsonb_build_object('sql', \$\$$poison\$\$), queue => 'batched', max_attempts => 2);
SELECT swarm.job_enqueue('work', '{}', queue => 'batched', max_attempts => 4) FROM generate_series(1, 30);
COMMIT});
$node->psql('postgres', q{SELECT swarm.queue_resume('batched')});
poll_ok($node, q{SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) FROM
(SELECT state, count(*) n FROM swarm.jobs WHERE queue = 'batched' GROUP BY 1) s},
	'in a batch, the poison job alone dies', 'completed 60, dead 1');
is(crash_is_over($node), 5, '... after two crashes');

# Two of them at the same time, and a poison job among those that are run again.
$node->psql('postgres', qq{BEGIN;
SELECT swarm.job_enqueue('sql', jsonb_build_object('sql', \$\$$poison\$\$), max_attempts => 2) FROM generate_series(1, 2);
SELECT swarm.job_enqueue('work', '{"sleep": 0.3}', max_attempts => 10) FROM generate_series(1, 4);
COMMIT});
jobs_end($node, 'two poison jobs and their neighbours end');
is( $node->safe_psql('postgres', q{SELECT string_agg(kind || ' ' || state, ', ' ORDER BY id) FROM
(SELECT id, kind, state FROM swarm.jobs ORDER BY id DESC LIMIT 6) s}),
	'sql dead, sql dead, work completed, work completed, work completed, work completed', '... as they should');

# Its last attempt crashed, and before anybody could write that down the server
# was stopped: it is not run again.
my $before = crash_is_over($node);
$node->safe_psql('postgres', 'ALTER SYSTEM SET restart_after_crash = off');
$node->reload;
$node->psql('postgres', qq{
SELECT swarm.job_enqueue('sql', jsonb_build_object('sql', \$\$$poison\$\$), max_attempts => 1) AS id \\gset});
ok(gone($node), 'the server does not come back by itself');
start_again($node);
jobs_end($node, 'it is dead after the start');
is(crash_is_over($node), $before, '... without another crash');
is($node->safe_psql('postgres', 'SELECT state, attempts FROM swarm.jobs ORDER BY id DESC LIMIT 1'), 'dead|1', '... and says so');

$node->stop;
done_testing();

# the postmaster has ended
sub gone
{
	my ($n) = @_;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if slurp_file($n->logfile) =~ /because "?restart_after_crash"? is off/ && !-e $n->data_dir . '/postmaster.pid';
		select undef, undef, undef, 0.1;
	}
	return 0;
}
