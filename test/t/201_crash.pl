# Crash, kill -9, pg_terminate_backend, immediate stop and restart, at every fault
# point: no job is lost, none is left running, none takes effect twice.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main');
my $jobs = 0;

work_table($node);
$node->safe_psql('postgres', q{
SELECT swarm.queue_create('batched', batch => 10);
CREATE FUNCTION fatal(j swarm.job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO work VALUES (j.id, j.attempt);
    IF j.attempt = 1 THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(600);
    END IF;
END $$;
SELECT swarm.handler_register('fatal', 'fatal');
CREATE PROCEDURE steps(j swarm.job) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO steps VALUES (j.id, 1) ON CONFLICT DO NOTHING;
    COMMIT;
    PERFORM pg_sleep((j.args->>'sleep')::float8);
    INSERT INTO work VALUES (j.id, j.attempt);
END $$;
CREATE TABLE steps (job bigint PRIMARY KEY, step int);
SELECT swarm.handler_register('steps', 'steps')});

# enqueue N jobs of every sort; those of kind work are counted
sub enqueue
{
	my ($n, $args) = @_;

	$node->safe_psql('postgres', qq{
SELECT swarm.job_enqueue('work', '$args', queue => CASE WHEN i % 2 = 0 THEN 'batched' ELSE 'default' END,
    max_attempts => 100, unique_key => CASE WHEN i % 5 = 0 THEN 'key ' || i END,
    run_at => now() + CASE WHEN i % 7 = 0 THEN interval '50 ms' ELSE '0' END)
FROM generate_series(1, $n) i});
	$jobs += $n;
	return;
}

# all that was enqueued has taken effect once, and nothing is left over
sub all_done
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	jobs_end($node, "$name: all jobs end");
	once_each($node, $jobs, "$name: each took effect once");
	is( $node->safe_psql('postgres', q{SELECT (SELECT count(*) FROM swarm._job_running()), (SELECT count(*) FROM swarm._job_key)}),
		'0|0', "$name: nothing runs, no unique key is held");
	return;
}

# one of them runs, or it is too late for that
sub running
{
	return poll_sql($node, q{SELECT count(*) > 0 OR NOT EXISTS (SELECT FROM swarm._job) FROM swarm.jobs WHERE state = 'running'});
}

# --- a process ends, the server goes on ---

enqueue(40, '{"sleep": 0.02}');
for my $role (qw(runner runner scheduler launcher runner))
{
	my $pid = worker_pid($node, $role, $role eq 'launcher' ? undef : 'postgres');

	is($node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)"), 't', "terminate a $role");
	poll_ok($node, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)", '... it ends');
}
all_done('pg_terminate_backend');
poll_ok($node, workers('postgres', 'scheduler'), 'there is a scheduler again', '1');
poll_ok($node, q{SELECT count(*) FROM swarm.workers WHERE role = 'launcher'}, 'there is a launcher again', '1');

# The attempt of a runner that was lost counts, also on the last one, and frees
# what it held.
my $id = $node->safe_psql('postgres',
	q{SELECT swarm.job_enqueue('fatal', unique_key => 'f', max_attempts => 2)});
is($node->safe_psql('postgres', "SELECT state, attempts FROM swarm.job_wait($id)"), 'completed|2', 'FATAL in a handler: tried again');
$id = $node->safe_psql('postgres',
	q{SELECT swarm.job_enqueue('fatal', unique_key => 'f', max_attempts => 1)});
is($node->safe_psql('postgres', "SELECT state, attempts, error FROM swarm.job_wait($id)"),
	'dead|1|the worker that ran the job was lost', '... on the last attempt: dead');
is($node->safe_psql('postgres', q{SELECT count(*) FROM swarm._job_key}), '0', '... and its key is free');
$node->safe_psql('postgres', q{DELETE FROM work WHERE job NOT IN (SELECT id FROM swarm.job_history WHERE kind = 'work')});

# --- a fault point ends the process, or fails ---

for my $point (qw(job.claimed job.end job.commit))
{
	for my $action (qw(error fatal))
	{
		$node->safe_psql('postgres', "SELECT swarm._fault_arm('$point', '$action', 3, 3)");
		enqueue(20, '{}');
		all_done("$action at $point");
		$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
	}
}
for my $point (qw(job.sweep scheduler.step))
{
	for my $action (qw(error fatal))
	{
		$node->safe_psql('postgres', "SELECT swarm._fault_arm('$point', '$action', 0, 2)");
		$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role = 'scheduler' AND database = 'postgres'});
		enqueue(20, '{}');
		all_done("$action at $point");
		$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
	}
}

# --- kill -9: the server starts all processes again ---

