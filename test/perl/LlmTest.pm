# LlmTest: a fake server of language models (test/tools/fake_llm) and what the tests of
# module llm have in common.

package LlmTest;

use strict;
use warnings;

use Exporter 'import';
use File::Basename;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

our @EXPORT = qw(llm_start llm_stop llm_servers llm_rules llm_log llm_clear llm_bodies llm_go wait_log ask ask_wait answer);

my %running;

# llm_start(ENVIRONMENT): {dir, pid, port, url}
sub llm_start
{
	my (%env) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $script = dirname(__FILE__) . '/../tools/fake_llm';
	my $s = { dir => $dir };

	$s->{pid} = fork // die "fork: $!";
	if (!$s->{pid})
	{
		$ENV{$_} = $env{$_} foreach keys %env;
		setpgrp;
		open(STDOUT, '>', '/dev/null');
		open(STDERR, '>', "$dir/errors");
		exec $^X, $script, $dir;
		die "exec: $!";
	}
	$running{ $s->{pid} } = 1;
	until_true(sub { -e "$dir/port" }) or die 'the server of models did not start';
	$s->{port} = slurp_file("$dir/port");
	$s->{url} = "http://127.0.0.1:$s->{port}";
	return $s;
}

sub llm_stop
{
	my ($s) = @_;

	kill 'KILL', -$s->{pid};
	waitpid $s->{pid}, 0;
	delete $running{ $s->{pid} };
	return;
}

END
{
	my $rc = $?;
	kill 'KILL', -$_ foreach keys %running;
	$? = $rc;
}

# until_true(CODE): polls, with the usual time-out
sub until_true
{
	my ($code) = @_;

	for (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $code->();
		select undef, undef, undef, 0.01;
	}
	return 0;
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
