# CREATE INDEX CONCURRENTLY and REINDEX CONCURRENTLY under load; cancel in every
# phase of build, insert, fold, vacuum and scan; little memory; a full disk.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = hnsw_cluster('main', conf => 'max_connections = 50');
my $id = 10000;

# more(TABLE, N): SQL that inserts N rows
sub more
{
	my ($t, $n) = @_;
	my $from = $id + 1;

	$id += $n;
	return "INSERT INTO $t SELECT i, vec(i) FROM generate_series($from, $id) i;";
}

# --- by many processes, of which some stop in the middle ---

# Who comes to a node by a higher level while it still links back there may be
# the first to link to it on the lowest.
$node->safe_psql('postgres', q{
CREATE TABLE crowd (e real[]) WITH (parallel_workers = 8);
INSERT INTO crowd SELECT ARRAY(SELECT (hashint4(i * 8 + j) % 1000)::real FROM generate_series(1, 8) j) FROM generate_series(1, 40000) i});
is($node->safe_psql('postgres', q{
SET max_parallel_maintenance_workers = 8;
CREATE INDEX crowd_e ON crowd USING qhnsw (e) WITH (m = 4, ef_construction = 4);
SELECT * FROM swarm.qhnsw_check('crowd_e', false);
} . "REINDEX INDEX crowd_e; SELECT * FROM swarm.qhnsw_check('crowd_e', false);\n" x 9), '',
	'builds by many processes leave no problem');
$node->safe_psql('postgres', 'DROP TABLE crowd');

# --- concurrently ---

$node->safe_psql('postgres', 'CREATE SEQUENCE ids START 1000001');
for my $with ('', 'fastupdate = off')
{
	my $t = $with ? 'slow' : 'fast';

	$node->safe_psql('postgres', "CREATE TABLE $t (id bigint PRIMARY KEY, e real[]); INSERT INTO $t SELECT i, vec(i) FROM generate_series(1, 3000) i");
	# Not faster than a slow machine links rows: else the table outgrows REINDEX.
	my $load = pgbench_start($node, 600, 4, {
		insert => "INSERT INTO $t SELECT i, vec(i) FROM (SELECT nextval('ids') AS i FROM generate_series(1, 5)) s;\n",
		delete => "DELETE FROM $t WHERE id IN (SELECT id FROM $t ORDER BY id LIMIT 6 FOR UPDATE SKIP LOCKED);\n",
		update => "UPDATE $t SET e = vec(id + 3) WHERE id = (SELECT id FROM $t WHERE id > 2000 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);\n",
		rollback => "BEGIN;\nINSERT INTO $t SELECT i, vec(i) FROM (SELECT nextval('ids') AS i FROM generate_series(1, 5)) s;\nROLLBACK;\n" },
		'--rate=100');

	ok(poll_sql($node, "SELECT max(id) > 1000000 FROM $t"), "$t: there is a load");
	$node->safe_psql('postgres', "CREATE INDEX CONCURRENTLY ${t}_e ON $t USING qhnsw (e real_l2_ops)" . ($with ? " WITH ($with)" : ''));
	is(difference($node, $t), '', "$t: CREATE INDEX CONCURRENTLY under load");
	$node->safe_psql('postgres', "SET qhnsw.pending_list_limit = 64; REINDEX INDEX CONCURRENTLY ${t}_e");
	is(difference($node, $t), '', "$t: REINDEX CONCURRENTLY under load");
	$node->safe_psql('postgres', "REINDEX INDEX ${t}_e");
	is(difference($node, $t), '', "$t: REINDEX under load");
	$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'");
	pgbench_stop($load);
	same_rows($node, $t, "$t: after the load");
	$node->safe_psql('postgres', "VACUUM $t");
	same_rows($node, $t, "$t: after VACUUM");
}

# --- cancel ---

hnsw_table($node, 'built', 2000, '');
my @phases = (
	[ 'hnsw.build', 'REINDEX INDEX built_e', 500 ],
	[ 'hnsw.build.write', 'REINDEX INDEX built_e', 5 ],
	[ 'hnsw.insert', sub { more('fast', 300) . more('slow', 300) }, 100 ],
	[ 'hnsw.fold', sub { 'SET qhnsw.pending_list_limit = 64;' . more('fast', 900) }, 20 ],
	[ 'hnsw.fold', sub { $node->safe_psql('postgres', more('fast', 50)); "SELECT swarm.qhnsw_flush('fast_e')" }, 10 ],
	[ 'hnsw.link.links', sub { more('slow', 300) }, 100 ],
	[ 'hnsw.link.back', sub { more('slow', 300) }, 100 ],
	[ 'hnsw.link.finish', sub { more('slow', 300) }, 100 ],
	[ 'hnsw.vacuum.mark', 'VACUUM fast; VACUUM slow', 5 ],
	[ 'hnsw.vacuum.mend', 'VACUUM fast; VACUUM slow', 2 ],
	[ 'hnsw.vacuum.repair', 'VACUUM fast; VACUUM slow', 50 ],
	[ 'hnsw.vacuum.free', 'VACUUM fast; VACUUM slow', 5 ]);
