# What agents promise about numbers and order: how many start at a time, in which groups; who gets which of many tasks; that
# the old overtakes; that the better strategy is found; what the samples do.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);
use SwarmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.min_runners = 6\npg_swarm.max_runners = 8\nmax_worker_processes = 24");
my $wait = $PostgreSQL::Test::Utils::timeout_default;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub fault { my ($action, $skip, $times) = @_; return sql("SELECT swarm._fault_arm('agent.start', '$action', $skip, $times)"); }

# spawn(ARGUMENTS, TYPE, NAMES...): SQL
sub spawn
{
	my ($arguments, $type, @names) = @_;
	my $agents = join ', ', map { qq({"type": "$type", "name": "$_"}) } @names;

	return "SELECT string_agg(status || ' ' || batch, ',' ORDER BY agent_id) FROM swarm.agent_spawn('[$agents]', $arguments, timeout => '1 h')";
}
sub spawned { my ($n) = @_; return join ',', map { "spawned $_" } @_; }

# starts under way, and those that a fault holds
my $starts = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner' AND state = 'active' AND query = 'errand'};
my $held = "$starts AND wait_event = 'Extension'";

$node->safe_psql('postgres', <<'X');
CREATE TABLE log (n serial, agent text, task jsonb);
CREATE FUNCTION work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO log (agent, task) VALUES (agent.name, task);
    RETURN to_jsonb(agent.name);
END $$;
SELECT swarm.agent_type_create('{"name": "w", "capabilities": ["w"], "handler": "public.work"}');
X

# Never more than max_concurrency at a time: groups of 2, of which only one fits into 3
fault('wait', 0, -1);
my $session = start_psql($node, spawn(q{2, 3, 'parallel'}, 'w', map { "a$_" } 1 .. 20));
poll_ok($node, $held, 'a group of two is held', '2');
# a process that has done a job looks for starts before it rests
sql("SELECT count(*) FROM (SELECT swarm.job_enqueue('sql', '{\"sql\": \"SELECT 1\"}') FROM generate_series(1, 20)) j");
jobs_end($node, 'the other processes had their turn');
is(sql($starts), '2', '... and nobody else is started meanwhile');
fault('none', 0, 0);
is(finish_psql($session), join(',', map { "spawned $_,spawned $_" } 1 .. 10) . "\n", '... and then all are, in groups of two');

# The size of groups follows what was measured: half after one that took more than twice as long as the best
my $began = time;
fault('wait', 2, 1);
$session = start_psql($node, spawn(q{2, 2, 'auto'}, 'w', map { "b$_" } 1 .. 4));
poll_ok($node, $held, 'the second group is slow', '1');
sleep(5 * (time - $began));
fault('none', 0, 0);
is(finish_psql($session), "spawned 1,spawned 1,spawned 2,spawned 2\n", 'all are spawned');
is(sql('SELECT batch_size, batch_size_after FROM swarm.spawn_batches ORDER BY id DESC LIMIT 1'), '2|1', '... and the next group would be smaller, which is recorded');
sql(spawn(q{1, 3, 'auto'}, 'w', 'b5'));
is(sql('SELECT batch_size, batch_size_after FROM swarm.spawn_batches ORDER BY id DESC LIMIT 1'), '1|2', 'after one that is as fast as the best it would be larger');

# Who spawns goes away in the middle: nothing is left, and the places are free
fault('wait', 0, -1);
$session = start_psql($node, spawn(q{4, 4, 'parallel'}, 'w', map { "c$_" } 1 .. 4));
poll_ok($node, $held, 'four are held', '4');
sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'agent_spawn' AND pid <> pg_backend_pid()});
like(finish_psql($session), qr/terminating connection/, 'their session ends');
fault('none', 0, 0);
poll_ok($node, $starts, 'no start is under way any more', '0');
is(sql(q{SELECT count(*) FROM swarm.agents WHERE name ~ '^c'}), '0', 'there is no agent');
is(sql(spawn(q{4, 4, 'parallel'}, 'w', map { "c$_" } 1 .. 4)), 'spawned 1,spawned 1,spawned 1,spawned 1', '... until they are spawned again');
sql(q{SELECT swarm.agent_stop(id) FROM swarm.agents WHERE type = 'w'});

