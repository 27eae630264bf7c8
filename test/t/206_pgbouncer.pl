# The whole API through pgbouncer in transaction mode: no call relies on the
# session of another.
use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
plan skip_all => 'pgbouncer is not installed' unless $pgbouncer;

my $node = swarm_cluster('main');
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = $node->safe_psql('postgres', 'SELECT current_user');

append_to_file("$dir/users", qq{"$user" ""\n});
append_to_file("$dir/ini", <<"X");
[databases]
* = host=${\ $node->host } port=${\ $node->port }
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = trust
auth_file = $dir/users
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
ignore_startup_parameters = extra_float_digits
logfile = $dir/log
X
my ($out, $err) = ('', '');
my $pool = IPC::Run::start([ $pgbouncer, "$dir/ini" ], '<', \undef, '>', \$out, '2>', \$err);
END { $pool->kill_kill if $pool }

# every statement on its own line is its own transaction, on whichever server
# session is next
sub pooled
{
	my ($sql) = @_;
	my ($o, $e) = ('', '');

	IPC::Run::run([ $node->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', "host=$dir port=$port dbname=postgres user=$user" ],
		'<', \$sql, '>', \$o, '2>', \$e);
	chomp $o;
	return $o . $e;
}
my $up = 0;
for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	# psql may be gone before it has read its input
	last if $up = (eval { pooled('SELECT 1') } // '') eq '1';
	select undef, undef, undef, 0.1;
}
ok($up, 'pgbouncer answers') or diag $err, -e "$dir/log" ? slurp_file("$dir/log") : '';
# keep the server sessions busy in turn, so that transactions change sessions
my @others = map { start_psql_pooled() } 1 .. 2;
is(pooled('SELECT pg_backend_pid() AS a \gset' . "\nBEGIN;\nSELECT pg_backend_pid() > 0;\nCOMMIT"), 't', 'transactions go through');

is(pooled(<<'X'), "\n" . 'completed|{"answer": 42}', 'handler_register(), job_enqueue(), job_wait(), job_progress()');
CREATE FUNCTION work(j swarm.job) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM swarm.job_progress(0.5, 'half');
    IF j.args ? 'error' THEN RAISE EXCEPTION 'as told'; END IF;
    PERFORM pg_sleep(coalesce((j.args->>'sleep')::float8, 0));
    RETURN '{"answer": 42}';
END $$;
SELECT swarm.handler_register('work', 'public.work');
SELECT swarm.job_enqueue('work') AS id \gset
SELECT state, result FROM swarm.job_wait(:id);
X
is(pooled(<<'X'), "t\ncancelled|enough", 'job_cancel()');
SELECT swarm.job_enqueue('work', '{"sleep": 600}') AS id \gset
SELECT swarm.job_cancel(:id, 'enough');
SELECT state, error FROM swarm.job_wait(:id);
X
is(pooled(<<'X'), "dead\n\ndead", 'job_retry()');
SELECT swarm.job_enqueue('work', '{"error": true}', max_attempts => 1) AS id \gset
SELECT state FROM swarm.job_wait(:id);
SELECT swarm.job_retry(:id);
SELECT state FROM swarm.job_wait(:id);
X
is(pooled(<<'X'), "\n\n\nready\n\ncompleted\n", 'queue_create(), queue_pause(), queue_resume(), queue_drop()');
SELECT swarm.queue_create('side');
SELECT swarm.queue_create('side', max_running => 1);
SELECT swarm.queue_pause('side');
SELECT swarm.job_enqueue('work', queue => 'side') AS id \gset
SELECT state FROM swarm.job_wait(:id, '1 ms');
SELECT swarm.queue_resume('side');
SELECT state FROM swarm.job_wait(:id);
SELECT swarm.queue_drop('side');
X
is(pooled(<<'X'), "3\ncompleted,completed,completed", 'job_enqueue_many(), depends_on');
SELECT count(*) FROM swarm.job_enqueue_many('[{"kind": "work"}, {"kind": "work", "priority": "critical"}, {"kind": "work"}]');
SELECT swarm.job_enqueue('work', depends_on => array_agg(id)) AS child FROM (SELECT id FROM swarm.jobs ORDER BY id DESC LIMIT 3) s \gset
SELECT swarm.job_wait(:child) IS NULL AS x \gset
SELECT string_agg(state::text, ',') FROM swarm.jobs WHERE id BETWEEN :child - 3 AND :child - 1;
X
is(pooled(<<'X'), "1\n\n\ncompleted|\"done\"\n1\n\ndead|no", 'job_claim(), job_heartbeat(), job_complete(), job_fail()');
SELECT swarm.handler_register('outside', NULL) IS NULL AS x \gset
SELECT swarm.job_enqueue('outside', '{"n": 1}') AS id \gset
SELECT id, token, args->>'n' AS n FROM swarm.job_claim('default') \gset
SELECT :n;
SELECT swarm.job_heartbeat(:id, :token, '1 min', 0.5);
SELECT swarm.job_complete(:id, :token, '"done"');
SELECT state, result FROM swarm.job_wait(:id);
SELECT swarm.job_enqueue('outside') AS id \gset
SELECT count(*), max(id) AS id, max(token) AS token FROM swarm.job_claim('default', 5) \gset
SELECT :count;
SELECT swarm.job_fail(:id, :token, 'no', false);
SELECT state, error FROM swarm.job_wait(:id);
X
is(pooled('SELECT swarm.handler_drop(\'outside\')'), '', 'handler_drop()');
is(pooled('SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health()');
is( pooled('SELECT count(*) > 0 FROM swarm.workers; SELECT count(*) FROM swarm.queues; SELECT count(*) > 0 FROM swarm.job_history; SELECT count(*) FROM swarm.jobs WHERE finished_at IS NULL'),
	"t\n1\nt\n0", 'views');

# Rolled back: nothing happened, and the session is fit for the next client.
is(pooled(<<'X'), "0", 'ROLLBACK');
BEGIN;
SELECT swarm.job_enqueue('work') AS id \gset
SAVEPOINT s;
SELECT swarm.job_enqueue('work') AS id \gset
ROLLBACK TO s;
ROLLBACK;
SELECT count(*) FROM swarm.jobs WHERE finished_at IS NULL;
X

# Many clients over few sessions.
my @clients = map {
	my ($sql, %h) = ("SELECT swarm.job_enqueue('work') AS id \\gset\nSELECT state FROM swarm.job_wait(:id);\n" x 10, out => '');
	$h{run} = IPC::Run::start([ $node->installed_command('psql'), '-XAtq', '-d', "host=$dir port=$port dbname=postgres user=$user" ],
		'<', \$sql, '>', \$h{out}, '2>', \$h{err});
	\%h
} 1 .. 6;
$_->{run}->finish for @clients;
is(join('', map { $_->{out} } @clients), "completed\n" x 60, 'six clients on three sessions, ten jobs each');

finish_psql($_) for @others;
$pool->signal('TERM');
$pool->finish;
undef $pool;
$node->stop;
done_testing();

# a client that opens short transactions for as long as the test lasts
sub start_psql_pooled
{
	my $sql = "SELECT pg_sleep(0.01);\n" x 150;
	my %h = (out => '', err => '');

	$h{run} = IPC::Run::start([ $node->installed_command('psql'), '-XAtq', '-d', "host=$dir port=$port dbname=postgres user=$user" ],
		'<', \$sql, '>', \$h{out}, '2>', \$h{err});
	return \%h;
}
