# Insert, update, delete, search, fold and VACUUM by several clients at a time.
# Readers compare an index scan with the table in one snapshot all the while; at
# the end the index has the rows of the table.  PG_SWARM_STRESS=SECONDS [20].
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $seconds = $ENV{PG_SWARM_STRESS} || 20;
my $node = hnsw_cluster('main', conf => "shared_buffers = 16MB\nmax_connections = 50");

$node->safe_psql('postgres', 'CREATE SEQUENCE ids START 100001');
for my $table ([ 'fast', '' ], [ 'slow', 'fastupdate = off, m = 6, ef_construction = 40' ])
{
	my ($t, $with) = @$table;
	my $read = "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT 1 / (rows_differ('$t') = '')::int;\nCOMMIT;\n";

	hnsw_table($node, $t, 3000, $with);
	my $load = pgbench_start($node, $seconds / 2, 6, {
		insert => [ "SET qhnsw.pending_list_limit = 64;\nINSERT INTO $t SELECT i, vec(i) FROM (SELECT nextval('ids') AS i FROM generate_series(1, 5)) s;\n", 4 ],
		rollback => [ "BEGIN;\nINSERT INTO $t SELECT i, vec(i) FROM (SELECT nextval('ids') AS i FROM generate_series(1, 3)) s;\nROLLBACK;\n", 1 ],
		update => [ "\\set n random(1, 400000)\nUPDATE $t SET e = vec(id + :n) WHERE id = (SELECT id FROM $t WHERE id > (:n / 4) ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);\n", 3 ],
		delete => [ "DELETE FROM $t WHERE id IN (SELECT id FROM $t ORDER BY id LIMIT 5 FOR UPDATE SKIP LOCKED);\n", 4 ],
		search => [ "\\set n random(1, 100000)\nSET enable_seqscan = off;\nSELECT 1 / (count(*) = 10)::int FROM (SELECT id FROM $t ORDER BY e <-> vec(:n * 2 + 1 - :n % 32) LIMIT 10) s;\n", 3 ],
	});
	my $readers = pgbench_start($node, $seconds / 2, 2, { read => $read });
	my $vacuum = pgbench_start($node, $seconds / 2, 1, { vacuum => "VACUUM (INDEX_CLEANUP on) $t;\n" });

	is(pgbench_stop($_->[0]), '', "$t: $_->[1]")
	  for ([ $load, 'no error in what writes and searches' ], [ $readers, 'every snapshot saw the rows of the table, once' ], [ $vacuum, 'no error in VACUUM' ]);
	is(difference($node, $t), '', "$t: its rows are there after the load");
	same_rows($node, $t, "$t after the load");
	$node->safe_psql('postgres', "DELETE FROM $t WHERE e IS NOT NULL AND id IN (SELECT id FROM $t ORDER BY id LIMIT 9); VACUUM (INDEX_CLEANUP on) $t");
	same_rows($node, $t, "$t after VACUUM");
	all_reached($node, "${t}_e", "$t after VACUUM");
	$node->safe_psql('postgres', "DELETE FROM $t; VACUUM $t; INSERT INTO $t SELECT i, vec(i) FROM generate_series(1, 500) i; VACUUM $t");
	same_rows($node, $t, "$t filled anew");
}

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|was terminated by signal|XX00/, 'no crash');
done_testing();
