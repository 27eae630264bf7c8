# Adaptive topologies: a kind that is chosen and measured to be worse than the one before is given up; all of it can be seen.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.min_runners = 2\npg_swarm.agent_escalate_after = '1 h'");

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub topology { my ($name) = @_; return sql("SELECT kind, adaptive, agents, previous, trial, why FROM swarm.topologies WHERE name = '$name'"); }

# form(NAME, KIND, N): of the first n agents
sub form
{
	my ($name, $kind, $n) = @_;

	return sql("SELECT swarm.topology_create('$name', '$kind', ARRAY(SELECT id FROM swarm._agent WHERE type = 'w' ORDER BY id LIMIT $n)) > 0");
}
sub id { my ($n) = @_; return "(SELECT id FROM swarm._agent WHERE type = 'w' ORDER BY id OFFSET $n - 1 LIMIT 1)"; }

# send(N, HOURS): n messages, that are read so many hours later
sub send_read
{
	my ($n, $hours) = @_;

	sql('SELECT count(swarm.agent_message(' . id(1) . ', ' . id(2) . ", 'notify', '{}')) FROM generate_series(1, $n)");
	sql("SELECT swarm._clock_advance('$hours hours')") if $hours;
	is(sql('SELECT count(*) FROM swarm.agent_inbox(' . id(2) . ', 1000)'), $n, "$n messages, read after $hours hours");
	return;
}

# work(N, TASK): so many tasks of the first agent
sub work
{
	my ($n, $task) = @_;

	sql("SELECT count(swarm.task_submit(jsonb_build_object('agent', " . id(1) . ", 'task', '$task'::jsonb, 'max_attempts', 1))) FROM generate_series(1, $n)");
	poll_ok($node, "SELECT count(*) FROM swarm._agent_task WHERE state NOT IN ('done', 'failed')", "$n tasks $task have ended", '0');
	return;
}

$node->safe_psql('postgres', <<'X');
CREATE FUNCTION work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF task ? 'fail' THEN
        RAISE 'it fails';
    END IF;
    IF task ? 'takes' THEN
        PERFORM swarm._clock_advance((task->>'takes')::interval);
    END IF;
    RETURN task;
END $$;
SELECT swarm.agent_type_create('{"name": "w", "capabilities": ["w"], "handler": "public.work"}');
X
is(sql(q{SELECT count(*) FROM swarm.agent_spawn((SELECT jsonb_agg(jsonb_build_object('type', 'w', 'name', 'n' || i)) FROM generate_series(1, 20) i), timeout => '1 h') WHERE status = 'spawned'}), '20', 'twenty agents');

