# Queries of kind llm: the object that controls them and the conversation behind
# it, from SQL to a server of models.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use LlmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.net_backoff = '10ms'\npg_swarm.net_backoff_max = '50ms'\n");
my $llm = llm_start();
my $seconds = $PostgreSQL::Test::Utils::timeout_default;

llm_servers($node, $llm);

sub start
{
	my ($text, $arguments) = @_;

	$arguments ||= '';
	return $node->safe_psql('postgres', "SELECT swarm.query_start('llm', '$text', 'm'$arguments)");
}

sub ends
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT swarm.query_wait($id, '$seconds s')");
}

# to its end
my $id = start('hello');
is(ends($id), 'complete', 'a conversation');
like($node->safe_psql('postgres', "SELECT swarm.query_result($id)"), qr/You said: hello/, '... its result');
is($node->safe_psql('postgres', "SELECT kind, state, turns, tokens_out > 0, cost > 0 FROM swarm._query WHERE id = $id"), 'llm|complete|1|t|t', '... what it cost');

# what no conversation can be made of fails at once, and not attempt by attempt
for ([ 'hello', q(metadata => '{"budget_tokens": "abc"}'), '22P02' ], [ 'hello', q(metadata => '{"tools": ["none"]}'), '42704' ],
	[ 'hello', q(metadata => '{"max_tokens": -5}'), '22023' ], [ '[1, 2]', 'budget => NULL', '22023' ])
{
	my ($text, $arguments, $sqlstate) = @$_;

	$id = start($text, ", $arguments");
	is(ends($id), 'error', "$text, $arguments");
	is($node->safe_psql('postgres', "SELECT sqlstate, error <> '', turns FROM swarm.queries WHERE id = $id"), "$sqlstate|t|1", '... and why');
	poll_ok($node, "SELECT j.state, j.attempts FROM swarm.queries q JOIN swarm.jobs j ON j.id = q.job WHERE q.id = $id", '... its job is not tried again', 'completed|1');
}

# of an agent
$node->safe_psql('postgres', q{SELECT swarm.agent_type_create('{"name": "asker", "capabilities": ["ask"], "model": "m", "prompt": "be short"}')});
is($node->safe_psql('postgres', q{SELECT status FROM swarm.agent_spawn('[{"type": "asker", "name": "one"}]')}), 'spawned', 'an agent with a model');
my $task = $node->safe_psql('postgres', q{SELECT swarm.task_submit('{"capabilities": ["ask"], "task": {"text": "what is it?"}}')});
$id = $node->safe_psql('postgres', "SELECT result->>'query' FROM swarm.task_wait($task, '$seconds s')");
is(ends($id), 'complete', '... asks it');
my $body = (llm_bodies($llm))[-1]->{body};
is("$body->{system} $body->{messages}[0]{content}[0]{text}", 'be short what is it?', '... what the task says');
is($node->safe_psql('postgres', "SELECT c.task = $task AND c.agent IS NOT NULL FROM swarm.llm_conversations c WHERE c.query = $id"), 't', '... for the agent and its task');

# in the middle of a turn: hung up at once, asked again, or stopped
for my $mode ('pause', 'terminate')
{
	llm_clear($llm);
	llm_rules($llm, { match => 'slow', hang => 1 });
	$id = start("slow $mode");
	ok(wait_log($llm, 'HANG'), "$mode: a turn is under way");
	if ($mode eq 'terminate')
	{
		$node->safe_psql('postgres', "SELECT swarm.query_terminate($id)");
		is(ends($id), 'terminated', '... and given up');
		next;
	}
	$node->safe_psql('postgres', "SELECT swarm.query_pause($id, 'now')");
	poll_ok($node, "SELECT state FROM swarm._query WHERE id = $id", '... the query is paused', 'paused');
	is($node->safe_psql('postgres', "SELECT count(*) FROM swarm.workers WHERE kind = 'llm'"), '0', '... without a runner');
	llm_clear($llm);
	$node->safe_psql('postgres', "SELECT swarm.query_resume($id)");
	is(ends($id), 'complete', '... and goes on');
	like($node->safe_psql('postgres', "SELECT swarm.query_result($id)"), qr/You said: slow pause/, '... where it was');
}
jobs_end($node, 'no job is left');

llm_stop($llm);
$node->stop;
done_testing();
