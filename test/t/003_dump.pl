# pg_dump and restore of a database with jobs in every state, on a server whose
# launcher is awake.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

# whoever failed once waits longer than the test takes
my $node = swarm_cluster('main', conf => "pg_swarm.job_backoff = '1h'\npg_swarm.job_backoff_max = '1h'");
my $dir = PostgreSQL::Test::Utils::tempdir();

# all that a restored database must have as the first one had it
my $all = q{
SELECT * FROM swarm._job ORDER BY id;
SELECT * FROM swarm._job_attempt ORDER BY id;
SELECT * FROM swarm._job_dep ORDER BY child, parent;
SELECT * FROM swarm._job_key ORDER BY key;
SELECT * FROM swarm._job_history ORDER BY id, finished_at;
SELECT * FROM swarm._queue ORDER BY id;
SELECT * FROM swarm._handler ORDER BY id;
SELECT id, state, attempts FROM swarm.jobs ORDER BY id, state;
SELECT last_value, is_called FROM swarm._job_id_seq;
SELECT last_value, is_called FROM swarm._queue_id_seq;
SELECT last_value, is_called FROM swarm._handler_id_seq;
SELECT name, owner, priority, condition, action, params, enabled, on_demand, shipped, touched FROM swarm._rule ORDER BY name;
SELECT name FROM swarm._rule_use ORDER BY name;
SELECT enabled, period FROM swarm._optimizer;
SELECT * FROM swarm.alert_rules ORDER BY name;
SELECT * FROM swarm.alerts ORDER BY id;
SELECT * FROM swarm._exposure ORDER BY key};

sub max_runners
{
	my ($n) = @_;

	$node->append_conf('postgresql.conf', "pg_swarm.max_runners = $n\npg_swarm.min_runners = " . ($n ? 1 : 0));
	$node->reload;
	poll_sql($node, q{SELECT count(*) FROM swarm.workers WHERE role = 'runner'}, '0') unless $n;
	return;
}

sub dump_all { return $node->safe_psql($_[0], $all) }

# What an administrator has set: one rule of ours is off, another on, one is his.
$node->safe_psql('postgres', q{
SELECT swarm.rule_enable('runaway-query-termination', false), swarm.rule_enable('spill-work-mem');
SELECT swarm.rule_create('mine', 20, 'false', 'pause'), swarm.optimizer_start('7 s');
UPDATE swarm.alert_rules SET threshold = 50 WHERE name = 'slower';
SELECT swarm.experiment_assign('shown', 'k' || i) FROM generate_series(1, 3) i;
UPDATE swarm.alert_rules SET enabled = false WHERE name = 'resources';
INSERT INTO swarm.alerts (rule, severity, value, threshold, cleared_at) VALUES ('slower', 'page', 51, 50, now())});

# Finished ones first, on three days; then nothing runs any more.
work_table($node);
$node->safe_psql('postgres', q{
CREATE ROLE someone;
GRANT ALL ON work TO someone;
SELECT swarm.queue_create('slow', max_running => 1, rate_limit => 100, rate_period => '1 s'), swarm.queue_create('held');
SELECT swarm.queue_pause('held');
SELECT swarm.handler_register('outside', NULL);
SET ROLE someone;
SELECT swarm.job_enqueue('work', jsonb_build_object('n', i), tags => '{"a": ["b", 1]}', unique_key => 'k' || i, queue => 'slow')
FROM generate_series(1, 30) i;
RESET ROLE;
SELECT swarm.job_enqueue('work', '{"fail": 9}', max_attempts => 1)});
jobs_end($node, 'jobs of today');
for my $day (1, 2)
{
	$node->safe_psql('postgres', q{SELECT swarm._clock_advance('24 hours'); SELECT swarm.job_enqueue('work') FROM generate_series(1, 5)});
	jobs_end($node, "jobs of $day days later");
}
$node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', '{"fail": 1}', max_attempts => 3)});
poll_ok($node, q{SELECT count(*) FROM swarm._job_attempt}, 'a job that has failed once', '1');
max_runners(0);
$node->safe_psql('postgres', q{
SELECT swarm._clock_advance(NULL);
SELECT swarm.job_enqueue('work', jsonb_build_object('n', i), priority => 'high', unique_key => 'k' || i) FROM generate_series(1, 10) i;
SELECT swarm.job_enqueue('work', queue => 'held');
SELECT swarm.job_enqueue('outside');
SELECT swarm.job_enqueue('work', run_at => now() + '1 day', timeout => NULL) AS later \gset
SELECT swarm.job_enqueue('work', depends_on => ARRAY[:later]);
SELECT swarm.job_cancel(swarm.job_enqueue('work', unique_key => 'cancelled'), 'not needed');
SELECT swarm.job_enqueue('work', depends_on => ARRAY[swarm.job_enqueue('work')])});

my $before = dump_all('postgres');
my $count = $node->safe_psql('postgres', q{SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) FROM (SELECT state::text, count(*) n FROM swarm.jobs GROUP BY 1) s});
note $count;

