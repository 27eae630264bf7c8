# LlmTest: a fake server of language models (test/tools/fake_llm) and what the tests of
# module llm have in common.

package LlmTest;

use strict;
use warnings;

use Exporter 'import';
use File::Basename;
use HTTP::Tiny;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

our @EXPORT = qw(llm_start llm_stop llama_start llm_servers llm_rules llm_log llm_clear llm_bodies llm_go wait_log ask ask_wait answer);

# llm_start(ENVIRONMENT): {dir, pid, port, url}
sub llm_start
{
	my (%env) = @_;

	return server_start([ $^X, dirname(__FILE__) . '/../tools/fake_llm', 'FOLDER' ], %env);
}

sub llm_stop { my ($s) = @_; return server_stop($s); }

# llama_start(): a real server, llama.cpp's, or undef where there is none
sub llama_start
{
	my $tool = dirname(__FILE__) . '/../tools/llama';
	my $s;

	return undef if system("$tool found") != 0;
	$s = server_start([ $tool, 'run', 'FOLDER', 'PORT' ]);
	until_true(sub { HTTP::Tiny->new->get("$s->{url}/health")->{status} == 200 }) or die 'llama-server did not start: ' . slurp_file("$s->{dir}/errors");
	return $s;
}

# llm_servers(NODE, SERVER): foreign servers a and o for it, and models m (dialect
# anthropic) and g (dialect openai), 1 and 2 USD for a million tokens
sub llm_servers
{
	my ($node, $s) = @_;

	$node->safe_psql('postgres', <<"X");
CREATE SERVER a FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint '$s->{url}', dialect 'anthropic', stall_timeout '1h');
CREATE SERVER o FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint '$s->{url}', dialect 'openai', stall_timeout '1h');
CREATE USER MAPPING FOR PUBLIC SERVER a OPTIONS (api_key 'sk-test');
CREATE USER MAPPING FOR PUBLIC SERVER o OPTIONS (api_key 'sk-test');
INSERT INTO swarm.models (name, server, max_output, price_input, price_output) VALUES
    ('m', 'a', 1000, 1, 2), ('g', 'o', 1000, 1, 2);
X
	return;
}

# llm_rules(SERVER, {...}, ...): how it misbehaves from now on
sub llm_rules
{
	my ($s, @rules) = @_;

	open(my $h, '>', "$s->{dir}/rules.new") or die;
	print $h map { encode_json($_) . "\n" } @rules;
	close $h;
	rename "$s->{dir}/rules.new", "$s->{dir}/rules";
	return;
}

sub llm_log { my ($s) = @_; return -e "$s->{dir}/log" ? split /\n/, slurp_file("$s->{dir}/log") : (); }
sub llm_clear { my ($s) = @_; unlink map { "$s->{dir}/$_" } qw(log rules go bodies); return; }
sub llm_bodies { my ($s) = @_; return map { decode_json($_) } split /\n/, slurp_file("$s->{dir}/bodies"); }
sub llm_go { my ($s) = @_; append_to_file("$s->{dir}/go", ''); return; }

# wait_log(SERVER, REGEXP): until it has had such a request
sub wait_log
{
	my ($s, $regexp) = @_;

	return until_true(sub { grep { /$regexp/ } llm_log($s) });
}

# ask(NODE, ARGUMENTS): arguments of llm_ask as SQL; the conversation's id
sub ask
{
	my ($node, $arguments, %p) = @_;

	return $node->safe_psql('postgres', "SELECT swarm.llm_ask($arguments)", %p);
}

# answer(NODE, ID): what llm_wait says, decoded
sub answer
{
	my ($node, $id) = @_;

	return decode_json($node->safe_psql('postgres', "SELECT swarm.llm_wait($id, '$PostgreSQL::Test::Utils::timeout_default s')"));
}

sub ask_wait { my ($node, $arguments) = @_; return answer($node, ask($node, $arguments)); }

1;
