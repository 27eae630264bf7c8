# What one does to queries does not get in the way of others: rows locked for long,
# rules at work, a storm of events; and nobody controls what he has no right to.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use QueryTest;

my $node = swarm_cluster('main', conf => "autovacuum = off\npg_swarm.query_terminate_grace = '1h'\n");
data_tables($node);
my $endless = 'SELECT count(slow(id)) FROM big a, generate_series(1, 1000)';

# sql, in the background, begun
sub background
{
	my ($sql) = @_;
	my $id = $node->safe_psql('postgres', "SELECT swarm.query_start('sql', '$sql')");

	poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $id AND pid IS NOT NULL", 'a statement in the background', 'running');
	return $id;
}

# who loses his process hears why
my $lost = $node->safe_psql('postgres', q{SELECT swarm.query_start('sql', 'SELECT pg_terminate_backend(pg_backend_pid())')});
is($node->safe_psql('postgres', "SELECT swarm.query_wait($lost)"), 'error', 'a statement that ends its process');
is($node->safe_psql('postgres', "SELECT error FROM swarm.queries WHERE id = $lost"), 'the worker that ran the job was lost', '... and what its row says');

# ---------------------------------------------------------------------------
# Locked rows
# ---------------------------------------------------------------------------
my $stuck = background($endless);
my $free = background($endless);
my $events = 'SELECT string_agg(action, $$ $$ ORDER BY id) FROM swarm.query_events WHERE query =';
poll_ok($node, "$events $_", '... written down', 'start') for ($stuck, $free);
my $lock = start_psql($node);
say_psql($lock, "BEGIN; SELECT FROM swarm._query WHERE id = $stuck FOR UPDATE");
pause_ok($node, $_, '... is held') for ($stuck, $free);
poll_ok($node, "$events $free", 'one row is locked: what others tell is written', 'start pause');
is($node->safe_psql('postgres', "$events $stuck"), 'start', '... its own waits');
is(resume($node, $stuck), 'running', '... it goes on all the same');
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $stuck", '... as everybody sees', 'running');
say_psql($lock, 'ROLLBACK');
poll_ok($node, "$events $stuck", '... written when the lock is gone, in order', 'start pause resume');

# rules: somebody edits them, the events go on
$node->safe_psql('postgres', q{SELECT swarm.optimizer_start('100 ms')});
say_psql($lock, 'BEGIN; LOCK TABLE swarm._rule, swarm._optimizer');
resume($node, $free);
poll_ok($node, "$events $free", 'rules are locked: events are written', 'start pause resume');
say_psql($lock, 'ROLLBACK');

# a rule at work in a transaction that stays open does not keep anybody from switching all off
my $q = $node->safe_psql('postgres', q{
	INSERT INTO swarm._query (kind, owner, permission_mode, state, failures, turns)
	VALUES ('llm', current_user::regrole, 'plan', 'running', 5, 10) RETURNING id});
