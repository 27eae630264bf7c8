# What a command inside a paused query may do, and what not, wherever the query is:
# each is answered, and afterwards the query has the result that it has without.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use QueryTest;

my $node = swarm_cluster('main', conf => "autovacuum = off\n");
data_tables($node);
$node->safe_psql('postgres', <<'X');
CREATE ROLE app;
CREATE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
CREATE FUNCTION nested() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    s bigint := 0;
    r record;
BEGIN
    FOR r IN SELECT id FROM tmp LOOP
        BEGIN
            s := s + (SELECT sum(slow(id)) FROM tmp WHERE id BETWEEN r.id AND r.id + 20);
            IF r.id % 2 = 0 THEN RAISE division_by_zero; END IF;
        EXCEPTION WHEN division_by_zero THEN
            s := s + 1;
        END;
    END LOOP;
    RETURN s;
END $$;
X

# where the query is => [before, statement]
my $scan = 'SELECT sum(slow(id)) FROM tmp';
my %where = (
	'a statement' => [ '', $scan ],
	'a prepared statement' => [ "PREPARE p AS $scan", 'EXECUTE p' ],
	'a cursor' => [ "BEGIN; DECLARE c CURSOR FOR $scan", 'FETCH c' ],
	'a cursor that is held' => [ "BEGIN; DECLARE c CURSOR WITH HOLD FOR $scan", 'COMMIT; FETCH c' ],
	'PL/pgSQL with exceptions' => [ '', 'SELECT nested()' ],
	'CREATE TABLE AS' => [ '', "CREATE TEMP TABLE made AS $scan; TABLE made" ],
	'EXPLAIN ANALYZE' => [ '', "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) $scan" ],
	'a read-only transaction' => [ 'BEGIN READ ONLY', $scan ],
	'a serializable transaction' => [ 'BEGIN ISOLATION LEVEL SERIALIZABLE', $scan ],
	'with JIT' => [ 'SET jit = on; SET jit_above_cost = 0; SET jit_inline_above_cost = 0; SET jit_optimize_above_cost = 0', $scan ]);

# command => result, or SQLSTATE of its error
my @commands = (
	[ 'SELECT 6 * 7', '42' ],
	[ 'SELECT 1; SELECT 2', '2' ],
	[ '', '0' ],
	[ 'SELECT count(*) FROM tmp', '300' ],
	[ q{SELECT set_config('my.own', 'x', false)}, 'x' ],
	[ 'SHOW my.own', 'x' ],
	[ 'SELECT 1/0', qr/22012/ ],
	[ 'BEGIN', qr/0A000/ ],
	[ 'COMMIT', qr/0A000/ ],
	[ 'ROLLBACK', qr/0A000/ ],
	[ 'SAVEPOINT s', qr/0A000/ ],
	[ q{PREPARE TRANSACTION 'x'}, qr/0A000/ ],
	[ 'COPY tmp TO STDOUT', qr/0A000/ ],
	[ 'CALL commits()', qr/2D000/ ],
	[ 'DO $$ BEGIN ROLLBACK; END $$', qr/2D000/ ],
	[ 'VACUUM tmp', qr/25001|25006/ ],
	[ 'CREATE INDEX CONCURRENTLY ON big (t)', qr/25001|25006/ ],
	[ 'DISCARD ALL', qr/25001/ ],
	[ 'TRUNCATE tmp', qr/55006/ ],
	[ 'DROP TABLE tmp', qr/55006/ ],
	[ 'ALTER TABLE tmp ADD x int', qr/55006/ ],
	[ 'DISCARD TEMP', qr/55006/ ],
	[ 'SET ROLE app', qr/42501/ ],
	[ 'RESET ROLE', qr/42501/ ],
	[ 'SET SESSION AUTHORIZATION app', qr/42501/ ],
	[ 'SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(3600)', qr/57014/ ],
	[ 'DISCARD PLANS', '0' ],
	[ 'DEALLOCATE ALL', '0' ],
	[ 'RESET ALL', '0' ],
	[ 'LISTEN swarm_events', '0' ]);

my $assertions = $node->safe_psql('postgres', 'SHOW debug_assertions') eq 'on';
for my $where (sort keys %where)
{
	my ($before, $sql) = @{ $where{$where} };
	my $session = start_psql($node);

	say_psql($session, 'SET client_min_messages = error; CREATE TEMP TABLE tmp AS SELECT id FROM big WHERE id <= 300');
	my $expected = say_psql($session, "$before; $sql; ROLLBACK; DEALLOCATE ALL; CLOSE ALL; DROP TABLE IF EXISTS made");
	my $id = say_psql($session, 'SELECT swarm.query_register()');
	say_psql($session, $before) if $before;
	pausing_psql($session, $sql);
	pause_ok($node, $id, "$where: is held");
	my $wrong = '';
	for my $c (@commands)
	{
		my ($command, $result) = @$c;
		my $call = "SELECT swarm.query_execute_command($id, \$c\$$command\$c\$)";

		next if $where eq 'a read-only transaction' && $command =~ /^(?:DISCARD TEMP|LISTEN|TRUNCATE|DROP|ALTER)/;
		# the server's own assertion forbids what PL/pgSQL's EXCEPTION does in a COMMIT, and what is done here
		next if $where eq 'a cursor that is held' && ref $result && $assertions;
		next if $where eq 'a prepared statement' && $command =~ /^DEALLOCATE/;	# EXECUTE looks for its name again at its end
		if (ref $result)
		{
			my $error = sql_error($node, $call);
			$wrong .= "$command: $error\n" unless $error =~ $result;
		}
		else
		{
			my ($rc, $out, $err) = $node->psql('postgres', $call);
			$wrong .= "$command: $out$err\n" unless $rc == 0 && $out eq $result;
		}
	}
	is($wrong, '', '... every command has its answer');
	is(query_state($node, $id), 'paused', '... it is held as before');
	resume($node, $id);
	$session->{run}->pump until $session->{out} =~ /^\Q$session->{mark}\E$/m;
	is($session->{err}, '', '... it goes on');
	like($session->{out}, qr/^\Q$expected\E\n/, '... and has the same result');
	$session->{in} .= "\\q\n";
	finish_psql($session);
}

$node->stop;
done_testing();
