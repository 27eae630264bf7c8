# The fold by a runner: rows that inserts leave pending are linked soon after the
# commit, in the right database, and nobody has to wait for it.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = hnsw_cluster('main', conf => <<'X');
pg_swarm.databases = ''
qhnsw.flush_after = 200
log_min_messages = debug1
X
my $id = 10000;
my $idle = q{SELECT detail FROM swarm.health() WHERE name = 'chores'};
my $serving = q{SELECT detail = 'this database is serving' FROM swarm.health() WHERE name = 'database served'};
my $running = q{SELECT chore || ' ' || chore_object::regclass FROM swarm.workers WHERE chore IS NOT NULL};
my $folds = q{SELECT count(*) FROM swarm.workers WHERE chore = 'fold'};

# more(TABLE, N): SQL that inserts N rows
sub more
{
	my ($t, $n) = @_;
	my $from = $id + 1;

	$id += $n;
	return "INSERT INTO $t SELECT i, vec(i) FROM generate_series($from, $id) i";
}

# pending(TABLE): SQL, how many rows are
sub pending
{
	my ($t) = @_;

	return "SELECT pending FROM swarm.qhnsw_stats('${t}_e')";
}

# fault(POINT, ACTION, SKIP): arm it for once; without arguments, disarm
sub fault
{
	my ($point, $action, $skip) = @_;

	$node->safe_psql('postgres', $point ? "SELECT swarm._fault_arm('$point', '$action', $skip, 1)" : 'SELECT swarm._fault_arm(NULL)');
	return;
}

# no_chore(NAME, DATABASE): a test that nothing is asked for and nothing runs
sub no_chore
{
	my ($name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, $idle, $name, 'background work on 0 objects, failing on 0', $db);
}

poll_sql($node, $serving);

# --- linked without VACUUM ---

hnsw_table($node, 'a', 500, '');
$node->safe_psql('postgres', more('a', 128));
is($node->safe_psql('postgres', pending('a')), '126', 'a few rows stay pending');
no_chore('... and nobody is told');
$node->safe_psql('postgres', more('a', 128));
poll_ok($node, pending('a'), 'more are linked', '0');
no_chore('... and that is all');
$node->safe_psql('postgres', join(';', map { more('a', 1) } 1 .. 320));
poll_ok($node, pending('a') =~ s/pending/pending <= 200/r, 'row by row');
$node->safe_psql('postgres', more('a', 5000));
poll_ok($node, pending('a'), 'in several pieces', '0');
same_rows($node, 'a', 'linked by a runner');
$node->safe_psql('postgres', 'SET qhnsw.flush_after = -1;' . more('a', 640));
is($node->safe_psql('postgres', pending('a')), '630', 'flush_after = -1');
$node->safe_psql('postgres', 'SET qhnsw.flush_after = 0;' . more('a', 3));
poll_ok($node, pending('a'), 'flush_after = 0', '0');

# An index that was empty: it gets its first centre from the rows of the table.
hnsw_table($node, 'grown', 0, 'quantizer = rabitq4');
$node->safe_psql('postgres', more('grown', 3000));
poll_ok($node, pending('grown'), 'an index that was empty', '0');
is($node->safe_psql('postgres', q{SELECT trained > 0 FROM swarm.qhnsw_stats('grown_e')}), 't', '... has a centre');
same_rows($node, 'grown', 'an index that was empty');

# --- transactions ---

$node->safe_psql('postgres', 'BEGIN;' . more('a', 300) . '; ROLLBACK');
$node->safe_psql('postgres', 'BEGIN; SAVEPOINT s;' . more('a', 10) . '; ROLLBACK TO s; COMMIT');
no_chore('rolled back: nobody is told');
cmp_ok($node->safe_psql('postgres', pending('a')), '>', 200, '... and the rows are pending');
same_rows($node, 'a', 'rolled back');
my $b = start_psql($node);
say_psql($b, 'BEGIN; SAVEPOINT s;' . more('a', 3) . '; RELEASE s');
no_chore('nobody is told before the commit');
say_psql($b, 'COMMIT');
finish_psql($b);
poll_ok($node, pending('a'), 'with the commit all are linked', '0');
same_rows($node, 'a', 'rolled back and linked');
$node->safe_psql('postgres', 'BEGIN;' . more('a', 300) . q{; PREPARE TRANSACTION 'p'});
poll_ok($node, pending('a'), 'a prepared transaction', '0');
$node->safe_psql('postgres', q{COMMIT PREPARED 'p'});
same_rows($node, 'a', 'a prepared transaction');
$node->safe_psql('postgres', 'CREATE TEMP TABLE t (id bigint, e real[]); CREATE INDEX t_e ON t USING qhnsw (e);' . more('t', 300));
no_chore('a temporary table is its session\'s own business');

# --- what is shown ---

