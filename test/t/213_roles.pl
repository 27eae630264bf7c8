# A runner works for one role: who the session's user is, what reaches the next job, and
# how runners make room for those of other roles.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.min_runners = 1\npg_swarm.max_runners = 1");
my @roles = map { "regress_role_$_" } qw(a b c);

sub objects
{
	my ($in) = @_;

	$in->safe_psql('postgres', join ';', map { "CREATE ROLE $_" } @roles);
	$in->safe_psql('postgres', q{
CREATE TABLE seen (id bigint, owner name, pid int, started timestamptz, session name, other name);
GRANT INSERT, SELECT ON seen TO PUBLIC;
CREATE FUNCTION look(j swarm.job) RETURNS void LANGUAGE sql AS $$
    INSERT INTO seen SELECT j.id, current_user, pg_backend_pid(), backend_start, session_user, current_setting('session_authorization')
    FROM pg_stat_get_activity(pg_backend_pid()) $$;
SELECT swarm.handler_register('look', 'look')});
	return;
}

# What a role's job returns, with the notices of a wait in a block of its own.
sub result_of
{
	my ($role, $sql, %more) = @_;
	my $in = $more{node} // $node;
	my $id = $in->safe_psql('postgres', "SET ROLE $role; SELECT swarm.job_enqueue('sql', jsonb_build_object('sql', \$q\$$sql\$q\$), max_attempts => 1)");

	return $in->safe_psql('postgres', "SELECT coalesce(result->>'data', error) FROM swarm.job_wait($id)");
}

objects($node);

# One place for all: idle, it is given up for whatever comes.
for my $priority (qw(low critical))
{
	is($node->safe_psql('postgres', "SET ROLE $_; SELECT swarm.job_enqueue('look', priority => '$priority') AS id \\gset \nSELECT state FROM swarm.job_wait(:id, '180 s')"),
		'completed', "a job of $_, priority $priority, makes the idle runner of another role end")
		foreach @roles;
}

# The user of the session.
for my $role ('postgres', @roles, 'postgres')
{
	is(result_of($role, q{SELECT session_user || ' ' || current_user AS who}), qq([{"who": "$role $role"}]), "a job of $role is a session of $role");
}
$node->safe_psql('postgres', q{
CREATE FUNCTION may() RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$ SELECT pg_has_role(session_user, 'pg_read_server_files', 'MEMBER') $$;
GRANT CREATE ON SCHEMA public TO PUBLIC;
SET ROLE regress_role_a;
CREATE PROCEDURE proc(job swarm.job) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen (owner, session, other) VALUES (current_user, session_user, 'begin');
    COMMIT;
    INSERT INTO seen (owner, session, other) VALUES (current_user, session_user, 'commit');
    ROLLBACK;
    BEGIN
        RESET SESSION AUTHORIZATION;
    EXCEPTION WHEN cant_change_runtime_param THEN
        INSERT INTO seen (owner, session, other) VALUES (current_user, session_user, 'reset');
    END;
    COMMIT;
    INSERT INTO seen (owner, session, other) SELECT DISTINCT current_user, session_user, 'parallel ' || session_user
        FROM many WHERE who = session_user::text;
END $$;
CREATE TABLE many AS SELECT 'regress_role_a' AS who, n FROM generate_series(1, 20000) n;
ANALYZE many;
RESET ROLE;
SELECT swarm.handler_register('proc', 'proc')});
is(result_of('regress_role_a', 'SELECT may()'), '[{"may": false}]', 'SECURITY DEFINER functions that ask for session_user are not misled');
$node->safe_psql('postgres', q{ALTER ROLE regress_role_a SET parallel_setup_cost = 0;
ALTER ROLE regress_role_a SET parallel_tuple_cost = 0;
ALTER ROLE regress_role_a SET min_parallel_table_scan_size = 0});
is(result_of('regress_role_b', 'SELECT 1 AS one'), '[{"one": 1}]', 'another role has the process');
is( $node->safe_psql('postgres', q{
SET ROLE regress_role_a;
SELECT swarm.job_enqueue('proc', max_attempts => 1) AS id \gset
SELECT state, error FROM swarm.job_wait(:id);
SELECT owner, session, other FROM seen WHERE id IS NULL ORDER BY ctid}),
	join("\n", 'completed|', map { "regress_role_a|regress_role_a|$_" } 'begin', 'reset', 'parallel regress_role_a'),
	'a procedure: after COMMIT, ROLLBACK and in parallel workers');
