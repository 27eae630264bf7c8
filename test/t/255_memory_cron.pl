# Maintenance by pg_cron, which cannot connect here: the jobs are set up once, and go;
# what they do, also without preload, when called.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "shared_preload_libraries = ''");

sub sql { return $node->safe_psql('postgres', $_[0]) }

sql_fails($node, q{SELECT swarm.maintenance_schedule()}, qr/55000.*pg_cron.*HINT/s, 'without pg_cron');
is(sql('SELECT swarm.maintenance_unschedule()'), '0', '... there is nothing to take out');
unless (sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_cron'}))
{
	$node->stop;
	done_testing();
	exit;
}
$node->append_conf('postgresql.conf', <<'X2');
shared_preload_libraries = 'pg_cron'
cron.database_name = 'postgres'
cron.host = '/nowhere'
X2
$node->restart;
sql_fails($node, q{SELECT swarm.maintenance_schedule()}, qr/55000/, 'without its extension');
sql(q{CREATE EXTENSION pg_cron; SELECT cron.schedule('mine', '* * * * *', 'SELECT 1')});

my $jobs = q{SELECT jobid, jobname, schedule, command FROM cron.job WHERE jobname <> 'mine' ORDER BY jobid};
is(sql('SELECT swarm.maintenance_schedule()'), '3', 'three jobs');
my $first = sql($jobs);
is(sql('SELECT swarm.maintenance_schedule()'), '3', '... again');
is(sql($jobs), $first, '... are the same ones');
is(sql(q{SELECT string_agg(split_part(jobname, ': ', 2), ' ' ORDER BY jobname) FROM cron.job WHERE jobname <> 'mine' AND active AND database = 'postgres'}), 'history statistics sweep', '... the sweep, the history, statistics');

# What they do
my %command = map { /: (\w+)\|[^|]*\|(.*)/ } split /\n/, $first;
sql(q{SELECT swarm.namespace_create('n'), swarm.memory_store('n', 'stays', '1'), swarm.memory_store('n', 'goes', '1');
	UPDATE swarm._memory SET expires_at = now() - interval '1 hour', sweep_at = now() - interval '1 hour' WHERE key = 'goes'});
sql($command{sweep});
is(sql('SELECT key FROM swarm._memory'), 'stays', 'the sweep');
my $partitions = q{SELECT count(*) FROM pg_inherits WHERE inhparent = 'swarm._job_history'::regclass};
sql(q{CREATE TABLE swarm._job_history_20010203 (LIKE swarm._job_history);
	ALTER TABLE swarm._job_history ATTACH PARTITION swarm._job_history_20010203 FOR VALUES FROM ('2001-02-03 00:00:00 UTC') TO ('2001-02-04 00:00:00 UTC')});
is(sql($partitions), '1', 'an old partition of the history');
sql($command{history});
ok(sql($partitions) >= 2, '... those of today and tomorrow are made');
is(sql(q{SELECT to_regclass('swarm._job_history_20010203') IS NULL}), 't', '... and the old one is gone');
sql($command{history});
is(sql(q{SELECT count(*) FROM pg_stats WHERE tablename = '_memory'}), '0', 'no statistics');
sql($command{statistics});
is(sql(q{SELECT count(*) > 0 FROM pg_stats WHERE tablename = '_memory'}), 't', '... which are made');

is(sql('SELECT swarm.maintenance_unschedule()'), '3', 'taken out');
is(sql('SELECT swarm.maintenance_unschedule()'), '0', '... once');
is(sql('SELECT jobname FROM cron.job'), 'mine', '... and no other job');
sql('CREATE ROLE somebody');
sql_fails($node, 'SET ROLE somebody; SELECT swarm.maintenance_schedule()', qr/42501/, 'not for everybody');
sql_fails($node, 'SET ROLE somebody; SELECT swarm._job_history_maintain()', qr/42501/, '... nor what it calls');

$node->stop;
done_testing();