$node->safe_psql('postgres', 'CREATE ROLE lender; CREATE TABLE owned (id bigint PRIMARY KEY, e real[]); ALTER TABLE owned OWNER TO lender; CREATE INDEX owned_e ON owned USING qhnsw (e)');
fault('hnsw.fold', 'wait', 10);
$node->safe_psql('postgres', more('owned', 250));
poll_ok($node, $running, 'swarm.workers shows it', 'fold owned_e');
is($node->safe_psql('postgres', q{SELECT a.query FROM pg_stat_activity a JOIN swarm.workers w USING (pid) WHERE w.chore IS NOT NULL}),
	'fold of index owned_e', 'so does pg_stat_activity');
is($node->safe_psql('postgres', $idle), 'background work on 1 objects, failing on 0', 'health() counts it');
$node->safe_psql('postgres', more('owned', 1)) for 1 .. 5;
is($node->safe_psql('postgres', $idle), 'background work on 1 objects, failing on 0', '... once');
is($node->safe_psql('postgres', q{SELECT string_agg(relation::regclass || ' ' || mode, ', ') FROM pg_locks WHERE relation IN ('owned'::regclass, 'owned_e'::regclass) AND locktype = 'relation'}),
	'owned_e ShareUpdateExclusiveLock', 'it locks the index only');
answers($node, 'a job is run meanwhile');
fault();
poll_ok($node, pending('owned'), '... then the fold goes on', '0');
no_chore('... to its end');

# --- two databases ---

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION pg_swarm');
hnsw_functions($node, 'other');
poll_ok($node, $serving, 'another database', 't', 'other');
$node->safe_psql('other', 'CREATE TABLE a (id bigint PRIMARY KEY, e real[]); CREATE INDEX a_e ON a USING qhnsw (e)');
$node->safe_psql('postgres', 'SET qhnsw.flush_after = -1;' . more('a', 320));
$node->safe_psql('other', more('a', 300));
poll_ok($node, pending('a'), '... has its rows linked', '0', 'other');
is($node->safe_psql('postgres', pending('a')), '315', '... and its alone');

# --- nobody waits ---

# in_the_way(TABLE, SQL, NAME): it ends though a fold is under way.  The fold stands
# at a fault point until the command waits for it, and meets it at the next row.
sub in_the_way
{
	my ($table, $sql, $name) = @_;

	hnsw_table($node, $table, 300, '');
	fault('hnsw.fold', 'wait', 20);
	$node->safe_psql('postgres', more($table, 1000));
	poll_sql($node, $folds, '1');
	poll_sql($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'page' AND mode = 'ExclusiveLock'}, '1');
	my $session = start_psql($node, $sql);
	poll_sql($node, q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted});
	fault();
	is(finish_psql($session), '', $name);
	like(slurp_file($node->logfile), qr/fold gives way to a command that locks relation "${table}_e"/, "$name: the fold gave way");
	return;
}

in_the_way('dropped', 'DROP TABLE dropped', 'DROP TABLE');
in_the_way('no_index', 'DROP INDEX no_index_e', 'DROP INDEX');
in_the_way('again', 'REINDEX INDEX again_e', 'REINDEX');
in_the_way('also', 'REINDEX INDEX CONCURRENTLY also_e', 'REINDEX CONCURRENTLY');
in_the_way('emptied', 'TRUNCATE emptied', 'TRUNCATE');
in_the_way('renamed', 'ALTER INDEX renamed_e SET (ef_search = 100)', 'ALTER INDEX');

# While it reads the rows of the table, for a new centre, it holds that too.
for my $command ('DROP TABLE', 'VACUUM')
{
	my $t = $command eq 'VACUUM' ? 'centred' : 'uncentred';

	hnsw_table($node, $t, 0, 'quantizer = rabitq4');
	fault('hnsw.train.recode', 'wait', 20);
	$node->safe_psql('postgres', more($t, 3000));
	poll_sql($node, qq{SELECT string_agg(mode, ',') FROM pg_locks WHERE relation = '$t'::regclass}, 'ShareUpdateExclusiveLock');
	my $session = start_psql($node, "$command $t");
	poll_sql($node, q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted});
	fault();
	is(finish_psql($session), '', "$command while rows are coded anew");
	like(slurp_file($node->logfile), qr/fold gives way to a command that locks relation "$t"/, '... the fold gave way');
}
poll_ok($node, pending('renamed'), '... and the fold is taken up again', '0');
same_rows($node, $_, "$_: afterwards") for 'renamed', 'again', 'also', 'centred';
no_chore('what was dropped is forgotten');

# VACUUM, inserts and searches do not conflict with it.
$node->safe_psql('postgres', 'VACUUM a');
fault('hnsw.fold', 'wait', 20);
$node->safe_psql('postgres', more('a', 1000));
poll_sql($node, $running, 'fold a_e');
$node->safe_psql('postgres', 'SET qhnsw.pending_list_limit = 64;' . more('a', 2000));
cmp_ok($node->safe_psql('postgres', pending('a')), '>', 2000, 'an insert leaves the fold to the runner');
same_rows($node, 'a', 'while a runner folds');
my $vacuum = start_psql($node, 'VACUUM a');
poll_sql($node, q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND locktype = 'page'});
fault();
is(finish_psql($vacuum), '', 'VACUUM waits for a piece only');
poll_ok($node, pending('a'), 'VACUUM and a runner', '0');
same_rows($node, 'a', 'VACUUM and a runner');
no_chore('... and that is all');