for my $point (qw(job.claimed job.end job.commit job.sweep scheduler.step))
{
	my $crashes = crash_is_over($node);
	my $in_scheduler = $point =~ /sweep|step/;

	# the crash may come before psql has its answer, but not before the commit
	$node->psql('postgres', "SELECT swarm._fault_arm('$point', 'kill', " . ($in_scheduler ? 0 : 5) . ', 1)');
	# ... and before psql has read what it is to do
	eval { $node->psql('postgres', q{SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role = 'scheduler'}) }
	  if $in_scheduler;
	$in_scheduler or eval { enqueue(20, '{}'); 1 } or $jobs += 20;
	ok(crash_is_over($node, $crashes), "kill -9 at $point is a crash");
	enqueue(20, '{}') if $in_scheduler;
	all_done("kill -9 at $point");
}

for my $role (qw(runner scheduler launcher))
{
	my $crashes = crash_is_over($node);

	enqueue(20, '{"sleep": 0.05}');
	running() if $role eq 'runner';
	my $pid =
	  $role eq 'runner'
	  ? $node->safe_psql('postgres', q{SELECT pid FROM swarm.workers WHERE job IS NOT NULL LIMIT 1})
	  : worker_pid($node, $role, $role eq 'launcher' ? undef : 'postgres');
	$pid ||= worker_pid($node, $role, 'postgres');
	kill 'KILL', $pid;
	ok(crash_is_over($node, $crashes), "kill -9 of a $role is a crash");
	all_done("kill -9 of a $role");
}

# A procedure that has committed its first half is run again, not twice.
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('steps', '{"sleep": 600}')});
poll_sql($node, 'SELECT count(*) FROM steps', '1');
my $crashes = crash_is_over($node);
$node->safe_psql('postgres', q{UPDATE swarm._job SET args = '{"sleep": 0}' WHERE id = } . $id);
kill 'KILL', $node->safe_psql('postgres', "SELECT pid FROM swarm.workers WHERE job = $id");
ok(crash_is_over($node, $crashes), 'kill -9 of a procedure that has committed');
is($node->safe_psql('postgres', "SELECT state, attempts FROM swarm.job_wait($id)"), 'completed|2', '... it is run again');
is($node->safe_psql('postgres', "SELECT (SELECT count(*) FROM steps), (SELECT count(*) FROM work WHERE job = $id)"),
	'1|1', '... to its end once');
$node->safe_psql('postgres', "DELETE FROM work WHERE job = $id");

# --- the server stops ---

for my $mode (qw(fast immediate))
{
	enqueue(30, '{"sleep": 0.05}');
	$node->safe_psql('postgres', q{
SELECT swarm.job_enqueue('work', '{}', run_at => now() + '1 day');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}', unique_key => 'long')});
	$jobs++;
	poll_sql($node, q{SELECT count(*) FROM swarm.jobs WHERE kind = 'sql' AND state = 'running'}, '1');
	$node->stop($mode);
	$node->start;
	is( $node->safe_psql('postgres', q{SELECT state FROM swarm.jobs WHERE run_at > now() + interval '1 h' AND finished_at IS NULL}),
		'scheduled', "$mode stop: what is for tomorrow is still there");
	$node->safe_psql('postgres', q{SELECT swarm.job_retry(id) FROM swarm.jobs WHERE state = 'scheduled' AND run_at > now() + interval '1 h'});
	poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE kind = 'sql' AND state = 'running'}, "$mode stop: what ran, runs again", '1');
	$node->safe_psql('postgres', q{SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE kind = 'sql' AND finished_at IS NULL});
	all_done("$mode stop");
}
is( $node->safe_psql('postgres', q{SELECT max(attempts) FROM swarm.job_history WHERE kind = 'sql'}),
	'2', 'a crash counts as an attempt of what ran, an orderly stop does not');

# Idle runners, which see the busy one die while the server stops, are not to
# call its job lost.
$node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}', unique_key => 'long')});
for (1 .. 4)
{
	enqueue(20, '{"sleep": 0.02}');
	poll_sql($node, q{SELECT count(*) FROM swarm.jobs WHERE kind = 'work' AND finished_at IS NULL}, '0');
	poll_sql($node, q{SELECT count(*) FROM swarm.jobs WHERE kind = 'sql' AND state = 'running'}, '1');
	$node->restart;
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm._job_attempt'), '0', 'four stops beside idle runners: none was an attempt');
$node->safe_psql('postgres', q{SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE kind = 'sql' AND finished_at IS NULL});
all_done('stops beside idle runners');

# The postmaster is killed as well.
enqueue(30, '{"sleep": 0.05}');
running();
$node->kill9;
start_again($node);
all_done('kill -9 of the postmaster');

# Crash during the recovery from a crash.
enqueue(30, '{"sleep": 0.02}');
running();
for (1 .. 3)
{
	$node->stop('immediate');
	$node->start;
	poll_sql($node, q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'pg_swarm scheduler'});
}
all_done('crash after crash');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

$node->stop;
done_testing();