my %format = (plain => 'Fp', custom => 'Fc', directory => 'Fd');
for my $format (qw(plain custom directory))
{
	my $db = "copy_$format";

	$node->command_ok([ 'pg_dump', "-$format{$format}", '-f', "$dir/$format", '-d', $node->connstr('postgres') ], "$format: pg_dump");
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	if ($format eq 'plain')
	{
		$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', "$dir/$format", '-d', $node->connstr($db) ], "$format: restore");
	}
	else
	{
		$node->command_ok([ 'pg_restore', '--exit-on-error', ($format eq 'directory' ? '-j2' : '--single-transaction'), '-d', $node->connstr($db), "$dir/$format" ], "$format: restore");
	}
	is(dump_all($db), $before, "$format: all rows are there");
	poll_ok($node, workers($db, 'scheduler'), "$format: it is served", '1');
	is($node->safe_psql($db, q{SELECT ok FROM swarm.health() WHERE name = 'jobs released'}), 'f', "$format: its jobs are held, health() says so");
	is($node->safe_psql('postgres', $all), $before, "$format: the first database is as before");
	is( $node->safe_psql($db, q{SELECT string_agg(name || ' ' || enabled, ', ' ORDER BY name) FROM swarm._rule WHERE touched}),
		'mine true, runaway-query-termination false, spill-work-mem true', "$format: rules are as the administrator has set them");
	is( $node->safe_psql($db, q{SELECT s->'isMonitoring', s->'interval' FROM swarm.optimizer_status() s}), 'true|"00:00:07"', "$format: so is the optimizer");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM work') , $node->safe_psql('copy_plain', 'SELECT count(*) FROM work'), 'nothing has run meanwhile');

# Now all of them run.
max_runners(4);
for my $db (qw(postgres copy_plain copy_custom copy_directory))
{
	my $later = q{SELECT string_agg(state || ' ' || queue || ' ' || kind || ' ' || n, ', ') FROM (SELECT state::text, queue, kind, count(*) n
FROM swarm.jobs WHERE finished_at IS NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3) s};

	unless ($db eq 'postgres')
	{
		is($node->safe_psql($db, $all), $before, "$db: nothing runs before jobs_resume()");
		$node->safe_psql($db, 'SELECT swarm.jobs_resume()');
	}
	poll_ok($node, $later, "$db: what is ready runs", 
		'blocked default work 1, failed default work 1, ready default outside 1, ready held work 1, scheduled default work 1', $db);
	is( $node->safe_psql($db, q{SELECT count(*), count(DISTINCT job) FROM work}),
		$node->safe_psql($db, q{SELECT count(*), count(DISTINCT id) FROM swarm.job_history WHERE kind = 'work' AND state = 'completed'}),
		"$db: ... once");
	is($node->safe_psql($db, q{SELECT swarm.job_enqueue('work') > max(id) FROM swarm.jobs}), 't', "$db: ids go on");
	$node->safe_psql($db, q{SELECT swarm.queue_create('another'), swarm.handler_register('another', NULL)});
	is($node->safe_psql($db, q{SELECT count(DISTINCT id) = count(*) FROM swarm._queue}), 't', "$db: ... those of queues too");
	is($node->safe_psql($db, q{SELECT error FROM swarm.job_history WHERE state = 'dead'}), $node->safe_psql('postgres', q{SELECT error FROM swarm.job_history WHERE state = 'dead'}),
		"$db: the history can be read");
	is( $node->safe_psql($db, q{
SELECT id, swarm.job_retry(id) IS NULL AS x FROM swarm.jobs WHERE state = 'dead' \gset
SELECT state, attempts FROM swarm.job_wait(:id)}),
		'dead|1', "$db: ... and a dead job be tried again");
	answers($node, "$db: new jobs run", $db);
	is($node->safe_psql($db, q{SELECT kind FROM swarm.job_claim('default')}), 'outside', "$db: outside workers get theirs");
}

# The rest, in its time.
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('50 hours')});
for my $db (qw(postgres copy_plain copy_custom copy_directory))
{
	$node->safe_psql($db, q{SELECT swarm.queue_resume('held')});
	poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE finished_at IS NULL AND kind = 'work'}, "$db: the rest runs in its time", '0', $db);
}
$node->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});

# Only the data, into a database that has the extension already.
$node->command_ok([ 'pg_dump', '-Fc', '--data-only', '-t', 'work', '-f', "$dir/data", '-d', $node->connstr('postgres') ], 'pg_dump --data-only of a table of the user');
$node->safe_psql('postgres', q{CREATE DATABASE schema_only});
$node->command_ok([ 'pg_dump', '-Fc', '--schema-only', '-f', "$dir/schema", '-d', $node->connstr('postgres') ], 'pg_dump --schema-only');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('schema_only'), "$dir/schema" ], '... restored');
answers($node, '... is served', 'schema_only');

$node->stop;
done_testing();