# Somebody has the index: later.
hnsw_table($node, 'locked', 300, '');
my $locker = start_psql($node);
say_psql($locker, 'BEGIN; ALTER INDEX locked_e SET (ef_search = 100)');
fault('chore.begin', 'wait', 0);
$node->safe_psql('postgres', more('locked', 320));
poll_sql($node, q{SELECT count(*) FROM swarm.workers WHERE chore IS NOT NULL}, '1');
fault();
poll_ok($node, $folds, 'the index is locked: the runner is free', '0');
is($node->safe_psql('postgres', $idle), 'background work on 1 objects, failing on 0', '... and the fold waits');
say_psql($locker, 'COMMIT');
finish_psql($locker);
poll_ok($node, pending('locked'), '... and comes', '0');

# DROP EXTENSION and DROP DATABASE
fault('hnsw.fold', 'wait', 20);
$node->safe_psql('other', more('a', 1000));
poll_sql($node, $folds, '1');
is(sql_error($node, 'BEGIN; DROP EXTENSION pg_swarm CASCADE; ROLLBACK', 'other'), '', 'DROP EXTENSION, rolled back');
poll_ok($node, pending('a'), '... and the fold is taken up again', '0', 'other');
fault('hnsw.fold', 'wait', 20);
$node->safe_psql('other', more('a', 1000));
poll_sql($node, $folds, '1');
is(sql_error($node, 'DROP DATABASE other'), '', 'DROP DATABASE');
fault();

# --- failures ---

# an error: reported, shown, and tried again after a minute
fault('hnsw.fold', 'error', 20);
$node->safe_psql('postgres', more('a', 1000));
poll_ok($node, $idle, 'a fold that fails', 'background work on 1 objects, failing on 1');
is($node->safe_psql('postgres', q{SELECT ok FROM swarm.health() WHERE name = 'chores'}), 'f', '... is shown');
like(slurp_file($node->logfile), qr/fault point "hnsw.fold".*background work "fold" on object/s, '... and reported');
same_rows($node, 'a', '... half done');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('2 min')});
poll_ok($node, pending('a'), '... and tried again', '0');
no_chore('... with success');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});

# the runner is terminated, and cancelled
for my $how ('terminate', 'cancel')
{
	fault('hnsw.fold', 'wait', 20);
	$node->safe_psql('postgres', more('a', 1000));
	poll_sql($node, $running, 'fold a_e');
	$node->safe_psql('postgres', "SELECT pg_${how}_backend(pid) FROM swarm.workers WHERE chore IS NOT NULL");
	poll_ok($node, pending('a'), "$how the runner: the fold is taken up again", '0');
	no_chore("... to the end");
}
answers($node, 'jobs are run');

# kill -9 in the middle
my $crashes = crash_is_over($node);
fault('hnsw.fold', 'kill', 100);
$node->psql('postgres', more('a', 1000));
ok(crash_is_over($node, $crashes), 'a runner is killed in a fold');
same_rows($node, 'a', 'after the crash');
cmp_ok($node->safe_psql('postgres', pending('a')), '>', 200, '... rows are pending');
poll_sql($node, $serving);
no_chore('... and nobody knows');
$node->safe_psql('postgres', more('a', 3));
poll_ok($node, pending('a'), '... until the next insert', '0');
same_rows($node, 'a', 'after the crash and a fold');

# shutdown in the middle
fault('hnsw.fold', 'wait', 100);
$node->safe_psql('postgres', more('a', 1000));
poll_sql($node, $running, 'fold a_e');
$node->stop('fast');
$node->start;
same_rows($node, 'a', 'after a shutdown while folding');
poll_sql($node, $serving);
$node->safe_psql('postgres', more('a', 3));
poll_ok($node, pending('a'), '... linked with the next insert', '0');

# --- few processes ---

# without a runner of its own: the scheduler folds, and job and fold take turns
$node->append_conf('postgresql.conf', "max_worker_processes = 2\nmax_logical_replication_workers = 0\n");
$node->restart;
poll_sql($node, $serving);
$node->safe_psql('postgres', more('a', 2000));
answers($node, 'in the scheduler: a job');
poll_ok($node, pending('a'), '... and a fold', '0');

$node->append_conf('postgresql.conf', "max_worker_processes = 8\npg_swarm.min_runners = 0\n");
$node->restart;
poll_sql($node, $serving);
$node->safe_psql('postgres', more('a', 500));
poll_ok($node, pending('a'), 'a runner is started for it', '0');

# not preloaded: nothing is asked for
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->restart;
$node->safe_psql('postgres', 'SET qhnsw.flush_after = 0;' . more('a', 320));
is($node->safe_psql('postgres', pending('a')), '315', 'without preloading the rows wait for VACUUM');
same_rows($node, 'a', 'in the end');

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|signal 11/, 'no crash but the one that was asked for');
done_testing();