is(say_psql($lock, "BEGIN; SELECT swarm.query_optimize($q)"), 'optimize-errors', 'a rule has acted, its transaction is open');
my $listener = start_psql($node);
say_psql($listener, 'LISTEN swarm_events');
is($node->safe_psql('postgres', q{SELECT r->'rollback_all', r->'rules' > '0' FROM swarm.rollback_all() r}), 'true|t', '... rollback_all() switches all off');
poll_ok($node, q{SELECT swarm.optimizer_status()->'isMonitoring'}, '... also the optimizer', 'false');
like(say_psql($listener, 'SELECT 1'), qr/"swarm_events" with payload "\{.*"rollback_all": true/, '... and tells swarm_events');
say_psql($lock, 'COMMIT');
is($node->safe_psql('postgres', q{SELECT acted FROM swarm._rule_use WHERE name = 'optimize-errors'}), '1', '... it is counted');
say_psql($lock, q{BEGIN; SELECT swarm.flag_set('f')});
$node->safe_psql('postgres', q{SELECT swarm.flag_set('g')});
say_psql($lock, q{SELECT swarm.flag_set('g')});
sql_fails($node, 'SELECT swarm.rollback_all()', qr/55P03/, '... and does not wait for whoever changes a flag');
say_psql($lock, 'ROLLBACK');
is($node->safe_psql('postgres', q{SELECT swarm.rollback_all()->'flags'}), '1', '... afterwards');

# ---------------------------------------------------------------------------
# A storm: one query is paused and resumed without end
# ---------------------------------------------------------------------------
$node->safe_psql('postgres', <<"X");
DO \$\$
BEGIN
    WHILE (SELECT events_dropped = 0 FROM swarm.query_stats()) LOOP
        PERFORM swarm.query_pause($stuck, timeout => '60 s');
        PERFORM swarm.query_resume($stuck);
    END LOOP;
END \$\$
X
pass('events above the limit are dropped and counted');
pause_ok($node, $free, '... another query');
poll_ok($node, "$events $free", '... tells what happens to it', 'start pause resume pause');
$node->safe_psql('postgres', "SELECT swarm.query_terminate($stuck)");
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $stuck", '... and the end is always told', 'terminated');

# ---------------------------------------------------------------------------
# Terminated while a command runs inside: the command's cancellation is not all
# ---------------------------------------------------------------------------
pausing_psql($lock, "SELECT swarm.query_execute_command($free, 'SELECT pg_sleep(3600)')");
poll_ok($node, "SELECT a.wait_event = 'PgSleep' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $free", 'a command runs', 't');
$node->safe_psql('postgres', "SELECT swarm.query_terminate($free)");
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $free", '... the query is terminated', 'terminated');
$lock->{run}->pump until $lock->{out} =~ /^\Q$lock->{mark}\E$/m;
like($lock->{err}, qr/canceling statement due to user request/, '... who sent the command is told');

# ... while somebody who cancels it without that means the command alone
$q = background($endless);
pause_ok($node, $q, 'another one is held');
pausing_psql($lock, "SELECT swarm.query_execute_command($q, 'SELECT pg_sleep(3600)')");
poll_ok($node, "SELECT a.wait_event = 'PgSleep' FROM pg_stat_activity a JOIN swarm.queries q USING (pid) WHERE q.id = $q", 'a command runs', 't');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM swarm.queries WHERE id = $q");
$lock->{run}->pump until $lock->{out} =~ /^\Q$lock->{mark}\E$/m;
like($lock->{err}, qr/canceling statement due to user request/, '... it is cancelled');
is(query_state($node, $q), 'paused', '... the query is held as before');
$node->safe_psql('postgres', "SELECT swarm.query_terminate($q)");

# ---------------------------------------------------------------------------
# Rights
# ---------------------------------------------------------------------------
$node->safe_psql('postgres', 'CREATE ROLE boss SUPERUSER; CREATE ROLE ann; GRANT boss TO ann; CREATE ROLE team; CREATE ROLE bob; GRANT ALL ON SCHEMA public TO PUBLIC; GRANT SELECT ON big TO PUBLIC');
$q = $node->safe_psql('postgres', "SET ROLE boss; SELECT swarm.query_start('sql', '$endless')");
poll_ok($node, "SELECT pid IS NOT NULL FROM swarm.queries WHERE id = $q", 'a query of a superuser', 't');
for my $call ("query_pause($q)", "query_terminate($q)", "query_execute_command($q, 'SELECT 1')", "query_change_permissions($q, 'plan')", "query_optimize($q)")
{
	sql_fails($node, "SET ROLE ann; SELECT swarm.$call", qr/42501: permission denied to control query/, "... a member who is none cannot: $call");
}
is($node->safe_psql('postgres', "SET ROLE ann; SELECT count(*) FROM swarm.queries WHERE id = $q"), '1', '... but sees it');
$node->safe_psql('postgres', "SET ROLE boss; SELECT swarm.query_terminate($q)");

SKIP:
{
	skip 'membership without SET ROLE is new in PostgreSQL 16', 3 if $node->pg_version < 16;
	$node->safe_psql('postgres', 'GRANT team TO bob WITH INHERIT TRUE, SET FALSE');
	$q = $node->safe_psql('postgres', "SET ROLE team; SELECT swarm.query_start('sql', '$endless')");
	poll_ok($node, "SELECT pid IS NOT NULL FROM swarm.queries WHERE id = $q", 'a query of a role', 't');
	is($node->safe_psql('postgres', "SET ROLE bob; SELECT swarm.query_pause($q, timeout => '60 s')"), 'paused', '... a member pauses it');
	sql_fails($node, "SET ROLE bob; SELECT swarm.query_execute_command($q, 'SELECT 1')", qr/42501: permission denied to execute a command/, '... who cannot become it runs no command as it');
	$node->safe_psql('postgres', "SET ROLE bob; SELECT swarm.query_terminate($q)");
}

finish_psql($_) for map { $_->{in} .= "\\q\n"; $_ } ($lock, $listener);
$node->stop;
done_testing();