is(result_of('regress_role_a', q{SELECT count(*) AS n FROM many WHERE who = session_user::text}), '[{"n": 20000}]', 'a function: in parallel workers');

# Its settings, but for those that the runner has its own of.
$node->safe_psql('postgres', q{
ALTER ROLE regress_role_b SET work_mem = '77MB';
ALTER ROLE regress_role_b IN DATABASE postgres SET application_name = 'of b';
ALTER ROLE regress_role_b SET default_transaction_read_only = on;
ALTER ROLE regress_role_b SET statement_timeout = 1;
GRANT regress_role_c TO regress_role_b;
ALTER ROLE regress_role_b SET role = regress_role_c;
ALTER DATABASE postgres SET work_mem = '55MB'});
is(result_of('regress_role_b', q{SELECT current_setting('work_mem') AS mem, current_setting('application_name') AS app, session_user AS who, pg_sleep(0.05) IS NULL AS slept}),
	'[{"app": "of b", "mem": "77MB", "who": "regress_role_b", "slept": false}]', 'settings of a role');
is(result_of('regress_role_b', q{SELECT set_config('work_mem', '33MB', false) AS mem}), '[{"mem": "33MB"}]', '... which a job can change');
is(result_of('regress_role_b', q{SELECT current_setting('work_mem') AS mem}), '[{"mem": "77MB"}]', '... for itself');
is(result_of('regress_role_c', q{SELECT current_setting('work_mem') AS mem, current_setting('application_name') AS app}),
	'[{"app": "", "mem": "55MB"}]', '... and not for another role');
$node->safe_psql('postgres', q{ALTER ROLE regress_role_b RESET ALL; ALTER DATABASE postgres RESET ALL; ALTER ROLE regress_role_b IN DATABASE postgres RESET ALL});

# A role with another name.
is(result_of('regress_role_b', 'SELECT session_user'), '[{"session_user": "regress_role_b"}]', 'a role');
$node->safe_psql('postgres', 'ALTER ROLE regress_role_b RENAME TO regress_role_d');
is(result_of('regress_role_d', q{SELECT session_user, current_setting('session_authorization') AS set}),
	'[{"set": "regress_role_d", "session_user": "regress_role_d"}]', '... with another name');
$node->safe_psql('postgres', 'ALTER ROLE regress_role_d RENAME TO regress_role_b');

# What no reset reaches.
my $random = 'SELECT setseed(0.42), random() AS n';
my $same = result_of('regress_role_a', $random);
is(result_of('regress_role_a', $random), $same, 'the state of random()');
result_of('regress_role_a', 'SELECT setseed(0.42)');
my ($expected) = $same =~ /"n": ([0-9.e-]+)/;
isnt(result_of('regress_role_b', 'SELECT random() AS n'), qq([{"n": $expected}]), '... does not reach another role');

