# More jobs than shared memory holds: the rest waits on disk, and all of them run,
# the critical ones first and the scheduled ones in time.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.job_slots = 1024
X

$node->safe_psql('postgres', q{
CREATE TABLE done (n bigserial, job bigint, what text);
CREATE FUNCTION done(j swarm.job) RETURNS void LANGUAGE sql AS
    $$ INSERT INTO done (job, what) VALUES (j.id, j.args->>'what') $$;
SELECT swarm.handler_register('done', 'public.done');
SELECT swarm.queue_create('batched', batch => 50), swarm.queue_create('side', batch => 50);
SELECT swarm.queue_pause('batched'), swarm.queue_pause('side')});

# 20,000 jobs in two queues, 3,000 for later, a chain of dependent ones, and in the
# end 40 critical ones: as many find room in memory when all else is full.
$node->safe_psql('postgres', q{
BEGIN;
SELECT count(swarm.job_enqueue('done', '{"what": "later"}', queue => 'batched', run_at => now() + '1 day')) FROM generate_series(1, 3000);
SELECT count(swarm.job_enqueue('done', '{"what": "many"}', queue => CASE WHEN i % 2 = 0 THEN 'batched' ELSE 'side' END)) FROM generate_series(1, 20000) i;
CREATE TEMP TABLE parent AS SELECT swarm.job_enqueue('done', '{"what": "parent"}', queue => 'batched') AS id FROM generate_series(1, 20);
SELECT count(swarm.job_enqueue('done', '{"what": "child"}', depends_on => ARRAY[id])) FROM parent;
COMMIT;
SELECT count(swarm.job_enqueue('done', '{"what": "critical"}', queue => 'batched', priority => 'critical')) FROM generate_series(1, 40)});
is(states($node), 'blocked 20, ready 20060, scheduled 3000', 'all are there');
is($node->safe_psql('postgres', q{SELECT ok, hint FROM swarm.health() WHERE name = 'memory'}),
	'f|Raise pg_swarm.job_slots if this lasts.', 'health() says that not all fit');
is( $node->safe_psql('postgres', q{
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', priority => 'critical') AS id \gset
SELECT state FROM swarm.job_wait(:id)}),
	'completed', 'a critical job of another queue is not locked out');

$node->safe_psql('postgres', q{SELECT swarm.queue_resume('batched'), swarm.queue_resume('side')});
poll_ok($node, q{SELECT count(*) FROM done WHERE what <> 'later'}, 'all that is due is run', '20080');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT job) FROM done'), '20080|20080', '... once');
cmp_ok($node->safe_psql('postgres', q{SELECT max(n) FROM done WHERE what = 'critical'}), '<', 10000, 'critical jobs did not wait for the rest');
is($node->safe_psql('postgres', q{SELECT count(*) FROM done c JOIN swarm.jobs j ON j.id = c.job
WHERE c.what = 'child' AND c.n < (SELECT min(n) FROM done WHERE what = 'parent')}), '0', 'children came after their parents');
is(states($node), 'completed 20081, scheduled 3000', 'those for later wait');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('25 hours')});
poll_ok($node, q{SELECT count(*) FROM done}, '... and run when their time has come', '23080');
jobs_end($node, 'nothing is left');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT job) FROM done'), '23080|23080', 'each was run once');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});
poll_ok($node, q{SELECT ok FROM swarm.health() WHERE name = 'memory'}, 'health() has no complaint');

# The same across a crash: the queue is read again from disk.
$node->safe_psql('postgres', q{
TRUNCATE done;
SELECT count(swarm.job_enqueue('done', '{"what": "many"}', queue => 'batched')) FROM generate_series(1, 5000)});
$node->stop('immediate');
$node->start;
jobs_end($node, 'all are run after a crash');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT job) FROM done'), '5000|5000', '... once');

$node->stop;
done_testing();
