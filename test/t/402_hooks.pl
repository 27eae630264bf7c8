# Hooks around the operations of all modules: what they see, that they can refuse, and that every session knows at once
# which there are. Hooks of types of agents, and what their budgets allow.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my $node = swarm_cluster('main', conf => "max_prepared_transactions = 2\npg_swarm.job_backoff = '20ms'\npg_swarm.job_backoff_max = '50ms'");
my $wait = $PostgreSQL::Test::Utils::timeout_default;
my $s3 = s3_start();

s3_server($node, 'fake', $s3->{url});
$node->safe_psql('postgres', <<'X');
CREATE TABLE seen (n serial, event text, phase text, data jsonb);
CREATE FUNCTION look(hook jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.seen (event, phase, data) VALUES (hook->>'event', hook->>'phase', hook->'data');
    -- would call itself for ever
    PERFORM swarm.memory_store('default', 'from a hook', '1');
    RETURN CASE WHEN hook::text ~ 'forbidden' THEN '{"veto": "it is forbidden"}'::jsonb END;
END $$;
CREATE FUNCTION broken(hook jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE 'broken'; END$$;
CREATE FUNCTION fine(job swarm.job) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1)';
CREATE PROCEDURE careful(job swarm.job) LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
SELECT swarm.handler_register('fine', 'public.fine');
SELECT swarm.handler_register('careful', 'public.careful');
X
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub refused
{
	my ($sql, $name) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($err, qr/38000: .*it is forbidden/, "$name is refused");
}
sub seen
{
	my ($want, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql(q{SELECT string_agg(event || ' ' || phase, ', ' ORDER BY n) FROM seen}), $want, $name);
	sql('TRUNCATE seen');
}

# A session that knew of no hooks, before any is made.
my $session = start_psql($node, undef);
sub say_store { say_psql($session, "SELECT swarm.memory_store('default', '$_[0]', '1');"); return; }
sub answered { poll_ok($node, "SELECT count(*) FROM swarm.memory_list('default', '$_[0]')", "... $_[0] is stored", '1') }
say_store('first');
answered('first');
sql(q{SELECT count(swarm.hook_create(e.event, p, 'look', 0, '1 min')) FROM swarm._hook_events() e, unnest('{before,after}'::text[]) p WHERE e.event !~ 'agent|task|hook'});
say_store('second');
answered('second');
seen('memory_store before, memory_store after', 'a session that was there before the hooks calls them');

# What each event sees.
sql(q{SELECT swarm.memory_store('default', 'a', '1'), swarm.memory_increment('default', 'n', 1)});
sql(q{SELECT swarm.memory_store_many('default', '{"b": 1, "c": 2}')});
is(sql(q{SELECT data FROM seen WHERE phase = 'after' ORDER BY n LIMIT 1}), '{"key": "a", "value": 1, "namespace": "default"}', 'what a hook is told of an entry');
seen(join(', ', ('memory_store before, memory_store after') x 4), 'every stored entry');
sql(q{SELECT swarm.memory_delete('default', 'a'), swarm.memory_delete('default', 'none'), swarm.memory_clear('default', 'b')});
seen('memory_delete before, memory_delete after, memory_delete before, memory_delete before, memory_delete after', 'deleted ones');
refused(q{SELECT swarm.memory_store('default', 'forbidden', '1')}, 'storing an entry');
refused(q{SELECT swarm.memory_increment('default', 'forbidden', 1)}, 'increasing one');
refused(q{SELECT swarm.memory_usage('store', 'default', 'forbidden', '1')}, 'storing one with the tool');
refused(q{SELECT swarm.memory_clear('default', 'forbidden')}, 'clearing a namespace');
is(sql(q{SELECT count(*) FROM swarm.memory_list('default', 'forbidden')}), '0', '... and nothing is stored');
sql('TRUNCATE seen');

foreach my $kind ('sql', 'fine', 'careful')
{
	my $args = $kind eq 'sql' ? '{"sql": "SELECT 1"}' : '{}';
	my $job = sql("SELECT swarm.job_enqueue('$kind', '$args')");

	is(sql("SELECT state FROM swarm.job_wait($job, '$wait s')"), 'completed', "a job of kind $kind");
	is(sql(q{SELECT data->>'state' FROM seen WHERE event = 'job' AND phase = 'after'}), 'completed', '... tells how it has ended');
	seen('job_enqueue before, job_enqueue after, job before, job after', '... all of its hooks');
}
refused(q{SELECT swarm.job_enqueue('fine', '{"forbidden": 1}')}, 'a job');
refused(q{SELECT swarm.job_enqueue_many('[{"kind": "fine"}, {"kind": "fine", "args": {"forbidden": 1}}]')}, 'one of many jobs');
sql(q{SELECT swarm.hook_enable(id, false) FROM swarm.hook_stat WHERE event = 'job_enqueue' AND phase = 'before'});
sql('TRUNCATE seen');
foreach my $kind ('fine', 'careful')
{
	my $job = sql("SELECT swarm.job_enqueue('$kind', '{\"forbidden\": 1}')");

	is(sql("SELECT state, attempts, error FROM swarm.job_wait($job, '$wait s')"), 'dead|1|the job was refused: it is forbidden', "a refused job of kind $kind ends at once");
}
sql('TRUNCATE seen');

my $query = sql(q{SELECT swarm.query_start('sql', 'SELECT 1')});
is(sql("SELECT swarm.query_wait($query, '$wait s')"), 'complete', 'a query');
seen('query_start before, query_start after', '... has its hooks, and not those of its job');
refused(q{SELECT swarm.query_start('sql', 'SELECT ''forbidden''')}, 'a query');
sql('TRUNCATE seen');
$query = sql(q{SELECT swarm.query_start('sql', 'SELECT pg_sleep(3600)')});
sql("SELECT swarm.query_terminate($query)");
seen('query_start before, query_start after, query_terminate before, query_terminate after', 'an action on a query');

my $batch = sql(q{SELECT swarm.s3_upload('fake', 'docs', } . files_sql(2, q{convert_to('x', 'UTF8')}) . ')');
is(result($node, "SELECT swarm.s3_wait($batch, '$wait s')")->{status}, 200, 'an upload');
is(sql(q{SELECT data->>'done', data->>'failed' FROM seen WHERE event = 'upload' AND phase = 'after'}), '2|0', '... tells what came of it');
seen('upload before, upload after', '... has its hooks');
refused(q{SELECT swarm.s3_upload('fake', 'forbidden', } . files_sql(1, q{convert_to('x', 'UTF8')}) . ')', 'an upload');

# Where there is a hook is known by transactions: rolled back, to a savepoint, prepared.
sql(q{SELECT swarm.hook_drop(id) FROM swarm.hook_stat; TRUNCATE seen});
sql(<<'X');
BEGIN;
SELECT swarm.memory_store('default', 'none', '1');
SAVEPOINT s;
SELECT swarm.hook_create('memory_store', 'before', 'look');
SELECT swarm.memory_store('default', 'rolled back', '1');
ROLLBACK TO s;
SELECT swarm.memory_store('default', 'none', '1');
SELECT swarm.hook_create('memory_store', 'after', 'look');
SELECT swarm.memory_store('default', 'seen', '1');
PREPARE TRANSACTION 'hook';
X
say_store('unprepared');
answered('unprepared');
sql(q{COMMIT PREPARED 'hook'});
say_store('prepared');
answered('prepared');
seen('memory_store after, memory_store after', 'only hooks that were there were called');
is(sql(q{SELECT calls, failures FROM swarm.hook_stat}), '2|0', '... and counted');
sql(q{SELECT swarm.hook_create('memory_store', 'before', 'broken') > 0});
sql(q{SELECT swarm.memory_store('default', 'whole', '1')});
is(sql(q{SELECT calls, failures FROM swarm.hook_stat WHERE handler = 'public.broken'}), '1|1', 'a hook that fails harms nobody');
sql(q{SELECT swarm.hook_drop(id) FROM swarm.hook_stat; TRUNCATE seen});
finish_psql($session);

# Each operation that is a function can be refused before it does anything, whatever it is given.
$node->safe_psql('postgres', <<'X');
CREATE FUNCTION refuse(hook jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_build_object('veto', hook->>'event')$$;
CREATE VIEW operations AS
SELECT p.oid::regprocedure AS function, p.proname AS event,
       format('SELECT swarm.%I(%s)', p.proname, (SELECT string_agg(format('%L::%s', CASE
            WHEN t.typcategory = 'A' THEN '{}' WHEN t.typcategory = 'B' THEN 't' WHEN t.typcategory IN ('N', 'T') AND t.typname !~ '^reg' THEN '1'
            WHEN t.typname = 'regclass' THEN 'pg_class' WHEN t.typname = 'regproc' THEN 'now' WHEN t.typname = 'jsonb' THEN '{}'
            WHEN t.typname = 'timestamptz' THEN 'now' WHEN t.typcategory = 'E' THEN 'low' ELSE 'x' END, t.oid::regtype), ', ' ORDER BY k)
        FROM unnest(p.proargtypes) WITH ORDINALITY a(type, k) JOIN pg_type t ON t.oid = a.type)) AS call
FROM pg_proc p JOIN swarm._hook_events() e ON e.event = p.proname WHERE p.pronamespace = 'swarm'::regnamespace AND p.prosrc = 'swarm_hooked_' || p.proname;
X
my $operations = sql('SELECT count(*) FROM operations');
is(sql(<<'X'), "refused: $operations", "all of $operations operations can be refused");
SET client_min_messages = error;
BEGIN;
DO $$
BEGIN
    PERFORM swarm.hook_create(o.event, 'before', 'refuse', timeout => '1 min') FROM operations o ORDER BY o.event = 'hook_create', o.event;
END $$;
CREATE TEMP TABLE outcome (what text);
DO $$
DECLARE
    o record;
BEGIN
    FOR o IN SELECT * FROM operations LOOP
        BEGIN
            EXECUTE o.call;
            INSERT INTO outcome VALUES (format('%s has run', o.event));
        EXCEPTION WHEN OTHERS THEN
            INSERT INTO outcome VALUES (CASE WHEN SQLSTATE = '38000' AND SQLERRM = format('operation "%s" was refused: %s', o.event, o.event)
                                             THEN 'refused' ELSE format('%s: %s', o.call, SQLERRM) END);
        END;
    END LOOP;
END $$;
SELECT string_agg(what || ': ' || n, ', ') FROM (SELECT what, count(*) AS n FROM outcome GROUP BY what) x;
ROLLBACK;
X
sql('DROP VIEW operations');

# Hooks of a type are called as the role of the agent; one before can refuse.
$node->safe_psql('postgres', <<'X');
CREATE ROLE worker;
CREATE TABLE told (n serial, who name, what jsonb);
GRANT INSERT ON told TO worker;
GRANT USAGE ON SEQUENCE told_n_seq TO worker;
CREATE FUNCTION work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF task->>'what' = 'bad' THEN RAISE 'it is bad'; END IF;
    RETURN task;
END $$;
CREATE FUNCTION before_task(data jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF data->'task'->>'what' = 'broken' THEN RAISE 'broken'; END IF;
    INSERT INTO public.told (who, what) VALUES (current_user, data->'task');
    RETURN CASE WHEN data->'task'->>'what' = 'forbidden' THEN '{"veto": "it is forbidden"}'::jsonb END;
END $$;
CREATE FUNCTION after_task(data jsonb) RETURNS void LANGUAGE sql AS $$
INSERT INTO public.told (who, what) VALUES (current_user, jsonb_build_object('error', data->>'error', 'result', data->'result'))
$$;
SELECT swarm.agent_type_create('{"name": "hooked", "capabilities": ["h"], "handler": "public.work", "max_attempts": 1,
    "hooks": {"before_task": "public.before_task", "after_task": "public.after_task"}}');
SELECT count(*) FROM swarm.agent_spawn('[{"type": "hooked", "name": "h", "role": "worker"}]', timeout => '60 s');
X
sub task
{
	my ($agent, $what) = @_;

	my $id = sql(qq(SELECT swarm.task_submit(jsonb_build_object('agent', (SELECT id FROM swarm.agents WHERE name = '$agent'), 'task', '{"what": "$what"}'::jsonb))));
	return sql("SELECT state || coalesce(': ' || error, '') FROM swarm.task_wait($id, '$wait s')");
}
is(task('h', 'good'), 'done', 'a task with hooks of its type');
is(task('h', 'bad'), 'failed: it is bad', '... one that fails');
is(task('h', 'forbidden'), 'failed: it is forbidden', '... one that is refused');
is(task('h', 'broken'), 'done', '... one whose hook fails');
is(sql(q{SELECT DISTINCT who FROM told}), 'worker', 'they are called as the role of the agent');
is(sql(q{SELECT string_agg(what::text, ' ' ORDER BY n) FROM told}),
	'{"what": "good"} {"error": null, "result": {"what": "good"}} {"what": "bad"} {"error": "it is bad", "result": null} ' .
	'{"what": "forbidden"} {"error": "it is forbidden", "result": null} {"error": null, "result": {"what": "broken"}}',
	'what they are told');
is(sql(q{SELECT detail FROM swarm.agent_activity WHERE event = 'hook'}), 'before_task: broken', 'the error of one is an event');
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT swarm.agent_type_create('{"name": "x", "capabilities": [], "handler": "public.work", "hooks": {"before_task": "public.none"}}')});
like($err, qr/hooks: function public.none\(jsonb\) does not exist/, 'a hook of a type must exist');

# Hooks around many agents of one call share a subtransaction as long as they go well, which nobody may notice: rights,
# settings, refusals, failures, time limits and what they see are those of a single call.
$node->safe_psql('postgres', <<'X');
CREATE ROLE other;
GRANT EXECUTE ON FUNCTION swarm.hook_create TO other;
CREATE TABLE calls (n serial, who name, name text, sees text);
GRANT SELECT, INSERT ON calls TO other;
GRANT USAGE ON SEQUENCE calls_n_seq TO other;
CREATE FUNCTION note(hook jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.calls (who, name, sees) VALUES (current_user, hook->'data'->>'name', coalesce(nullif(current_setting('my.note', true), ''), '-'));
    PERFORM set_config('my.note', 'left', false), set_config('work_mem', '1MB', false);
    IF hook->'data'->'metadata' ? 'raise' THEN RAISE 'raised'; END IF;
    RETURN CASE WHEN hook->'data'->'metadata' ? 'veto' THEN '{"veto": "it is refused"}'::jsonb END;
END $$;
CREATE FUNCTION note_sql(hook jsonb) RETURNS jsonb LANGUAGE sql AS $$
INSERT INTO public.calls (who, name, sees) VALUES (current_user, hook->>'phase', (SELECT count(*) FROM public.calls));
SELECT NULL::jsonb
$$;
CREATE FUNCTION sleepy(hook jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF hook->'data'->'metadata' ? 'sleep' THEN PERFORM pg_sleep(3600); END IF;
    RETURN NULL;
END $$;
SELECT swarm.hook_create('agent_spawn', 'before', 'note', 10, '1 min');
SET ROLE other;
SELECT swarm.hook_create('agent_spawn', 'before', 'note_sql', 5, '1 min'), swarm.hook_create('agent_spawn', 'after', 'note_sql', 0, '1 min');
X
my $spawns = 0;
sub many
{
	my (@metadata) = @_;
	my $i = 0;

	$spawns++;
	return "SELECT string_agg(left(name, 1) || ' ' || coalesce(error, status), ', ' ORDER BY agent_id, name) FROM swarm.agent_spawn('["
	  . join(', ', map { sprintf '{"type": "hooked", "name": "%s%d", "metadata": {%s}}', ('a' .. 'z')[$i++], $spawns, $_ ne '' ? qq("$_": 1) : '' } @metadata)
	  . "]', timeout => '$wait s')";
}
sub calls
{
	my ($want, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql(q{SELECT string_agg(CASE who WHEN 'other' THEN '' ELSE '!' END || name || ':' || sees, ' ' ORDER BY n) FROM calls}), $want, $name);
	sql('TRUNCATE calls');
}
sub counted { return sql(q{SELECT string_agg(concat_ws(' ', phase, calls, failures, vetoes, timeouts), ', ' ORDER BY priority DESC) FROM swarm.hook_stat}) }
is(sql(many('', 'veto', '')), 'a spawned, c spawned, b hook: it is refused', 'a hook refuses one agent of three');
calls('!a1:- before:1 !b1:- !c1:- before:4 after:5 after:6 after:7', '... the others are called for the others, by their owners, and see what was done');
is(counted(), 'before 3 0 1 0, before 2 0 0 0, after 3 0 0 0', '... and counted once');
is(sql(many('', '', 'raise', '')), 'a spawned, b spawned, c spawned, d spawned', 'a hook fails for one of four');
calls('!a2:- before:1 !b2:- before:3 before:4 !d2:- before:6 after:7 after:8 after:9 after:10', '... only what that call has done is gone');
is(counted(), 'before 7 1 1 0, before 6 0 0 0, after 7 0 0 0', '... and it is counted as one');
is(sql(many('raise', '') . '; SHOW work_mem; ' . many('', 'veto', 'raise')), "a spawned, b spawned\n4MB\na spawned, c spawned, b hook: it is refused", 'one that fails again in the same session');
calls('before:0 !b3:- before:2 after:3 after:4 !a4:- before:6 !b4:- before:8 after:9 after:10 after:11', '... is as if it were called alone');
is(counted(), 'before 12 3 2 0, before 10 0 0 0, after 12 0 0 0', '... and counted so');
sql(q{SELECT swarm.hook_create('agent_spawn', 'before', 'sleepy', 7, '100 ms')});
is(sql(many('', 'sleep', '')), 'a spawned, b spawned, c spawned', 'a hook runs too long for one of three');
calls('!a5:- before:1 !b5:- before:3 !c5:- before:5 after:6 after:7 after:8', '... which harms no other');
is(sql(q{SELECT calls, timeouts > 0 FROM swarm.hook_stat WHERE handler = 'public.sleepy'}), '3|t', '... and is counted');
is(sql(q{SELECT swarm._hook_run_all(10, 'agent_spawn', 'before', '{}'), swarm._hook_run_all(10, 'agent_spawn', 'before', ARRAY['{"metadata": {"veto": 1}}', NULL]::jsonb[])}), '{}|{"it is refused",NULL}', 'none, and null, are operations, too');
# a limit of the type counts who was not refused
my $most = 2 + sql(q{SELECT count(*) FROM swarm.agents WHERE type = 'hooked'});
sql(qq[SELECT swarm.agent_type_create('{"name": "hooked", "capabilities": ["h"], "handler": "public.work", "max_concurrency": $most}')]);
is(sql(many('veto', '', '')), 'b spawned, c spawned, a hook: it is refused', 'a refused one leaves its place to the next');
# the session is cancelled in the middle of them
sql(q{SELECT swarm.hook_drop(id) FROM swarm.hook_stat WHERE handler = 'public.sleepy'; SELECT swarm.hook_create('agent_spawn', 'before', 'sleepy', 7, '1 hour')});
sql(q{SELECT swarm.agent_type_create('{"name": "hooked", "capabilities": ["h"], "handler": "public.work"}')});
my $busy = start_psql($node, many('', 'sleep', '') . ";\n" . many('', ''));
poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'}, 'a hook sleeps', '1');
sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
like(finish_psql($busy), qr/\Aa spawned, b spawned\n.*canceling statement due to user request/s, 'a cancellation ends the call, and not the session');
is(sql("SELECT count(*) FROM swarm.agents WHERE name ~ '[a-c]" . ($spawns - 1) . "\$'"), '0', '... and nothing is left of it');
sql(q{SELECT swarm.hook_drop(id) FROM swarm.hook_stat});

# What a budget of a type allows an agent a day; from noon on, so that no day ends meanwhile.
sql(q{SELECT swarm._clock_advance(date_trunc('day', now(), 'UTC') + '36 hours' - now())});
$node->safe_psql('postgres', <<'X');
SELECT swarm.agent_type_create('{"name": "frugal", "capabilities": ["f"], "handler": "public.work", "max_attempts": 1, "budget": {"max_tasks": 2}}');
SELECT swarm.agent_type_create('{"name": "brief", "capabilities": ["b"], "handler": "public.work", "max_attempts": 1, "budget": {"max_time": "0"}}');
SELECT count(*) FROM swarm.agent_spawn('[{"type": "frugal", "name": "f"}, {"type": "brief", "name": "b"}]', timeout => '60 s');
X
is(join(', ', map { task('f', 'good') } 1 .. 3), 'done, done, failed: the budget of 2 tasks a day is used up', 'tasks of an agent a day');
is(task('b', 'good'), 'failed: the budget of 0 a day is used up', 'time of an agent a day');
sql(q{SELECT swarm._clock_advance('1 day')});
is(task('f', 'good'), 'done', 'the next day is another one');
$node->stop;
done_testing();
