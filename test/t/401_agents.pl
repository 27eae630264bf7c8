# Agents when things go wrong: a process dies, the server crashes and restarts, faults of every class, many spawn at
# once, a dump is restored.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.job_backoff = '20ms'\npg_swarm.job_backoff_max = '50ms'");

$node->safe_psql('postgres', <<'X');
CREATE TABLE log (agent text, attempt int, task jsonb);
CREATE FUNCTION work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO log VALUES (agent.name, agent.attempt, task);
    IF agent.attempt <= coalesce((task->>'hold')::int, 0) THEN
        PERFORM pg_advisory_xact_lock(4711);
    END IF;
    IF task->>'fault' = 'timeout' AND agent.attempt = 1 THEN
        PERFORM pg_sleep(3600);
    ELSIF task ? 'fault' AND agent.attempt = 1 THEN
        RAISE USING ERRCODE = task->>'fault', MESSAGE = 'injected';
    END IF;
    RETURN task;
END $$;
SELECT swarm.agent_type_create('{"name": "w", "capabilities": ["w"], "handler": "public.work"}');
SELECT swarm.retry_policy_set('agent:w', '{"first_wait": "1 ms", "max_wait": "10 ms"}');
SELECT count(*) FROM swarm.agent_spawn('[{"type": "w", "name": "a"}, {"type": "w", "name": "b", "depends_on": ["a"]}, {"type": "w", "name": "c"}]', timeout => '60 s') WHERE status = 'spawned';
X

sub agent_state { return $node->safe_psql('postgres', "SELECT state FROM swarm.agents WHERE name = '$_[0]'") }
sub task { return $node->safe_psql('postgres', "SELECT swarm.task_submit('$_[0]')") }

sub done
{
	my ($task, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql('postgres',
		"SELECT state FROM swarm.task_wait($task, '$PostgreSQL::Test::Utils::timeout_default s')"), 'done', $name);
}

# More tasks than one job does: another one goes on, and nothing is forgotten when it is faster than the first one ends.
$node->safe_psql('postgres', q{SELECT count(swarm.task_submit('{"agent": "c", "task": {"many": 1}}')) FROM generate_series(1, 400)});
poll_ok($node, q{SELECT count(*) FROM swarm.agent_tasks WHERE state = 'done'}, 'an agent does all of its many tasks', '400');
$node->safe_psql('postgres', 'TRUNCATE log');

# A process is terminated in the middle of a task.
my $holder = start_psql($node, undef);
say_psql($holder, 'SELECT pg_advisory_lock(4711);');
my $task = task('{"agent": "a", "task": {"hold": 1}}');
poll_ok($node, q{SELECT count(*) FROM swarm.agents WHERE name = 'a' AND state = 'busy' AND pid IS NOT NULL}, 'the agent works', '1');
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM swarm.agents WHERE name = 'a'});
done($task, 'its task is done after its process was terminated');
is($node->safe_psql('postgres', "SELECT attempts FROM swarm.agent_tasks WHERE id = $task"), '2', '... by the second attempt');
is($node->safe_psql('postgres', 'SELECT count(*) FROM log'), '1', '... and only that one has had effects');
is($node->safe_psql('postgres', q{SELECT string_agg(event, ' ' ORDER BY id) FROM swarm.agent_activity WHERE name = 'a' AND event IN ('lose', 'recover')}),
	'lose recover', 'it was lost and recovered');
is($node->safe_psql('postgres', q{SELECT kind FROM swarm.agent_inbox((SELECT id FROM swarm.agents WHERE name = 'b'))}),
	'agent-lost', 'who depends on it was told');
is($node->safe_psql('postgres', q{SELECT lost FROM swarm.agent_stat WHERE name = 'a'}), '1', '... and it was counted');

