# Agents at the edges: a whole whose agent comes later, helpers that come late, limits on resuming, hand-offs that fail.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.job_backoff = '20ms'\npg_swarm.job_backoff_max = '50ms'\npg_swarm.min_runners = 2");
my $wait = $PostgreSQL::Test::Utils::timeout_default;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub spawn
{
	my ($type, @names) = @_;
	my $agents = join ', ', map { qq({"type": "$type", "name": "$_"}) } @names;

	return sql("SELECT string_agg(status || coalesce(' ' || error, ''), ',') FROM swarm.agent_spawn('[$agents]', timeout => '$wait s')");
}
sub id { return sql("SELECT id FROM swarm.agents WHERE name = '$_[0]' ORDER BY id DESC LIMIT 1") }

$node->safe_psql('postgres', <<'X');
CREATE FUNCTION work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF task->'lock' IS NOT NULL THEN PERFORM pg_advisory_xact_lock((task->>'lock')::int); END IF;
    IF task ? 'handoff' THEN RAISE 'cannot go on'; END IF;
    RETURN task || jsonb_build_object('by', agent.name);
END $$;
SELECT swarm.agent_type_create('{"name": "part", "capabilities": ["part"], "handler": "public.work"}');
SELECT swarm.agent_type_create('{"name": "whole", "capabilities": ["whole"], "handler": "public.work", "max_concurrency": 1}');
SELECT swarm.retry_policy_set('agent:part', '{"first_wait": "1 ms", "max_attempts": 2}');
X

# A whole with work of its own, for which there is no agent yet
is(spawn('part', 'p'), 'spawned', 'an agent for the parts');
my $task = sql(q{SELECT swarm.task_submit('{"type": "whole", "task": {"own": 1}, "parts": [{"type": "part", "task": {"n": 1}}, {"type": "part", "task": {"n": 2}}]}')});
poll_ok($node, "SELECT count(*) FROM swarm.agent_tasks WHERE parent = $task AND state = 'done'", 'its parts are done', '2');
is(sql("SELECT state, waits_because FROM swarm.agent_tasks WHERE id = $task"), 'queued|no agent can do it', '... it waits for an agent');
is(spawn('whole', 'w'), 'spawned', 'which comes');
is(sql("SELECT state, result->>'by', jsonb_array_length(result->'parts') FROM swarm.task_wait($task, '$wait s')"), 'done|w|2', '... and does it with its parts');

# Resuming heeds what spawning heeds
sql("SELECT swarm.agent_stop(" . id('w') . ')');
my $stopped = id('w');
is(spawn('whole', 'v'), 'spawned', 'another one takes the place');
sql_fails($node, "SELECT swarm.agent_resume($stopped)", qr/53400: .*max_concurrency/, 'one too many is not resumed');
is(sql("SELECT state FROM swarm.agents WHERE id = $stopped"), 'stopped', '... and stays as it was');
sql('SELECT swarm.agent_stop(' . id('v') . ')');
is(sql("SELECT swarm.agent_resume($stopped)"), 'idle', 'when there is room, it is');
sql('SELECT swarm.agent_stop(' . id('p') . ')');
my $old = id('p');
is(spawn('part', 'p'), 'spawned', 'a name is free when its agent is stopped');
sql_fails($node, "SELECT swarm.agent_resume($old)", qr/42710: .*exists already/, '... and then taken');

