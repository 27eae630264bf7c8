# The cache of memory and what is known in shared memory, where something unusual
# happens: TRUNCATE rolled back, COPY and MERGE, parallel workers, tables that are
# rewritten, dropped databases, processes that end in the middle, a tiny cache.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "max_parallel_workers = 8\nautovacuum = off");
my $T = "$PostgreSQL::Test::Utils::timeout_default s";

sub sql { return $node->safe_psql($_[1] || 'postgres', $_[0]) }

# is_now(KEY, VALUE, NAME): what is read, twice: from the table and from the cache,
# perhaps; the table agrees.
sub is_now
{
	my ($key, $value, $name) = @_;
	my $get = "SELECT coalesce(swarm.memory_get('n', '$key')::text, 'none')";

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(sql("$get; $get"), "$value\n$value", $name);
	return is(sql("SELECT coalesce((SELECT value::text FROM swarm._memory WHERE key = '$key'), 'none')"), $value, '... and it is so in the table');
}

sql(q{SELECT swarm.namespace_create('n'), swarm.namespace_create('full', max_entries => 3)});
my $row = q{(SELECT id FROM swarm._namespace WHERE name = '%s'), '%s', 1, now(), now(), 5, 10, '{}', '%s'};
my $columns = 'namespace, key, version, created_at, updated_at, size, owner, tags, value';

# TRUNCATE, taken back: values and limits are those of before.
sql(q{SELECT swarm.memory_store('n', 'k', '"old"')});
is_now('k', '"old"', 'stored');
for my $way ([ 'savepoint', 'SAVEPOINT s;', 'ROLLBACK TO s; COMMIT' ], [ 'transaction', '', 'ROLLBACK' ])
{
	sql(q{SELECT swarm.memory_clear('full'), swarm.memory_store_many('full', '{"a": 1, "b": 1, "c": 1}')});
	is(sql(qq{BEGIN; $way->[1] TRUNCATE swarm._memory; SELECT swarm.memory_store('full', 'x', '1'); SELECT coalesce(swarm.memory_get('n', 'k')::text, 'none'); $way->[2]}),
		"1\nnone", "$way->[0]: TRUNCATE is seen by who does it");
	is_now('k', '"old"', '... and was taken back');
	sql_fails($node, q{SELECT swarm.memory_store('full', 'd', '1')}, qr/53400/, '... the limit counts what is there again');
}
is(sql(q{BEGIN; TRUNCATE swarm._memory; SELECT swarm.memory_store('full', 'x', '1'); COMMIT; SELECT swarm.memory_store_many('full', '{"a": 1, "b": 1}')}), "1\n2", 'after a TRUNCATE there is room');
sql_fails($node, q{SELECT swarm.memory_store('full', 'd', '1')}, qr/53400/, '... until it is full');

# Rows written past the functions, before there is a count, and taken back
sql(q{SELECT swarm.namespace_create('direct', max_entries => 3)});
sql("BEGIN; INSERT INTO swarm._memory ($columns) VALUES (" . sprintf($row, 'direct', 'd1', 1) . '), (' . sprintf($row, 'direct', 'd2', 1)
	  . q{); SELECT swarm.memory_store('direct', 'x', '1'); ROLLBACK});
is(sql(q{SELECT swarm.memory_store_many('direct', '{"a": 1, "b": 1, "c": 1}')}), '3', 'what was taken back is not counted');
sql_fails($node, q{SELECT swarm.memory_store('direct', 'd', '1')}, qr/53400/, '... what is there is');

# COPY, MERGE, a foreign key that cascades
sql(q{SELECT swarm.memory_store('n', 'k', '"stored"')});
is_now('k', '"stored"', 'before');
sql("MERGE INTO swarm._memory m USING (VALUES ('k')) v (key) ON m.key = v.key AND m.namespace = (SELECT id FROM swarm._namespace WHERE name = 'n') WHEN MATCHED THEN UPDATE SET value = '\"merged\"'");
is_now('k', '"merged"', 'MERGE');
sql(q{DELETE FROM swarm._memory WHERE key = 'k'});
is_now('k', 'none', 'DELETE');
my $id = sql(q{SELECT id FROM swarm._namespace WHERE name = 'n'});
sql("COPY swarm._memory ($columns) FROM stdin;\n" . join("\t", $id, 'k', 1, 'now', 'now', 5, 10, '{}', '"copied"') . "\n\\.\n");
is_now('k', '"copied"', 'COPY');
sql(q{CREATE TABLE parent (key text COLLATE "C" PRIMARY KEY); INSERT INTO parent VALUES ('k');
	ALTER TABLE swarm._memory ADD CONSTRAINT child FOREIGN KEY (key) REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE NOT VALID});
