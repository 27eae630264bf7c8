# Memory in a dump, on a standby, after its promotion.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $primary = swarm_cluster('primary', init => { allows_streaming => 1 });
my $dir = PostgreSQL::Test::Utils::tempdir();

$primary->safe_psql('postgres', q{
CREATE ROLE reader;
SELECT swarm.namespace_create('d', default_ttl => '1 day', max_entries => 100), swarm.namespace_create('d/e', embed => true, dims => 32),
	swarm.namespace_create('d/u', durability => 'unlogged');
SELECT swarm.namespace_alter('agent-metrics', '{"default_ttl": "3 hours"}'), swarm.namespace_grant('d', 'reader', 'read'), swarm.namespace_grant('default', 'public');
SELECT swarm.memory_store_many('d', '{"a": 1, "b": {"x": [1, null]}}'), swarm.memory_store('d', 'c', '1', '2 days', tags => '{t}'),
	swarm.memory_store_many('d/e', '{"cat": "the cat sat", "dog": "dogs chase"}'), swarm.memory_store('default', 'k', '1'), swarm.memory_store('d/u', 'u', '"unlogged"')});

# a namespace knows its origin by name
$primary->safe_psql('postgres', q{
CREATE SERVER web FOREIGN DATA WRAPPER swarm_http OPTIONS (endpoint 'http://127.0.0.1:9');
SELECT swarm.namespace_create('d/o'), swarm.namespace_alter('d/o', '{"origin": "web", "origin_path": "v1/", "origin_ttl": "1 hour"}')});

my $all = q{
SELECT * FROM swarm._namespace ORDER BY id;
SELECT * FROM swarm._namespace_grant ORDER BY 1, 2;
SELECT * FROM swarm._memory ORDER BY namespace, key;
SELECT * FROM swarm._memory_unlogged ORDER BY namespace, key;
SELECT namespace, key, embedding, words FROM swarm._recall ORDER BY 1, 2;
SELECT last_value, is_called FROM swarm._namespace_id_seq;
SELECT key FROM swarm.memory_search('d/e', 'cats', 1, 'semantic');
SELECT key FROM swarm.memory_search('d/e', 'dogs', 1, 'text');
SELECT name, default_ttl FROM swarm.namespaces ORDER BY name};
my $before = $primary->safe_psql('postgres', $all);

for my $format ('Fp', 'Fc')
{
	my $db = lc "copy_$format";

	$primary->command_ok([ 'pg_dump', "-$format", '-f', "$dir/$format", '-d', $primary->connstr('postgres') ], "$format: pg_dump");
	$primary->safe_psql('postgres', "CREATE DATABASE $db");
	if ($format eq 'Fp')
	{
		$primary->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', "$dir/$format", '-d', $primary->connstr($db) ], "$format: restore");
	}
	else
	{
		$primary->command_ok([ 'pg_restore', '--exit-on-error', '-j2', '-d', $primary->connstr($db), "$dir/$format" ], "$format: restore");
	}
	is($primary->safe_psql($db, $all), $before, "$format: all of it is there");
	is($primary->safe_psql($db, q{SELECT swarm.namespace_create('new'), swarm.memory_store('new', 'x', '1'), swarm.memory_store('d/e', 'cat', '"a cat"'), swarm.memory_store('d', 'a', '2')}),
		'|1|2|2', "$format: and goes on");
	is($primary->safe_psql($db, q{SELECT swarm.namespace_alter('d/o', '{"origin_path": "v2/"}'); SELECT origin, origin_path, origin_ttl FROM swarm.namespaces WHERE name = 'd/o'}),
		"\nweb|v2/|01:00:00", "$format: with its origin");
	sql_fails($primary, q{DROP SERVER web; SELECT swarm.namespace_alter('d/o', '{"origin_path": "v3/"}')}, qr/42704.*server "web"/, "$format: ... which may go", $db);
	is($primary->safe_psql($db, q{SELECT swarm.namespace_drop('d', with_below => true); DROP EXTENSION pg_swarm; SELECT count(*) FROM pg_namespace WHERE nspname = 'swarm'}), "4\n0", "$format: and can be dropped");
}
is($primary->safe_psql('postgres', $all), $before, 'the first database is as before');