# The server crashes in the middle of a task, and goes on with it.
my @ended = map { task(qq({"agent": "$_", "task": {"n": 1}})) } qw(a b c);
done($_, 'a task before the crash') foreach @ended;
my $crashes = crash_is_over($node);
$task = task('{"agent": "b", "task": {"hold": 1}}');
my $waits = task('{"agent": "b", "task": {"n": 2}}');
poll_ok($node, q{SELECT count(*) FROM swarm.agents WHERE name = 'b' AND state = 'busy' AND pid IS NOT NULL}, 'an agent works', '1');
my $pid = $node->safe_psql('postgres', q{SELECT pid FROM swarm.agents WHERE name = 'b'});
kill 'KILL', $pid;
ok(crash_is_over($node, $crashes), 'the server has restarted');
eval { finish_psql($holder) };
done($task, 'the task that ran is done');
done($waits, 'the one behind it, too');
poll_ok($node, q{SELECT state FROM swarm.agents WHERE name = 'b'}, 'the agent is as before', 'idle');

# A restart with tasks in the queue.
$node->safe_psql('postgres', q{SELECT swarm.agent_pause(id) FROM swarm.agents WHERE name = 'c'});
$task = task('{"agent": "c", "task": {"n": 3}}');
$node->restart;
is(agent_state('c'), 'paused', 'a paused agent survives a restart');
$node->safe_psql('postgres', q{SELECT swarm.agent_resume(id) FROM swarm.agents WHERE name = 'c'});
done($task, 'and goes on with its task when resumed');

