# Retry policies and circuit breakers are rows of one table, for agents (agent_task.sql), and for the servers of uploads
# and of models.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test ();
use LlmTest;

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
X
my $s3 = S3Test::s3_start();
my $llm = llm_start();
my $spare = llm_start();
my $wait = $PostgreSQL::Test::Utils::timeout_default;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub breaker { my ($server) = @_; return sql("SELECT state, failures, threshold, max_attempts FROM swarm.circuit_breakers WHERE target = 'server:$server'"); }

sub upload
{
	my $batch = sql(q{SELECT swarm.s3_upload('store', 'docs', } . S3Test::files_sql(1, q{convert_to('x', 'UTF8')}) . ')');
	my $r = S3Test::result($node, "SELECT swarm.s3_wait($batch, '$wait s')");
	my $f = $r->{files}[0] || $r->{failed}[0];

	return "$r->{status} $f->{attempts}";
}

# Uploads
S3Test::s3_server($node, 'store', $s3->{url});
is(breaker('store'), 'closed|0|10|5', 'a server without a policy has the settings');
S3Test::s3_rules($s3, { match => '^PUT ', status => 500, times => 2 });
is(upload(), '200 3', 'its requests are tried again');
sql(q{SELECT swarm.retry_policy_set('server:store', '{"first_wait": "1 ms", "max_attempts": 2, "threshold": 3, "cooldown": "1 hour"}')});
is(breaker('store'), 'closed|0|3|2', 'a policy');
S3Test::s3_rules($s3, { match => '^PUT ', status => 500 });
is(upload(), '500 2', '... says how often an upload is tried');
is(breaker('store'), 'closed|2|3|2', '... its failures are counted');
is(upload(), '500 2', '... so many');
is(breaker('store'), 'open|3|3|2', '... open the breaker');
S3Test::s3_clear($s3);
is(upload(), '500 2', 'an open breaker fails');
is(scalar(grep { /^PUT / } S3Test::s3_log($s3)), 0, '... without asking the server');
is(sql(q{SELECT open_until - swarm._now() BETWEEN '50 min' AND '1 hour' FROM swarm.circuit_breakers WHERE target = 'server:store'}), 't', '... for as long as the policy says');
sql(q{SELECT swarm._clock_advance('61 min')});
is(upload(), '200 1', 'after the cool-down it is asked');
is(breaker('store'), 'closed|0|3|2', '... and the breaker is closed');

# While the breaker of a server is open, batches go to the fallback.
my $other = S3Test::s3_start();
S3Test::s3_server($node, 'other', $other->{url});
sub server_of { my ($batch) = @_; return sql("SELECT DISTINCT b.server, f.server FROM swarm.s3_batches b JOIN swarm.s3_files f ON f.batch = b.id WHERE b.id = $batch") }
sub last_batch { return sql('SELECT max(id) FROM swarm.s3_batches') }
sub puts { return scalar(grep { /^PUT / } S3Test::s3_log($_[0])) }
sql(q{SELECT swarm.retry_policy_set('server:store', '{"first_wait": "1 ms", "max_attempts": 1, "threshold": 2, "cooldown": "1 hour", "fallback": "other"}')});
S3Test::s3_rules($s3, { match => '^PUT ', status => 500 });
is(upload(), '500 1', 'a server with a fallback is asked as long as its breaker is closed');
my $failed = last_batch();
is(server_of($failed), 'store|store', '... and shown');
is(upload(), '200 2', '... the failure that opens it is the last one: the file goes to the fallback');
is(breaker('store'), 'open|2|2|1', '... its breaker');
is(upload(), '200 1', 'then the fallback takes the files');
is(server_of(last_batch()), 'store|other', '... which is shown');
is(puts($other), 2, '... has them');
is(sql("SELECT swarm.s3_retry($failed)"), '1', 'a batch that has failed is sent again');
is(S3Test::result($node, "SELECT swarm.s3_wait($failed, '$wait s')")->{status}, 200, '... to the fallback');
is(server_of($failed), 'store|other', '... which is shown, too');
sql(q{CREATE ROLE poor; GRANT USAGE ON FOREIGN SERVER store TO poor; GRANT EXECUTE ON FUNCTION swarm.s3_upload(name, text, swarm.s3_file[], jsonb) TO poor});
my $poor = sql(q{SET ROLE poor; SELECT swarm.s3_upload('store', 'docs', } . S3Test::files_sql(1, q{convert_to('x', 'UTF8')}) . ')');
is(S3Test::result($node, "SELECT swarm.s3_wait($poor, '$wait s')")->{failed}[0]{code}, 'CircuitOpen', 'the fallback is for those who may use it');
S3Test::s3_clear($s3);
sql(q{SELECT swarm._clock_advance('3 hours')});
is(upload(), '200 1', 'after the cool-down the server itself is asked');
is(server_of(last_batch()), 'store|store', '... and has the files');
sql(q{SELECT swarm.retry_policy_drop('server:store')});
is(breaker('store'), 'closed|0|10|5', 'without the policy the settings hold again');

# Models: while the breaker of a server is open, the fallback is asked.
llm_servers($node, $llm);
sql("CREATE SERVER spare FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint '$spare->{url}', dialect 'anthropic', stall_timeout '1h');
CREATE USER MAPPING FOR PUBLIC SERVER spare OPTIONS (api_key 'sk-test')");
sql(q{SELECT swarm.retry_policy_set('server:a', '{"first_wait": "1 ms", "max_attempts": 1, "threshold": 1, "cooldown": "1 hour", "fallback": "spare"}')});
llm_rules($llm, { match => '.', status => 500 });
is(ask_wait($node, q{'m', 'hello'})->{state}, 'failed', 'a model that fails');
is(breaker('a'), 'open|1|1|1', '... opens the breaker of its server');
my $r = ask_wait($node, q{'m', 'hello'});
is("$r->{state} $r->{text}", 'complete You said: hello', 'the fallback answers');
is(scalar(llm_log($spare)), 1, '... of another server');
sql('ALTER SERVER spare RENAME TO gone');
like(ask_wait($node, q{'m', 'hello'})->{error}, qr/left alone for a while/, 'a fallback that is not there is none');
sql('ALTER SERVER gone RENAME TO spare');
llm_clear($llm);
sql(q{SELECT swarm._clock_advance('61 min')});
is(ask_wait($node, q{'m', 'hello'})->{state}, 'complete', 'after the cool-down the server itself is asked');
is(breaker('a') . ' ' . scalar(llm_log($spare)), 'closed|0|1|1 1', '... and the breaker is closed');

# What is no policy
foreach my $t (
	[ q{'x', '{}'}, 'no target' ],
	[ q{'server:a', '{"first_wait": "-1 s"}'}, 'a wait must be between 0 and 1 day' ],
	[ q{'server:a', '{"max_attempts": 0}'}, 'max_attempts must be at least 1' ],
	[ q{'server:a', '{"colour": 1}'}, 'colour is unknown' ])
{
	sql_fails($node, "SELECT swarm.retry_policy_set($t->[0])", qr/22023: .*$t->[1]/, "refused: $t->[1]");
}
$node->stop;
done_testing();
