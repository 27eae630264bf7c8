# Workers end at random while thousands of jobs run, are cancelled and retried:
# each job has one end, and one effect if that end is "completed", else none.  The jobs
# are of four roles, and there are sometimes fewer runners than those.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

use constant ROUNDS => 40;
use constant JOBS => 100;

my $seed = $ENV{SWARM_SEED} || int rand 1e6;
srand $seed;
note "SWARM_SEED=$seed repeats the choices";

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.max_runners = 6
pg_swarm.runner_idle_timeout = '20ms'
X

work_table($node);
$node->safe_psql('postgres', q{
CREATE ROLE regress_stress_1; CREATE ROLE regress_stress_2; CREATE ROLE regress_stress_3;
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;
CREATE FUNCTION many(n int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE parent bigint;
BEGIN
    FOR i IN 1 .. n LOOP
        IF i % 10 = 1 THEN
            PERFORM set_config('role', (ARRAY['none', 'regress_stress_1', 'regress_stress_2', 'regress_stress_3'])[1 + floor(random() * 4)::int], true);
        END IF;
        IF i % 10 = 0 THEN
            PERFORM swarm.job_enqueue('work', depends_on => ARRAY[parent], max_attempts => 1000);
        ELSE
            parent := swarm.job_enqueue('work',
                jsonb_build_object('sleep', CASE WHEN i % 3 = 0 THEN 0.005 ELSE 0 END, 'fail', CASE WHEN i % 11 = 0 THEN 1 ELSE 0 END),
                queue => (ARRAY['default', 'batched', 'limited'])[1 + i % 3],
                priority => (enum_range(NULL::swarm.priority))[1 + i % 4],
                max_attempts => 1000,
                run_at => now() + CASE WHEN i % 13 = 0 THEN interval '30 ms' ELSE '0' END,
                unique_key => CASE WHEN i % 7 = 0 THEN gen_random_uuid()::text END);
        END IF;
    END LOOP;
END $$;
SELECT swarm.queue_create('batched', batch => 8), swarm.queue_create('limited', max_running => 2)});

# what is done between two rounds of enqueueing; one line is chosen
my @trouble = (
	(q{SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role = 'runner' AND job IS NOT NULL ORDER BY random() LIMIT 2}) x 5,
	(q{SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role = 'runner' ORDER BY random() LIMIT 1}) x 3,
	(q{SELECT pg_cancel_backend(pid) FROM swarm.workers WHERE role = 'runner' ORDER BY random() LIMIT 1}) x 2,
	(q{SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role = 'scheduler'}) x 2,
	q{SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role <> 'launcher'},
	q{SELECT swarm._fault_arm('job.commit', 'error', 3, 2)},
	q{SELECT swarm._fault_arm('job.claimed', 'fatal', 5, 1)},
	q{SELECT swarm._fault_arm('job.end', 'error', 2, 3)},
	q{SELECT swarm.queue_pause('batched'), pg_sleep(0.02), swarm.queue_resume('batched')},
	(map { "ALTER SYSTEM SET pg_swarm.max_runners = $_; SELECT pg_reload_conf()" } 1 .. 6),
	(q{SELECT count(swarm.job_cancel(id)) FROM (SELECT id FROM swarm.jobs WHERE finished_at IS NULL ORDER BY random() LIMIT 5) s}) x 3,
	(q{SELECT swarm.job_retry(id) FROM (SELECT id FROM swarm.jobs WHERE state = 'cancelled' ORDER BY random() LIMIT 3) s}) x 2,
	q{BEGIN; DROP EXTENSION pg_swarm CASCADE; ROLLBACK});

my $begin = time;
my $jobs = 0;
my $two = start_psql($node, q{SELECT many(20), pg_sleep(0.05) FROM generate_series(1, 40)});
$jobs += 40 * 20;
for my $round (1 .. ROUNDS)
{
	my $trouble = $trouble[ rand @trouble ];

	$node->safe_psql('postgres', 'SELECT many(' . JOBS . ')');
	$jobs += JOBS;
	# what was chosen may be gone by then, so failing is allowed
	$node->psql('postgres', $trouble);
	last if time - $begin > 8;
}
unlike(finish_psql($two), qr/ERROR/, 'a second session has enqueued all the while');
$node->safe_psql('postgres', q{SELECT swarm._fault_arm(NULL)});

jobs_end($node, 'all jobs end');
note states($node);
is($node->safe_psql('postgres', q{SELECT count(DISTINCT id) FROM swarm.job_history}), $jobs, 'no job is lost');
is( $node->safe_psql('postgres', q{
SELECT count(*) FROM (SELECT id FROM swarm.job_history WHERE state <> 'cancelled' GROUP BY id HAVING count(*) > 1) s}),
	'0', 'none has two ends');
is( $node->safe_psql('postgres', q{
SELECT count(*) FROM swarm.job_history h WHERE state = 'completed' AND (SELECT count(*) FROM work WHERE job = h.id) <> 1}),
	'0', 'what is completed took effect once');
is( $node->safe_psql('postgres', q{
SELECT count(*) FROM work w WHERE NOT EXISTS (SELECT FROM swarm.job_history h WHERE h.id = w.job AND h.state = 'completed')}),
	'0', 'what is not completed had no effect');
is($node->safe_psql('postgres', q{SELECT count(*) FROM swarm.job_history WHERE state NOT IN ('completed', 'cancelled')}), '0', 'none is dead');
is( $node->safe_psql('postgres', q{
SELECT (SELECT count(*) FROM swarm._job_attempt), (SELECT count(*) FROM swarm._job_dep), (SELECT count(*) FROM swarm._job_key)}),
	'0|0|0', 'nothing is left over');
# memory is told after the commit of the last end, which has been seen
poll_ok($node, q{SELECT (SELECT count(*) FROM swarm._job_running()), (SELECT sum(running + ready) FROM swarm.queues)}, '... in memory neither', '0|0');
is(crash_is_over($node), 0, 'and the server has not crashed');
answers($node, 'the queue is in order');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');

$node->stop;
done_testing();
