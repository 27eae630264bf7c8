# CREATE, DROP and ALTER EXTENSION, with and without preload, in several
# databases: workers come and go with it.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', create => 0);
my $served = workers('postgres', 'scheduler');
my $all = workers('postgres');

poll_ok($node, $all, 'no worker before the extension is there', '0');

# Create and drop, again and again.
for my $i (1 .. 4)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_swarm');
	answers($node, "extension $i runs a job without further ado");
	$node->safe_psql('postgres', "SELECT swarm.job_enqueue('sql', '{\"sql\": \"SELECT pg_sleep(600)\"}')") if $i == 2;
	$node->safe_psql('postgres', 'DROP EXTENSION pg_swarm');
	poll_ok($node, $all, "drop $i leaves no worker", '0');
}
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_namespace WHERE nspname = 'swarm'"), '0', 'nothing is left');

# A CREATE that is rolled back; one and the other in a transaction.
$node->safe_psql('postgres', 'BEGIN; CREATE EXTENSION pg_swarm; ROLLBACK');
poll_ok($node, $all, 'a rolled-back CREATE starts nothing that stays', '0');
$node->safe_psql('postgres', 'BEGIN; CREATE EXTENSION pg_swarm; DROP EXTENSION pg_swarm; COMMIT');
poll_ok($node, $all, 'nor does one that is dropped in its transaction', '0');
is( $node->safe_psql('postgres', qq{
BEGIN;
CREATE EXTENSION pg_swarm;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS id \\gset
COMMIT;
SELECT (swarm.job_wait(:id)).state}),
	'completed', 'a job of the transaction that creates the extension runs');

# DROP rolled back: work goes on.
work_table($node);
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION pg_swarm CASCADE; ROLLBACK');
answers($node, 'work goes on after a rolled-back DROP');
$node->safe_psql('postgres', qq{
SELECT swarm.job_enqueue('work', '{"sleep": 0.01}') FROM generate_series(1, 40);
BEGIN; DROP EXTENSION pg_swarm CASCADE; ROLLBACK;
BEGIN; SAVEPOINT s; DROP EXTENSION pg_swarm CASCADE; ROLLBACK TO s; COMMIT});
jobs_end($node, 'work under way at a rolled-back DROP ends');
once_each($node, 40, '... each job once');
is($node->safe_psql('postgres', "SELECT max(attempts) FROM swarm.job_history WHERE kind = 'work'"),
	'1', '... and no attempt was counted');

# DROP + CREATE in one transaction: a new extension with the old processes gone.
my $old = worker_pid($node, 'scheduler', 'postgres');
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION pg_swarm CASCADE; CREATE EXTENSION pg_swarm; COMMIT');
answers($node, 'DROP and CREATE in one transaction');
isnt(worker_pid($node, 'scheduler', 'postgres'), $old, '... is served by a new scheduler');
is($node->safe_psql('postgres', 'SELECT id FROM swarm.jobs'), '1', '... that knows nothing of the old jobs');

# DROP and CREATE right after each other: whoever still looks at the old one
# must not be taken for having seen the new one.
for my $i (1 .. 6)
{
	$node->safe_psql('postgres', "DROP EXTENSION pg_swarm CASCADE;\nCREATE EXTENSION pg_swarm;\n" x 3);
	answers($node, "DROP and CREATE at once, round $i");
}

# By way of what owns it.
$node->safe_psql('postgres', q{
CREATE ROLE owner SUPERUSER;
DROP EXTENSION pg_swarm CASCADE;
SET ROLE owner;
CREATE EXTENSION pg_swarm});
answers($node, 'extension of another owner');
$node->safe_psql('postgres', 'DROP OWNED BY owner CASCADE');
poll_ok($node, $all, 'DROP OWNED leaves no worker', '0');
$node->safe_psql('postgres', 'CREATE EXTENSION pg_swarm');
answers($node, 'created again');
sql_fails($node, 'DROP SCHEMA swarm CASCADE', qr/2BP01/, 'the schema goes with the extension only');

# ALTER EXTENSION: to a version that is there, and to one that is not.
sql_fails($node, "ALTER EXTENSION pg_swarm UPDATE TO 'none'", qr/22023/, 'no such version');
my $version = $node->safe_psql('postgres', "SELECT extversion FROM pg_extension WHERE extname = 'pg_swarm'");
$node->safe_psql('postgres', "ALTER EXTENSION pg_swarm UPDATE TO '$version'");
answers($node, 'work goes on after ALTER EXTENSION UPDATE');
$node->safe_psql('postgres', q{
CREATE ROLE nobody LOGIN;
CREATE FUNCTION extra() RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER EXTENSION pg_swarm ADD FUNCTION extra();
ALTER EXTENSION pg_swarm DROP FUNCTION extra()});
answers($node, '... and after ADD and DROP');

# Who may not drop it does not stop it.
$node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}')});
poll_sql($node, "SELECT count(*) FROM swarm.jobs WHERE state = 'running'", '1');
my $before = $node->safe_psql('postgres', 'SELECT array_agg(pid ORDER BY pid) FROM swarm.workers WHERE job IS NOT NULL');
sql_fails($node, 'SET ROLE nobody; DROP EXTENSION pg_swarm', qr/42501/, 'no right to drop the extension');
sql_fails($node, 'SET ROLE nobody; DROP SCHEMA swarm CASCADE', qr/42501/, '... nor the schema');
is( $node->safe_psql('postgres', 'SELECT array_agg(pid ORDER BY pid) FROM swarm.workers WHERE job IS NOT NULL'),
	$before, '... and the workers have not noticed');
