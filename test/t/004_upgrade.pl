# ALTER EXTENSION UPDATE while workers are busy, and pg_upgrade with jobs in every
# state: nothing blocks, nothing is lost, nothing is held.
use strict;
use warnings;

use Cwd ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main');
my $version = $node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'pg_swarm'});
my $folder = extension_folder();
my $next = "$version.1";
my @made;

END { unlink @made if @made }

# --- ALTER EXTENSION UPDATE ---

SKIP:
{
	skip "cannot write to $folder" unless -w $folder;

	# An update that wants all tables for itself; one that fails half way.
	my $locks = join '', map { "LOCK TABLE swarm.$_ IN ACCESS EXCLUSIVE MODE;\n" }
	  qw(_job _job_attempt _job_dep _job_key _job_history _queue _handler _instance);
	update_script($next, "${locks}CREATE FUNCTION swarm._updated() RETURNS text LANGUAGE sql AS \$\$SELECT '$next'\$\$;\n");
	update_script("$version.2", "${locks}SELECT 1 / 0;\n");

	work_table($node);
	$node->safe_psql('postgres', q{
SELECT swarm.queue_create('batched', batch => 10);
SELECT swarm.handler_register('outside', NULL)});
	my $jobs = 0;
	for my $round (
		[ "ALTER EXTENSION pg_swarm UPDATE TO '$version.2'", qr/22012/, 'an update that fails' ],
		[ "BEGIN; ALTER EXTENSION pg_swarm UPDATE TO '$next'; ROLLBACK", '', 'an update that is rolled back' ],
		[ "ALTER EXTENSION pg_swarm UPDATE TO '$next'", '', 'an update' ])
	{
		my ($sql, $error, $name) = @$round;

		$node->safe_psql('postgres', q{
SELECT swarm.job_enqueue('work', '{"sleep": 0.02}', queue => CASE WHEN i % 2 = 0 THEN 'batched' ELSE 'default' END)
FROM generate_series(1, 60) i;
SELECT swarm.job_enqueue('work', run_at => now() + '1 hour', unique_key => 'later') AS later \gset
SELECT swarm.job_enqueue('work', depends_on => ARRAY[:later])});
		$jobs += 62;
		my $long = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(600)"}')});
		my ($leased, $token) = split /\|/, $node->safe_psql('postgres', q{
SELECT swarm.job_enqueue('outside') AS id \gset
SELECT id, token FROM swarm.job_claim('default')});
		poll_ok($node, "SELECT state FROM swarm.jobs WHERE id = $long", "$name, while jobs run", 'running');
		my $got = sql_error($node, $sql);
		$error ? like($got, $error, "$name: fails") : is($got, '', "$name: nobody is in its way");
		poll_ok($node, "SELECT state, attempts FROM swarm.jobs WHERE id = $long", '... what ran, runs again, uncounted', 'running|1');
		is($node->safe_psql('postgres', "SELECT swarm.job_complete($leased, $token); SELECT state FROM swarm.job_wait($leased)"),
			"\ncompleted", '... a lease is still good');
		is($node->safe_psql('postgres', q{SELECT string_agg(state::text, ',' ORDER BY id) FROM swarm.jobs WHERE finished_at IS NULL AND (run_at > now() OR state = 'blocked')}),
			'scheduled,blocked', '... what waited, waits');
		$node->safe_psql('postgres', "SELECT swarm.job_cancel($long);
SELECT swarm.job_retry(id) FROM swarm.jobs WHERE state = 'scheduled'");
		jobs_end($node, '... all jobs end');
		once_each($node, $jobs, '... each once');
	}
	is($node->safe_psql('postgres', q{SELECT max(attempts) FROM swarm.job_history}), '1', 'no attempt was counted');
	is($node->safe_psql('postgres', q{SELECT extversion, swarm._updated() FROM pg_extension WHERE extname = 'pg_swarm'}),
		"$next|$next", 'the extension is updated');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');
	$node->safe_psql('postgres', 'DROP EXTENSION pg_swarm CASCADE; DROP TABLE work; DROP FUNCTION IF EXISTS work; CREATE EXTENSION pg_swarm');
}

# --- pg_upgrade ---

# It loads the libraries of all functions by LOAD, which in PostgreSQL 18 knows no
# other folder than the server's own, unlike the functions themselves.
if ($node->psql('postgres', q{LOAD '$libdir/pg_swarm'}) != 0)
{
  SKIP: { skip 'pg_upgrade would not find the library of this test installation', 1 }
	$node->stop;
	done_testing();
	exit;
}

# Jobs of all states; what runs will end by itself when it is started again.
# The others wait for what the test does: nothing is due when the new server starts.
$node->append_conf('postgresql.conf', "pg_swarm.job_backoff = '1h'\npg_swarm.job_backoff_max = '1h'");
$node->reload;
work_table($node);
$node->safe_psql('postgres', q{
CREATE ROLE someone;
GRANT ALL ON work TO someone;
SELECT swarm.queue_create('held', max_running => 2), swarm.handler_register('outside', NULL);
SELECT swarm.queue_pause('held');
SELECT swarm.job_enqueue('work') FROM generate_series(1, 5);
SELECT swarm.job_enqueue('work', '{"fail": 1}', max_attempts => 2);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1 / 0"}', max_attempts => 1);
SET ROLE someone;
SELECT swarm.job_enqueue('work', queue => 'held', unique_key => 'key ' || i) FROM generate_series(1, 5) i;
RESET ROLE;
SELECT swarm.job_enqueue('work', run_at => now() + '1 day') AS later \gset
SELECT swarm.job_enqueue('work', depends_on => ARRAY[:later]);
SELECT swarm.job_enqueue('outside');
SELECT swarm.job_cancel(swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', run_at => now() + '1 day'));
SELECT swarm.job_enqueue('work', '{"sleep": 600}')});
my $before = 'blocked 1, cancelled 1, completed 5, dead 1, failed 1, ready 6, running 1, scheduled 1';
poll_ok($node, q{SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) FROM
(SELECT state::text, count(*) n FROM swarm.jobs GROUP BY 1) s}, 'jobs of all states', $before);
my $rows = q{
SELECT * FROM swarm._job ORDER BY id;
SELECT * FROM swarm._job_attempt ORDER BY id;
SELECT * FROM swarm._job_dep ORDER BY child, parent;
SELECT * FROM swarm._job_key ORDER BY key;
SELECT * FROM swarm._job_history ORDER BY id, finished_at;
SELECT * FROM swarm._queue ORDER BY id;
SELECT * FROM swarm._handler ORDER BY id;
SELECT * FROM swarm._instance;
SELECT last_value, is_called FROM swarm._job_id_seq};
my $old_rows = $node->safe_psql('postgres', $rows);
$node->stop;

my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
$new->append_conf('postgresql.conf', swarm_conf() . "pg_swarm.job_backoff = '1h'\npg_swarm.job_backoff_max = '1h'\npg_swarm.max_runners = 0\npg_swarm.min_runners = 0\n");
my $here = Cwd::getcwd();
my $bin = $new->config_data('--bindir');
chdir PostgreSQL::Test::Utils::tempdir() or die $!;    # where it leaves its scripts
command_ok([ 'pg_upgrade', '--no-sync', '-b', $bin, '-B', $bin, '-d', $node->data_dir, '-D', $new->data_dir,
		'-s', $new->host, '-p', $node->port, '-P', $new->port ], 'pg_upgrade');
chdir $here or die $!;

$new->start;
is($new->safe_psql('postgres', $rows), $old_rows, 'pg_upgrade: every row is there as it was');
poll_ok($new, workers('postgres', 'scheduler'), '... the database is served', '1');
is(states($new), $before =~ s/ready 6, running 1/ready 7/r, '... its jobs have the states they had, what ran is ready');
is($new->safe_psql('postgres', q{SELECT count(*) FROM swarm.health() WHERE NOT ok AND name <> 'runners'}), '0', '... and are not held');
$new->safe_psql('postgres', q{UPDATE swarm._job SET args = '{}' WHERE args = '{"sleep": 600}';
ALTER SYSTEM SET pg_swarm.max_runners = 4; SELECT pg_reload_conf()});
poll_ok($new, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed'}, '... what ran at the stop runs again', '6');
is($new->safe_psql('postgres', q{SELECT kind FROM swarm.job_claim('default')}), 'outside', '... an outside worker gets its job');
$new->safe_psql('postgres', q{SELECT swarm.queue_resume('held')});
poll_ok($new, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed' AND owner = 'someone'::regrole}, '... a paused queue can go on', '5');
$new->safe_psql('postgres', q{SELECT swarm._clock_advance('25 hours')});
poll_ok($new, q{SELECT string_agg(kind, ',') FROM swarm.jobs WHERE finished_at IS NULL}, '... the rest when its time has come', 'outside');
$new->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL); SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE finished_at IS NULL});
jobs_end($new, '... all jobs end');
once_each($new, 14, '... each once');
answers($new, '... and new ones do');
is($new->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

$new->stop;
done_testing();

# where the server looks for the control file
sub extension_folder
{
	my $share = $node->config_data('--sharedir');
	my $first = $node->safe_psql('postgres', q{SELECT split_part(current_setting('extension_control_path', true), ':', 1)});
	my $prefix = $node->safe_psql('postgres', q{SELECT current_setting('extension_destdir', true)});

	return ($first && $first ne '$system' ? $first : $prefix . $share) . '/extension';
}

sub update_script
{
	my ($to, $sql) = @_;
	my $file = "$folder/pg_swarm--$version--$to.sql";

	append_to_file($file, $sql);
	push @made, $file;
	return;
}