# New agents help one that is busy
my $holder = start_psql($node, undef);
say_psql($holder, 'SELECT pg_advisory_lock(4711);');
my $held = sql(q{SELECT swarm.task_submit('{"type": "part", "task": {"lock": 4711}}')});
poll_ok($node, q{SELECT count(*) FROM swarm.agents WHERE name = 'p' AND state = 'busy'}, 'an agent is busy', '1');
my @tasks = map { sql(q{SELECT swarm.task_submit('{"type": "part", "task": {"n": 1}}')}) } 1 .. 5;
is(spawn('part', 'q'), 'spawned', 'another one comes');
poll_ok($node, q{SELECT count(*) FROM swarm.agent_tasks WHERE state = 'done' AND id IN (} . join(',', @tasks) . ')', 'it does what waits for the busy one', '5');
is(sql(q{SELECT stolen FROM swarm.agent_stat WHERE name = 'q'}), '5', '... which is counted');
finish_psql($holder);
is(sql("SELECT state FROM swarm.task_wait($held, '$wait s')"), 'done', 'the busy one goes on');

# One that has nothing to do helps when tasks of a busy one become due
say_psql($holder = start_psql($node, undef), 'SELECT pg_advisory_lock(4711);');
sql('SELECT swarm.agent_pause(' . id('q') . ')');
$held = sql(q{SELECT swarm.task_submit('{"type": "part", "task": {"lock": 4711}}')});
poll_ok($node, q{SELECT count(*) FROM swarm.agents WHERE name = 'p' AND state = 'busy'}, 'an agent is busy again', '1');
@tasks = map { sql(q{SELECT swarm.task_submit('{"type": "part", "task": {"n": 1}}'::jsonb || jsonb_build_object('run_at', swarm._now() + interval '2 hours'))}) } 1 .. 5;
sql('SELECT swarm.agent_resume(' . id('q') . ')');
sql(q{SELECT swarm._clock_advance('3 hours')});
poll_ok($node, q{SELECT count(*) FROM swarm.agent_tasks WHERE state = 'done' AND id IN (} . join(',', @tasks) . ')', 'the other one does what has become due', '5');
finish_psql($holder);
is(sql("SELECT state FROM swarm.task_wait($held, '$wait s')"), 'done', 'the busy one goes on again');
sql('SELECT swarm._clock_advance(NULL)');

# A hand-off that fails for good
$task = sql('SELECT swarm.agent_handoff(' . id('p') . ', ' . id('q') . q{, '{"left": 1}')});
is(sql("SELECT state, attempts FROM swarm.task_wait($task, '$wait s')"), 'failed|2', 'a hand-off is tried again, then fails');
is(sql('SELECT body->>\'error\', body->\'handoff\' FROM swarm.agent_inbox(' . id('p') . ") WHERE kind = 'escalate'"), 'cannot go on|{"left": 1}', '... and who handed it over is told');

# A request for help that nobody answers in time is escalated: to the others that are linked, or to who has asked
is(spawn('part', $_), 'spawned', "$_ comes") foreach 'asker', 'silent', 'kind', 'boss', 'lonely';
sql("SELECT swarm.topology_create('team', 'star', ARRAY[" . join(', ', map { id($_) } 'asker', 'silent', 'kind', 'boss') . '])');
sub ask { my ($from, $to, $what) = @_; return sql('SELECT swarm.agent_message(' . id($from) . ', ' . id($to) . ", 'request-help', '\"$what\"')"); }
sub escalations { my ($of) = @_; return sql('SELECT count(*) FROM swarm.agent_messages WHERE kind = \'escalate\' AND from_agent = ' . id($of)); }
my $ignored = ask('asker', 'silent', 'first');
ask('asker', 'kind', 'second');
is(sql('SELECT count(*) FROM swarm.agent_messages WHERE escalate_at - swarm._now() BETWEEN \'4 min\' AND \'5 min\''), '2', 'two requests want an answer');
sql('SELECT swarm.agent_message(' . id('kind') . ', ' . id('asker') . q{, 'notify', '"yes"')});
is(sql('SELECT id FROM swarm.agent_messages WHERE escalate_at IS NOT NULL'), $ignored, '... which one has');
sql("SET pg_swarm.agent_escalate_after = 0; SELECT swarm.agent_message(" . id('lonely') . ', ' . id('silent') . q{, 'request-help', '"patient"')});
is(sql('SELECT id FROM swarm.agent_messages WHERE escalate_at IS NOT NULL'), $ignored, 'a request may have no limit');
ask('lonely', 'silent', 'third');
sql(q{SELECT swarm._clock_advance('4 min')});
sql('SELECT swarm._agent_escalate(' . id($_) . ')') foreach 'asker', 'lonely';
is(escalations('asker') + escalations('lonely'), 0, 'nothing is escalated before its time');
# who has asked is busy meanwhile
say_psql($holder = start_psql($node, undef), 'SELECT pg_advisory_lock(4711);');
$held = sql(q{SELECT swarm.task_submit('{"agent": "asker", "task": {"lock": 4711}}')});
poll_ok($node, q{SELECT state FROM swarm.agents WHERE name = 'asker'}, 'who has asked is busy', 'busy');
sql(q{SELECT swarm._clock_advance('6 min')});
poll_ok($node, 'SELECT count(*) FROM swarm.agent_messages WHERE kind = \'escalate\' AND from_agent IN (' . id('asker') . ', ' . id('lonely') . ')', 'after it, it is', '3');
finish_psql($holder);
is(sql("SELECT state FROM swarm.task_wait($held, '$wait s')"), 'done', '... while a task is done');
is(sql(qq{SELECT string_agg(a.name, ',' ORDER BY a.name) FROM swarm.agent_messages m JOIN swarm.agents a ON a.id = m.to_agent WHERE m.kind = 'escalate' AND (m.body->>'message')::bigint = $ignored}),
   'boss,kind', '... to the others of the topology');
