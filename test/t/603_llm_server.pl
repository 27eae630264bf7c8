# A real server of models, in both dialects, llama.cpp's llama-server with a tiny
# random model, say: the one that PG_SWARM_LLM_URL
# and PG_SWARM_LLM_KEY name (its model: PG_SWARM_LLM_MODEL).  What it says does not
# matter.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use LlmTest;

my $url = $ENV{PG_SWARM_LLM_URL};
my $key = $ENV{PG_SWARM_LLM_KEY} || 'none';
my $remote = $ENV{PG_SWARM_LLM_MODEL} || 'claude-3-5-sonnet-20241022';

plan skip_all => 'PG_SWARM_LLM_URL names no server of models (llama-server -m MODEL.gguf, say)' unless $url;

my $node = swarm_cluster('main');
$node->safe_psql('postgres', <<"X");
CREATE SERVER a FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint '$url', dialect 'anthropic');
CREATE SERVER o FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint '$url', dialect 'openai');
CREATE USER MAPPING FOR PUBLIC SERVER a OPTIONS (api_key '$key');
CREATE USER MAPPING FOR PUBLIC SERVER o OPTIONS (api_key '$key');
INSERT INTO swarm.models (name, server, remote_name, price_input, price_output) VALUES
    ('m', 'a', '$remote', 1, 2), ('g', 'o', '$remote', 1, 2);
X
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

	my $id = ask($node, "'$model', 'go', options => '{\"max_tokens\": 100000}'");
	poll_ok($node, "SELECT state <> 'streaming' OR text <> '' FROM swarm.llm_messages WHERE conversation = $id AND role = 'assistant'", '... streams');
	$node->safe_psql('postgres', "SELECT swarm.llm_cancel($id)");
	jobs_end($node, '... can be cancelled');
	like($node->safe_psql('postgres', "SELECT state FROM swarm.llm_conversations WHERE id = $id"), qr/^(cancelled|complete)$/, '... and is');
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
