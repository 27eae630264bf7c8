# Commands that need a database to themselves, or copy one: workers make room
# for them, come back after a failure, and take no notice of who has no right.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main');
my $busy = q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(0.01)"}') FROM generate_series(1, 200)};

sub make_busy
{
	my ($db, $sleep) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, 'CREATE EXTENSION pg_swarm');
	$node->safe_psql($db, $busy);
	poll_sql($node, "SELECT count(*) > 0 FROM swarm.workers WHERE database = '$db' AND job IS NOT NULL");
	return;
}

# DROP DATABASE, plain and with FORCE, while its jobs run and others' do.
work_table($node);
$node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', '{"sleep": 0.02}') FROM generate_series(1, 300)});
for my $i (1 .. 6)
{
	my $force = $i % 2 ? '' : ' WITH (FORCE)';

	make_busy('victim');
	is(sql_error($node, "DROP DATABASE victim$force"), '', "DROP DATABASE$force, round $i");
}
is( $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity a LEFT JOIN pg_database d ON d.oid = a.datid
WHERE a.backend_type LIKE 'pg_swarm %' AND a.backend_type <> 'pg_swarm launcher' AND d.oid IS NULL}),
	'0', 'no worker without a database');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT database) FROM swarm.workers'), '1', '... is shown either');

# The database of a runner that is being started goes away.
for my $i (1 .. 3)
{
	$node->safe_psql('postgres', 'CREATE DATABASE brief');
	$node->safe_psql('brief', 'CREATE EXTENSION pg_swarm');
	is(sql_error($node, 'DROP DATABASE brief'), '', "DROP DATABASE at once, round $i");
}

# One that fails: somebody is connected.
make_busy('kept');
my $session = start_psql($node, undef, 'kept');
say_psql($session, 'SELECT 1');
sql_fails($node, 'DROP DATABASE kept', qr/55006/, 'DROP DATABASE fails while somebody is connected');
jobs_end($node, '... and the workers come back and finish', 'kept');
is( $node->safe_psql('kept', "SELECT string_agg(DISTINCT state || ' ' || attempts, ',') FROM swarm.job_history"),
	'completed 1', '... what was interrupted is not counted as an attempt');
# (the server waits five seconds for others to leave: once is enough)

# Who may not.
$node->safe_psql('postgres', 'CREATE ROLE nobody CREATEDB');
$node->safe_psql('kept', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}')});
my $pids = q{SELECT string_agg(pid::text, ',' ORDER BY pid) FROM swarm.workers WHERE database = 'kept' AND (job IS NOT NULL OR role = 'scheduler')};
poll_sql($node, q{SELECT count(*) FROM swarm.workers WHERE database = 'kept' AND job IS NOT NULL}, '1');
my $before = $node->safe_psql('kept', $pids);
for my $sql (
	'DROP DATABASE kept',
	'DROP DATABASE kept WITH (FORCE)',
	'ALTER DATABASE kept RENAME TO other',
	'ALTER DATABASE kept SET TABLESPACE pg_default',
	'CREATE DATABASE copy TEMPLATE kept')
{
	sql_fails($node, "SET ROLE nobody; $sql", qr/42501/, "no right: $sql");
}
is($node->safe_psql('kept', $pids), $before, '... and nobody was disturbed');
$node->safe_psql('kept', q{SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE state = 'running'});
jobs_end($node, 'the long job is cancelled', 'kept');
finish_psql($session);

# In a transaction block these commands fail before they do anything.
$node->safe_psql('kept', $busy);
sql_fails($node, 'BEGIN; DROP DATABASE kept; COMMIT', qr/25001/, 'not in a transaction block');
jobs_end($node, '... and work goes on', 'kept');

