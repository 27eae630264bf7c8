# Conversations with a server of models that misbehaves by script, in both
# dialects: every failure costs what it must cost and no more, text is there
# while it streams, and the key is nowhere.
use strict;
use warnings;

use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use LlmTest;

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
pg_swarm.net_breaker_failures = 1000
log_statement = all
log_min_messages = debug5
X
my $llm = llm_start();

llm_servers($node, $llm);

# A conversation that nobody works on: who waits neither spins nor waits for ever
$node->safe_psql('postgres', "SELECT swarm.queue_pause('default')");
my $left = ask($node, "'m', 'hello'");
sql_fails($node, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT swarm.llm_wait($left)", qr/55000: cannot wait for a conversation/, 'waiting in a transaction that sees no news');
is(decode_json($node->safe_psql('postgres', "SELECT swarm.llm_wait($left, '0')"))->{state}, 'waiting', 'a look at a conversation');
$node->safe_psql('postgres', "SELECT swarm.job_cancel(job) FROM swarm._llm_conversation WHERE id = $left");
my $gone = decode_json($node->safe_psql('postgres', "SELECT swarm.llm_wait($left, NULL)"));
is("$gone->{state} $gone->{error}", 'failed its job has ended without it', 'the end of a conversation whose job was cancelled');
$node->safe_psql('postgres', "SELECT swarm.queue_resume('default'), swarm.llm_resume($left)");
is(answer($node, $left)->{state}, 'complete', '... it can be resumed');

# As it should be
foreach my $model ('m', 'g')
{
	my $r = ask_wait($node, "'$model', 'hello, é€'");

	is("$r->{state} $r->{text} $r->{stop_reason} $r->{turns}", "complete You said: hello, \xe9\x{20ac} end_turn 1", "$model: an answer") or diag explain $r;
	cmp_ok($r->{tokens_out}, '>', 3, '... with what it cost');
	cmp_ok($r->{cost}, '>', 0, '... in USD');
	$node->safe_psql('postgres', "SELECT swarm.llm_say($r->{id}, 'and again')");
	$r = answer($node, $r->{id});
	is("$r->{state} $r->{text} $r->{turns}", 'complete You said: and again 2', '... goes on');
	my ($body) = (llm_bodies($llm))[-1];
	is(join(' ', map { $_->{role} } @{ $body->{body}{messages} }), 'user assistant user', '... the model gets all of it');
	$r = ask_wait($node, "'$model', 'hello', system => 'be short', options => '{\"max_tokens\": 7, \"params\": {\"temperature\": 0.5}}'");
	$body = (llm_bodies($llm))[-1]->{body};
	is($body->{max_tokens} . ' ' . $body->{temperature} . ' ' . ($body->{system} // $body->{messages}[0]{content}), '7 0.5 be short', '... system and parameters');
	llm_rules($llm, { match => 'hello', plain => 1 });
	$r = ask_wait($node, "'$model', 'hello'");
	is("$r->{state} $r->{text} $r->{tokens_out}", 'complete You said: hello 4', '... a server that does not stream');
	llm_rules($llm, { match => 'hello', no_usage => 1 });
	$r = ask_wait($node, "'$model', 'hello'");
	is($node->safe_psql('postgres', "SELECT estimated, tokens_out FROM swarm.costs WHERE conversation = $r->{id}"), 't|4', '... one that tells no usage: estimated');

	# Failures, each: rule, state, attempts
	foreach my $t (
		[ 'two times 529', { status => 529, type => 'overloaded_error', times => 2 }, 'complete', 3 ],
		[ '429 with Retry-After', { status => 429, type => 'rate_limit_error', retry_after => 1, times => 1 }, 'complete', 2 ],
		[ 'a status 500', { status => 500, times => 1 }, 'complete', 2 ],
		[ 'a cut stream', { cut => 300, times => 1 }, 'complete', 2 ],
		[ 'a stream that stalls', { stall => 200, times => 1 }, 'complete', 2 ],
		[ 'a stream that ends before the answer', { end => 1, times => 1 }, 'complete', 2 ],
		[ 'an overload inside the stream', { event_error => 'overloaded_error', times => 1 }, 'complete', 2 ],
		[ 'an event that is not JSON', { bad => 1, times => 1 }, 'complete', 2 ],
		[ 'no stream at all', { raw => '<html>no</html>', times => 1 }, 'complete', 2 ],
		[ 'no answer', { hang => 1, times => 1 }, 'complete', 2 ],
		[ 'a refusal inside the stream', { event_error => 'invalid_request_error' }, 'failed', 1 ],
		[ 'a refusal', { status => 400, type => 'invalid_request_error' }, 'failed', 1 ],
		[ 'an account that is used up', { status => 429, type => 'insufficient_quota' }, 'failed', 1 ],
		[ 'always 529', { status => 529, type => 'overloaded_error' }, 'failed', 5 ])
	{
		my ($name, $rule, $state, $attempts) = @$t;

		llm_clear($llm);
		llm_rules($llm, { match => 'hello', %$rule });
		# only where it is meant to happen: a busy machine is slow too
		my $waits = $rule->{stall} || $rule->{hang};
		$node->safe_psql('postgres', "ALTER SERVER $_ OPTIONS (SET stall_timeout '" . ($waits ? '1s' : '1h') . "')") foreach 'a', 'o';
		$r = ask_wait($node, "'$model', 'hello'");
		$attempts = '[2-5]' if $waits;
		like( "$r->{state} " . $node->safe_psql('postgres', "SELECT attempts FROM swarm.llm_messages WHERE conversation = $r->{id} AND role = 'assistant' ORDER BY no DESC LIMIT 1"),
			qr/^$state $attempts$/, "$model, $name: state and attempts") or diag explain $r;
		# what was refused costs nothing; each attempt that the server has begun to answer, or that nobody knows of, is booked
		my $booked = $rule->{status} ? $state eq 'complete' ? 't|1|0' : 'f|0|0' : 't|attempts|lost';
		is( $node->safe_psql('postgres', "SELECT count(c) > 0, count(c), count(*) FILTER (WHERE m.state = 'partial' AND m.estimated AND m.tokens_in > 0)
FROM swarm.llm_messages m LEFT JOIN (SELECT row_number() OVER (ORDER BY id) AS n, tokens_in, tokens_out, cost, estimated FROM swarm.costs WHERE conversation = $r->{id}) c
    ON c.n = m.no - 1 AND (c.tokens_in, c.tokens_out, c.cost, c.estimated) = (m.tokens_in, m.tokens_out, m.cost, m.estimated) WHERE m.conversation = $r->{id} AND m.role = 'assistant'") ,
			$booked =~ s/attempts/$node->safe_psql('postgres', "SELECT max(attempts) FROM swarm.llm_messages WHERE conversation = $r->{id}")/er =~ s/lost/$node->safe_psql('postgres', "SELECT count(*) FROM swarm.llm_messages WHERE conversation = $r->{id} AND state = 'partial'")/er,
			'... each attempt that may have cost something is booked once');
		is($node->safe_psql('postgres', "SELECT c.tokens_in = sum(m.tokens_in) AND c.tokens_out = sum(m.tokens_out) AND c.cost = sum(m.cost) FROM swarm.llm_conversations c JOIN swarm.llm_messages m ON m.conversation = c.id
WHERE c.id = $r->{id} AND m.role = 'assistant' GROUP BY c.id, c.tokens_in, c.tokens_out, c.cost"), 't', '... and part of what the conversation costs');
		is($r->{text}, 'You said: hello', '... no piece twice') if $state eq 'complete';
		is($r->{cost}, 0, '... a refused request costs nothing') if $rule->{status} && $state eq 'failed';
		like($r->{error}, qr/server "[ao]" failed: by script \($rule->{type}, status $rule->{status}, $attempts attempts\)/, '... and why') if $rule->{status} && $state eq 'failed';
	}
	llm_clear($llm);
}
my $r = ask_wait($node, "'m', 'hello'");
$node->safe_psql('postgres', "INSERT INTO swarm.models (name, server) VALUES ('lost', 'nowhere'), ('none', NULL)");
$r = ask_wait($node, "'lost', 'hello'");
is("$r->{state} $r->{sqlstate} $r->{error}", 'failed 42704 server "nowhere" does not exist', 'a server that does not exist');
$r = ask_wait($node, "'none', 'hello'");
is("$r->{state} $r->{sqlstate}", 'failed 55000', 'a model without a server');

$node->safe_psql('postgres', "CREATE SERVER gone FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'http://127.0.0.1:1'); INSERT INTO swarm.models (name, server, price_input, price_output) VALUES ('gone', 'gone', 1, 1)");
$r = ask_wait($node, "'gone', 'hello'");
is("$r->{state} $r->{sqlstate} $r->{tokens_in} " . $node->safe_psql('postgres', "SELECT count(*) FROM swarm.costs WHERE conversation = $r->{id}"), 'failed 08006 0 0', 'what could not be sent costs nothing');

# Embeddings and counts
$r = answer($node, $node->safe_psql('postgres', "SELECT swarm.llm_embed('g', '{a,bcd}')"));
is($node->safe_psql('postgres', "SELECT string_agg(embedding::text, ' ' ORDER BY no) FROM swarm.llm_embeddings($r->{id})"),
	'{1,0.5,-0.00125} {3,0.5,-0.00125}', 'embeddings');
$r = answer($node, $node->safe_psql('postgres', "SELECT swarm.llm_count_tokens('m', '\"how many\"')"));
cmp_ok($r->{result}{input_tokens}, '>', 5, 'a count of tokens');
$r = answer($node, $node->safe_psql('postgres', "SELECT swarm.llm_embed('m', '{a}')"));
is("$r->{state} $r->{sqlstate}", 'failed 0A000', 'no embeddings in the dialect of the Messages API');

# Text is there while it streams; no transaction is open meanwhile
foreach my $model ('m', 'g')
{
	llm_clear($llm);
	llm_rules($llm, { match => 'long', wait => 600, times => 1 });
	my $id = ask($node, "'$model', 'long 50'");
	ok(wait_log($llm, 'WAIT'), "$model: the server waits in the middle of an answer");
	poll_ok($node, "SELECT text LIKE 'word1%' AND state = 'streaming' AND first_text_at IS NOT NULL FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'",
		'... what has come can be read');
	poll_ok($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner' AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)",
		'... no transaction is open', '0');
	llm_go($llm);
	$r = answer($node, $id);
	like($r->{text}, qr/^word1 .* word50$/, '... the rest comes');
}

# Cancelled while it streams: the connection is closed, what came is kept and booked
llm_clear($llm);
llm_rules($llm, { match => 'long', stall => 600 });
my $id = ask($node, "'m', 'long 50'");
poll_ok($node, "SELECT text <> '' FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'", 'an answer has begun');
is($node->safe_psql('postgres', "SELECT swarm.llm_cancel($id)"), 't', '... is cancelled');
ok(wait_log($llm, 'CLOSED'), '... the server sees it');
jobs_end($node, '... the job ends');
is($node->safe_psql('postgres', "SELECT state, text LIKE 'word1%', estimated, tokens_out > 0 FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'"),
	'partial|t|t|t', '... what has come is kept, and marked');
is($node->safe_psql('postgres', "SELECT state FROM swarm.llm_conversations WHERE id = $id"), 'cancelled', '... and the conversation is cancelled');
is($node->safe_psql('postgres', "SELECT swarm.llm_cancel($id)"), 'f', '... once');
llm_clear($llm);
$node->safe_psql('postgres', "SELECT swarm.llm_say($id, 'hello')");
$r = answer($node, $id);
is("$r->{state} $r->{text}", 'complete You said: hello', '... it can go on');

# A crash, and a stop, in the middle of a turn: it is asked again
foreach my $how ('kill', 'stop')
{
	llm_clear($llm);
	llm_rules($llm, { match => 'long', stall => 600, times => 1 });
	my $id = ask($node, "'m', 'long 50'");
	poll_ok($node, "SELECT text <> '' FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'", "$how in the middle of an answer");
	if ($how eq 'kill')
	{
		my $n = crash_is_over($node);
		my $pid = $node->safe_psql('postgres', "SELECT w.pid FROM swarm.workers w JOIN swarm.llm_conversations c ON c.job = w.job WHERE c.id = $id");
		kill 'KILL', $pid;
		ok(crash_is_over($node, $n), '... the server starts again');
	}
	else
	{
		$node->restart;
	}
	$r = answer($node, $id);
	like("$r->{state} $r->{turns} $r->{text}", qr/^complete 1 word1 .* word50$/, '... the turn is asked again');
	is($node->safe_psql('postgres', "SELECT string_agg(state, ' ' ORDER BY no) FROM swarm.llm_messages WHERE conversation = $id"), 'done partial done', '... the piece is marked');
}

# The key, and a wrong one: nowhere but in user mappings
$node->safe_psql('postgres', q{ALTER USER MAPPING FOR PUBLIC SERVER a OPTIONS (SET api_key 'sk-WRONGKEY')});
llm_clear($llm);
$r = ask_wait($node, "'m', 'hello'");
like($r->{error}, qr/wrong key \*+ \(authentication_error, status 401, 1 attempts/, 'a wrong key, which the server repeats');
unlike(join("\n", map { $node->safe_psql('postgres', "SELECT string_agg(t::text, E'\\n') FROM $_ t") }
		qw(swarm.llm_conversations swarm.llm_messages swarm.llm_calls swarm.costs swarm.jobs swarm.workers pg_stat_activity swarm.models pg_foreign_server)),
	qr/sk-(test|WRONG)/, 'no key in any view');
my $log = slurp_file($node->logfile);
$log =~ s/^.*(CREATE|ALTER) USER MAPPING.*$//mg;
unlike($log, qr/sk-(test|WRONG)/, 'no key in the log, with all statements and debug5');
my $error = sql_error($node, q{CREATE USER MAPPING FOR postgres SERVER a OPTIONS (api_key 'sk-with blank')});
like($error, qr/22023/, 'a key that cannot be one is refused');
unlike($error =~ s/^LINE.*//mrg, qr/sk-with/, '... without showing it');

$node->stop;
done_testing();
