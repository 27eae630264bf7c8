# Ten thousand files in a batch, when it is allowed: all of them are stored, and what the
# runner holds of them does not grow with their number.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my $node = swarm_cluster('main');
my $seconds = 2 * $PostgreSQL::Test::Utils::timeout_default;
my $store = PostgreSQL::Test::Utils::tempdir_short() . '/store';
my $bytes = 20000;

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# private memory of the runners, in KB
sub memory
{
	my $kb = 0;

	foreach my $pid (split /\n/, sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner'}))
	{
		next unless -e "/proc/$pid/status";
		$kb += $1 if slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m;
	}
	return $kb;
}

mkdir $store or die;
sql("CREATE SERVER folder FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'file://$store')");
sql("CREATE TABLE source AS SELECT 1 AS id, convert_to(repeat('0123456789', $bytes / 10), 'UTF8') AS body; ALTER TABLE source ADD PRIMARY KEY (id)");
sub batch
{
	my ($n) = @_;

	return (split /\n/, sql("SET pg_swarm.s3_max_files = $n; SELECT swarm.s3_upload('folder', 'docs', (SELECT array_agg(swarm.s3_file(
		'many/' || i % 100 || '/' || i, swarm.from_column('source', 1, 'body'))) FROM generate_series(1, $n) i))"))[-1];
}
is(result($node, 'SELECT swarm.s3_wait(' . batch(20) . ", '$seconds s')")->{status}, 200, 'twenty files');
my $before = memory();
my $most = 0;
my $b = batch(10000);
my $polls = 0;
while ($polls++ < 1000 && sql("SELECT finished_at IS NULL FROM swarm.s3_batches WHERE id = $b") eq 't')
{
	my $now = memory();
	$most = $now if $now > $most;
}
is(sql(qq{SELECT r ->> 'status', r ->> 'count', r ->> 'bytes', jsonb_array_length(r -> 'files'), r ->> 'message' FROM swarm.s3_wait($b, '$seconds s') r}),
	'200|10000|' . 10000 * $bytes . '|10000|10000 uploaded', 'ten thousand files');
is(sql(q{SELECT count(*), count(DISTINCT key), sum(size) FROM swarm.s3_list('folder', 'docs', 'many/', NULL)}), '10000|10000|' . 10000 * $bytes, '... are there');
is(sql(qq{SELECT count(*) FILTER (WHERE state = 'done'), count(DISTINCT etag) FROM swarm.s3_files WHERE batch = $b}), '10000|1', '... each one is noted');
cmp_ok($most - $before, '<', 100 * 1024, '... the runner has not held their ' . 10000 * $bytes / 1000000 . ' MB') if $before;
$node->stop;
done_testing();
