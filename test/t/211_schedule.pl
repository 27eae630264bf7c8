# Schedules: pg_cron itself calls, on time, as the owner, and each due time becomes
# one job.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main');
my $version = $node->safe_psql('postgres', q{SELECT default_version FROM pg_available_extensions WHERE name = 'pg_cron'});

unless ($version)
{
	$node->stop;
	plan skip_all => 'pg_cron is not installed';
}
sql_fails($node, q{SELECT swarm.schedule_create('s', '* * * * *', 'sql')}, qr/55000.*HINT/s, 'without pg_cron in the database');
$node->append_conf('postgresql.conf', <<'X');
shared_preload_libraries = 'pg_swarm, pg_cron'
cron.database_name = 'postgres'
cron.use_background_workers = on
X
$node->restart;
work_table($node);
sql_fails($node, q{SELECT swarm.schedule_create('s', '* * * * *', 'sql')}, qr/55000.*HINT:  Run CREATE EXTENSION pg_cron/s, 'without the extension in its database');
$node->safe_psql('postgres', q{
CREATE EXTENSION pg_cron;
CREATE ROLE owner LOGIN;
GRANT USAGE ON SCHEMA cron TO owner;
GRANT ALL ON work TO owner});

for my $bad (
	[ q{'s', '* * * * *', 'absent'}, 42704 ],
	[ q{'s', '* * * * *', 'work', queue => 'absent'}, 42704 ],
	[ q{'s', '* * * * *', 'work', timeout => '0'}, 22023 ],
	[ q{'s', '* * * * *', 'work', timeout => '25 days'}, 22023 ],
	[ q{'s', '* * * * *', 'work', max_attempts => 0}, 22023 ],
	[ q{'s', '* * * * *', NULL}, 22004 ])
{
	sql_fails($node, "SELECT swarm.schedule_create($bad->[0])", qr/$bad->[1]/, "refused: $bad->[0]");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM cron.job'), '0', '... and pg_cron knows nothing of them');

SKIP:
{
	my ($major, $minor) = split /[.-]/, $version;
	skip "pg_cron $version has no schedules in seconds", 1 if $major == 1 && $minor < 5;

	$node->safe_psql('postgres', q{
SET ROLE owner;
SELECT swarm.schedule_create('often', '1 second', 'work', '{"a": 1}', priority => 'high', tags => '{"t": 1}')});
	poll_ok($node, q{SELECT count(*) >= 3 FROM swarm.job_history WHERE kind = 'work' AND state = 'completed'}, 'pg_cron calls, again and again');
	$node->safe_psql('postgres', q{SET ROLE owner; SELECT swarm.schedule_drop('often')});
	is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM cron.job), (SELECT count(*) FROM swarm.schedules)'), '0|0', 'schedule_drop()');
	poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'cron' AND query ~ 'schedule_run'}, '... no call is under way', '0');
	jobs_end($node, '... its last job ends');
	is($node->safe_psql('postgres', q{SELECT DISTINCT owner, args, priority, tags FROM swarm.job_history}),
		'owner|{"a": 1}|high|{"t": 1}', 'the jobs are as the schedule says, and its owner\'s');
	is($node->safe_psql('postgres', q{SELECT count(*) - count(DISTINCT date_trunc('second', enqueued_at)) FROM swarm.job_history}),
		'0', '... one a second');
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

$node->stop;
done_testing();