# Faults of every class are healed.
my @codes = qw(timeout 08006 22012 23505 25006 40001 40P01 42P01 53200 53300 54000 55P03 57014 58030 P0001 XX000);
my @tasks;
foreach my $code (@codes)
{
	my $timeout = $code eq 'timeout' ? '100 ms' : '5 min';

	push @tasks, task(qq({"capabilities": ["w"], "timeout": "$timeout", "task": {"fault": "$code", "n": $_}})) for 1 .. 2;
}
# and of the machinery
for my $point ('agent.taken error', 'agent.taken fatal', 'agent.commit error', 'agent.commit fatal', 'agent.call error')
{
	my ($name, $action) = split / /, $point;

	poll_ok($node, q{SELECT count(*) FROM swarm.agent_tasks WHERE state IN ('queued', 'running')}, 'nothing else runs', '0');
	$node->safe_psql('postgres', "SELECT swarm._fault_arm('$name', '$action')");
	push @tasks, task(qq({"capabilities": ["w"], "task": {"point": "$point"}}));
	poll_ok($node, "SELECT count(*) FROM swarm.agent_tasks WHERE state IN ('done', 'failed') AND id = $tasks[-1]", "a fault at $point is over", '1');
}
poll_ok($node, q{SELECT count(*) FROM swarm.agent_tasks WHERE state IN ('queued', 'running')}, 'all tasks have ended', '0');
my $healed = $node->safe_psql('postgres', q{SELECT count(*) FROM swarm.agent_tasks WHERE state = 'done' AND id IN (} . join(',', @tasks) . ')');
cmp_ok($healed, '>', 0.95 * @tasks, "$healed of " . scalar(@tasks) . ' faults are healed');
diag $node->safe_psql('postgres', q{SELECT id, task, state, attempts, error FROM swarm.agent_tasks WHERE state <> 'done' AND id IN (} . join(',', @tasks) . ')')
  if $healed < @tasks;

is($node->safe_psql('postgres', q{SELECT count(*) > 0, count(*) FILTER (WHERE NOT EXISTS (SELECT FROM swarm.memory_list('agent-metrics', 'agent-' || h.agent_id || '-metrics-', 1) m WHERE m.value->>'cpu' IS NOT NULL))
	FROM swarm.agent_history() h WHERE h.status = 'success' AND h.outcome IS DISTINCT FROM 'stopped'}), 't|0', 'the tracker has a sample of every agent that has done something');

# Many spawn at once, and nothing is left over.
my $wait = $PostgreSQL::Test::Utils::timeout_default;
my @sessions = map { start_psql($node, "SELECT count(*) FROM swarm.agent_spawn((SELECT jsonb_agg(jsonb_build_object('type', 'w', 'name', 's$_-' || i)) FROM generate_series(1, 10) i), timeout => '$wait s') WHERE status = 'spawned'") } 1 .. 20;
my $spawned = 0;
foreach my $s (@sessions)
{
	$spawned += $1 if finish_psql($s) =~ /^(\d+)$/m;
}
is($spawned, 200, '20 sessions have spawned 10 agents each');
is($node->safe_psql('postgres', q{SELECT count(*) FROM swarm.agents WHERE name ~ '^s\d+-' AND state = 'idle'}), '200', '... which are there');
is($node->safe_psql('postgres', q{SELECT count(DISTINCT agent_id) FROM swarm.agent_history() WHERE status = 'spawned' AND agent_id::bigint IN (SELECT id FROM swarm.agents)}),
	$node->safe_psql('postgres', 'SELECT count(*) FROM swarm.agents'), 'the tracker has every agent');

# A process that dies while it starts an agent.
$node->safe_psql('postgres', q{SELECT swarm._fault_arm('agent.start', 'fatal')});
like($node->safe_psql('postgres', q{SELECT status, error FROM swarm.agent_spawn('[{"type": "w", "name": "unlucky"}]', mode => 'parallel', timeout => '60 s')}),
	qr/^failed\|the process ended while it started/, 'a start whose process dies has failed');
like($node->safe_psql('postgres', q{SELECT status FROM swarm.agent_spawn('[{"type": "w", "name": "unlucky"}]', mode => 'parallel', timeout => '60 s')}),
	qr/^spawned/, 'and the next one goes well');

# No runner at all.
$node->append_conf('postgresql.conf', "pg_swarm.max_runners = 0\npg_swarm.min_runners = 0");
$node->reload;
poll_ok($node, q{SELECT count(*) FROM swarm.workers WHERE role = 'runner'}, 'there is no runner', '0');
like($node->safe_psql('postgres', q{SELECT status, error FROM swarm.agent_spawn('[{"type": "w", "name": "never"}]', mode => 'parallel', timeout => '100 ms')}),
	qr/^failed\|no worker slot became free in time/, 'without a process a start waits until its timeout');

# A dump has all of it.
$node->safe_psql('postgres', q{SELECT swarm.task_submit('{"agent": "a", "task": {"n": "after the restore"}}');
SELECT swarm.topology_create('t', 'ring', ARRAY(SELECT id FROM swarm.agents WHERE name IN ('a', 'b', 'c')));
CREATE ROLE author;
GRANT EXECUTE ON FUNCTION swarm.protocol_create TO author;
SET ROLE author;
SELECT swarm.protocol_create('p', '{"before": []}')});
my $all = join ";\n", map { "SELECT x::text FROM $_ x ORDER BY 1" } "(SELECT * FROM swarm._agent_type WHERE NOT builtin)", "(SELECT * FROM swarm._protocol WHERE NOT builtin)", map { "swarm.$_" } qw(_agent_set _agent _agent_task _agent_event _spawn_batch _topology
	_topology_member _agent_message _protocol_run _agent_pattern _hook _retry_policy);
my $before = $node->safe_psql('postgres', $all);
my $file = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $file, $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-f', $file, $node->connstr('copy') ], 'restore');
is($node->safe_psql('copy', $all), $before, 'the restored database has the same agents');
$node->append_conf('postgresql.conf', "pg_swarm.max_runners = 4\npg_swarm.min_runners = 1");
$node->reload;
$node->safe_psql('copy', 'SELECT swarm.jobs_resume()');
poll_ok($node, q{SELECT count(*) FROM log WHERE task->>'n' = 'after the restore'}, 'its agents work there', '1', 'copy');

# DROP EXTENSION while agents work
$node->safe_psql('copy', q{SELECT swarm.task_submit('{"agent": "a", "task": {"n": 1}}')});
$node->safe_psql('copy', q{DROP EXTENSION pg_swarm CASCADE});
is($node->safe_psql('copy', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'swarm'}), '0', 'the extension can be dropped');
$node->stop;
done_testing();
