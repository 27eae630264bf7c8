# Memory and the server: waiting, crash, no preload, DROP EXTENSION.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

my $node = swarm_cluster('main', conf => "pg_swarm.memory_sweep_interval = 100\nfsync = on");
my $T = "$PostgreSQL::Test::Utils::timeout_default s";

sub waits
{
	my ($n) = @_;

	return poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'memory_wait' AND pid <> pg_backend_pid()
		AND wait_event_type = 'Extension' AND state = 'active'}, "$n wait", $n);
}

$node->safe_psql('postgres', q{SELECT swarm.namespace_create('w'), swarm.namespace_create('gone', durability => 'unlogged')});

# Waiting: for an entry, for another version, for the end of one.
my $one = start_psql($node, "SELECT key, value, version FROM swarm.memory_wait('w', 'k', '$T')");
my $two = start_psql($node, "SELECT key, value FROM swarm.memory_wait('w', 'k', '$T', 1)");
my $writer = start_psql($node);
is(finish_psql($two), "|\n", 'what is not there has no version 1: at once');
waits(1);
say_psql($writer, q{BEGIN; SELECT swarm.memory_store('w', 'k', '"never"'); ROLLBACK;});
waits(1);
say_psql($writer, q{BEGIN; SELECT swarm.memory_store('w', 'k', '"first"');});
waits(1);
say_psql($writer, 'COMMIT;');
is(finish_psql($one), "k|\"first\"|1\n", 'woken by the commit');
is($node->safe_psql('postgres', "SELECT value FROM swarm.memory_wait('w', 'k', '$T')"), '"first"', 'what is there is not waited for');
$one = start_psql($node, "SELECT value, version FROM swarm.memory_wait('w', 'k', '$T', 1)");
waits(1);
$node->safe_psql('postgres', q{SELECT swarm.memory_store('w', 'other', '1')});
waits(1);
$node->safe_psql('postgres', q{UPDATE swarm._memory SET value = '"direct"', version = 2 WHERE key = 'k'});
is(finish_psql($one), "\"direct\"|2\n", 'woken by a plain UPDATE');
$one = start_psql($node, "SELECT key FROM swarm.memory_wait('w', 'k', '$T', 2)");
waits(1);
$node->safe_psql('postgres', q{BEGIN; SELECT swarm.memory_store('w', 'k', '"prepared"'); PREPARE TRANSACTION 'w'});
waits(1);
$node->safe_psql('postgres', q{COMMIT PREPARED 'w'});
is(finish_psql($one), "k\n", 'woken by COMMIT PREPARED');
$one = start_psql($node, "SELECT key IS NULL FROM swarm.memory_wait('w', 'k', '$T', 3)");
waits(1);
$node->safe_psql('postgres', q{SELECT swarm.memory_delete('w', 'k')});
is(finish_psql($one), "t\n", 'woken by the end of the entry');
$node->safe_psql('postgres', q{SELECT swarm.memory_store('w', 'short', '1', '1 hour')});
$one = start_psql($node, "SELECT key IS NULL FROM swarm.memory_wait('w', 'short', NULL, 1)");
waits(1);
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('1 hour')});
is(finish_psql($one), "t\n", 'woken when it expires');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});
is($node->safe_psql('postgres', q{SELECT key IS NULL FROM swarm.memory_wait('w', 'k', '10 ms')}), 't', 'the time is over');

# Cancelled: the session goes on, and waits again.
$one = start_psql($node, "SELECT swarm.memory_wait('w', 'cancel', NULL);\nSELECT value FROM swarm.memory_wait('w', 'cancelled', '$T')");
waits(1);
is($node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query ~ 'memory_wait' AND pid <> pg_backend_pid()}), 't', 'one is cancelled');
poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'cancelled' AND pid <> pg_backend_pid() AND wait_event_type = 'Extension'}, '... and waits for another', '1');
$node->safe_psql('postgres', q{SELECT swarm.memory_store('w', 'cancelled', '1')});
like(finish_psql($one), qr/^1\n.*canceling statement due to user request/s, '... which it gets');

