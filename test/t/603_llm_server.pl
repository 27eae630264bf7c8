# A real server of models, llama.cpp's llama-server with a tiny model of noise, in both dialects:
# streams, usage, tools, counts, cancelling; behind a proxy that fails by script.  What it says
# does not matter.
#
# With PG_SWARM_LLM_URL another server, by PG_SWARM_LLM_KEY, with the model PG_SWARM_LLM_MODEL;
# then without the proxy and what needs this model.
use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use LlmTest;

my $url = $ENV{PG_SWARM_LLM_URL};
my $key = $ENV{PG_SWARM_LLM_KEY} || ($url ? 'none' : 'sk-test');
my $remote = $ENV{PG_SWARM_LLM_MODEL} || 'claude-3-5-sonnet-20241022';
my ($real, $proxy);

if (!$url)
{
	$real = llama_start() or plan skip_all => 'no llama-server here; test/tools/provision llm fetches it';
	$proxy = llm_start(FAKE_UPSTREAM => "127.0.0.1:$real->{port}");
	$url = $proxy->{url};
}

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
pg_swarm.net_breaker_failures = 1000
X
$node->safe_psql('postgres', <<"X");
CREATE SERVER a FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint '$url', dialect 'anthropic', stall_timeout '1h');
CREATE SERVER o FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint '$url', dialect 'openai', stall_timeout '1h');
CREATE USER MAPPING FOR PUBLIC SERVER a OPTIONS (api_key '$key');
CREATE USER MAPPING FOR PUBLIC SERVER o OPTIONS (api_key '$key');
INSERT INTO swarm.models (name, server, remote_name, price_input, price_output, params) VALUES
    ('m', 'a', '$remote', 1, 2, '{"temperature": 0}'), ('g', 'o', '$remote', 1, 2, '{"temperature": 0}');
CREATE TABLE lamp (lit boolean);
CREATE FUNCTION switch(lit boolean) RETURNS text LANGUAGE sql AS 'INSERT INTO lamp VALUES (lit) RETURNING ''done''';
SELECT swarm.tool_create('switch', 'switch', 'write', 'Switch the lamp');
X

# idle(): the server works for nobody
sub idle
{
	my $r = HTTP::Tiny->new(default_headers => { Authorization => "Bearer $key" })->get("$real->{url}/slots");

	return $r->{success} && !grep { $_->{is_processing} } @{ decode_json($r->{content}) };
}

