# Ten thousand files in a batch, when it is allowed: all of them are stored, but for those that
# a server refuses, and what the runner holds of them does not grow with their number.
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

# The same by the network, to a server that refuses some and does not get others in time at first: no rule can take all
# the attempts that a file has, and none of these failures is one of the server's.
my $s3 = s3_start();
s3_server($node, 'fake', $s3->{url});
s3_rules($s3, { match => '^PUT /docs/99/', status => 403, code => 'AccessDenied' },
	map { { match => "^PUT /docs/$_/", times => 4, status => 400, code => 'RequestTimeout' } } 10 .. 14);
$b = (split /\n/, sql(q{SET pg_swarm.s3_max_files = 10000; SELECT swarm.s3_upload('fake', 'docs', (SELECT array_agg(swarm.s3_file(
	i % 100 || '/' || i, swarm.from_column('source', 1, 'body'))) FROM generate_series(1, 10000) i))}))[-1];
$most = $polls = 0;
while ($polls++ < 10000 && sql("SELECT finished_at IS NULL FROM swarm.s3_batches WHERE id = $b") eq 't')
{
	my $now = memory();
	$most = $now if $now > $most;
	select undef, undef, undef, 0.05;
}
is(sql(qq{SELECT r ->> 'status', r ->> 'count', jsonb_array_length(r -> 'failed'), r ->> 'message' FROM swarm.s3_wait($b, '$seconds s') r}),
	'207|9900|100|9900 uploaded, 100 failed', 'ten thousand files, a hundred of them refused');
is(sql(qq{SELECT string_agg(DISTINCT code || ' ' || state || ' ' || (key LIKE '99/%'), ', '), count(*) FROM swarm.s3_files WHERE batch = $b AND state <> 'done'}),
	'AccessDenied failed true|100', '... those');
is(sql(qq{SELECT count(*) FILTER (WHERE attempts > 1 AND key ~ '^1[0-4]/') >= 5, max(attempts) <= 5, count(*) FILTER (WHERE attempts = 1) > 9800 FROM swarm.s3_files WHERE batch = $b}),
	't|t|t', '... some at a later attempt');
is(scalar(grep { /^PUT .* 400$/ } s3_log($s3)), 20, '... after all failures there were');
is(sql(q{SELECT count(DISTINCT key), sum(size) FROM swarm.s3_list('fake', 'docs', '', NULL)}), '9900|' . 9900 * $bytes, '... the others are there');
cmp_ok($most - $before, '<', 100 * 1024, '... and the runner has not held them') if $before;
s3_stop($s3);
$node->stop;
done_testing();