is(sql('SELECT body - \'message\' FROM swarm.agent_inbox(' . id('lonely') . ") WHERE kind = 'escalate'"), '{"body": "third", "kind": "request-help", "agent": ' . id('silent') . '}', '... or to who has asked');
is(sql(q{SELECT string_agg(name, ',' ORDER BY name) FROM swarm.agent_activity WHERE event = 'escalate'}), 'asker,lonely', '... and recorded');
is(sql('SELECT count(*) FROM swarm.agent_messages WHERE escalate_at IS NOT NULL'), '0', '... once');
sql('SELECT swarm._clock_advance(NULL)');

# So is one to all, when none of them answers: to those that are linked since, or to who has asked
sub ask_all { my ($what) = @_; return sql('SELECT swarm.agent_message(' . id('asker') . ", NULL, 'request-help', '\"$what\"')"); }
sub escalated { my ($message) = @_; return sql("SELECT string_agg(a.name || ' ' || (m.body - 'message')::text, ',' ORDER BY a.name) FROM swarm.agent_messages m JOIN swarm.agents a ON a.id = m.to_agent WHERE m.kind = 'escalate' AND (m.body->>'message')::bigint = $message"); }
my $answered = ask_all('fourth');
is(sql("SELECT count(*), count(escalate_at), max(id) FILTER (WHERE escalate_at IS NOT NULL) FROM swarm.agent_messages WHERE body = '\"fourth\"'"), "3|1|$answered", 'a request to all wants one answer');
sql('SELECT swarm.agent_message(' . id('lonely') . ', ' . id('asker') . q{, 'notify', '"was not asked"')});
is(sql('SELECT id FROM swarm.agent_messages WHERE escalate_at IS NOT NULL'), $answered, '... which one of somebody else is not');
sql('SELECT swarm.agent_message(' . id('silent') . ', ' . id('asker') . q{, 'notify', '"yes"')});
is(sql('SELECT count(*) FROM swarm.agent_messages WHERE escalate_at IS NOT NULL'), '0', '... but that of any of them');
$ignored = ask_all('fifth');
sql(q{SELECT swarm._clock_advance('6 min')});
poll_ok($node, 'SELECT count(*) FROM swarm.agent_messages WHERE escalate_at IS NOT NULL', 'one that nobody answers is escalated', '0');
is(escalated($ignored), 'asker {"body": "fifth", "kind": "request-help", "agent": null}', '... to who has asked');
is(sql("SELECT count(*) FROM swarm.agent_activity WHERE event = 'escalate' AND detail = 'none of 3 agents has answered message $ignored'"), '1', '... and recorded');
$ignored = ask_all('sixth');
sql("SELECT swarm.topology_create('team', 'star', ARRAY[" . join(', ', map { id($_) } 'asker', 'silent', 'kind', 'boss', 'lonely') . '])');
sql(q{SELECT swarm._clock_advance('12 min')});
poll_ok($node, 'SELECT count(*) FROM swarm.agent_messages WHERE escalate_at IS NOT NULL', 'the next one, too', '0');
is(escalated($ignored), 'lonely {"body": "sixth", "kind": "request-help", "agent": null}', '... to one that came later');
is(escalated($answered), '', 'the one that was answered is not');
sql('SELECT swarm._clock_advance(NULL)');

