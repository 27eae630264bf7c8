# What statements in the background leave: tables with their owner's rights and within
# the limit, and JSON in a database whose encoding has not every character.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use QueryTest;

my $node = swarm_cluster('main', conf => "autovacuum = off\n");

# runs(SQL, RESULT_TABLE, ROLE): state and SQLSTATE of such a query, and its result
sub runs
{
	my ($sql, $table, $role) = @_;
	my $as = $role ? "SET ROLE $role; " : '';
	my $id = $node->safe_psql('postgres', "${as}SELECT swarm.query_start('sql', \$q\$$sql\$q\$, result_table => '$table')");

	$node->safe_psql('postgres', "SELECT swarm.query_wait($id, '$PostgreSQL::Test::Utils::timeout_default s')");
	return $node->safe_psql('postgres', "SELECT concat_ws(' ', state, sqlstate, swarm.query_result($id)) FROM swarm.queries WHERE id = $id");
}

# ---------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------
$node->safe_psql('postgres', <<'X');
CREATE ROLE ann;
CREATE ROLE bob;
CREATE SCHEMA ann AUTHORIZATION ann;
CREATE TABLE ann.secret AS SELECT 1 AS i;
ALTER TABLE ann.secret OWNER TO ann;
X
is(runs('SELECT i FROM ann.secret', 'ann.copy', 'ann'), 'complete {"rows": 1, "table": "ann.copy"}', 'a table of the rows');
is($node->safe_psql('postgres', q{SELECT relowner::regrole FROM pg_class WHERE oid = 'ann.copy'::regclass}), 'ann', '... is that of who started the query');
sql_fails($node, q{SET ROLE bob; SELECT swarm.query_start('sql', 'SELECT 1', result_table => 'ann.mine')}, qr/42501/, '... not where the caller may make none');
$node->safe_psql('postgres', 'GRANT CREATE, USAGE ON SCHEMA ann TO bob');
is(runs('SELECT i FROM ann.secret', 'ann.mine', 'bob'), 'error 42501', '... not of what the caller may not read');
is($node->safe_psql('postgres', q{SELECT to_regclass('ann.mine')}), '', '... and it does not stay');
# A runner may begin a moment before it is told of what was committed with the query: so the right is taken by another transaction.
my $session = start_psql($node);
my $id = say_psql($session, "BEGIN; SET ROLE bob; SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => 'ann.mine')");
$node->safe_psql('postgres', 'REVOKE CREATE ON SCHEMA ann FROM bob');
say_psql($session, 'COMMIT');
is($node->safe_psql('postgres', "SELECT swarm.query_wait($id)"), 'error', '... nor where the right is taken before it runs');
finish_psql($session);

# an administrator who watches who makes tables sees these too
$node->safe_psql('postgres', <<'X');
CREATE TABLE watched (tag text, name text);
GRANT INSERT ON watched TO PUBLIC;
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.watched SELECT command_tag, object_identity FROM pg_event_trigger_ddl_commands();
END $$;
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION watch();
X
like(runs('SELECT 1 AS one', 'ann.seen', 'ann'), qr/^complete/, 'another table');
is($node->safe_psql('postgres', 'SELECT * FROM watched; DROP EVENT TRIGGER watch'), 'CREATE TABLE AS|ann.seen', '... is seen by event triggers');

# the limit
$node->append_conf('postgresql.conf', "pg_swarm.query_result_table_size = '1MB'");
$node->restart;
is(runs(q{SELECT repeat('x', 1000) AS x FROM generate_series(1, 5000)}, 'large'), 'error 53400', 'a table that would be larger than the limit');
is($node->safe_psql('postgres', q{SELECT to_regclass('large')}), '', '... does not stay');
is(runs(q{SELECT string_agg(md5(i::text), '') AS x FROM generate_series(1, 100000) i}, 'large'), 'error 53400', 'one whose values are stored apart');
like(runs(q{SELECT repeat('x', 1000) AS x FROM generate_series(1, 100)}, 'small'), qr/^complete/, 'a smaller one does');
is($node->safe_psql('postgres', 'SELECT count(*) FROM small'), '100', '... with all its rows');

# a crash in the middle leaves nothing, and no second try
my $crashes = crash_is_over($node);
$node->safe_psql('postgres', q{SELECT swarm._fault_arm('query.paused', 'kill')});
$id = $node->safe_psql('postgres', q{SELECT swarm.query_start('sql', 'SELECT i, pg_sleep(0.01) IS NULL FROM generate_series(1, 100000) i', result_table => 'crashed')});
$node->psql('postgres', "SELECT swarm.query_pause($id, timeout => '60 s')");
ok(crash_is_over($node, $crashes), 'the process crashes while it makes a table');
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $id", '... its query has ended', 'error');
is($node->safe_psql('postgres', q{SELECT to_regclass('crashed')}), '', '... and there is no table');

# ---------------------------------------------------------------------------
# JSON in other encodings: what they have no character for is a question mark
# ---------------------------------------------------------------------------
for ([ 'LATIN1', q{'?' || chr(233) || '???A'} ], [ 'SQL_ASCII', q{'?????A'} ])
{
	my ($encoding, $expected) = @$_;

	$node->safe_psql('postgres', "CREATE DATABASE \"$encoding\" TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
	$node->safe_psql($encoding, 'CREATE EXTENSION pg_swarm');
	$id = $node->safe_psql($encoding, q{SELECT swarm.query_start('sql', $$SELECT json '"\u20ac\u00e9\u0000\ud83d\ude00\u0041"' AS j$$)});
	is($node->safe_psql($encoding, "SELECT swarm.query_wait($id, '$PostgreSQL::Test::Utils::timeout_default s')"), 'complete', "$encoding: a result with characters it has not");
	is($node->safe_psql($encoding, "SELECT swarm.query_result($id)->'data'->0->>'j' = $expected"), 't', '... is kept');
}

$node->stop;
done_testing();
