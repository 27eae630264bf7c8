# Jobs in prepared transactions: nothing runs before COMMIT PREPARED, all of it
# after, also across restarts and crashes; likewise settings, and the extension
# itself.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main');
my $live = 'SELECT count(*) FROM swarm._job';

work_table($node);

# Enqueue: a job, one for later, a parent and its child, a unique key.
sub prepare
{
	my ($name) = @_;

	$node->safe_psql('postgres', qq{
BEGIN;
SELECT swarm.job_enqueue('work', unique_key => '$name') AS parent \\gset
SELECT swarm.job_enqueue('work', depends_on => ARRAY[:parent]);
SELECT swarm.job_enqueue('work', run_at => now() + '50 ms');
SAVEPOINT s;
SELECT swarm.job_enqueue('work');
ROLLBACK TO s;
PREPARE TRANSACTION '$name'});
	return;
}

prepare('commit');
prepare('rollback');
answers($node, 'others go on');
is($node->safe_psql('postgres', $live), '0', 'a prepared transaction shows nothing');
$node->safe_psql('postgres', q{COMMIT PREPARED 'commit'});
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed' AND kind = 'work'}, 'COMMIT PREPARED: its jobs run', '3');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'rollback'});
is($node->safe_psql('postgres', $live), '0', 'ROLLBACK PREPARED: nothing');
once_each($node, 3, '... ever');
is($node->safe_psql('postgres', q{SELECT count(*) FROM swarm._job_key}), '0', 'no unique key is held');

# A later job with the same key waits for the prepared one.
prepare('key');
my $second = start_psql($node, q{SELECT 'id ' || swarm.job_enqueue('work', unique_key => 'key')});
poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'}, 'the same unique key waits', '1');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'key'});
like(finish_psql($second), qr/^id \d+$/, '... and is taken after ROLLBACK PREPARED');
jobs_end($node, '... and its job runs');
once_each($node, 4, '... once');

# Across a restart and a crash.
my $n = 4;
for my $mode (qw(fast immediate))
{
	prepare("c $mode");
	prepare("r $mode");
	$node->stop($mode);
	$node->start;
	answers($node, "$mode stop: work goes on");
	is($node->safe_psql('postgres', $live), '0', "$mode stop: a prepared transaction shows nothing");
	$node->safe_psql('postgres', "COMMIT PREPARED 'c $mode'");
	$node->safe_psql('postgres', "ROLLBACK PREPARED 'r $mode'");
	jobs_end($node, "$mode stop: the jobs of the committed one run");
	$n += 3;
	once_each($node, $n, '... each once');
}

# Committed while nobody looks: the scheduler is starting.
prepare('unseen');
$node->safe_psql('postgres', q{
SELECT pg_terminate_backend(pid) FROM swarm.workers WHERE role = 'scheduler';
COMMIT PREPARED 'unseen'});
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed' AND kind = 'work'}, 'committed without a scheduler', $n + 3);
jobs_end($node, '... all of it');
$n += 3;
once_each($node, $n, '... each once');

# Two of them, committed in the other order.
prepare('first');
prepare('then');
$node->safe_psql('postgres', q{COMMIT PREPARED 'then'});
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed' AND kind = 'work'}, 'the second one is committed first', $n + 3);
$node->safe_psql('postgres', q{COMMIT PREPARED 'first'});
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state = 'completed' AND kind = 'work'}, '... then the first', $n + 6);
$n += 6;
once_each($node, $n, '... each once');

# A crash between the claim of such a job and its end.
prepare('crash');
my $crashes = crash_is_over($node);
# the crash may come before psql has its answer
$node->psql('postgres', q{SELECT swarm._fault_arm('job.commit', 'kill'); COMMIT PREPARED 'crash'});
ok(crash_is_over($node, $crashes), 'crash in a job of a prepared transaction');
jobs_end($node, '... it is run again');
$n += 3;
once_each($node, $n, '... each once');

# Cancel, retry, settings.
my $later = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', run_at => now() + '1 day')});
$node->safe_psql('postgres', qq{BEGIN; SELECT swarm.job_cancel($later); PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x'});
is($node->safe_psql('postgres', "SELECT state FROM swarm.job_wait($later)"), 'cancelled', 'job_cancel() in a prepared transaction');
$node->safe_psql('postgres', qq{BEGIN; SELECT swarm.job_retry($later); PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x'});
is($node->safe_psql('postgres', "SELECT state FROM swarm.job_wait($later)"), 'completed', 'job_retry()');
$later = $node->safe_psql('postgres', q{SELECT swarm.job_enqueue('work', run_at => now() + '1 day')});
$node->safe_psql('postgres', qq{BEGIN; SELECT swarm.job_retry($later); PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x'});
is($node->safe_psql('postgres', "SELECT state FROM swarm.job_wait($later)"), 'completed', 'job_retry() of a scheduled job');

$node->safe_psql('postgres', q{
SELECT swarm.queue_create('q');
BEGIN; SELECT swarm.queue_pause('q'); PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x';
SELECT swarm.job_enqueue('work', queue => 'q')});
answers($node, 'the default queue goes on');
is($node->safe_psql('postgres', q{SELECT state FROM swarm.jobs WHERE queue = 'q'}), 'ready', 'queue_pause() in a prepared transaction');
$node->safe_psql('postgres', q{BEGIN; SELECT swarm.queue_resume('q'); PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x'});
jobs_end($node, 'queue_resume()');
$node->safe_psql('postgres', q{BEGIN; SELECT swarm.handler_register('new', NULL); PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x';
SELECT swarm.job_enqueue('new')});
is($node->safe_psql('postgres', q{SELECT kind FROM swarm.job_claim('default')}), 'new', 'handler_register()');

# The extension itself.
$node->safe_psql('postgres', 'CREATE DATABASE two');
$node->safe_psql('two', q{BEGIN; CREATE EXTENSION pg_swarm; PREPARE TRANSACTION 'x'});
$node->safe_psql('two', q{COMMIT PREPARED 'x'});
answers($node, 'CREATE EXTENSION in a prepared transaction', 'two');
$node->safe_psql('two', q{BEGIN; DROP EXTENSION pg_swarm; PREPARE TRANSACTION 'x'});
$node->safe_psql('two', q{ROLLBACK PREPARED 'x'});
answers($node, 'DROP EXTENSION rolled back', 'two');
$node->safe_psql('two', q{BEGIN; DROP EXTENSION pg_swarm; PREPARE TRANSACTION 'x'});
$node->safe_psql('two', q{COMMIT PREPARED 'x'});
poll_ok($node, workers('two'), 'DROP EXTENSION committed: no worker is left', '0');
is(sql_error($node, 'DROP DATABASE two'), '', 'DROP DATABASE');

is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), '0', 'no prepared transaction is left');
is($node->safe_psql('postgres', 'SELECT count(*) FROM swarm.health() WHERE NOT ok'), '0', 'health() has no complaint');
$node->stop;
done_testing();
