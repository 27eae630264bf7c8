# Random bytes of random pages of an index are damaged: searches, inserts, vacuum
# and the check raise XX001 or XX002, or return rows; the server never crashes, and
# nothing goes on for ever.  PG_SWARM_FUZZ=ROUNDS [25], PG_SWARM_SEED.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $rounds = $ENV{PG_SWARM_FUZZ} || 25;
my $seed = $ENV{PG_SWARM_SEED} || 1;
my $node = hnsw_cluster('main', conf => "statement_timeout = '60s'\nrestart_after_crash = off\nfull_page_writes = off");

srand($seed);
my @tables = (
	[ 'a', 'quantizer = rabitq4', 'real_l2_ops', '<->' ],
	[ 'b', 'fastupdate = off, m = 4', 'real_cosine_ops', '<=>' ],
	[ 'c', 'quantizer = none, m = 40', 'real_ip_ops', '<#>' ]);
my %file;
my %good;

for my $table (@tables)
{
	my ($t, $with, $class) = @$table;

	# nodes of all states: linked, twins, odd, pending, dead rows, free
	$node->safe_psql('postgres', qq{
CREATE TABLE $t (id bigint PRIMARY KEY, e real[]);
INSERT INTO $t SELECT i, vec(i) FROM generate_series(1, 1500) i;
CREATE INDEX ${t}_e ON $t USING qhnsw (e $class) WITH ($with);
DELETE FROM $t WHERE id % 10 = 0; VACUUM $t;
INSERT INTO $t SELECT i, vec(i) FROM generate_series(2001, 2100) i;
DELETE FROM $t WHERE id % 9 = 0});
	$file{$t} = $node->data_dir . '/' . $node->safe_psql('postgres', "SELECT pg_relation_filepath('${t}_e')");
}
$node->stop;
$good{$_} = slurp_file($file{$_}) for keys %file;

# damage(TEXT): some bytes of it, in one of the ways in which pages go bad; what was
# done, for the name of the test
sub damage
{
	my ($text) = @_;
	my $pages = length($text) / 8192;
	my $page = int(rand(3)) ? int(rand($pages)) : int(rand(4)) % $pages;
	my $how = int(rand(8));
	my $bytes = 1 + int(rand(4)) * int(rand(30));

	if ($how == 0)
	{
		substr($text, $page * 8192, 8192) = "\0" x 8192;
		return ($text, "page $page zeroed");
	}
	if ($how == 1 && $pages > 1)
	{
		my $other = int(rand($pages));

		substr($text, $page * 8192, 8192) = substr($text, $other * 8192, 8192);
		return ($text, "page $page is page $other");
	}
	if ($how == 2)
	{
		return (substr($text, 0, $page * 8192), "cut before page $page");
	}
	for (1 .. $bytes)
	{
		# the begin of a page more often: headers, the metapage's contents
		my $at = int(rand(3)) ? 24 + int(rand(8168)) : 24 + int(rand(160));
		my $value = int(rand(3)) ? chr(int(rand(256))) : "\xff" x 4;

		$at = 8188 if $at > 8188;
		substr($text, $page * 8192 + $at, length $value) = $value;
	}
	return ($text, "$bytes changes of page $page");
}

my %states;
ROUND:
for my $round (1 .. $rounds)
{
	my @names;

	for my $table (@tables)
	{
		my $t = $table->[0];
		my ($bad, $name) = damage($good{$t});

		open my $f, '>', $file{$t} or die;
		binmode $f;
		print $f $bad;
		close $f;
		push @names, "$t: $name";
	}
	$node->start;
	for my $table (@tables)
	{
		my ($t, $with, $class, $op) = @$table;

		for my $sql (
			"SET enable_seqscan = off; SELECT count(*) FROM (SELECT id FROM $t ORDER BY e $op vec(7) LIMIT 20) s",
			"SET enable_seqscan = off; SET qhnsw.iterative_scan = relaxed; SET qhnsw.ef_search = 5; SELECT count(*) FROM (SELECT id FROM $t ORDER BY e $op vec(9)) s",
			"SET enable_seqscan = off; SET qhnsw.rerank = heap; SELECT count(*) FROM (SELECT id FROM $t ORDER BY e $op vec(11) LIMIT 40) s",
			"SELECT count(*) FROM swarm.qhnsw_check('${t}_e')",
			"SELECT swarm.qhnsw_stats('${t}_e') IS NULL",
			"INSERT INTO $t SELECT i, vec(i) FROM generate_series(3000 + $round * 200, 3010 + $round * 200) i",
			"SELECT swarm.qhnsw_flush('${t}_e')",
			"VACUUM (INDEX_CLEANUP on) $t",
			"SET enable_seqscan = off; SELECT count(*) FROM (SELECT id FROM $t ORDER BY e $op vec(13) LIMIT 20) s")
		{
			my $err = sql_error($node, $sql);
			my ($state) = $err =~ /(?:ERROR|FATAL|PANIC): +(\w{5}):/;

			$state ||= $err eq '' ? 'none' : 'lost';
			$states{$state}++;
			next if $state =~ /^(none|XX001|XX002|54000)$/;
			fail("round $round of seed $seed: $sql");
			diag join("\n", @names), "\n$err";
			if ($state eq 'lost')
			{
				diag join "\n", grep { /TRAP|signal/ } split /\n/, slurp_file($node->logfile);
				last ROUND;
			}
		}
		# what the damage is to the index, it is not to the table
		$node->safe_psql('postgres', "DELETE FROM $t WHERE id > 3000");
	}
	$node->stop;
}
note join ', ', map { "$_: $states{$_}" } sort keys %states;
cmp_ok($states{XX002} || 0, '>', $rounds / 4, 'damage is found');
cmp_ok($states{none}, '>', $rounds / 4, '... and what can be read is read');

$node->start if !-e $node->data_dir . '/postmaster.pid';
for my $table (@tables)
{
	my ($t) = @$table;

	$node->safe_psql('postgres', "REINDEX INDEX ${t}_e");
	is(index_problems($node, "${t}_e"), '', "REINDEX mends $t");
}
$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|was terminated by signal/, 'no crash');
done_testing();