my $round = 0;

for my $phase (@phases)
{
	my ($point, $sql, $skip) = @$phase;

	for my $how ('pg_cancel_backend', 'pg_terminate_backend')
	{
		my $name = "$how at $point";
		my $s = start_psql($node, undef);

		$round++;
		$sql = $sql->() if ref $sql;
		$node->safe_psql('postgres', join ';', map { "DELETE FROM $_ WHERE id % 11 = $round % 11 OR (id % 8 = 0 AND id / 8 % 20 = $round % 20)" } qw(fast slow)) if $point =~ /vacuum/;
		my $pid = say_psql($s, 'SELECT pg_backend_pid();');
		$node->safe_psql('postgres', "SELECT swarm._fault_arm('$point', 'wait', $skip, 1)");
		$s->{in} .= "$sql;\n\\q\n";
		$s->{run}->pump_nb;
		ok(poll_sql($node, "SELECT wait_event_type = 'Extension' AND state = 'active' FROM pg_stat_activity WHERE pid = $pid"), "$name: it is there");
		$node->safe_psql('postgres', "SELECT $how($pid)");
		like(finish_psql($s), qr/canceling statement|terminating connection/, $name);
		$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
		for my $t ($point =~ /build/ ? 'built' : qw(fast slow))
		{
			is(difference($node, $t), '', "$name: $t has its rows");
			$node->safe_psql('postgres', more($t, 50) . "VACUUM $t");
			same_rows($node, $t, "$name: $t after more and VACUUM");
		}
		$sql = $phase->[1];
	}
}

# By statement_timeout, wherever that is; with each it gets a little farther.
for my $sql ('REINDEX INDEX built_e', 'SELECT rows_differ(\'fast\')', 'INSERT INTO slow SELECT i, vec(i) FROM generate_series(2000001, 2003000) i')
{
	my $done = 0;

	for (my $ms = 1; !$done && $ms < 100_000; $ms *= 2)
	{
		my $err = sql_error($node, "SET statement_timeout = $ms; $sql");

		$done = $err eq '';
		like($err, qr/^$|57014/, "statement_timeout = $ms: $sql");
	}
	ok($done, "... at last it is done");
	same_rows($node, $_, "... and $_ is as it should be") for qw(fast slow built);
}

# --- little memory ---

$node->safe_psql('postgres', q{
CREATE TABLE narrow (id bigint PRIMARY KEY, e real[]);
INSERT INTO narrow SELECT i, vec(i, 64) FROM generate_series(1, 6000) i});
for my $workers (0, 2)
{
	my ($rc, $out, $err) = $node->psql('postgres', "SET maintenance_work_mem = '1MB'; SET max_parallel_maintenance_workers = $workers; DROP INDEX IF EXISTS narrow_e; CREATE INDEX narrow_e ON narrow USING qhnsw (e real_l2_ops)");

	is($rc, 0, "1 MB of maintenance_work_mem, $workers workers");
	like($err, qr/NOTICE:  .*maintenance_work_mem/, '... says so') if $workers == 0;
	same_rows($node, 'narrow', '... has its rows');
	$node->safe_psql('postgres', "SET maintenance_work_mem = '1MB'; DELETE FROM narrow WHERE id % 13 = $workers; VACUUM narrow");
	same_rows($node, 'narrow', '... after VACUUM');
}
is($node->safe_psql('postgres', "SET work_mem = '64kB'; SELECT rows_differ('narrow')"), '', 'a scan with 64 kB of work_mem');

# --- full disk ---

SKIP:
{
	my $dir = $ENV{PG_SWARM_SMALL_DISK} || '';

	skip 'PG_SWARM_SMALL_DISK names no file system of some MB', 1 unless -d $dir;
	system('rm', '-rf', "$dir/ts");
	mkdir "$dir/ts";
	$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$dir/ts'");
	$node->safe_psql('postgres', 'CREATE TABLE full_disk (id bigint PRIMARY KEY, e real[]); CREATE INDEX full_disk_e ON full_disk USING qhnsw (e real_l2_ops) TABLESPACE small');
	my $err = '';

	for (1 .. 200)
	{
		$err = sql_error($node, more('full_disk', 1000));
		last if $err;
	}
	like($err, qr/53100/, 'INSERT on a full disk');
	is(difference($node, 'full_disk'), '', '... its rows are there');
	sql_fails($node, 'REINDEX INDEX full_disk_e', qr/53100/, '... REINDEX finds no room');
	same_rows($node, 'full_disk', '... which changes nothing');
	$node->safe_psql('postgres', 'DELETE FROM full_disk WHERE id % 2 = 0; VACUUM full_disk');
	$node->safe_psql('postgres', more('full_disk', 200));
	same_rows($node, 'full_disk', '... slots of deleted rows are used');
	$node->safe_psql('postgres', 'DROP TABLE full_disk; DROP TABLESPACE small');
}

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|was terminated by signal|XX00/, 'no crash');
done_testing();
