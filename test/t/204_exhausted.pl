# max_worker_processes leaves no place for a runner, or not even for a scheduler.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

# the launcher and one scheduler, no more
my $node = swarm_cluster('main', conf => <<'X');
max_worker_processes = 2
max_logical_replication_workers = 0
X
my $begin = time;
my $warnings = qr/WARNING:  no background worker slot is free/;

sub warned
{
	my $n = () = slurp_file($node->logfile) =~ /$warnings/g;
	return $n;
}

work_table($node);
$node->safe_psql('postgres', q{
SELECT swarm.job_enqueue('work', '{"fail": 1}', max_attempts => 3) FROM generate_series(1, 20);
SELECT swarm.job_enqueue('work', '{}', run_at => now() + '100 ms') FROM generate_series(1, 20);
SELECT swarm.job_enqueue('work', '{}', priority => 'critical') FROM generate_series(1, 20)});
jobs_end($node, 'no runner can be started: jobs end all the same');
once_each($node, 60, '... each once');
is($node->safe_psql('postgres', q{SELECT count(DISTINCT pid) FROM work WHERE pid IN (SELECT pid FROM swarm.workers WHERE role = 'scheduler')}),
	'1', '... in the scheduler');
is($node->safe_psql('postgres', q{SELECT name, ok, hint FROM swarm.health() WHERE NOT ok AND name = 'worker slots'}),
	'worker slots|f|Raise max_worker_processes.', 'health() says why');
ok(warned() >= 1, 'the log says so');

# Each job is a new attempt to start a runner, but not a new warning.
answers($node, "one more, $_") for 1 .. 20;
cmp_ok(warned(), '<=', 1 + int((time - $begin) / 60), '... once a minute');

my $scheduler = $node->safe_psql('postgres', q{SELECT pid FROM swarm.workers WHERE role = 'scheduler'});
answers($node, "still more, $_") for 1 .. 10;
is($node->safe_psql('postgres', q{SELECT pid FROM swarm.workers WHERE role = 'scheduler'}), $scheduler, 'it is the same scheduler all the while');

# In the scheduler too: time limit, cancel, and a lost process.
is( $node->safe_psql('postgres', q{
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}', timeout => '50 ms', max_attempts => 1) AS id \gset
SELECT state FROM swarm.job_wait(:id)}), 'dead', 'the time limit of a job');
my $id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}')});
poll_sql($node, "SELECT state FROM swarm.jobs WHERE id = $id", 'running');
is($node->safe_psql('postgres', "SELECT swarm.job_cancel($id); SELECT state FROM swarm.job_wait($id)"), "t\ncancelled", 'cancel');
answers($node, '... and work goes on');
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}', max_attempts => 1)});
poll_sql($node, "SELECT state FROM swarm.jobs WHERE id = $id", 'running');
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role = 'scheduler'});
is($node->safe_psql('postgres', "SELECT state, error FROM swarm.job_wait($id)"), 'dead|the worker that ran the job was lost', 'terminated');
answers($node, '... and work goes on');

# Nor is DROP EXTENSION held up by the job in the scheduler.
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}')});
poll_sql($node, "SELECT state FROM swarm.jobs WHERE id = $id", 'running');
is(sql_error($node, q{SET lock_timeout = '10s'; DROP EXTENSION pg_swarm CASCADE}), '', 'DROP EXTENSION while the scheduler runs a job');
poll_ok($node, workers('postgres'), '... and nothing is left', '0');
$node->safe_psql('postgres', 'DROP TABLE work; CREATE EXTENSION pg_swarm');

# A second database has not even a scheduler, until the first one goes.
$node->safe_psql('postgres', 'CREATE DATABASE two');
answers($node, 'the first database is served');
$node->safe_psql('two', 'CREATE EXTENSION pg_swarm');
work_table($node, 'two');
$node->safe_psql('two', q{SELECT swarm.job_enqueue('work') FROM generate_series(1, 20)});
poll_ok($node, q{SELECT string_agg(name, ',') FROM swarm.health() WHERE NOT ok AND name IN ('worker slots', 'database served')},
	'no scheduler for the second database: health() says so', 'worker slots,database served', 'two');
cmp_ok(warned(), '<=', 1 + int((time - $begin) / 60), '... and the log once a minute');
$node->safe_psql('postgres', 'DROP EXTENSION pg_swarm');
jobs_end($node, 'it is served when there is a place', 'two');
once_each($node, 20, '... each job once', 'two');

# A long job in the scheduler, and the database is dropped.
$id = $node->safe_psql('two', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}')});
poll_sql($node, "SELECT state FROM swarm.jobs WHERE id = $id", 'running', 'two');
is(sql_error($node, 'DROP DATABASE two'), '', 'DROP DATABASE while the scheduler runs a job');

# With a runner that is busy for long, and all other slots in another database:
# when they become free, the next job gets a runner, though nobody calls.
$node->append_conf('postgresql.conf', 'max_worker_processes = 5');
$node->restart;
$node->safe_psql('postgres', 'CREATE EXTENSION pg_swarm; CREATE DATABASE two');
$node->safe_psql('two', 'CREATE EXTENSION pg_swarm');
answers($node, "database $_ has a runner", $_) for 'postgres', 'two';
poll_ok($node, q{SELECT count(*) FROM swarm.workers WHERE role = 'runner'}, 'one each', '2');
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}')});
poll_sql($node, "SELECT state FROM swarm.jobs WHERE id = $id", 'running');
my $next = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}')});
poll_ok($node, q{SELECT ok FROM swarm.health() WHERE name = 'worker slots'}, 'the next job finds no place', 'f');
is(sql_error($node, 'DROP DATABASE two'), '', 'the other database goes');
poll_ok($node, "SELECT state FROM swarm.jobs WHERE id = $next", 'the next job is run', 'completed');
is($node->safe_psql('postgres', "SELECT state FROM swarm.jobs WHERE id = $id"), 'running', '... beside the long one');
$node->safe_psql('postgres', "SELECT swarm.job_cancel($id)");
jobs_end($node, '... which is cancelled');
$node->safe_psql('postgres', 'DROP EXTENSION pg_swarm');

# Enough slots: no complaint.
$node->append_conf('postgresql.conf', 'max_worker_processes = 16');
$node->restart;
$node->safe_psql('postgres', 'CREATE EXTENSION pg_swarm');
answers($node, 'with enough slots');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

$node->stop;
done_testing();