is_now('k', '"copied"', 'with a foreign key');
sql(q{SELECT swarm.memory_store('n', 'k', '"again"')});
is_now('k', '"again"', '... it is stored');
sql(q{UPDATE parent SET key = 'moved'});
is_now('k', 'none', 'ON UPDATE CASCADE: the old key is gone');
is_now('moved', '"again"', '... the new one is there');
sql(q{DELETE FROM parent});
is_now('moved', 'none', 'ON DELETE CASCADE');
sql(q{ALTER TABLE swarm._memory DROP CONSTRAINT child; DROP TABLE parent});

# Rewritten tables. What entries are made of cannot be changed by that: a view depends on it.
sql(q{SELECT swarm.memory_store('n', 'k', '"rewritten"')});
is_now('k', '"rewritten"', 'before');
for my $statement ('VACUUM FULL swarm._memory', 'CLUSTER swarm._memory USING _memory_pkey', 'REINDEX TABLE swarm._memory')
{
	sql($statement);
	is_now('k', '"rewritten"', $statement);
	sql(qq{SELECT swarm.memory_store('n', 'k', '"$statement"')});
	is_now('k', qq{"$statement"}, '... stored after it');
	sql(q{SELECT swarm.memory_store('n', 'k', '"rewritten"')});
}
sql_fails($node, q{ALTER TABLE swarm._memory ALTER value TYPE jsonb USING '1'}, qr/0A000/, 'ALTER TABLE cannot change a value');

# A parallel worker does not know what its leader has written: where somebody lets one
# ask, by a wrong mark on a function, it answers with an error.
sql(q{CREATE FUNCTION get_anywhere(k text) RETURNS jsonb LANGUAGE plpgsql VOLATILE PARALLEL SAFE COST 10000 AS $$ BEGIN RETURN swarm.memory_get('n', k); END $$;
	CREATE TABLE many AS SELECT 'k' AS key FROM generate_series(1, 1000); ALTER TABLE many SET (parallel_workers = 2); ANALYZE many});
my (undef, $out, $err) = $node->psql('postgres', q{
SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET parallel_leader_participation = off;
BEGIN;
SELECT swarm.memory_store('n', 'k', '"own"') \g /dev/null
SELECT DISTINCT get_anywhere(key) FROM many;
ROLLBACK});
like("$out$err", qr/^"own"$|cannot use a memory namespace in a parallel worker/, 'a worker says nothing that is not so');
is_now('k', '"rewritten"', '... and fills nothing with it');

# A database that is dropped: another one with its OID, made of a template, has
# tables with the same OIDs, too. Nothing of the old one is found there.
sql(q{CREATE DATABASE template});
sql(q{CREATE EXTENSION pg_swarm; SELECT swarm.namespace_create('n', max_entries => 2)}, 'template');