$node->safe_psql('postgres', 'SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE finished_at IS NULL');
jobs_end($node, 'the long job is cancelled');

# A second database, an own schema for operators; pg_swarm.databases.
$node->safe_psql('postgres', 'CREATE DATABASE two');
$node->safe_psql('two', 'CREATE SCHEMA ops; CREATE EXTENSION pg_swarm SCHEMA ops');
answers($node, 'a second database is served', 'two');
answers($node, '... beside the first');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT database) FROM swarm.workers'), '2', '... both are shown');

$node->append_conf('postgresql.conf', "pg_swarm.databases = 'postgres'");
$node->reload;
poll_ok($node, workers('two'), 'pg_swarm.databases restricts', '0');
answers($node, '... to those it names');
is($node->safe_psql('two', "SELECT ok FROM swarm.health() WHERE name = 'database served'"), 'f', 'health() says so');
$node->safe_psql('two', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}')});
is($node->safe_psql('two', 'SELECT state FROM swarm.jobs ORDER BY id DESC LIMIT 1'), 'ready', 'its jobs wait');
$node->append_conf('postgresql.conf', "pg_swarm.databases = 'two, \"No such\"'");
$node->reload;
jobs_end($node, '... and run when it is named', 'two');
poll_ok($node, $all, 'the other one is no longer served', '0');
$node->append_conf('postgresql.conf', "pg_swarm.databases = ''");
$node->reload;
answers($node, 'all are served again');
answers($node, '... all', 'two');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

# The number of runners can be changed at any time.
my $runners = q{SELECT count(*) FROM swarm.workers WHERE role = 'runner' AND database = 'two'};
$node->append_conf('postgresql.conf', "pg_swarm.max_runners = 0\npg_swarm.min_runners = 0");
$node->reload;
poll_ok($node, $runners, 'no runner is left', '0');
$node->safe_psql('two', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}')});
$node->append_conf('postgresql.conf', "pg_swarm.max_runners = 2\npg_swarm.min_runners = 1");
$node->reload;
jobs_end($node, 'what waited is run when there may be runners again', 'two');

# Without preload: types, enqueue and views work; what needs a worker says so.
my $two_jobs = $node->safe_psql('two', 'SELECT count(*) FROM swarm.jobs');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
my $hint = qr/55000.*HINT:\s+Add pg_swarm to shared_preload_libraries and restart the server/s;
$node->safe_psql('postgres', 'DROP EXTENSION pg_swarm; CREATE EXTENSION pg_swarm');
pass('CREATE and DROP EXTENSION without preload');
is($node->safe_psql('postgres', "SELECT '{1,2}'::real[] <-> '{1,2}'::real[]"), '0', 'operators work');
my $id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}')});
is($node->safe_psql('postgres', "SELECT state FROM swarm.jobs WHERE id = $id"), 'ready', 'enqueue works');
sql_fails($node, "SELECT swarm.job_wait($id, '1 s')", $hint, 'job_wait() says what is missing');
sql_fails($node, "SELECT swarm.job_claim('default')", $hint, 'job_claim() says what is missing');
is($node->safe_psql('postgres', q{SELECT name, ok, hint IS NOT NULL FROM swarm.health()}),
	'preload|f|t', 'health() says what is missing');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.workers'), '0', 'there are no workers');
is($node->safe_psql('postgres', 'SELECT queue, ready FROM swarm.queues'), 'default|0', 'queues are shown');
# the session that ends a job makes the partition of its day, but not as its own tables
$node->safe_psql('postgres', $_) foreach q{SET allow_in_place_tablespaces = on; CREATE TABLESPACE elsewhere LOCATION ''}, 'CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler';
is($node->safe_psql('postgres', "SET default_tablespace = elsewhere; SET default_table_access_method = other; SELECT swarm.job_cancel($id)"), 't', 'a job can be cancelled');
is($node->safe_psql('postgres', q{SELECT count(*) > 1, count(*) FILTER (WHERE reltablespace <> 0), count(*) FILTER (WHERE relam = (SELECT oid FROM pg_am WHERE amname = 'other'))
	FROM pg_class WHERE relname ~ '^_job_history_[0-9]{8}'}), 't|0|0', '... the partition it goes to is where those of others are');
$node->safe_psql('postgres', $_) foreach 'DROP ACCESS METHOD other', 'DROP TABLESPACE elsewhere';
$id = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 2"}', unique_key => 'k')});
is( $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 2"}', unique_key => 'k')}),
	$id, 'unique keys hold');

# With preload again: what was enqueued meanwhile runs.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_swarm'");
$node->restart;
is($node->safe_psql('postgres', "SELECT (swarm.job_wait($id)).state"), 'completed', 'it runs with preload');
answers($node, 'so does the other database', 'two');

# A template is not served.
$node->safe_psql('template1', 'CREATE EXTENSION pg_swarm');
answers($node, 'while the launcher looked at template1');
poll_ok($node, workers('template1'), 'template1 is not served', '0');

$node->stop;
done_testing();