# Agents that have ended go with the history of jobs, and with them what hangs on them; not one for which a task waits.
sub sets { return sql(q{SELECT count(*) FROM swarm._agent_set WHERE 'rare' = ANY (capabilities)}) }
my $rare = q{SELECT status FROM swarm.agent_spawn('[{"type": "part", "name": "gone2", "capabilities": ["rare"]}]', timeout => '} . "$wait s')";
is(spawn('part', $_), 'spawned', "$_ comes") foreach 'gone1', 'needed', 'alive';
is(sql($rare), 'spawned', 'gone2 comes, with capabilities that no other has');
sql("SELECT swarm.topology_create('both', 'ring', ARRAY[" . id('gone1') . ', ' . id('alive') . "]), swarm.topology_create('old', 'ring', ARRAY[" . id('gone1') . ', ' . id('gone2') . '])');
$task = sql(q{SELECT swarm.task_submit('{"agent": "gone1", "task": {"n": 1}}')});
is(sql("SELECT state FROM swarm.task_wait($task, '$wait s')"), 'done', 'a task of one');
my $ended = join(',', map { id($_) } 'gone1', 'gone2');
my $kept = join(',', map { id($_) } 'needed', 'alive');
sql(q{SELECT swarm.task_submit('{"agent": "needed", "run_at": "2999-01-01 00:00+00"}')});
sql("SELECT swarm.agent_stop(id) FROM swarm.agents WHERE name IN ('gone1', 'gone2', 'needed')");
sql(q{SELECT swarm._clock_advance('6 days')});
sql(q{SELECT swarm._agent_prune(swarm._now() - interval '7 days')});
is(sql("SELECT count(*) FROM swarm.agents WHERE id IN ($ended, $kept)"), '4', 'agents that have ended stay for 7 days');
is(sets(), '1', '... and the set of their capabilities');
cmp_ok(sql('SELECT count(*) FROM swarm.spawn_batches'), '>', 0, '... and how they were spawned');
sql(q{SELECT swarm._clock_advance('9 days')});
poll_ok($node, "SELECT count(*) FROM swarm.agents WHERE id IN ($ended)", '... then they go', '0');
is(sql("SELECT count(*) FROM swarm.agents WHERE id IN ($kept)"), '2', '... but not those that live or are needed');
is(sql("SELECT count(*) FROM swarm._agent_event WHERE agent IN ($ended)"), '0', '... with what has happened to them');
is(sql("SELECT string_agg(name, ',') FROM swarm._topology t WHERE name IN ('both', 'old')"), 'both', '... and topologies in which nobody is left');
is(sql("SELECT count(*) FROM swarm._topology_member WHERE agent IN ($ended)"), '0', '... and their places in others');
poll_ok($node, q{SELECT count(*) FROM swarm._agent_set WHERE 'rare' = ANY (capabilities)}, '... and the set of those capabilities', '0');
is(sql('SELECT count(*) FROM swarm.spawn_batches'), '0', '... and how they were spawned');
is(sql(q{SELECT count(*) FROM swarm.agent_messages WHERE kind = 'request-help'}), '0', 'messages of more than 7 days are gone');
# one that is just spawned keeps an empty set
is(sql($rare), 'spawned', 'one with those capabilities comes again');
my $again = id('gone2');
sql("DELETE FROM swarm._agent_event WHERE agent = $again; DELETE FROM swarm._agent WHERE id = $again");
is(sets(), '1', 'the set is empty');
say_psql($holder = start_psql($node, undef), "BEGIN; $rare;");
my $locked = q{EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = 'swarm._agent'::regclass AND l.mode = 'RowExclusiveLock' AND a.state = 'idle in transaction')};
poll_ok($node, "SELECT $locked", 'another one is spawned', 't');
sql(q{SELECT swarm._agent_prune(swarm._now() - interval '7 days')});
say_psql($holder, 'COMMIT;');
finish_psql($holder);
is(sql(q{SELECT array_to_string(capabilities, ',') FROM swarm.agents WHERE name = 'gone2'}), 'part,rare', '... and is there, in its set');
sql('SELECT swarm.agent_stop(' . id('gone2') . ')');
my $gone = (split /,/, $ended)[0];
sql_fails($node, "SELECT swarm.agent_resume($gone)", qr/42704: .*does not exist/, 'one that is gone does not exist');
is(sql("SELECT swarm._agent_tell(NULL, $gone, 'notify', '1') IS NULL"), 't', 'a message of the extension to one that is gone is lost');
sql('SELECT swarm._clock_advance(NULL)');
$node->stop;
done_testing();
