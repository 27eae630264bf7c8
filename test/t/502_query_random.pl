# Random pauses, with commands in between, through nested PL/pgSQL with exceptions,
# updates, joins and parallel workers: every result is that of an undisturbed run.
# PG_SWARM_PAUSES says how many [100].  Then dump and restore, and a standby.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use QueryTest;

my $pauses = $ENV{PG_SWARM_PAUSES} || 100;
my $node = swarm_cluster('primary', init => { allows_streaming => 1 }, conf => "max_connections = 30\n");
data_tables($node);
$node->safe_psql('postgres', <<'X');
CREATE FUNCTION victim() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    s bigint := 0;
    r record;
BEGIN
    FOR i IN 1 .. 6 LOOP
        BEGIN
            FOR r IN SELECT id, g FROM big WHERE id % 97 = i ORDER BY id LIMIT 2000 LOOP
                s := s + r.g;
                IF r.id % 5000 = 7 THEN PERFORM 1 / (r.id - r.id); END IF;
            END LOOP;
            s := s + (SELECT count(*) FROM big a JOIN big b USING (id) WHERE a.id < 5000);
            UPDATE big SET g = g WHERE id BETWEEN i * 10 AND i * 10 + 100;
        EXCEPTION WHEN division_by_zero THEN
            s := s + 1;
        END;
    END LOOP;
    RETURN s;
END $$;
CREATE TABLE done (one int);
CREATE TABLE went (paused int, commands int);
CREATE PROCEDURE disturb(q bigint, times int) LANGUAGE plpgsql AS $$
DECLARE
    n int := 0;
    c int := 0;
BEGIN
    WHILE (SELECT pauses FROM swarm.queries WHERE id = q) < times LOOP	-- asked again at once, one pause goes on
        IF swarm.query_pause(q, timeout => '60 s') = 'paused' THEN
            n := n + 1;
            BEGIN
                IF n % 5 = 0 AND swarm.query_execute_command(q, 'SELECT count(*) FROM big WHERE id < 50') = '49' THEN
                    c := c + 1;
                END IF;
            EXCEPTION WHEN object_not_in_prerequisite_state THEN	-- it runs in parallel
            END;
            PERFORM swarm.query_resume(q);
        END IF;
        COMMIT;
        PERFORM pg_sleep(random() * 0.003);
    END LOOP;
    INSERT INTO went VALUES (n, c);
    INSERT INTO done VALUES (1);
END $$;
X
my $expected = $node->safe_psql('postgres', 'SELECT victim()');
my $sum = $node->safe_psql('postgres', 'SELECT sum(length(t) + g) FROM big');

for my $workers (0, 2)
{
	my ($session, $id) = register($node, "SET max_parallel_workers_per_gather = $workers; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0");
	pausing_psql($session, <<"X");
DO \$\$
BEGIN
    LOOP
        ASSERT victim() = $expected, 'victim';
        ASSERT (SELECT sum(length(t) + g) FROM big) = $sum, 'sum';
        EXIT WHEN EXISTS (SELECT FROM done);
    END LOOP;
END \$\$
X
	my ($rc, $out, $err) = $node->psql('postgres', "CALL disturb($id, $pauses)");
	is($err, '', "$workers workers: $pauses pauses");
	$node->safe_psql('postgres', 'INSERT INTO done VALUES (1)');
	$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
	is($session->{err}, '', '... every result is right');
	cmp_ok($node->safe_psql('postgres', 'SELECT sum(commands) FROM went'), '>', 0, '... commands ran inside') if $workers == 0;
	is($node->safe_psql('postgres', "SELECT pauses >= $pauses FROM swarm.queries WHERE id = $id"), 't', '... all counted');
	$node->safe_psql('postgres', 'TRUNCATE done');
	$session->{in} .= "\\q\n";
	finish_psql($session);
}

# the rows of rules, flags and queries come through a dump
my $q = $node->safe_psql('postgres', <<'X');
SELECT swarm.rule_create('mine', 7, 'tokens > 5', 'pause', '{"length": "1 s"}'), swarm.flag_set('f', true, 25) \gset
SELECT swarm.query_start('sql', 'SELECT 6 * 7 AS n')
X
is($node->safe_psql('postgres', "SELECT swarm.query_wait($q)"), 'complete', 'a query for the dump');
poll_ok($node, "SELECT count(*) FROM swarm.query_events WHERE query = $q", '... and its events', '2');
my $all = q{SELECT * FROM swarm._rule ORDER BY name; SELECT * FROM swarm._flag; SELECT * FROM swarm._query ORDER BY id; SELECT * FROM swarm._query_event ORDER BY id};
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), $dump ], '... restored');
is($node->safe_psql('copy', $all), $node->safe_psql('postgres', $all), '... the same rows');
is($node->safe_psql('copy', q{SELECT max(id) < swarm.query_start('sql', 'SELECT 1') FROM swarm._query}), 't', '... ids go on');

# a standby shows, and refuses
$node->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'b', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is($standby->safe_psql('postgres', "SELECT state FROM swarm.queries WHERE id = $q"), 'complete', 'a standby shows queries');
for my $call ("query_start('sql', 'SELECT 1')", 'query_register()', "query_pause($q)", "query_terminate($q)", 'rollback_all()')
{
	sql_fails($standby, "SELECT swarm.$call", qr/25006/, "... refuses $call");
}
is($standby->safe_psql('postgres', 'SET pg_swarm.query_control = on; SELECT count(*) FROM big; SELECT count(*) FROM swarm.queries WHERE pid IS NOT NULL'),
	"20000\n0", '... registers nobody');
$standby->stop;

# What has ended goes with the history of jobs.
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('400 days')});
poll_ok($node, 'SELECT count(*) FROM swarm._query WHERE finished_at IS NOT NULL', 'old queries go', '0');
is($node->safe_psql('postgres', "SELECT count(*) FROM swarm._query_event WHERE query = $q"), '0', '... with what happened to them');
$node->stop;
done_testing();