# A standby: reads what is logged, hides what has expired, never from a cache.
$primary->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'b', has_streaming => 1);
$standby->start;

sub caught_up { return $primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert')) }

caught_up();
is($standby->safe_psql('postgres', q{SELECT swarm.memory_get('d', 'a'), swarm.memory_get('d', 'a'), swarm.memory_get('d/u', 'u') IS NULL, (SELECT count(*) FROM swarm.memory_list('d/u'))}), '1|1|t|0', 'the standby reads');
my $session = start_psql($standby);
is(say_psql($session, q{SELECT swarm.memory_get('d', 'a'), swarm.memory_get('d', 'a');}), '1|1', '... again and again');
$primary->safe_psql('postgres', q{SELECT swarm.memory_store('d', 'a', '"new"'), swarm.namespace_create('later'), swarm.memory_store('later', 'k', '1')});
caught_up();
is(say_psql($session, q{SELECT swarm.memory_get('d', 'a'), swarm.memory_get('later', 'k');}), '"new"|1', '... and sees the change, and a new namespace');
is($standby->safe_psql('postgres', q{SELECT hits, entries FROM swarm.stat_cache}), '0|0', '... past the cache');
is($standby->safe_psql('postgres', q{SELECT count(*) FROM swarm.memory_search('d/e', 'cats')}), '2', '... and searches');
is($standby->safe_psql('postgres', q{SELECT key FROM swarm.memory_wait('d', 'a', '1 s')}), 'a', 'what is there is not waited for');
sql_fails($standby, q{SELECT swarm.memory_wait('d', 'none', '1 s')}, qr/55000/, 'waiting is refused');
sql_fails($standby, q{SELECT swarm.memory_store('d', 'a', '1')}, qr/25006/, 'storing is refused');
sql_fails($standby, q{SELECT swarm.memory_delete('d', 'a')}, qr/25006/, 'deleting is refused');
sql_fails($standby, q{SELECT swarm.memory_increment('d', 'n')}, qr/25006/, 'counting is refused');
is($standby->safe_psql('postgres', q{SELECT swarm.track_spawn('s', 'x', 'y') IS NOT NULL}), 't', 'tracking goes on, and drops');
is($standby->safe_psql('postgres', q{SELECT dropped > 0 FROM swarm.stat_tracker}), 't', '... and counts');
$standby->safe_psql('postgres', q{SELECT swarm._clock_advance('1 day')});
is(say_psql($session, q{SELECT swarm.memory_get('d', 'a') IS NULL, swarm.memory_get('d', 'c'), (SELECT array_agg(key) FROM swarm.memory_list('d'));}), 't|1|{c}', 'what has expired is not seen there');
$standby->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});

# Promoted: the cache begins to work, and is right; also about what was prepared before.
$primary->safe_psql('postgres', q{SELECT swarm.memory_store('d', 'p', '"before"'); BEGIN; SELECT swarm.memory_store('d', 'p', '"prepared"'); PREPARE TRANSACTION 'p'});
caught_up();
$primary->stop('immediate');
$standby->promote;
is($standby->safe_psql('postgres', q{SELECT swarm.memory_get('d', 'p'); SELECT swarm.memory_get('d', 'p')}), qq{"before"\n"before"}, 'a prepared transaction is not seen');
$standby->safe_psql('postgres', q{COMMIT PREPARED 'p'});
is($standby->safe_psql('postgres', q{SELECT swarm.memory_get('d', 'p'); SELECT swarm.memory_get('d', 'p')}), qq{"prepared"\n"prepared"}, '... until it is committed');
is(say_psql($session, q{SELECT swarm.memory_get('d', 'a'), swarm.memory_get('d', 'a');}), '"new"|"new"', 'the same session after promotion');
$standby->safe_psql('postgres', q{SELECT swarm.memory_store('d', 'a', '"promoted"')});
is(say_psql($session, q{SELECT swarm.memory_get('d', 'a'), swarm.memory_get('d', 'a');}), '"promoted"|"promoted"', '... sees what is stored now');
is($standby->safe_psql('postgres', q{SELECT hits > 0 FROM swarm.stat_cache}), 't', '... from the cache');
finish_psql($session);
$standby->stop;
done_testing();