sub drop_database
{
	my ($db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(until_true(sub { my ($rc) = $node->psql('postgres', "DROP DATABASE $db WITH (FORCE)"); return $rc == 0 }), "$db is dropped");
}

sub create_database
{
	my ($db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(until_true(sub { my ($rc) = $node->psql('postgres', "CREATE DATABASE $db OID 900001 TEMPLATE template"); return $rc == 0 }), "$db is made");
}
create_database('one');
is(sql(q{SELECT swarm.memory_store_many('n', '{"k": "a secret", "l": 1}'); SELECT swarm.memory_get('n', 'k'); SELECT swarm.memory_get('n', 'k')}, 'one'), qq{2\n"a secret"\n"a secret"}, '... and used');
sql_fails($node, q{DROP DATABASE postgres}, qr/55006/, 'a DROP that fails');
my $hits = sql(q{SELECT hits FROM swarm.stat_cache});
sql(q{SELECT swarm.memory_get('n', 'k'); SELECT swarm.memory_get('n', 'k')});
is(sql(qq{SELECT hits > $hits FROM swarm.stat_cache}), 't', '... leaves the cache in use');
drop_database('one');
create_database('two');
is(sql(q{SELECT swarm.memory_get('n', 'k') IS NULL}, 'two'), 't', 'another one with the same OID: nothing of the first');
is(sql(q{SELECT swarm.memory_store_many('n', '{"k": 1, "l": 2}')}, 'two'), '2', '... is counted');
sql_fails($node, q{SELECT swarm.memory_store('n', 'm', '1')}, qr/53400/, '... but what is there is', 'two');
drop_database('two');

# Processes that end in the middle of a commit: nothing was stored, and the cache stays in use.
sub in_use
{
	my ($name) = @_;
	my $before = sql(q{SELECT hits FROM swarm.stat_cache});

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql(q{SELECT swarm.memory_get('n', 'k'); SELECT swarm.memory_get('n', 'k')});
	return is(sql(qq{SELECT hits > $before FROM swarm.stat_cache}), 't', $name);
}

# those() and what they wait for
sub those { return "FROM pg_stat_activity WHERE query ~ '$_[0]' AND pid <> pg_backend_pid()" }

sub is_there
{
	my ($what, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, 'SELECT count(*) ' . those($what) . q{ AND state = 'active' AND wait_event IS NOT NULL}, $name, '1');
}

for my $how ('cancel', 'terminate')
{
	sql(q{SELECT swarm._fault_arm('memory.commit', 'wait')});
	my $writer = start_psql($node, qq{SELECT swarm.memory_store('n', 'k', '"$how"')});
	is_there('memory_store', "$how: one is committing");
	is_now('k', '"rewritten"', '... which nobody sees');
	sql("SELECT pg_${how}_backend(pid) " . those('memory_store'));
	finish_psql($writer);
	sql(q{SELECT swarm._fault_arm(NULL)});
	is_now('k', '"rewritten"', '... nothing was stored');
	in_use('... the cache is in use');
}

# One that is killed while it holds a lock of the cache
sql(q{SELECT swarm.memory_store('n', 'k', '"logged"')});
my $crashes = crash_is_over($node);
$node->psql('postgres', q{SELECT swarm._fault_arm('memory.fill', 'kill'); SELECT swarm.memory_get('n', 'k')});
ok(crash_is_over($node, $crashes), 'killed while it fills the cache');
is_now('k', '"logged"', '... what is logged is there');
in_use('... and cached again');

# Results of queries: one computes, and the next does if that one fails.
sql(q{CREATE SEQUENCE calls;
	CREATE FUNCTION compute() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
		PERFORM pg_advisory_xact_lock_shared(99);
		IF current_setting('test.fail', true) = 'yes' THEN RAISE EXCEPTION 'failed'; END IF;
		RETURN nextval('calls');
	END $$});
my $n = 0;
for my $how ('fails', 'is cancelled', 'is terminated')
{
	my $lock = start_psql($node);
	my $end = $how eq 'is cancelled' ? 'cancel' : 'terminate';

	say_psql($lock, 'SELECT pg_advisory_lock(99);');
	my $first = start_psql($node, ($how eq 'fails' ? "SET test.fail = 'yes';\n" : '') . "SELECT 'first', swarm.cached('n', '$how', 'SELECT compute() AS n')");
	is_there('SELECT .first', "one computes, and $how");
	my $second = start_psql($node, "SELECT 'second', swarm.cached('n', '$how', 'SELECT compute() AS n')");
	poll_ok($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND mode = 'ExclusiveLock'}, '... another waits for it', '1');
	sql("SELECT pg_${end}_backend(pid) " . those('SELECT .first')) if $how ne 'fails';
	say_psql($lock, 'SELECT pg_advisory_unlock(99);');
	like(finish_psql($first), qr/ERROR|FATAL/, '... it ends');
	$n++;
	is(finish_psql($second), qq{second|[{"n": $n}]\n}, '... and the other computes');
	is(sql("SELECT swarm.cached('n', '$how', 'SELECT compute() AS n')"), qq{[{"n": $n}]}, '... for all');
	finish_psql($lock);
}

# Waiting: many at once, each for his own; a right that is taken away meanwhile.
sub all_wait
{
	my ($count) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, 'SELECT count(*) ' . those('memory_wait') . q{ AND wait_event_type = 'Extension' AND state = 'active'}, "$count wait", $count);
}

for my $key ('w0', 'w1')
{
	my @waiting = map { start_psql($node, "SELECT value FROM swarm.memory_wait('n', '$key', NULL)") } 1 .. 10;

	all_wait(10);
	sql(q{SELECT swarm.memory_store('n', 'another', '1')});
	all_wait(10);
	sql("SELECT swarm.memory_store('n', '$key', '1')");
	is(join('', map { finish_psql($_) } @waiting), "1\n" x 10, 'all are woken');
}
sql(q{CREATE ROLE reader; SELECT swarm.namespace_grant('n', 'reader', 'read')});
my $reader = start_psql($node, "SET ROLE reader;\nSELECT value FROM swarm.memory_wait('n', 'secret', NULL)");
all_wait(1);
sql(q{SELECT swarm.namespace_revoke('n', 'reader'); SELECT swarm.memory_store('n', 'secret', '"a secret"')});
my $answer = finish_psql($reader);
like($answer, qr/permission denied for namespace "n"/, 'who has lost the right meanwhile is told so');
unlike($answer, qr/a secret/, '... and not what was stored');

# Without places for prepared transactions the server says so, not we.
$node->append_conf('postgresql.conf', 'max_prepared_transactions = 0');
$node->restart;
sql_fails($node, q{BEGIN; SELECT swarm.memory_store('n', 'k', '1'); PREPARE TRANSACTION 'p'}, qr/55000.*max_prepared_transactions/s, 'prepared transactions are disabled');
is_now('k', '"logged"', '... nothing was stored');

$node->stop;
done_testing();
