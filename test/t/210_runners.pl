# The number of runners: the minimum is kept, the extra one for critical jobs leaves
# to others what is theirs.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.min_runners = 3\npg_swarm.max_runners = 4");
my $runners = q{SELECT count(*) FROM swarm.workers WHERE role = 'runner' AND state = 'idle'};

sub settings
{
	my ($min, $max) = @_;

	$node->append_conf('postgresql.conf', "pg_swarm.min_runners = $min\npg_swarm.max_runners = $max");
	$node->reload;
	return;
}

# The minimum.
poll_ok($node, $runners, 'min_runners are there', '3');
for my $i (1, 2)
{
	my $pids = $node->safe_psql('postgres', q{SELECT array_agg(pid) FROM swarm.workers WHERE role = 'runner'});

	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM unnest('$pids'::int[]) pid LIMIT 2");
	poll_ok($node, "$runners AND (SELECT count(*) FROM unnest('$pids'::int[]) p WHERE p IN (SELECT pid FROM swarm.workers)) = 1",
		"idle runners that end are replaced, round $i", '3');
}
settings(4, 4);
poll_ok($node, $runners, 'a higher minimum is met at once', '4');
settings(3, 2);
poll_ok($node, $runners, 'the maximum comes before the minimum', '2');

# A queue of one at a time, with critical jobs and another one.  The only regular runner
# is busy, so an extra one begins; from when the regular one is free, every eighth start
# is not critical.
settings(1, 1);
poll_ok($node, $runners, 'one runner', '1');
$node->safe_psql('postgres', q{
CREATE TABLE ran (n serial, what text);
CREATE TABLE gate (name text);
CREATE FUNCTION work(j swarm.job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WHILE EXISTS (SELECT FROM gate WHERE name = j.args->>'gate') LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
    INSERT INTO ran (what) VALUES (j.args->>'what');
END $$;
SELECT swarm.handler_register('work', 'work'), swarm.queue_create('one', max_running => 1);
SELECT swarm.queue_pause('one');
INSERT INTO gate VALUES ('regular'), ('extra')});
my $regular = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', '{"gate": "regular", "what": "regular"}')});
poll_sql($node, "SELECT state FROM swarm.jobs WHERE id = $regular", 'running');
my $first = $node->safe_psql('postgres', q{
SELECT swarm.job_enqueue('work', '{"gate": "extra", "what": "critical"}', 'one', 'critical') AS first \gset
SELECT count(swarm.job_enqueue('work', '{"what": "critical"}', 'one', 'critical')) AS n FROM generate_series(1, 59) \gset
SELECT swarm.job_enqueue('work', '{"what": "other"}', 'one', 'low') AS n FROM generate_series(1, 2) \g /dev/null
SELECT swarm.queue_resume('one');
SELECT :first});
$first =~ s/\s//g;
poll_ok($node, "SELECT state FROM swarm.jobs WHERE id = $first", 'all are busy: an extra runner starts for a critical job', 'running');
$node->safe_psql('postgres', q{DELETE FROM gate WHERE name = 'regular'});
poll_ok($node, $runners, '... and the regular one is free', '1');
$node->safe_psql('postgres', q{DELETE FROM gate});
jobs_end($node, '... all jobs end');
is($node->safe_psql('postgres', q{SELECT string_agg(n::text, ',' ORDER BY n) FROM
(SELECT row_number() OVER (ORDER BY n) AS n, what FROM ran WHERE what <> 'regular') s WHERE what = 'other'}),
	'8,16', '... every eighth is not critical');

# A database that takes no connections: its runners cannot start, and are not tried
# as fast as they fail.
sub failed_starts
{
	my $n = () = slurp_file($node->logfile) =~ /pg_swarm runner FATAL: .*database "closed" is not currently accepting connections/g;
	return $n;
}

settings(1, 4);
$node->safe_psql('postgres', 'CREATE DATABASE closed');
$node->safe_psql('closed', 'CREATE EXTENSION pg_swarm');
answers($node, 'another database is served', 'closed');
my $inside = start_psql($node, undef, 'closed');
say_psql($inside, 'SELECT 1');
$node->safe_psql('postgres', q{
ALTER DATABASE closed ALLOW_CONNECTIONS false;
SELECT pg_terminate_backend(pid, 60000) FROM swarm.workers WHERE role = 'runner' AND database = 'closed'});
say_psql($inside, q{SELECT count(swarm.job_enqueue('sql', '{"sql": "SELECT 1"}')) FROM generate_series(1, 20)});
my $rounds;
for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	($rounds) = say_psql($inside, q{SELECT detail FROM swarm.health() WHERE name = 'runners' AND NOT ok}) =~ /^(\d+) runners in a row could not start$/;
	last if defined $rounds;
	select undef, undef, undef, 0.1;
}
ok($rounds, 'health() says that runners cannot start');
cmp_ok(failed_starts(), '<=', 5 * (1 + ($rounds || 0)), '... which is tried now and then');
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS true');
jobs_end($node, 'open again, its jobs end', 'closed');
poll_ok($node, 'SELECT count(*) FROM swarm.health() WHERE NOT ok', '... and health() has no complaint', '0', 'closed');
finish_psql($inside);

# Time limits of sessions are none of jobs.
my @limits = (qw(statement_timeout lock_timeout idle_in_transaction_session_timeout), $node->pg_version >= 17 ? 'transaction_timeout' : ());
$node->append_conf('postgresql.conf', "$_ = '200ms'") foreach @limits;
$node->restart;
my $slow = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(1)"}')});
jobs_end($node, 'a job that takes longer than sessions may');
is($node->safe_psql('postgres', "SELECT state, attempts FROM swarm.jobs WHERE id = $slow"), 'completed|1', '... at its first attempt');
$node->append_conf('postgresql.conf', "$_ = 0") foreach @limits;

# One that becomes open, or gets the right name, when the server runs.
$node->safe_psql('postgres', q{
ALTER DATABASE closed ALLOW_CONNECTIONS false;
CREATE DATABASE named});
$node->append_conf('postgresql.conf', "pg_swarm.databases = 'postgres, closed, proper'");
$node->restart;
$node->safe_psql('named', 'CREATE EXTENSION pg_swarm');
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS true');
answers($node, 'a database is served when it takes connections', 'closed');
$node->safe_psql('postgres', 'ALTER DATABASE named RENAME TO proper');
answers($node, '... and when it gets a name that is to be served', 'proper');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

$node->stop;
done_testing();
