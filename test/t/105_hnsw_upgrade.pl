# pg_dump and restore make the index anew; pg_upgrade keeps its file.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = hnsw_cluster('old');
my $dir = PostgreSQL::Test::Utils::tempdir();

hnsw_table($node, 't', 4000, 'm = 8, quantizer = sq8, ef_construction = 60, ef_search = 77');
$node->safe_psql('postgres', q{
INSERT INTO t SELECT i, vec(i) FROM generate_series(5001, 5400) i;
DELETE FROM t WHERE id % 9 = 0;
CREATE INDEX part ON t USING qhnsw ((e[1:4]) real_cosine_ops) WHERE id % 2 = 0});
my $definition = "SELECT string_agg(pg_get_indexdef(indexrelid), E'\\n' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 't'::regclass";
my $answers = q{SET enable_seqscan = off; SELECT ARRAY(SELECT id FROM t ORDER BY e <-> vec(n * 65 + 1) LIMIT 30) FROM generate_series(1, 20) n};
my $before = $node->safe_psql('postgres', $definition);
my $answer = $node->safe_psql('postgres', $answers);

like($before, qr/m='?8'?.*quantizer='?sq8'?.*ef_construction='?60'?.*ef_search='?77'?/, 'options are in the definition');
for my $format (qw(p c d))
{
	my $db = "copy_$format";

	$node->command_ok([ 'pg_dump', "-F$format", '-f', "$dir/$format", '-d', $node->connstr('postgres') ], "pg_dump -F$format");
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->command_ok(
		$format eq 'p'
		? [ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', "$dir/p", '-d', $node->connstr($db) ]
		: [ 'pg_restore', '--exit-on-error', '-d', $node->connstr($db), "$dir/$format" ], '... restored');
	is($node->safe_psql($db, $definition), $before, '... the definition is the same');
	same_rows($node, 't', '... after a restore', $db);
}
$node->safe_psql('postgres', 'CREATE DATABASE template_copy TEMPLATE copy_p');
same_rows($node, 't', 'a database made from a template', 'template_copy');
$node->safe_psql('postgres', "DROP DATABASE copy_$_") for qw(p c d);

# pg_upgrade to the same version: all files are taken as they are.  In PostgreSQL
# 18 it does not find the library of a test installation; see 004.
if ($node->psql('postgres', q{LOAD '$libdir/pg_swarm'}) != 0)
{
  SKIP: { skip 'pg_upgrade would not find the library of this test installation', 1 }
	$node->stop;
	done_testing();
	exit;
}
$node->stop;
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init;
$new->append_conf('postgresql.conf', swarm_conf() . "autovacuum = off\npg_swarm.databases = 'none'\n");
my $bin = $node->config_data('--bindir');
chdir $dir;
command_ok(
	[ 'pg_upgrade', '--no-sync', '-d', $node->data_dir, '-D', $new->data_dir, '-b', $bin, '-B', $bin,
		'-s', $new->host, '-p', $node->port, '-P', $new->port ],
	'pg_upgrade');
$new->start;
is($new->safe_psql('postgres', $definition), $before, 'pg_upgrade: the definitions are the same');
is($new->safe_psql('postgres', $answers), $answer, '... and the answers, from the same file');
same_rows($new, 't', '... all rows');
$new->safe_psql('postgres', 'INSERT INTO t SELECT i, vec(i) FROM generate_series(6001, 7000) i; DELETE FROM t WHERE id % 7 = 0; VACUUM t');
same_rows($new, 't', '... after more and VACUUM');

$new->stop;
done_testing();