# 100 documents for 5 agents in turn; those of one that dies go to the others
sql(spawn(q{5, 5, 'auto'}, 'w', map { "d$_" } 1 .. 5));
sql(<<'X');
BEGIN;
SELECT swarm.task_submit(jsonb_build_object('type', 'w', 'strategy', 'round-robin', 'task', n)) FROM generate_series(1, 100) n;
CREATE TABLE given AS SELECT a.name, count(*) AS n FROM swarm._agent_task t JOIN swarm.agents a ON a.id = t.agent GROUP BY 1;
SELECT swarm.agent_kill(id) FROM swarm.agents WHERE name = 'd3';
COMMIT;
X
is(sql('SELECT string_agg(concat_ws(\' \', name, n), \',\' ORDER BY name) FROM given'), 'd1 20,d2 20,d3 20,d4 20,d5 20', '100 tasks, 20 for each of 5 agents');
poll_ok($node, q{SELECT count(*) FROM swarm.agent_tasks WHERE state = 'done'}, 'all are done', '100');
is(sql(q{SELECT count(DISTINCT task), count(*), count(*) FILTER (WHERE agent = 'd3') FROM log}), '100|100|0', '... once each, and not by the one that was killed');
sql(q{SELECT swarm.agent_stop(id) FROM swarm.agents WHERE type = 'w' AND state <> 'stopped'; TRUNCATE log});