# A namespace that is dropped is not waited for, also if it is made again.
$node->safe_psql('postgres', q{SELECT swarm.namespace_create('drop'), swarm.memory_store('drop', 'k', '1')});
$one = start_psql($node, q{SELECT swarm.memory_wait('drop', 'none', NULL)});
$two = start_psql($node, q{SELECT swarm.memory_wait('drop', 'k', NULL, 1)});
waits(2);
$node->safe_psql('postgres', q{BEGIN; SELECT swarm.namespace_drop('drop'); ROLLBACK});
waits(2);
$node->safe_psql('postgres', q{SELECT swarm.namespace_drop('drop'); SELECT swarm.namespace_create('drop')});
like(finish_psql($one), qr/namespace "drop" was dropped/, 'the namespace is gone: for a new key');
like(finish_psql($two), qr/namespace "drop" was dropped|^\|*$/, '... for another version');
sql_fails($node, q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT swarm.memory_wait('w', 'k', '1 s')}, qr/55000/, 'not in a snapshot that sees nothing new');

# The scheduler sweeps.
$node->safe_psql('postgres', q{SELECT swarm.memory_store('w', 's' || i, '1', '1 min') FROM generate_series(1, 50) i});
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('2 hours')});
poll_ok($node, q{SELECT count(*) FROM swarm._memory WHERE key ~ '^s\d'}, 'swept by the scheduler', '0');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance(NULL)});

# An event is a notification, too.
say_psql($writer, 'LISTEN pg_swarm_wiki;');
like(say_psql($writer, q{SELECT swarm.track_completion('x', 'success');}), qr/notification "pg_swarm_wiki" with payload .*agent-completion/, 'completion is announced');
finish_psql($writer);

# A crash: logged entries stay, unlogged ones are gone, the cache knows nothing.
$node->safe_psql('postgres', q{SELECT swarm.memory_store('w', 'stays', '1'), swarm.memory_store('gone', 'goes', '1'),
	swarm.memory_get('gone', 'goes'), swarm.track_spawn('t', 'x', 'y')});
is($node->safe_psql('postgres', q{SELECT swarm.memory_get('gone', 'goes'); SELECT swarm.memory_get('gone', 'goes'); SELECT hits > 0 FROM swarm.stat_cache}), "1\n1\nt", 'cached before the crash');
$node->kill9;
ok(start_again($node), 'crashed and started');
is($node->safe_psql('postgres', q{SELECT swarm.memory_get('w', 'stays'), swarm.memory_get('gone', 'goes')}), '1|', 'what is logged is there, what is not is not');
is($node->safe_psql('postgres', q{SELECT status FROM swarm.agent_history('t')}), 'spawned', 'records of agents survive');
# a process that dies between marking and commit takes the server along
my $crashes = crash_is_over($node);
$node->psql('postgres', q{SELECT swarm._fault_arm('memory.commit', 'kill'); SELECT swarm.memory_store('w', 'stays', '2')});
ok(crash_is_over($node, $crashes), 'a backend is killed while it commits');
is($node->safe_psql('postgres', q{SELECT swarm.memory_get('w', 'stays'), swarm.memory_get('w', 'stays')}), '1|1', '... nothing was stored');
# one that fails there leaves the cache open
$node->psql('postgres', q{SELECT swarm._fault_arm('memory.commit'); SELECT swarm.memory_store('w', 'stays', '2')});
$node->safe_psql('postgres', q{SELECT swarm.memory_get('w', 'stays'), swarm.memory_get('w', 'stays')});
is($node->safe_psql('postgres', q{SELECT hits AS h FROM swarm.stat_cache \gset
SELECT swarm.memory_get('w', 'stays'); SELECT hits - :h FROM swarm.stat_cache}), "1\n1", 'a commit that failed leaves the cache in use');

# A small cache: entries of all sizes come, go and move, and are right; none.
for my $size ('1MB', '0')
{
	$node->append_conf('postgresql.conf', "pg_swarm.cache_size = $size");
	$node->restart;
	$node->safe_psql('postgres', q{SELECT swarm.namespace_create('small') WHERE NOT EXISTS (SELECT FROM swarm.namespaces WHERE name = 'small');
		SELECT swarm.memory_store('small', 'k' || i, to_jsonb(repeat(chr(97 + i % 26), i * i % 6000))) FROM generate_series(1, 1500) i});
	is($node->safe_psql('postgres', q{SELECT count(*) FROM generate_series(1, 4) round, generate_series(1, 1500) i, LATERAL (SELECT CASE WHEN i % 3 = 0 THEN i ELSE i * round % 40 + 1 END AS k) x
		WHERE swarm.memory_get('small', 'k' || k) IS DISTINCT FROM to_jsonb(repeat(chr(97 + k % 26), k * k % 6000))}), '0', "cache of $size: all answers are right");
	$node->safe_psql('postgres', q{SELECT swarm.memory_store('small', 'k' || i, '"new"') FROM generate_series(1, 1500, 5) i});
	is($node->safe_psql('postgres', q{SELECT count(*) FILTER (WHERE swarm.memory_get('small', 'k' || i) = '"new"') FROM generate_series(1, 3), generate_series(1, 1500) i}), '900', '... after changes');
	is($node->safe_psql('postgres', q{SELECT hits > 0, evictions > 0, used > 0, used <= size FROM swarm.stat_cache}), $size ? 't|t|t|t' : 'f|f|f|t', '... and it was used as it can be');
}
$one = start_psql($node, "SELECT value FROM swarm.memory_wait('small', 'late', '$T')");
waits(1);
$node->safe_psql('postgres', q{SELECT swarm.memory_store('small', 'late', '1')});
is(finish_psql($one), "1\n", 'who waits is woken without a cache');
$node->append_conf('postgresql.conf', 'pg_swarm.cache_size = 100MB');
$node->restart;

