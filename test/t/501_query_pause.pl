# A running statement is paused in every kind of plan node, gives the same result as
# without, and what ends a statement ends a paused one too.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use QueryTest;

my $node = swarm_cluster('main', conf => "autovacuum = off\nmax_connections = 30\n");
data_tables($node);
# reads table big by custom scans
my $custom = "LOAD '" . test_module('custom_scan') . "'; SET custom_scan.relation = 'big'";

# ---------------------------------------------------------------------------
# Every node.  A pause comes at the next request for a row, of whatever node; so
# who asks the node for rows is made to sleep between them, and nearly all pauses
# come there.  The statement is repeated until one has, and each result compared.
# ---------------------------------------------------------------------------

# node => [settings, rows with a number v, node where it is held if the name is not that]
my $joins = 'SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = off; ';
my $scans = 'SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = off; ';
my %nodes = (
	'Seq Scan' => [ '', 'SELECT g AS v FROM big WHERE id + 0 <= 300' ],
	'Index Scan' => [ "$scans SET enable_indexscan = on", 'SELECT g AS v FROM big WHERE id <= 300' ],
	'Index Only Scan' => [ "$scans SET enable_indexonlyscan = on", 'SELECT id AS v FROM big WHERE id <= 300' ],
	'Bitmap Heap Scan' => [ "$scans SET enable_bitmapscan = on", 'SELECT id AS v FROM big WHERE g IN (1, 2, 3) OR id < 200' ],
	'Tid Scan' => [ '', 'SELECT id AS v FROM big WHERE ctid = ANY (ARRAY(SELECT ctid FROM big LIMIT 300))' ],
	'Tid Range Scan' => [ '', q{SELECT id AS v FROM big WHERE ctid < '(3,0)'} ],
	'Sample Scan' => [ '', 'SELECT id AS v FROM big TABLESAMPLE system (100) WHERE id <= 300' ],
	'Function Scan' => [ '', 'SELECT v FROM generate_series(1, 300) v' ],
	'Values Scan' => [ '', 'SELECT v FROM (VALUES ' . join(',', map { "($_)" } 1 .. 300) . ') s (v)' ],
	'CTE Scan' => [ '', 'WITH a AS MATERIALIZED (SELECT id FROM big LIMIT 300) SELECT id AS v FROM a' ],
	'Recursive Union' => [ '', 'WITH RECURSIVE a(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM a WHERE v < 300) SELECT v FROM a WHERE v = 7 OR pg_sleep(0.001) IS NULL' ],
	'Subquery Scan' => [ '', 'SELECT v FROM (SELECT id AS v, row_number() OVER () AS r FROM big WHERE id <= 600) s WHERE r % 2 = 0' ],
	'Nested Loop' => [ '', 'SELECT a AS v FROM generate_series(1, 20) a, generate_series(1, 20) b' ],
	'Hash Join' => [ "$joins SET enable_hashjoin = on", 'SELECT a.id AS v FROM big a JOIN copy b ON a.id = b.id WHERE a.id <= 300' ],
	'Merge Join' => [ "$joins SET enable_mergejoin = on", 'SELECT a.id AS v FROM big a JOIN copy b ON a.id = b.id WHERE a.id <= 300' ],
	'Materialize' => [ "$joins SET enable_nestloop = on",
		'SELECT a.id AS v FROM (SELECT id FROM big LIMIT 10) a JOIN (SELECT id FROM big LIMIT 30) b ON a.id = b.id OR pg_sleep(0.001) IS NULL' ],
	'Sort' => [ '', 'SELECT g AS v FROM big WHERE id + 0 <= 300 ORDER BY t, g' ],
	'Incremental Sort' => [ 'SET enable_seqscan = off; SET enable_sort = off', 'SELECT g AS v FROM big WHERE g < 20 ORDER BY g, t' ],
	'Group' => [ 'SET enable_hashagg = off', 'SELECT g AS v FROM big GROUP BY g' ],
	'Aggregate' => [ '', 'SELECT g + count(*) AS v FROM big WHERE g < 300 GROUP BY g' ],
	'WindowAgg' => [ '', 'SELECT rank() OVER (ORDER BY g) AS v FROM big WHERE id <= 300' ],
	'Unique' => [ 'SET enable_hashagg = off', 'SELECT DISTINCT g AS v FROM big WHERE g < 300' ],
	'SetOp' => [ '', 'SELECT v FROM (SELECT g AS v FROM big WHERE id <= 300 EXCEPT SELECT id FROM big WHERE id < 5) s WHERE v = 898 OR pg_sleep(0.001) IS NULL' ],
	'Append' => [ '', 'SELECT id AS v FROM parts WHERE id BETWEEN 9900 AND 10200' ],
	'Merge Append' => [ 'SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off', 'SELECT g AS v FROM parts WHERE g < 15 ORDER BY g' ],
	'Limit' => [ '', 'SELECT id AS v FROM big LIMIT 300' ],
	'ProjectSet' => [ '', 'SELECT generate_series(1, 3) AS v FROM big WHERE id <= 100' ],
	'Result' => [ '', q{SELECT id AS v FROM big WHERE id + 0 <= 300 AND current_setting('port') <> '' } ],
	'Memoize' => [ "$joins SET enable_nestloop = on; SET enable_bitmapscan = off; SET enable_material = off",
		'SELECT b.id AS v FROM few a LEFT JOIN big b ON b.g = a.k WHERE b.id % 10 = 7 OR pg_sleep(0.001) IS NULL' ],
	'WorkTable Scan' => [ "$joins SET enable_nestloop = on",
		'WITH RECURSIVE a(v) AS (SELECT id FROM big WHERE id <= 300 UNION ALL SELECT a.v FROM a LEFT JOIN big b ON b.id = a.v WHERE b.id IS NULL OR pg_sleep(0.001) IS NULL) SELECT v FROM a' ],
	'Custom Scan' => [ $custom, 'SELECT g AS v FROM big WHERE id + 0 <= 300' ],
	# asked by the executor itself, in a function
	(map { $_ => undef } ('LockRows', 'ModifyTable', 'Named Tuplestore Scan')),
	(map { $_ => [ 'SET enable_hashjoin = on', undef, 'ModifyTable' ] } ('INSERT', 'ON CONFLICT', 'DELETE')),
	'MERGE' => [ 'SET enable_mergejoin = off; SET enable_nestloop = off', undef, 'Hash Join' ],
);
# functions that are tables, where the server has them
my $xml = join '', map { "<x>$_</x>" } 1 .. 300;
my $json = join ',', 1 .. 300;
if ($node->pg_version >= 17)
{
	$nodes{'Table Function Scan'} = [ '', "SELECT v FROM JSON_TABLE(jsonb '[$json]', '\$[*]' COLUMNS (v int PATH '\$'))" ];
}
elsif ($node->psql('postgres', q{SELECT xml '<x/>'}) == 0)
{
	$nodes{'Table Function Scan'} = [ '', "SELECT v FROM XMLTABLE('/r/x' PASSING xml '<r>$xml</r>' COLUMNS v int PATH '.')" ];
}
if ($node->safe_psql('postgres', q{SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'}))
{
	my ($host, $port) = ($node->host, $node->port);

	$node->safe_psql('postgres', <<"X");
CREATE EXTENSION postgres_fdw;
CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres', async_capable 'true');
CREATE USER MAPPING FOR PUBLIC SERVER here;
CREATE FOREIGN TABLE far (id int, g int) SERVER here OPTIONS (table_name 'big');
CREATE TABLE fars (id int, g int) PARTITION BY RANGE (id);
CREATE FOREIGN TABLE far1 PARTITION OF fars FOR VALUES FROM (0) TO (10000) SERVER here OPTIONS (table_name 'parts1');
CREATE FOREIGN TABLE far2 PARTITION OF fars FOR VALUES FROM (10000) TO (30000) SERVER here OPTIONS (table_name 'parts2');
X
	$nodes{'Foreign Scan'} = [ '', 'SELECT g AS v FROM far WHERE id <= 300' ];
	$nodes{'Foreign Scans, asynchronous'} = [ '', 'SELECT g AS v FROM fars WHERE id BETWEEN 9900 AND 10200', 'Append' ];
}
$node->safe_psql('postgres', <<'X');
INSERT INTO copy SELECT * FROM big WHERE id <= 300;
CREATE FUNCTION "do ModifyTable"() RETURNS bigint LANGUAGE sql AS $$
    UPDATE copy SET g = g + 0 RETURNING pg_sleep(0.001);
    SELECT count(*) FROM copy;
$$;
CREATE FUNCTION "do LockRows"() RETURNS bigint LANGUAGE sql AS $$
    SELECT pg_sleep(0.001) FROM big WHERE id <= 300 FOR UPDATE;
    SELECT count(*) FROM copy;
$$;
CREATE TABLE few AS SELECT 1 + i % 3 AS k FROM generate_series(1, 30) i;
ANALYZE few;
CREATE TABLE target (id int PRIMARY KEY, g int);
INSERT INTO target SELECT id, g FROM big WHERE id <= 300;
CREATE FUNCTION target() RETURNS bigint LANGUAGE sql AS 'SELECT sum(id * g) + count(*) FROM target';
CREATE FUNCTION "do INSERT"() RETURNS bigint LANGUAGE sql AS $$
    DELETE FROM target;
    INSERT INTO target SELECT id, g FROM big WHERE id <= 300 RETURNING pg_sleep(0.001);
    SELECT target();
$$;
CREATE FUNCTION "do ON CONFLICT"() RETURNS bigint LANGUAGE sql AS $$
    INSERT INTO target AS t SELECT id, g FROM big WHERE id <= 300 ON CONFLICT (id) DO UPDATE SET g = EXCLUDED.g RETURNING pg_sleep(0.001);
    SELECT target();
$$;
CREATE FUNCTION "do DELETE"() RETURNS bigint LANGUAGE sql AS $$
    DELETE FROM target WHERE id <= 300 RETURNING pg_sleep(0.001);
    INSERT INTO target SELECT id, g FROM big WHERE id <= 300;
    SELECT target();
$$;
CREATE FUNCTION "do MERGE"() RETURNS bigint LANGUAGE sql AS $$
    MERGE INTO target t USING (SELECT id, g FROM big WHERE id <= 300) s ON t.id = s.id
    WHEN MATCHED AND s.id % 3 = 0 THEN DELETE
    WHEN MATCHED THEN UPDATE SET g = s.g + length(pg_sleep(0.001)::text)
    WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.g);
    MERGE INTO target t USING (SELECT id, g FROM big WHERE id <= 300) s ON t.id = s.id
    WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.g + length(pg_sleep(0.001)::text));
    SELECT target();
$$;
CREATE TABLE watched AS SELECT id, g FROM big WHERE id <= 300;
CREATE FUNCTION watched() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    ASSERT (SELECT count(pg_sleep(0.001)) FROM new_rows) = 300;
    RETURN NULL;
END $$;
CREATE TRIGGER watched AFTER UPDATE ON watched REFERENCING NEW TABLE AS new_rows EXECUTE FUNCTION watched();
CREATE FUNCTION "do Named Tuplestore Scan"() RETURNS bigint LANGUAGE sql AS $$
    UPDATE watched SET g = g;
    SELECT sum(g) FROM watched;
$$;
CREATE TABLE seen (node text PRIMARY KEY);
-- ask a query to pause until it was held at the node, at most so often
CREATE PROCEDURE hold_at(q bigint, name text, wanted text, times int) LANGUAGE plpgsql AS $$
DECLARE
    at text;
BEGIN
    FOR i IN 1 .. times LOOP
        IF swarm.query_pause(q, timeout => '60 s') = 'paused' THEN
            SELECT node INTO at FROM swarm.queries WHERE id = q;
            PERFORM swarm.query_resume(q);
            EXIT WHEN at = wanted;
        END IF;
        COMMIT;
        PERFORM pg_sleep(0.003);
    END LOOP;
    INSERT INTO seen VALUES (name);
    IF at IS DISTINCT FROM wanted THEN
        RAISE 'held at %', at;
    END IF;
END $$;
X

# one that was just started: its beginning is waited for
is($node->safe_psql('postgres', q{
SELECT swarm.query_start('sql', 'SELECT sum(a.v + 0 * b.v) FROM generate_series(1, 30000) a(v), generate_series(1, 30000) b(v)') AS id \gset
SELECT swarm.query_pause(:id, timeout => '60 s');
SELECT swarm.query_terminate(:id) \g /dev/null
SELECT swarm.query_wait(:id, '60 s')}), "paused\nterminated", 'paused in the statement after its start');

for my $name (sort keys %nodes)
{
	my ($settings, $rows, $at) = @{ $nodes{$name} || [ '' ] };

	$at ||= $name;
	my $all = "SET max_parallel_workers_per_gather = 0; SET jit = off; $settings;";
	my $sql = $rows ? "SELECT sum(v) + 0 * count(pg_sleep(0.001)) FROM ($rows) s" : qq{SELECT "do $name"()};
	my $expected = $node->safe_psql('postgres', "$all $sql");
	my ($session, $id) = register($node, $all);

	pausing_psql($session, <<"X");
DO \$\$
DECLARE
    n numeric;
BEGIN
    LOOP
        EXECUTE \$q\$$sql\$q\$ INTO n;
        IF n <> $expected THEN RAISE 'got %', n; END IF;
        EXIT WHEN EXISTS (SELECT FROM seen WHERE node = '$name');
    END LOOP;
END \$\$
X
	my ($rc, $out, $err) = $node->psql('postgres', "CALL hold_at($id, '$name', '$at', 1000)");
	is($err, '', "$name: held there" . ($at eq $name ? '' : ", in $at"));
	$node->safe_psql('postgres', "INSERT INTO seen VALUES ('$name') ON CONFLICT DO NOTHING");
	$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
	is($session->{err}, '', '... every result as without a pause');
	$session->{in} .= "\\q\n";
	finish_psql($session);
}

# ---------------------------------------------------------------------------
# What ends a statement
# ---------------------------------------------------------------------------
my $endless = 'SELECT count(slow(id)) FROM big a, generate_series(1, 1000)';

# a statement that is held, and its session
sub held
{
	my ($sql, $settings) = @_;
	my ($session, $id) = register($node, $settings);

	pausing_psql($session, $sql);
	poll_ok($node, "SELECT a.state = 'active' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $id", 'it runs', 't');
	pause_ok($node, $id, '... is held');
	return ($session, $id);
}

# after the statement: the session is well, and the query goes on with the next
sub goes_on
{
	my ($session, $id, $name) = @_;

	$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
	is(say_psql($session, 'SELECT 1'), '1', "$name: the session goes on");
	is(query_state($node, $id), 'running', '... and is a query still');
	return;
}

my ($session, $id) = held($endless);
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM swarm.queries WHERE id = $id");
goes_on($session, $id, 'cancelled');
like($session->{err} . $session->{out}, qr/^1?$/m, '... no error after it');
pausing_psql($session, $endless);
poll_ok($node, "SELECT a.state = 'active' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $id", 'once more', 't');
pause_ok($node, $id, '... it can be paused again');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM swarm.queries WHERE id = $id");
like(finish_psql($session), qr/terminating connection/, 'pg_terminate_backend ends a paused session');
poll_ok($node, "SELECT state::text IN ('complete', 'error') FROM swarm.queries WHERE id = $id", '... its query has ended', 't');

# statement_timeout does not count, and goes on after
($session, $id) = held($endless, "SET statement_timeout = '5s'");
$node->safe_psql('postgres', 'SELECT pg_sleep(5.5)');
is(query_state($node, $id), 'paused', 'statement_timeout does not count while it is paused');
resume($node, $id);
goes_on($session, $id, 'resumed: the timeout strikes');

# query_terminate: cancelled, and a query no more; the session lives
($session, $id) = held($endless);
$node->safe_psql('postgres', "SELECT swarm.query_terminate($id)");
$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
like($session->{err}, qr/canceling statement/, 'query_terminate cancels the statement');
is(say_psql($session, 'SELECT 1'), '1', '... the session goes on');
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $id", '... terminated', 'terminated');
isnt(say_psql($session, 'SELECT swarm.query_register()'), $id, '... and can register anew');

# one that swallows its cancellation loses its process
$node->append_conf('postgresql.conf', "pg_swarm.query_terminate_grace = '200ms'");
$node->reload;
($session, $id) = register($node);
pausing_psql($session, 'DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$');
poll_ok($node, "SELECT a.wait_event = 'PgSleep' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $id", 'one that will not stop', 't');
$node->safe_psql('postgres', "SELECT swarm.query_terminate($id)");
like(finish_psql($session), qr/terminating connection/, '... loses its process');
my $q = $node->safe_psql('postgres', <<'X');
SELECT swarm.query_start('sql', 'DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$')
X
poll_ok($node, "SELECT a.wait_event = 'PgSleep' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $q", 'the same in the background', 't');
$node->safe_psql('postgres', "SELECT swarm.query_terminate($q)");
poll_ok($node, "SELECT finished_at IS NOT NULL FROM swarm.queries WHERE id = $q", '... ends', 't');
is($node->safe_psql('postgres', "SELECT state FROM swarm.queries WHERE id = $q"), 'terminated', '... as what it was made to');

# what cannot be held answers so, and why
($session, $id) = register($node);
is($node->safe_psql('postgres', "SELECT swarm.query_pause($id, timeout => '10 ms')"), 'pausing', 'an idle session');
is($node->safe_psql('postgres', "SELECT pausing, node FROM swarm.queries WHERE id = $id"), 't|idle', '... says so');
is(resume($node, $id), 'running', '... the pause is withdrawn');
is($node->safe_psql('postgres', "SELECT swarm.query_pause($id, timeout => '0')"), 'pausing', 'asked for again');
pausing_psql($session, 'SELECT count(*) FROM big');
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $id", '... its next statement is held', 'paused');
resume($node, $id);
goes_on($session, $id, 'it');
my $lock = start_psql($node);
say_psql($lock, 'BEGIN; LOCK TABLE copy');
for my $utility ('ANALYZE copy', 'VACUUM copy', 'CREATE INDEX ON copy (g)', 'ALTER TABLE copy ADD extra int', 'COPY copy (id) FROM PROGRAM \'echo 1\'')
{
	my ($name) = $utility =~ /^((?:(?:CREATE|ALTER) )?\w+)/;

	pausing_psql($session, $utility);
	poll_ok($node, "SELECT a.wait_event_type = 'Lock' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $id", "a utility command, $name", 't');
	is($node->safe_psql('postgres', "SELECT swarm.query_pause($id, timeout => '50 ms')"), 'pausing', '... cannot be held');
	is($node->safe_psql('postgres', "SELECT node FROM swarm.queries WHERE id = $id"), $name, '... and is named');
	say_psql($lock, 'COMMIT');
	$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
	is($session->{err}, '', '... it ends undisturbed');
	pausing_psql($session, 'SELECT count(*) > 0 FROM copy');
	poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $id", '... and what comes next is held', 'paused');
	resume($node, $id);
	goes_on($session, $id, 'it');
	say_psql($lock, 'BEGIN; LOCK TABLE copy');
}
say_psql($lock, 'COMMIT');

# foreign code that does not return answers so, with its node, and is held when it has
my @foreign = ([ 'Custom Scan', 'SELECT pg_advisory_lock(42)', 'SELECT pg_advisory_unlock(42)', "$custom; SET custom_scan.wait = 42", 'big' ]);
push @foreign, [ 'Foreign Scan', 'BEGIN; LOCK TABLE big', 'COMMIT', '', 'far' ] if $nodes{'Foreign Scan'};
my $total = $node->safe_psql('postgres', 'SELECT sum(g) FROM big');
for (@foreign)
{
	my ($name, $take, $give, $settings, $table) = @$_;

	for my $end ('resumed', 'cancelled while it does not return', 'cancelled while it is held')
	{
		($session, $id) = register($node, $settings);
		say_psql($lock, $take);
		pausing_psql($session, "SELECT sum(g) FROM $table");
		poll_ok($node, q{SELECT count(*) FROM pg_locks WHERE NOT granted AND (locktype = 'advisory' OR relation = 'big'::regclass)}, "$name does not return", '1');
		is($node->safe_psql('postgres', "SELECT swarm.query_pause($id, timeout => '50 ms')"), 'pausing', '... cannot be held');
		is($node->safe_psql('postgres', "SELECT pausing, node FROM swarm.queries WHERE id = $id"), "t|$name", '... and is named');
		if ($end =~ /return/)
		{
			$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM swarm.queries WHERE id = $id");
			$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
			say_psql($lock, $give);
		}
		else
		{
			say_psql($lock, $give);
			poll_ok($node, "SELECT state, pausing, node FROM swarm.queries WHERE id = $id", '... it has returned: held', "paused|f|$name");
			if ($end =~ /held/)
			{
				$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM swarm.queries WHERE id = $id");
			}
			else
			{
				resume($node, $id);
			}
			$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
		}
		if ($end eq 'resumed')
		{
			is((split /\n/, $session->{out})[0], $total, "... $end: the result");
		}
		else
		{
			like($session->{err}, qr/canceling statement/, "... $end");
			resume($node, $id) if $end =~ /return/;
		}
		is(say_psql($session, 'SELECT 1'), '1', '... the session goes on');
		$session->{in} .= "\\q\n";
		finish_psql($session);
	}
}

# DDL waits for what is paused, and is seen
($session, $id) = held($endless);
pausing_psql($lock, 'ALTER TABLE big ADD extra int; ALTER TABLE big DROP extra');
poll_ok($node, "SELECT cardinality(blocked) FROM swarm.query_blocking WHERE query = $id", 'query_blocking shows DDL that waits', '1');
$node->safe_psql('postgres', "SELECT swarm.query_terminate($id)");
$lock->{run}->pump until $lock->{out} =~ /^\Q$lock->{mark}\E$/m;
is($lock->{err}, '', '... terminated: it goes on');
$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
($session, $id) = register($node);

# locks, vacuum: seen
say_psql($session, 'BEGIN; UPDATE copy SET g = 0 WHERE id = 1');
pausing_psql($session, $endless);
poll_ok($node, "SELECT a.state = 'active' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $id", 'one that holds a lock', 't');
pause_ok($node, $id, '... is held');
pausing_psql($lock, 'UPDATE copy SET g = 1 WHERE id = 1');
poll_ok($node, "SELECT cardinality(blocked) FROM swarm.query_blocking WHERE query = $id", 'query_blocking shows whom it blocks', '1');
is($node->safe_psql('postgres', "SELECT backend_xmin IS NOT NULL FROM swarm.query_blocking WHERE query = $id"), 't', '... and what it keeps from VACUUM');
# ... until the longest pause is over
$node->append_conf('postgresql.conf', "pg_swarm.query_max_pause = '100ms'\npg_swarm.query_max_pause_action = terminate");
$node->reload;
$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
like($session->{err}, qr/canceling statement/, 'query_max_pause ends it');
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $id", '... as terminated', 'terminated');
is($node->safe_psql('postgres', "SELECT actor IS NULL FROM swarm.query_events WHERE query = $id AND action = 'terminate'"), 't', '... by nobody');
say_psql($session, 'ROLLBACK');
$lock->{run}->pump until $lock->{out} =~ /^\Q$lock->{mark}\E$/m;
$node->append_conf('postgresql.conf', "pg_swarm.query_max_pause = '10min'\npg_swarm.query_max_pause_action = resume");
$node->reload;

# parallel plans: the workers are held with their leader; a command is refused
my $parallel = 'SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0';
for my $leader (qw(on off))
{
	($session, $id) = held('SELECT sum(slow(id)) FROM big', "$parallel; SET parallel_leader_participation = $leader");
	poll_ok($node, "SELECT workers > 0 FROM swarm.queries WHERE id = $id", "leader $leader: it has workers", 't');
	poll_ok($node, "SELECT count(*) FROM pg_stat_activity a JOIN swarm.queries q ON a.leader_pid = q.pid WHERE q.id = $id AND a.wait_event NOT IN ('SwarmQueryPaused', 'Extension', 'MessageQueueSend')", '... all held', '0');
	sql_fails($node, "SELECT swarm.query_execute_command($id, 'SELECT 1')", qr/55000/, '... no command in it') if $leader eq 'on';
	resume($node, $id);
	$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
	is((split /\n/, $session->{out})[0], '200010000', '... resumed: the result');
}
($session, $id) = held('SELECT sum(slow(id)) FROM big', $parallel);
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM swarm.queries WHERE id = $id");
goes_on($session, $id, 'cancelled with its workers');

# pg_swarm.query_control: sessions of a role, without their doing
$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; ALTER ROLE app SET pg_swarm.query_control = on; GRANT SELECT ON ALL TABLES IN SCHEMA public TO app');
my $app = start_psql($node);
say_psql($app, '\c - app');
pausing_psql($app, 'DO $$ BEGIN LOOP EXIT WHEN current_setting($q$pg_swarm.query_control$q$) = $q$no$q$; END LOOP; END $$');
poll_ok($node, q{SELECT count(*) FROM swarm.queries WHERE owner = 'app'::regrole AND state = 'running'}, 'pg_swarm.query_control registers a session that runs no plan', '1');
$id = $node->safe_psql('postgres', q{SELECT id FROM swarm.queries WHERE owner = 'app'::regrole});
pause_ok($node, $id, '... it is held');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM swarm.queries WHERE id = $id");
goes_on($app, $id, 'it');
poll_ok($node, q{SELECT count(*) FROM swarm.queries WHERE owner = 'app'::regrole AND state = 'running'}, 'pg_swarm.query_control registers a session', '1');
$id = $node->safe_psql('postgres', q{SELECT id FROM swarm.queries WHERE owner = 'app'::regrole});
pausing_psql($app, $endless);
poll_ok($node, "SELECT a.state = 'active' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $id", 'it runs', 't');
pause_ok($node, $id, '... is held');
is($node->safe_psql('postgres', "SELECT swarm.query_execute_command($id, 'SELECT current_user')"), 'app', '... a command in it is its own');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM swarm.queries WHERE id = $id");
goes_on($app, $id, 'it');

# a client that goes away while its statement is held
$node->append_conf('postgresql.conf', "client_connection_check_interval = '50ms'");
$node->reload;
($session, $id) = held($endless);
$session->{run}->kill_kill;
poll_ok($node, "SELECT state::text FROM swarm.queries WHERE id = $id", 'a client that goes away while it is held', 'error');

# shutdown is not kept waiting
($session, $id) = held($endless);
$node->stop('fast');
pass('the server stops');
$node->start;
poll_ok($node, "SELECT state::text FROM swarm.queries WHERE id = $id", 'a query of the server\'s last life has ended', 'error');

# a crash: the row is closed, background statements are not run twice
$node->safe_psql('postgres', 'CREATE TABLE once (i int)');
$q = $node->safe_psql('postgres', q{SELECT swarm.query_start('sql', 'INSERT INTO once VALUES (1); SELECT count(slow(id)) FROM big a, generate_series(1, 1000)')});
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $q AND pid IS NOT NULL", 'a background statement', 'running');
my $crashes = crash_is_over($node);
$node->safe_psql('postgres', q{SELECT swarm._fault_arm('query.paused', 'kill')});
$node->psql('postgres', "SELECT swarm.query_pause($q)");
ok(crash_is_over($node, $crashes), 'the process of a paused query crashes');
poll_ok($node, "SELECT state::text FROM swarm.queries WHERE id = $q", '... its query has ended', 'error');
is($node->safe_psql('postgres', 'SELECT count(*) FROM once'), '0', '... once');
is($node->safe_psql('postgres', "SELECT count(*) FROM swarm.queries WHERE state IN ('init', 'running', 'paused')"), '0', 'no query is left open');

$node->stop;
done_testing();