# No process crosses roles, however they are mixed.
sub mixed
{
	my ($what, %more) = @_;
	my $queues = $more{queues} // 1;

	$node->safe_psql('postgres', 'TRUNCATE seen');
	$node->safe_psql('postgres', "SELECT swarm.queue_create('mixed_$_', batch => 5) WHERE NOT EXISTS (SELECT FROM swarm.queues WHERE queue = 'mixed_$_')") for 1 .. $queues;
	$node->safe_psql('postgres', "SELECT swarm.queue_pause('mixed_$_')") for 1 .. $queues;
	$node->safe_psql('postgres', join ';', map { "SET ROLE $roles[$_ % 3]; SELECT swarm.job_enqueue('look', queue => 'mixed_" . (1 + $_ % $queues) . "', priority => '" .
		(qw(low medium high critical))[$_ % 7 % 4] . q{')} } 1 .. 90);
	$node->safe_psql('postgres', "SELECT swarm.queue_resume('mixed_$_')") for 1 .. $queues;
	jobs_end($node, "$what: all end");
	is($node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE session <> owner OR other <> owner) FROM seen}), '90|90|0', '... each once, as its owner');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM (SELECT FROM seen GROUP BY pid, started HAVING count(DISTINCT owner) > 1) s}), '0', '... no process for two roles');
	return;
}
mixed('one runner');
$node->append_conf('postgresql.conf', 'pg_swarm.max_runners = 3');
$node->reload;
mixed('three runners');
mixed('three runners, five queues', queues => 5);
poll_ok($node, q{SELECT count(*) > 0 AND bool_and(runs_as::text LIKE 'regress_role_%') FROM swarm.workers WHERE role = 'runner' AND runs_as IS NOT NULL AND jobs_done > 0},
	'swarm.workers has the role of each');

# Those of another role that are idle stay, as long as there is room.
$node->append_conf('postgresql.conf', "pg_swarm.max_runners = 4\npg_swarm.runner_idle_timeout = '1 h'");
$node->restart;
$node->safe_psql('postgres', 'TRUNCATE seen');
for my $role ((@roles) x 3)
{
	$node->safe_psql('postgres', "SET ROLE $role; SELECT swarm.job_enqueue('look') AS id \\gset \nSELECT state FROM swarm.job_wait(:id)");
	poll_sql($node, q{SELECT bool_and(state = 'idle') FROM swarm.workers WHERE role = 'runner'}, 't');
}
is($node->safe_psql('postgres', q{SELECT count(DISTINCT pid), count(*) FROM seen}), '3|9', 'room for all: each role keeps its process');

# Agents of several roles, started at once where one process may be.
$node->append_conf('postgresql.conf', 'pg_swarm.max_runners = 1');
$node->reload;
$node->safe_psql('postgres', q{
CREATE FUNCTION handle(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(session_user || ' ' || current_user) $$;
SELECT swarm.agent_type_create('{"name": "looker", "handler": "public.handle", "capabilities": ["look"]}')});
is( $node->safe_psql('postgres', q{
SELECT string_agg(status || ' ' || coalesce(error, ''), ',') FROM swarm.agent_spawn('[
 {"type": "looker", "name": "x", "role": "regress_role_a"}, {"type": "looker", "name": "y", "role": "regress_role_b"},
 {"type": "looker", "name": "z", "role": "regress_role_c"}, {"type": "looker", "name": "u", "role": "regress_role_a"}]', timeout => '180 s')}),
	'spawned ,spawned ,spawned ,spawned ', 'agents of three roles start by turns in one place');
$node->safe_psql('postgres', "SET ROLE regress_role_$_->[1]; SELECT swarm.task_submit('{\"agent\": \"$_->[0]\"}')") foreach ['x', 'a'], ['y', 'b'], ['z', 'c'], ['u', 'a'];
poll_ok($node, q{SELECT string_agg(a.name || ' ' || (t.result #>> '{}'), ',' ORDER BY a.name) FROM swarm.agent_tasks t JOIN swarm.agents a ON a.id = t.agent_id WHERE t.state = 'done'},
	'... and work as sessions of theirs', join ',', map { "$_->[0] regress_role_$_->[1] regress_role_$_->[1]" } ['u', 'a'], ['x', 'a'], ['y', 'b'], ['z', 'c']);

# Nor where the scheduler has to do the work; it takes each role back.
my $narrow = swarm_cluster('narrow', conf => "max_worker_processes = 2\nmax_logical_replication_workers = 0");
objects($narrow);
is(result_of($_, q{SELECT session_user || ' ' || current_user AS who}, node => $narrow), qq([{"who": "$_ $_"}]), "in the scheduler: $_")
	foreach 'regress_role_a', 'regress_role_b', 'postgres', 'regress_role_c';
is($narrow->safe_psql('postgres', q{SELECT count(*) FROM swarm.workers WHERE runs_as IS NOT NULL}), '0', '... which keeps none');

$node->stop;
$narrow->stop;
done_testing();
