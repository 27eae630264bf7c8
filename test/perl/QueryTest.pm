# QueryTest: what the TAP tests of query control have in common.

package QueryTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

our @EXPORT = qw(register pausing_psql pause_ok resume query_state data_tables);

# register(NODE, SETTINGS): a session that has registered as a query, and its id.
sub register
{
	my ($node, $settings) = @_;
	my $session = start_psql($node);

	say_psql($session, $settings) if $settings;
	my $id = say_psql($session, 'SELECT swarm.query_register()');
	die "not registered: $id" unless $id =~ /^\d+$/;
	return ($session, $id);
}

# pausing_psql(SESSION, SQL): send a statement, do not wait for it.
sub pausing_psql
{
	my ($session, $sql) = @_;
	my $mark = 'said ' . ++$session->{n};

	$session->{out} = $session->{err} = '';
	$session->{in} .= "$sql\n;\\echo '$mark'\n";
	$session->{run}->pump_nb while length $session->{in};	# does not wait for output
	$session->{mark} = $mark;
	return;
}

# pause_ok(NODE, ID, NAME): ask for a pause until the query is held.
sub pause_ok
{
	my ($node, $id, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $node->safe_psql('postgres',
		"SELECT swarm.query_pause($id, timeout => '$PostgreSQL::Test::Utils::timeout_default s')");
	return is($answer, 'paused', $name);
}

sub resume
{
	my ($node, $id) = @_;

	return $node->safe_psql('postgres', "SELECT swarm.query_resume($id)");
}

sub query_state
{
	my ($node, $id) = @_;

	return $node->safe_psql('postgres', "SELECT state FROM swarm.queries WHERE id = $id");
}

# data_tables(NODE): what the statements of the tests read.
sub data_tables
{
	my ($node) = @_;

	$node->safe_psql('postgres', <<'X');
CREATE TABLE big AS SELECT i AS id, (i * 7919) % 1003 AS g, repeat(chr(97 + i % 26), 20) AS t FROM generate_series(1, 20000) i;
ALTER TABLE big ADD PRIMARY KEY (id);
CREATE INDEX ON big (g);
CREATE TABLE parts (id int, g int) PARTITION BY RANGE (id);
CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (10000);
CREATE TABLE parts2 PARTITION OF parts FOR VALUES FROM (10000) TO (30000);
CREATE INDEX ON parts (g);
INSERT INTO parts SELECT id, g FROM big;
CREATE TABLE copy (LIKE big);
VACUUM ANALYZE;
-- slow() waits, for as long as the row says, where a test wants to come in
CREATE FUNCTION slow(x int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN PERFORM pg_sleep(0.0005); RETURN x; END $$;
X
	return;
}

1;
