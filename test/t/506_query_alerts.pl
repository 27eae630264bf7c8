# Alerts of queries: each is raised once, lasts until its measure is well below, and is told.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use QueryTest;

my $node = swarm_cluster('main', conf => "autovacuum = off\npg_swarm.max_runners = 1\n");
my $listener = start_psql($node);
my $heard = '';
say_psql($listener, 'LISTEN swarm_events');

# told(REGEXP, NAME): a notification comes
sub told
{
	my ($regexp, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(until_true(sub { $heard .= say_psql($listener, 'SELECT 1'); return $heard =~ $regexp }), $name);
}

sub alerts
{
	return $node->safe_psql('postgres', q{SELECT coalesce(string_agg(format('%s %s %s %s', rule, severity, value, cleared_at IS NULL), ', ' ORDER BY id), '') FROM swarm.alerts});
}

# check(SQL): how many alerts last after that
sub check
{
	my ($sql) = @_;

	$node->safe_psql('postgres', $sql) if $sql;
	return $node->safe_psql('postgres', 'SELECT swarm._alert_check()');
}

# next_check(SQL): the scheduler looks in a minute, the clock is moved
sub next_check
{
	my ($sql) = @_;

	$node->safe_psql('postgres', "$sql; SELECT swarm._clock_advance('61 s')");
	return;
}

is($node->safe_psql('postgres', q{SELECT string_agg(concat_ws(' ', name, measure, threshold, clear_at, severity), ', ' ORDER BY name) FROM swarm.alert_rules}),
	'more-errors error_rate 5 4 page, over-budget cost 10 8 message, resources resources 85 75 message, slower latency 20 15 page', 'four rules');
is(check(''), '0', 'nothing has run: no alert');
$node->safe_psql('postgres', q{
SELECT swarm.optimizer_start('1 d');
CREATE FUNCTION ended(n int, ago interval, seconds float8, how swarm.query_state = 'complete', what text = 'sql') RETURNS void LANGUAGE sql AS
$$ INSERT INTO swarm._query (kind, owner, permission_mode, state, started_at, finished_at)
   SELECT what, current_user::regrole, 'default', how, swarm._now() - ago - seconds * interval '1 s', swarm._now() - ago FROM generate_series(1, n) $$;
CREATE FUNCTION recent(seconds float8) RETURNS void LANGUAGE sql AS
$$ UPDATE swarm._query SET started_at = finished_at - seconds * interval '1 s' WHERE kind = 'sql' AND finished_at > swarm._now() - interval '1 hour' $$;
SELECT ended(30, '3 h', 10), ended(19, '10 min', 100), ended(30, '3 h', 100, what => 'llm'), ended(30, '10 min', 100, what => 'llm')});
is(check(''), '0', 'too few to say');
is(check(q{SELECT ended(1, '10 min', 12), recent(12)}), '0', 'slower by 20 %: not above');
is(alerts(), '', '... nothing is written');

# slower
next_check('SELECT recent(13)');
told(qr/"alert": "slower", "value": 30.0, "severity": "page", "threshold": 20/, 'slower by 30 %: told');
is(alerts(), 'slower page 30.0 t', '... and written');
is(check('SELECT recent(20)'), '1', 'slower still: the same alert');
is(check('SELECT recent(11.8)'), '1', 'a little below: it lasts');
next_check('SELECT recent(11.5)');
told(qr/"alert": "slower", "cleared": true/, 'well below: cleared');
is(alerts(), 'slower page 30.0 f', '... once');
is(check('SELECT recent(11.8)'), '0', 'between the two: not raised');
is(check('SELECT recent(14)'), '1', 'slower again: another');
is(alerts(), 'slower page 30.0 f, slower page 40.0 t', '... which is a row of its own');
is(check(q{UPDATE swarm.alert_rules SET enabled = false WHERE name = 'slower'}), '0', 'its rule is switched off: cleared');
is(check(q{UPDATE swarm.alert_rules SET enabled = true, threshold = 50 WHERE name = 'slower'}), '0', 'a higher threshold');
is(check(q{UPDATE swarm.alert_rules SET threshold = 39 WHERE name = 'slower'}), '1', '... a lower one');
is(check(q{DELETE FROM swarm.alert_rules WHERE name = 'slower'}), '0', 'its rule is gone: cleared');

# errors: 50 recent ones, 60 before
$node->safe_psql('postgres', 'DELETE FROM swarm.alerts');
is(check(q{SELECT ended(2, '1 min', 1, 'error')}), '0', '2 of 52 fail');
next_check(q{SELECT ended(1, '1 min', 1, 'error')});
told(qr/"alert": "more-errors", "value": 5.7, "severity": "page"/, '3 of 53: told');
is(check(q{SELECT ended(10, '1 min', 1)}), '1', '3 of 63: it lasts');
is(check(q{SELECT ended(20, '1 min', 1)}), '0', '3 of 83: cleared');

# cost
is(check(q{INSERT INTO swarm.budgets (scope, limit_usd, period, action) VALUES ('all', 100, 'total', 'warn');
INSERT INTO swarm._budget_use (budget, period_start, usd) SELECT id, swarm._budget_start(period), 110 FROM swarm.budgets}), '0', 'over budget by 10 %');
next_check('UPDATE swarm._budget_use SET usd = 110.5');
told(qr/"alert": "over-budget", "value": 10.5, "severity": "message"/, 'over it by 10.5 %: told');
is(check('UPDATE swarm._budget_use SET usd = 108'), '0', 'by 8 %: cleared');

# resources: the only runner
data_tables($node);
my $id = $node->safe_psql('postgres', q{SELECT swarm.query_start('sql', 'SELECT count(slow(id)) FROM big a, generate_series(1, 1000)')});
poll_ok($node, "SELECT state FROM swarm.queries WHERE id = $id AND pid IS NOT NULL", 'the only runner is taken', 'running');
next_check('');
told(qr/"alert": "resources", "value": 100.0, "severity": "message", "threshold": 85/, '... told');
$node->safe_psql('postgres', "SELECT swarm.query_terminate($id), swarm.query_wait($id)");
poll_ok($node, q{SELECT count(*) FROM swarm.workers WHERE job IS NOT NULL}, 'it is free', '0');
next_check('');
told(qr/"alert": "resources", "cleared": true/, '... cleared');

# all of it, once
$heard .= say_psql($listener, 'SELECT 1');
is(scalar(() = $heard =~ /"alert": "$_", "value"/g), 1, "$_: told once") for qw(more-errors over-budget resources);
is(alerts(), 'more-errors page 5.7 f, over-budget message 10.5 f, resources message 100.0 f', 'each is one row');

# rights; what is edited wrongly
$node->safe_psql('postgres', 'CREATE ROLE nobody; CREATE ROLE watches IN ROLE pg_monitor');
sql_fails($node, "SET ROLE nobody; SELECT * FROM swarm.$_", qr/42501/, "$_ are not for all") for qw(alerts alert_rules);
sql_fails($node, 'SET ROLE nobody; SELECT swarm._alert_check()', qr/42501/, 'nor is checking');
is($node->safe_psql('postgres', 'SET ROLE watches; SELECT count(*) FROM swarm.alerts a JOIN swarm.alert_rules r ON r.name = a.rule'), '3', 'who monitors sees them');
sql_fails($node, 'SET ROLE watches; DELETE FROM swarm.alerts', qr/42501/, '... and nothing else');
sql_fails($node, "INSERT INTO swarm.alert_rules (name, measure, threshold, clear_at, severity) VALUES ($_, 'page')", qr/23514/, "not possible: $_")
  for (q{'x', 'nonsense', 1, 0}, q{'x', 'cost', 1, 1}, q{'', 'cost', 1, 0});
is(check(q{INSERT INTO swarm.alert_rules (name, measure, threshold, clear_at, severity) VALUES ('any', 'cost', -50, -60, 'page')}), '1', 'a rule of one\'s own');

finish_psql($listener);
$node->stop;
done_testing();