# Messages wait longer: back to the previous kind
form('t', 'auto', 3);
is(topology('t'), 'star|t|3||f|chosen for 3 agents', 'a kind is chosen');
send_read(20, 0);
form('t', 'auto', 4);
is(sql(q{SELECT measured->'message_ms'->'n' FROM swarm.topologies}), '20', 'the same kind for another agent goes on with what was measured');
form('t', 'auto', 17);
is(topology('t'), 'ring|t|17|star|t|ring after star: chosen for 17 agents', 'another kind for more agents is on trial');
is(sql(q{SELECT before->'message_ms'->>'n', measured->'message_ms'->>'n' FROM swarm.topologies}), '20|0', '... with the figures of the previous one');
send_read(19, 1);
like(topology('t'), qr/^ring\|t\|17\|star\|t\|/, '... as long as there are fewer than 20 samples');
sql('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT swarm.agent_message(' . id(1) . ', ' . id(2) . ", 'notify', '{}'); SELECT count(*) FROM swarm.agent_inbox(" . id(2) . '); COMMIT');
my $holder = start_psql($node, undef);
is(say_psql($holder, 'BEGIN; SELECT count(*) FROM (SELECT FROM swarm._topology_member FOR UPDATE) m;'), '17', 'somebody has locked the figures');
send_read(3, 0);
like(topology('t'), qr/^ring\|/, '... which nobody waits for');
say_psql($holder, 'ROLLBACK;');
finish_psql($holder);
is(sql(q{SELECT measured->'message_ms'->>'n' FROM swarm.topologies}), '19', '... nor is counted, as what is read in REPEATABLE READ');
send_read(1, 0);
like(topology('t'), qr/^star\|t\|17\|ring\|f\|star again: message_ms was 3[0-9]{6}\.[0-9]{3} with ring, [0-9.]+ before; the limit was [0-9.]+$/, 'what is slower is given up');
is(sql(q{SELECT count(*), count(DISTINCT agent_id), max(detail) ~ 't: star again: message_ms was' FROM swarm.agent_activity WHERE event = 'topology' AND detail ~ 'again'}), '17|17|t', '... an event of each member');
is(sql('SELECT count(*) FROM swarm.topology_neighbours(' . id(1) . ')'), '16', '... links are those of the star');
form('t', 'auto', 18);
like(topology('t'), qr/^star\|t\|18\|ring\|f\|star again/, '... and it is not chosen again');
form('t', 'ring', 18);
is(topology('t'), 'ring|f|18||f|', 'a kind by name is what it is');
form('t', 'auto', 3);
is(topology('t'), 'star|t|3||f|chosen for 3 agents', '... until it is to be chosen again');

# Faster: it stays
send_read(20, 1);
form('t', 'auto', 20);
send_read(199, 0);
like(topology('t'), qr/^ring\|t\|20\|star\|t\|/, 'one that is faster is on trial');
send_read(1, 0);
like(topology('t'), qr/^ring\|t\|20\|star\|f\|ring stays: message_ms is [0-9.]+, was 36[0-9]{5}\.[0-9]{3}, failures is 0.000, was 0.000$/, '... and then stays');
is(sql(q{SELECT count(*) FROM swarm.agent_activity WHERE event = 'topology' AND detail ~ 'ring stays'}), '20', '... an event, too');
sql(q{SELECT swarm.topology_drop('t')});

# Too little was measured before: it stays
form('t', 'auto', 3);
send_read(19, 0);
form('t', 'auto', 20);
send_read(1, 9);
is(topology('t'), 'ring|t|20|star|f|ring stays: too little was measured before', 'without figures there is nothing to go back for');
sql(q{SELECT swarm.topology_drop('t')});

# Tasks fail, or take longer
foreach my $case ([ '{"fail": 1}', qr/^star\|t\|20\|ring\|f\|star again: failures was 1.000 with ring, 0.000 before; the limit was 0.050$/ ],
	[ '{"takes": "1 hour"}', qr/^star\|t\|20\|ring\|f\|star again: task_ms was [0-9.]+ with ring/ ])
{
	my ($task, $want) = @$case;

	form('t', 'auto', 3);
	work(20, '{}');
	form('t', 'auto', 20);
	work(19, $task);
	like(topology('t'), qr/^ring\|t\|20\|star\|t\|/, 'worse, but too few samples');
	work(1, $task);
	like(topology('t'), $want, '... and now enough');
	sql(q{SELECT swarm.topology_drop('t')});
}

# Requests for help that nobody answers count as failures
form('t', 'auto', 3);
send_read(20, 0);
form('t', 'auto', 20);
sql('SELECT swarm.agent_message(' . id(1) . ', ' . id(2) . q{, 'request-help', '{}')});
sql('SELECT count(*) FROM swarm.agent_inbox(' . id(2) . ')');
sql(q{SELECT swarm._clock_advance('2 hours')});
poll_ok($node, q{SELECT count(*) FROM swarm.agent_activity WHERE event = 'escalate'}, 'nobody has helped', '1');
is(sql(q{SELECT sum(failures) FROM swarm._topology_member}), '1', '... which is a failure');

$node->stop;
done_testing();
