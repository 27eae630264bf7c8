# A physical standby returns the same rows in the same order, while the primary
# inserts and vacuums, and goes on from there when it is promoted.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $primary = hnsw_cluster('primary', init => { allows_streaming => 1 });

hnsw_table($primary, 'fast', 4000, '');
hnsw_table($primary, 'slow', 4000, 'fastupdate = off, m = 8');
$primary->safe_psql('postgres', q{
CREATE TABLE empty (id bigint PRIMARY KEY, e real[]);
CREATE INDEX empty_e ON empty USING qhnsw (e real_l2_ops);
CREATE UNLOGGED TABLE fleeting (id bigint PRIMARY KEY, e real[]);
CREATE INDEX fleeting_e ON fleeting USING qhnsw (e real_l2_ops);
INSERT INTO fleeting SELECT i, vec(i) FROM generate_series(1, 100) i});
$primary->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'b', has_streaming => 1);
$standby->append_conf('postgresql.conf', 'hot_standby_feedback = on');
$standby->start;

# the 50 nearest of 40 queries, as one text, by a walk
sub answers_of
{
	my ($node, $t) = @_;

	return $node->safe_psql('postgres', qq{
SET enable_seqscan = off;
SELECT string_agg(a::text, E'\\n' ORDER BY n) FROM (SELECT n, ARRAY(SELECT id FROM $t ORDER BY e <-> vec(n * 65 + 1) LIMIT 50) AS a FROM generate_series(1, 40) n) s});
}

sub same_answers
{
	my ($name) = @_;

	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
	for my $t (qw(fast slow))
	{
		my $a = answers_of($primary, $t);

		is(length $a > 1000, 1, "$name: $t has answers");
		is(answers_of($standby, $t), $a, "$name: $t gives the same rows in the same order");
		is(difference($standby, $t), '', "$name: $t has all rows on the standby");
		is(index_problems($standby, "${t}_e"), '', "$name: ... and no problem");
	}
}

same_answers('built');
for my $t (qw(fast slow empty))
{
	$primary->safe_psql('postgres', "SET qhnsw.pending_list_limit = 64; INSERT INTO $t SELECT i, vec(i) FROM generate_series(4001, 6000) i");
}
same_answers('inserted');
is(difference($standby, 'empty'), '', 'an index that was empty');
for my $t (qw(fast slow))
{
	$primary->safe_psql('postgres', "DELETE FROM $t WHERE id % 4 = 0; VACUUM $t; INSERT INTO $t SELECT i, vec(i) FROM generate_series(6001, 6500) i");
}
same_answers('deleted, vacuumed, slots used again');

# A query that goes on while the primary changes everything.
my $reader = start_psql($standby, undef);
say_psql($reader, 'BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL enable_seqscan = off; SET LOCAL qhnsw.iterative_scan = relaxed;');
my $rows = say_psql($reader, 'SELECT count(*) FROM fast;');
say_psql($reader, 'DECLARE c CURSOR FOR SELECT id FROM fast ORDER BY e <-> vec(1);');
my @got = split /\n/, say_psql($reader, 'FETCH 100 FROM c;');
$primary->safe_psql('postgres', "UPDATE fast SET e = vec(id + 100000) WHERE id % 2 = 0; INSERT INTO fast SELECT i, vec(i) FROM generate_series(10001, 11000) i; VACUUM fast");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
push @got, split /\n/, say_psql($reader, 'FETCH ALL FROM c;');
say_psql($reader, 'COMMIT;');
$reader->{in} .= "\\q\n";
finish_psql($reader);
my %seen = map { $_ => 1 } @got;
is(scalar(@got) . ' ' . scalar(keys %seen), "$rows $rows", 'a cursor on the standby returns the rows of its snapshot, once');

sql_fails($standby, 'INSERT INTO fast VALUES (0, vec(1))', qr/25006/, 'no insert on a standby');
sql_fails($standby, "SELECT swarm.qhnsw_flush('fast_e')", qr/25006/, '... and no flush');

# Promoted in the middle of a load.
my $load = pgbench_start($primary, 600, 4, { insert => "INSERT INTO fast SELECT i + (random() * 1e12)::bigint, vec(i) FROM generate_series(20001, 20010) i;\nINSERT INTO slow SELECT i + (random() * 1e12)::bigint, vec(i) FROM generate_series(20001, 20002) i;\n" });
poll_sql($primary, 'SELECT count(*) > 1000 FROM fast WHERE id > 20000');
$primary->stop('immediate');
pgbench_stop($load);
$standby->promote;
for my $t (qw(fast slow empty))
{
	is(difference($standby, $t), '', "promoted: $t has its rows");
	$standby->safe_psql('postgres', "INSERT INTO $t SELECT i, vec(i) FROM generate_series(7001, 8000) i; DELETE FROM $t WHERE id % 5 = 0; VACUUM $t");
	same_rows($standby, $t, "promoted: $t after more and VACUUM");
}
is($standby->safe_psql('postgres', 'SET enable_seqscan = off; SELECT count(*) FROM (SELECT * FROM fleeting ORDER BY e <-> vec(1)) s'), '0', 'promoted: the unlogged index is empty');
$standby->safe_psql('postgres', 'INSERT INTO fleeting SELECT i, vec(i) FROM generate_series(1, 100) i');
same_rows($standby, 'fleeting', 'promoted: ... and can be used');

$standby->stop;
unlike(slurp_file($_->logfile), qr/TRAP:|PANIC:|was terminated by signal|XX00/, 'no crash') for ($primary, $standby);
done_testing();