# RENAME, SET TABLESPACE, ALLOW_CONNECTIONS.
$node->safe_psql('kept', $busy);
is(sql_error($node, 'ALTER DATABASE kept RENAME TO "New Name"'), '', 'RENAME while jobs run');
jobs_end($node, '... and they are finished under the new name', 'New Name');
is($node->safe_psql('postgres', q{SELECT count(*) > 0 FROM swarm.workers WHERE database = 'New Name'}), 't', '... which is shown');
is(sql_error($node, 'ALTER DATABASE "New Name" RENAME TO kept'), '', 'RENAME back');

my $space = PostgreSQL::Test::Utils::tempdir();
$node->safe_psql('postgres', "CREATE TABLESPACE space LOCATION '$space'");
$node->safe_psql('kept', $busy);
is(sql_error($node, 'ALTER DATABASE kept SET TABLESPACE space'), '', 'SET TABLESPACE while jobs run');
jobs_end($node, '... and they are finished', 'kept');
is(sql_error($node, 'ALTER DATABASE kept SET TABLESPACE pg_default'), '', 'SET TABLESPACE back');
is(sql_error($node, 'DROP TABLESPACE space'), '', '... and nobody is left in the old one');

# The jobs of a copy are held, it says so, and they run when it is told to.
work_table($node, 'kept');
$node->safe_psql('kept', q{
SELECT swarm.queue_create('side');
SELECT swarm.job_enqueue('work', '{"sleep": 0.01}', queue => q)
FROM generate_series(1, 50), unnest('{default,side}'::text[]) q});
my @method = $node->pg_version >= 15 ? (' STRATEGY wal_log', ' STRATEGY file_copy') : ('');
for my $how (@method)
{
	my $name = "copy by$how";

	is(sql_error($node, "CREATE DATABASE copy TEMPLATE kept$how"), '', "$name: CREATE DATABASE TEMPLATE while jobs run");
	poll_ok($node, q{SELECT NOT ok FROM swarm.health() WHERE name = 'jobs released'}, "$name: health() says what it is", 't', 'copy');
	my $live = $node->safe_psql('copy', 'SELECT count(*) FROM swarm.jobs WHERE finished_at IS NULL');
	poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state = 'ready'}, "$name: its jobs wait", $live, 'copy');
	is($node->safe_psql('copy', 'SELECT count(*) FROM work'), 100 - $live, "$name: ... all of them");
	$node->safe_psql('copy', 'SELECT swarm.jobs_resume()');
	jobs_end($node, "$name: they run after jobs_resume()", 'copy');
	once_each($node, 100, "$name: ... each once", 'copy');
	answers($node, "$name: ... and new ones do", 'copy');
	is(sql_error($node, 'DROP DATABASE copy'), '', "$name: DROP DATABASE");
}
jobs_end($node, 'the original ends what it has', 'kept');
once_each($node, 100, '... each job once', 'kept');

# What went on in the other database all the while.
jobs_end($node, 'the jobs of the other database have ended');
once_each($node, 300, '... each once');
is(sql_error($node, 'DROP DATABASE kept'), '', 'the last DROP DATABASE');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

# What a job says of itself is text in the encoding of its database.
$node->safe_psql('postgres', q{CREATE DATABASE narrow TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'});
$node->safe_psql('narrow', 'CREATE EXTENSION pg_swarm');
$node->safe_psql('narrow', q{
CREATE FUNCTION say(job swarm.job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM swarm.job_progress(0.5, job.args ->> 'say'); PERFORM pg_sleep(600); END $$;
SELECT swarm.handler_register('say', 'say'); SELECT swarm.job_enqueue('say', jsonb_build_object('say', 'caf' || chr(233)))});
poll_ok($node, q{SELECT message = 'caf' || chr(233) FROM swarm.workers WHERE database = 'narrow' AND job IS NOT NULL}, 'what a job says is seen in its database', 't', 'narrow');
is($node->safe_psql('postgres', q{SELECT count(*), count(message) FROM swarm.workers WHERE database = 'narrow' AND job IS NOT NULL}), '1|0', '... not in one where it may be no text');
$node->safe_psql('postgres', 'DROP DATABASE narrow');

$node->stop;
done_testing();
