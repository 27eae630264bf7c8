# The part of the demo that docs/demo/run leaves out unless a server of language models is
# given: its files, with a server by script and a few pages.
use strict;
use warnings;

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use LlmTest;

my $demo = dirname(__FILE__) . '/../../docs/demo';
my $node = swarm_cluster('main');
my $llm = llm_start();

# sql(ROLE, FILE): output and errors
sub file
{
	my ($role, $name) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', undef, on_error_stop => 1, extra_params => [ '-f', "$demo/$name" ], connstr => $node->connstr('postgres') . " user=$role");

	return ($rc, $out, $err);
}

sub runs { my ($role, $name) = @_; my ($rc, $out, $err) = file($role, $name); is("$rc $err", '0 ', "$name runs as $role"); return $out; }

$node->safe_psql('postgres', 'CREATE ROLE demo LOGIN; CREATE SCHEMA demo AUTHORIZATION demo');
runs('demo', 'demo.sql');
$node->safe_psql('postgres', <<'X', connstr => $node->connstr('postgres') . ' user=demo');
INSERT INTO demo.page VALUES (1, 'vacuum.md', 'md', '# Vacuum', 'Vacuum'), (2, 'copy.md', 'md', '# Copy', 'Copy');
INSERT INTO demo.section SELECT page, 1, heading, body, demo.embed(heading || '. ' || body)
FROM (VALUES (1, 'Dead rows', 'VACUUM removes dead rows that no transaction can see.'), (2, 'CSV', 'COPY reads a CSV file into a table.')) s(page, heading, body);
X
runs('demo', 'answer.sql');
my $key = 'sk-test';
local $ENV{DEMO_LLM} = $llm->{url};
local $ENV{DEMO_LLM_DIALECT} = 'openai';
local $ENV{DEMO_LLM_MODEL} = 'fake';
local $ENV{DEMO_LLM_KEY} = $key;
local $ENV{DEMO_LLM_PRICE_INPUT} = '1';
local $ENV{DEMO_LLM_PRICE_OUTPUT} = '2';
runs('postgres', 'model.sql');
$node->safe_psql('postgres', q{INSERT INTO demo.question (body) VALUES ('why are dead rows not removed'), ('how do I copy a CSV file')},
	connstr => $node->connstr('postgres') . ' user=demo');
my $out = runs('demo', 'ask.sql');
like($out, qr/^  why are dead rows not removed\n        You said: Sections of the documents: \[1\] Vacuum > Dead rows VACUUM removes.* Question: why are dead rows not removed\n/, 'an answer is from the nearest section')
  or diag $out;
like($out, qr/\n  how do I copy a CSV file\n        You said: Sections of the documents: \[1\] Copy > CSV COPY reads.* Question: how do I copy a CSV file\n/, '... each');
like($out, qr/\n  2 answers, \d+ tokens read and \d+ written: 0\.\d+ USD$/, '... with what they have cost');
is($node->safe_psql('postgres', "SELECT format('  %s answers, %s tokens read and %s written: %s USD', count(*), sum(tokens_in), sum(tokens_out), trim_scale(sum(cost))) FROM swarm.costs"),
	($out =~ /(.*)\z/)[0], '... which is all that was booked');
unlike(slurp_file($node->logfile), qr/\Q$key\E/, 'the key is not in the log');

# A model that does not answer is an error
llm_rules($llm, { match => 'copy', status => 400, type => 'invalid_request_error' });
$node->safe_psql('postgres', q{SELECT swarm.agent_kill(id) FROM swarm.agents WHERE name = 'answer'}, connstr => $node->connstr('postgres') . ' user=demo');
my ($rc, $text, $err) = file('demo', 'ask.sql');
isnt($rc, 0, 'a refused question is an error');
like($text, qr/by script \(invalid_request_error/, '... which says why');
$node->stop;
done_testing();