# What is old enough goes before what is more urgent
sql(spawn(q{1, 1, 'auto'}, 'w', 'e'));
my $agent = sql(q{SELECT id FROM swarm.agents WHERE name = 'e'});
my $n = 0;
sub submit { my ($priority) = @_; return sql(qq[SELECT swarm.task_submit('{"agent": "e", "priority": "$priority", "task": "$priority] . $n++ . q["}')]); }
sql("SELECT swarm.agent_pause($agent)");
submit('low');
submit('high');
sql(q{SELECT swarm._clock_advance(current_setting('pg_swarm.job_ageing')::interval * 3)});
submit('low');
submit('high');
submit('critical');
sql("SELECT swarm.agent_resume($agent)");
poll_ok($node, 'SELECT count(*) FROM log', 'tasks of a resumed agent', '5');
is(sql(q{SELECT string_agg(task #>> '{}', ' ' ORDER BY n) FROM log}), 'critical4 high1 low0 high3 low2', 'critical ones first, then by priority, but age counts');
sql('SELECT swarm._clock_advance(NULL)');

# What would stop an agent, or those who spawn one, is refused when it is said
foreach my $t (
	[ q{swarm.task_submit('{"type": "w", "run_at": "infinity"}')}, '22023: .*run_at must be finite' ],
	[ q{swarm.task_submit('{"type": "w", "deadline": "infinity"}')}, '22023: .*deadline must be finite' ],
	[ q{swarm.task_submit('{"agent": 1e30}')}, '22023: .*agent must be at most' ],
	[ q{swarm.task_submit('{"timeout": "25 days"}')}, '22023: .*timeout must be between' ],
	[ q{swarm.agent_type_create('{"name": "x", "capabilities": [], "handler": "public.work", "budget": {"max_task_time": "1000000 years"}}')}, '22023: .*max_task_time must be at most' ],
	[ q{swarm.agent_type_create('{"name": "x", "capabilities": [], "handler": "public.work", "budget": {"max_tasks": 99999999999}}')}, '22023: .*max_tasks must be at most' ],
	[ q{swarm.agent_type_create('{"name": "x", "capabilities": [], "handler": "public.work", "max_concurrency": 99999999999}')}, '22023: .*max_concurrency must be at most' ],
	[ q{swarm.protocol_create('x', '{"before": [{"do": "call", "function": "public.x("}]}')}, '22023: .*not a valid identifier' ],
	[ q{swarm.protocol_create('x', '{"before": [{"do": "store", "namespace": "default", "key": "k", "ttl": "soon"}]}')}, '22007: .*"soon"' ],
	[ q{swarm.protocol_create('x', NULL)}, '22023: .*is null' ],
	[ q{swarm.topology_create(NULL, 'ring', ARRAY[1])}, '22023: .*needs a name' ],
	[ q{swarm.topology_create('x', NULL, ARRAY[1])}, '22023: .*"NULL" is not known' ],
	[ q{swarm.retry_policy_set('agent:w', NULL)}, '22023: .*no policy' ])
{
	sql_fails($node, "SELECT $t->[0]", qr/$t->[1]/, "refused: $t->[0]");
}
# a far deadline is none
my $far = sql(q{SELECT swarm.task_submit('{"agent": "e", "timeout": null, "deadline": "290000-01-01 00:00+00", "task": "far"}')});
is(sql("SELECT state FROM swarm.task_wait($far, '$wait s')"), 'done', 'a task with all the time of the world');

# A handler that is gone
sql(q{CREATE FUNCTION brief(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS 'SELECT task';
SELECT swarm.agent_type_create('{"name": "brief", "capabilities": [], "handler": "public.brief", "max_attempts": 1}')});
sql(spawn(q{1, 1, 'auto'}, 'brief', 'f'));
sql('DROP FUNCTION brief');
my $none = sql(q{SELECT swarm.task_submit('{"agent": "f"}')});
is(sql("SELECT state, error FROM swarm.task_wait($none, '$wait s')"), 'failed|the function that is to be called does not exist any more', 'a task whose handler is gone fails');

# A whole that is cancelled takes all below it along, and who waits for that is told
my $whole = sql(q{SELECT swarm.task_submit('{"type": "none", "parts": [{"task": 1}, {"parts": [{"task": 2}, {"task": 3}]}]}')});
my $leaf = sql(q{SELECT max(id) FROM swarm.agent_tasks});
$session = start_psql($node, "SELECT state FROM swarm.task_wait($leaf, '$wait s')");
poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'task_wait' AND wait_event = 'Extension'}, 'somebody waits for a part of a part', '1');
is(sql("SELECT swarm.task_cancel($whole)"), 't', 'the whole is cancelled');
is(finish_psql($session), "cancelled\n", '... and who waits knows');
is(sql(q{SELECT state, count(*) FROM swarm.agent_tasks WHERE type = 'none' GROUP BY 1}), 'cancelled|5', '... with all of its parts');

# Many in one call, and in a long line
is(sql(q{SELECT count(*), count(DISTINCT agent_id), max(batch) FROM swarm.agent_spawn((SELECT jsonb_agg(jsonb_build_object('type', 'w', 'name', 'm' || i)) FROM generate_series(1, 2000) i), 100, 100, 'parallel', timeout => '1 h') WHERE status = 'spawned'}),
	'2000|2000|20', '2,000 agents in one call');
is(sql(q{SELECT count(*), max(batch) FROM swarm.agent_spawn((SELECT jsonb_agg(jsonb_build_object('type', 'w', 'name', 'l' || i, 'depends_on', CASE i WHEN 100 THEN '[]' ELSE jsonb_build_array('l' || i + 1) END)) FROM generate_series(1, 100) i), timeout => '1 h') WHERE status = 'spawned'}),
	'100|100', '100, each of which depends on the next');
sql(q{SELECT swarm.agent_stop(id) FROM swarm.agents WHERE type = 'w' AND state <> 'stopped'});

# The bandit finds the better strategy, and still tries the others
is(sql(<<'X'), 'least-loaded|t|t', 'the strategy that pays is chosen most');
BEGIN;
UPDATE swarm._strategy SET tries = 0, reward = 0;
CREATE TEMP TABLE chosen (n serial, name text);
DO $$
DECLARE
    s text;
BEGIN
    FOR i IN 1 .. 300 LOOP
        s := swarm._strategy_choose();
        INSERT INTO chosen (name) VALUES (s);
        PERFORM swarm._strategy_note(s, CASE s WHEN 'least-loaded' THEN 0.9 ELSE 0.2 END);
    END LOOP;
END $$;
SELECT (SELECT name FROM chosen WHERE n > 200 GROUP BY 1 ORDER BY count(*) DESC LIMIT 1),
       (SELECT count(*) > 80 FROM chosen WHERE n > 200 AND name = 'least-loaded'), (SELECT min(tries) >= 5 FROM swarm.agent_strategies);
ROLLBACK;
X

# Links and hops of topologies are what the table for choosing one says
my $figures = sql(<<'X');
WITH RECURSIVE size AS (SELECT r.kind, r.complexity, coalesce(r.max_agents, 30) AS n, r.why FROM swarm._topology_rules() r),
link AS MATERIALIZED (SELECT DISTINCT kind, n, a, b FROM size, generate_series(1, n) a, generate_series(1, n) b WHERE swarm._topology_linked(kind, n, a, b)),
path AS (
    SELECT DISTINCT kind, n, a AS origin, a AS at, 0 AS hops FROM link
    UNION
    SELECT p.kind, p.n, p.origin, l.b, p.hops + 1 FROM path p JOIN link l ON l.kind = p.kind AND l.n = p.n AND l.a = p.at WHERE p.hops < 16),
shortest AS (SELECT kind, n, origin, at, min(hops) AS hops FROM path GROUP BY 1, 2, 3, 4)
SELECT s.kind, s.why, format('%s agents: %s links, longest path %s, most neighbours %s', s.n,
       (SELECT count(*) FROM link l WHERE l.kind = s.kind AND l.n = s.n),
       (SELECT max(hops) FROM shortest p WHERE p.kind = s.kind AND p.n = s.n),
       (SELECT max(c) FROM (SELECT count(*) AS c FROM link l WHERE l.kind = s.kind AND l.n = s.n GROUP BY l.a) x))
FROM size s ORDER BY s.n, s.complexity
X
foreach my $line (split /\n/, $figures)
{
	my ($what, $why, $is) = split /\|/, $line;

	is($why, $is, "a $what of so many");
}
is(scalar(split /\n/, $figures), 6, 'all of its rows');

# The six samples, spawned in one call, do what they are for; the protocols tell whom they should.
my @samples = qw(query_specialist memory_coordinator pattern_discovery decision_tracker synchronization analytics);
sql(q{SELECT swarm.namespace_create('one'), swarm.namespace_create('two')});
is(sql('SELECT count(agent_id), count(DISTINCT name) FROM swarm.agent_spawn(\'[' . join(', ', map { qq({"type": "$_", "name": "$_"}) } @samples) . "]', topology => 'ring', timeout => '1 h') WHERE status = 'spawned'"),
	'6|6', 'six agents in one call');
sub sample
{
	my ($name, $task, $more) = @_;
	my $id = sql(qq[SELECT swarm.task_submit('{"agent": "$name", "task": $task] . ($more // '') . q[}')]);

	return sql("SELECT state || ' ' || coalesce(result::text, error) FROM swarm.task_wait($id, '$wait s')");
}
is(sample('memory_coordinator', '{"namespace": "one", "entries": {"a": "red apples", "b": "green pears"}}'), 'done {"stored": 2}', 'the coordinator stores');
is(sample('synchronization', '{"from": "one", "to": "two"}'), 'done {"copied": 2}', 'the synchronization copies');
is(sample('synchronization', '{"from": "one", "to": "two"}'), 'done {"copied": 0}', '... what differs');
is(sample('memory_coordinator', '{"namespace": "two", "keys": ["a", "c"]}'), 'done {"a": "red apples", "c": null}', 'the coordinator reads');
like(sample('pattern_discovery', '{"documents": ["red apples", "green apples", "pears"]}'), qr/"word": "appl", "documents": 2/, 'the discovery finds what documents share');
like(sample('decision_tracker', '{"decision": "fruit", "options": {"apple": {"taste": 2}, "pear": {"taste": 3}}}'), qr/"chosen": "pear"/, 'the decision is the best option');
like(sample('query_specialist', '{"namespace": "one", "query": "apples"}', ', "protocol": "team"'), qr/red apples/, 'the specialist finds an entry');
like(sample('analytics', '{}', ', "protocol": "session"'), qr/"query_specialist": \{"done": 1/, 'the analytics count');
is(sql(q{SELECT string_agg(a.name || ' ' || m.kind, ', ' ORDER BY m.id) FROM swarm.agent_messages m JOIN swarm.agents a ON a.id = m.to_agent}),
	'memory_coordinator task-begins, analytics task-begins, memory_coordinator share-findings, analytics share-findings', 'protocol "team" tells the neighbours');
like(sql(q{SELECT swarm.memory_get('default', 'session/analytics')->>'result'}), qr/"query_specialist"/, 'protocol "session" remembers the result');
sql(q{SELECT count(*) FROM swarm.agent_spawn('[{"type": "analytics", "name": "first"}, {"type": "analytics", "name": "second", "depends_on": ["first"]}]', timeout => '1 h')});
sql(q{SELECT swarm.memory_store('default', 'tmp/' || (SELECT last_value + 1 FROM swarm._agent_task_id_seq) || '/x', '1')});
like(sample('first', '{}', ', "protocol": "pipeline"'), qr/^done/, 'a task with protocol "pipeline"');
is(sql(q{SELECT string_agg(m.kind, ', ' ORDER BY m.id) FROM swarm.agent_messages m JOIN swarm.agents a ON a.id = m.to_agent WHERE a.name = 'second'}),
	'task-begins, share-findings', '... tells who depends on the agent');
is(sql(q{SELECT count(*) FROM swarm.memory_list('default', 'tmp/')}), '0', '... and cleans up');
is(sql(q{SELECT string_agg(concat_ws(' ', type, successes, failures), ', ' ORDER BY type) FROM swarm.agent_patterns}), 'analytics 2 0, query_specialist 1 0', 'they have learned');
$node->stop;
done_testing();