# That a prepared transaction has ended is told to its own database, also when a session of another one looks first.
$node->safe_psql('postgres', q{SELECT swarm.namespace_create('two', max_entries => 2); SELECT swarm.memory_store('two', k, '1') FROM unnest('{a,b}'::text[]) k});
$node->safe_psql('postgres', q{BEGIN; SELECT swarm.memory_delete('two', 'a'); PREPARE TRANSACTION 'ended'});
$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('second', 'CREATE EXTENSION pg_swarm');
$node->safe_psql('second', q{BEGIN; SELECT swarm.memory_store('default', 'k', '1'); PREPARE TRANSACTION 'other'});
$node->safe_psql('postgres', q{SELECT swarm._fault_arm('memory.ended', 'wait')});
my $ending = start_psql($node, q{COMMIT PREPARED 'ended'});
poll_ok($node, q{SELECT count(*) FROM pg_prepared_xacts}, 'a prepared transaction has ended, but not its session', '1');
$node->safe_psql('second', q{COMMIT PREPARED 'other'});
$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
is(finish_psql($ending), '', '... while one of another database ends');
is($node->safe_psql('postgres', q{SELECT swarm.memory_store('two', 'c', '1')}), '1', '... what it has removed does not count any more');
$node->safe_psql('postgres', 'DROP DATABASE second');

# DROP and CREATE: nothing of the old ones, not even from the cache.
$node->safe_psql('postgres', q{SELECT swarm.memory_store('default', 'k', '"old"'), swarm.memory_get('default', 'k'), swarm.namespace_create('e', embed => true)});
is($node->safe_psql('postgres', q{SELECT swarm.memory_get('default', 'k'); DROP EXTENSION pg_swarm; CREATE EXTENSION pg_swarm; SELECT swarm.memory_get('default', 'k') IS NULL}),
	"\"old\"\nt", 'DROP and CREATE EXTENSION in one session');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_class WHERE relname ~ '^_(memory|recall)_\d'}), '0', 'nothing is left');

# Without preload: all but waiting.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is($node->safe_psql('postgres', q{SELECT swarm.namespace_create('n', max_entries => 2, embed => true); SELECT swarm.memory_store('n', 'a', '"hello world"'), swarm.memory_get('n', 'a'),
	swarm.memory_increment('n', 'i'), (SELECT key FROM swarm.memory_search('n', 'hello', 1, 'semantic')), (SELECT key FROM swarm.memory_search('n', 'hello', 1, 'text'))}),
	"\n1|\"hello world\"|1|a|a", 'it works without preload');
sql_fails($node, q{SELECT swarm.memory_store('n', 'b', '1')}, qr/53400/, '... limits, too');
sql_fails($node, q{SELECT swarm.memory_wait('n', 'b')}, qr/55000.*shared_preload_libraries/s, '... waiting needs it');
$node->safe_psql('postgres', q{SELECT swarm.memory_expire('n', 'a', '1 ms'), pg_sleep(0.01)});
is($node->safe_psql('postgres', q{SELECT swarm.memory_sweep(), swarm.memory_get('n', 'a') IS NULL, hits FROM swarm.stat_cache}), '1|t|0', '... and the sweep by hand');
is($node->safe_psql('postgres', q{SELECT swarm.track_spawn('t', 'x', 'y') IS NOT NULL, (SELECT status FROM swarm.agent_history('t'))}), 't|spawned', '... and the tracker');

$node->stop;
done_testing();