foreach my $model ('m', 'g')
{
	my $r = ask_wait($node, "'$model', 'hello', system => 'Be short.', options => '{\"max_tokens\": 20}'");

	is($r->{state}, 'complete', "$model: an answer") or diag explain $r;
	isnt($r->{text}, '', '... with text');
	like($r->{stop_reason}, qr/^(end_turn|max_tokens)$/, '... and why it ended');
	like($node->safe_psql('postgres', "SELECT estimated, tokens_in > 0, tokens_out BETWEEN 1 AND 20, cost > 0 FROM swarm.costs WHERE conversation = $r->{id}"),
		($model eq 'm' ? qr/^[tf]\|t\|t\|t$/ : qr/^f\|t\|t\|t$/), '... with what it cost (llama-server may leave out message_start)');
	$node->safe_psql('postgres', "SELECT swarm.llm_say($r->{id}, 'and now?')");
	$r = answer($node, $r->{id});
	is("$r->{state} $r->{turns}", 'complete 2', '... goes on');

	# Without the proxy the answer may be over before it is cancelled
	my $id;
	if (!$proxy)
	{
		$id = ask($node, "'$model', 'go', options => '{\"max_tokens\": 100000}'");
		poll_ok($node, "SELECT state <> 'streaming' OR text <> '' FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'", '... streams');
		$node->safe_psql('postgres', "SELECT swarm.llm_cancel($id)");
		jobs_end($node, '... can be cancelled');
		like($node->safe_psql('postgres', "SELECT state FROM swarm.llm_conversations WHERE id = $id"), qr/^(cancelled|complete)$/, '... and is');
		next;
	}

	# It streams: the first text is there while the rest is held back
	llm_clear($proxy);
	llm_rules($proxy, { match => 'go', wait => 900, times => 1 });
	$id = ask($node, "'$model', 'go', options => '{\"max_tokens\": 500}'");
	poll_ok($node, "SELECT text <> '' AND state = 'streaming' FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'", '... streams');
	my $begun = $node->safe_psql('postgres', "SELECT length(text) FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'");
	llm_go($proxy);
	$r = answer($node, $id);
	is($r->{state}, 'complete', '... to its end');
	is($node->safe_psql('postgres', "SELECT length(text) >= $begun AND tokens_out > 1 AND NOT estimated FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'"), 't', '... the rest comes');

	# Cancelled: the server stops, what came is kept
	llm_clear($proxy);
	llm_rules($proxy, { match => 'go', stall => 900 });
	$id = ask($node, "'$model', 'go', options => '{\"max_tokens\": 100000}'");
	poll_ok($node, "SELECT text <> '' FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'", '... an answer has begun');
	$node->safe_psql('postgres', "SELECT swarm.llm_cancel($id)");
	ok(wait_log($proxy, 'CLOSED'), '... is cancelled: the connection is closed');
	jobs_end($node, '... the job ends');
	is($node->safe_psql('postgres', "SELECT c.state, m.state, m.text <> '', m.tokens_out > 0 FROM swarm.llm_conversations c JOIN swarm.llm_messages m ON m.conversation = c.id AND m.role = 'assistant' WHERE c.id = $id"),
		'cancelled|partial|t|t', '... and is');
	ok(until_true(\&idle), '... the server works no more');

	# What may come in between
	foreach my $t (
		[ 'two times 529', { status => 529, type => 'overloaded_error', times => 2 }, 'complete', 3 ],
		[ '429 with Retry-After', { status => 429, type => 'rate_limit_error', retry_after => 1, times => 1 }, 'complete', 2 ],
		[ 'always 529', { status => 529, type => 'overloaded_error' }, 'failed', 5 ],
		[ 'a cut stream', { cut => 700, times => 1 }, 'complete', 2 ],
		[ 'a stream that stalls', { stall => 700, times => 1 }, 'complete', 2 ],
		[ 'no answer', { hang => 1, times => 1 }, 'complete', 2 ])
	{
		my ($name, $rule, $state, $attempts) = @$t;
		my $waits = $rule->{stall} || $rule->{hang};

		llm_clear($proxy);
		llm_rules($proxy, { match => 'hello', %$rule });
		$node->safe_psql('postgres', "ALTER SERVER $_ OPTIONS (SET stall_timeout '" . ($waits ? '1s' : '1h') . "')") foreach 'a', 'o';
		$r = ask_wait($node, "'$model', 'hello', options => '{\"max_tokens\": 50}'");
		$attempts = '[2-5]' if $waits;
		like( "$r->{state} " . $node->safe_psql('postgres', "SELECT attempts FROM swarm.llm_messages WHERE conversation = $r->{id} AND role = 'assistant' ORDER BY no DESC LIMIT 1"),
			qr/^$state $attempts$/, "$model, $name: state and attempts") or diag explain $r;
	}
	llm_clear($proxy);
	$node->safe_psql('postgres', "ALTER SERVER $_ OPTIONS (SET stall_timeout '1h')") foreach 'a', 'o';

	# A tool: asked for by the model, allowed, run, and its result told
	$r = ask_wait($node, "'$model', 'light', tools => '{switch}', options => '{\"max_tokens\": 2000, \"max_turns\": 2}'");
	is("$r->{state} $r->{stop_reason}", 'awaiting_approval tool_use', '... a tool call waits for an approval') or diag explain $r;
	is(ref $r->{calls}[0]{input}{lit}, 'JSON::PP::Boolean', '... with its argument');
	$node->safe_psql('postgres', "SELECT swarm.llm_approve($r->{id}, call) FROM swarm.llm_calls WHERE conversation = $r->{id}");
	is(answer($node, $r->{id})->{state}, 'awaiting_approval', '... allowed; the model calls again');
	is($node->safe_psql('postgres', "SELECT bool_and(state = 'done' AND result = 'done') FROM swarm.llm_calls WHERE conversation = $r->{id} AND message = 2"), 't', '... the tool was called');
	is($node->safe_psql('postgres', "SELECT count(*) FROM lamp") , $node->safe_psql('postgres', "SELECT count(*) FROM swarm.llm_calls WHERE state = 'done'"), '... as often as it was asked for');
	is($node->safe_psql('postgres', "SELECT role, state, content->0->>'type' FROM swarm.llm_messages WHERE conversation = $r->{id} AND no IN (3, 4) ORDER BY no"),
		"user|done|tool_result\nassistant|done|tool_use", '... and the model has its result');
	$node->safe_psql('postgres', "SELECT swarm.llm_cancel($r->{id})");
}
my $r = answer($node, $node->safe_psql('postgres', "SELECT swarm.llm_count_tokens('m', '\"how many tokens\"')"));
is($r->{state}, 'complete', 'a count of tokens') or diag explain $r;
cmp_ok($r->{result}{input_tokens} // 0, '>', 0, '... says how many');
if ($key ne 'none')
{
	$node->safe_psql('postgres', q{ALTER USER MAPPING FOR PUBLIC SERVER a OPTIONS (SET api_key 'sk-wrong')});
	$r = ask_wait($node, "'m', 'hello'");
	like("$r->{state} $r->{error}", qr/^failed .*status 401, 1 attempts/, 'a wrong key');
}
$node->stop;
done_testing();
