# pg_swarm_vector: qhnsw on pgvector's types, by changing one word.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use HnswTest;

my $node = swarm_cluster('main', create => 0, conf => "pg_swarm.databases = 'none'\nautovacuum = off");

if ($node->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") eq '0')
{
	$node->stop;
	plan skip_all => 'pgvector is not installed';
}

# the first version with halfvec
if ($node->safe_psql('postgres', q{SELECT count(*) FROM pg_available_extension_versions WHERE name = 'vector' AND string_to_array(version, '.')::int[] >= '{0,7}'}) eq '0')
{
	sql_fails($node, 'CREATE EXTENSION pg_swarm_vector CASCADE', qr/0A000.*needs pgvector 0\.7\.0/s, 'an older pgvector is refused');
	$node->stop;
	done_testing();
	exit;
}

# one command brings all three, wherever pgvector is
$node->safe_psql('postgres', 'CREATE EXTENSION pg_swarm_vector CASCADE');
hnsw_functions($node, 'postgres');
is($node->safe_psql('postgres', q{SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension WHERE extname <> 'plpgsql'}),
	'pg_swarm pg_swarm_vector vector', 'CREATE EXTENSION CASCADE');

# The classes are those of pgvector's hnsw, as far as qhnsw has the metric: name,
# type, whether they are the default, and operator
my $classes = q{
SELECT string_agg(concat_ws(' ', opcname, opcintype::regtype, opcdefault, amopopr::regoperator, amopsortfamily::regclass), E'\n' ORDER BY opcname)
FROM pg_opclass c JOIN pg_amop o ON amopfamily = opcfamily JOIN pg_am a ON a.oid = opcmethod
WHERE amname = '%s' AND opcname ~ '^(vector|halfvec)_(l2|ip|cosine)_ops$'};
my $ours = $node->safe_psql('postgres', sprintf $classes, 'qhnsw');
is(scalar(split /\n/, $ours), 6, 'six classes');
is($ours, $node->safe_psql('postgres', sprintf $classes, 'hnsw'), '... as those of hnsw');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_opclass c JOIN pg_am a ON a.oid = opcmethod WHERE amname = 'qhnsw' AND NOT amvalidate(c.oid)}),
	'0', '... all valid');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_opclass c JOIN pg_am a ON a.oid = opcmethod WHERE amname = 'qhnsw' AND obj_description(c.oid, 'pg_opclass') IS NULL}),
	'0', '... all with a comment');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_proc WHERE proname ~ '^_qhnsw_(vector|halfvec)' AND has_function_privilege('pg_monitor', oid, 'EXECUTE')}),
	'0', 'support functions are nobody\'s business');

# The same table and queries with both.
$node->safe_psql('postgres', q{
CREATE TABLE items (id int PRIMARY KEY, v vector(24), h halfvec(24));
INSERT INTO items SELECT i, vec(i, 24)::vector, vec(i, 24)::vector::halfvec FROM generate_series(1, 4000) i;
INSERT INTO items VALUES (5001, array_fill(0::real, '{24}')::vector, array_fill(0::real, '{24}')::vector::halfvec), (5002, NULL, NULL)});
my %operator = (l2 => '<->', cosine => '<=>', ip => '<#>');
for my $type (qw(vector halfvec))
{
	my $column = substr $type, 0, 1;

	for my $metric (qw(l2 cosine ip))
	{
		my $name = "${type}_${metric}_ops";
		my $create = "CREATE INDEX i ON items USING hnsw ($column $name) WITH (m = 16, ef_construction = 64)";
		my $query = "SELECT n, to_jsonb(ARRAY(SELECT id FROM items WHERE id < 5000 ORDER BY $column $operator{$metric} vec(-n, 24)::vector::$type LIMIT 10)) AS a FROM generate_series(1, 50) n WHERE n % 64 <> 1";
		my $set = 'SET enable_sort = off; SET enable_seqscan = off;';

		(my $ours = $create) =~ s/hnsw/qhnsw/;
		$node->safe_psql('postgres', "CREATE TEMP TABLE x (); $create; DROP INDEX i; $ours");
		like($node->safe_psql('postgres', "$set EXPLAIN SELECT id FROM items ORDER BY $column $operator{$metric} vec(1, 24)::vector::$type LIMIT 10"),
			qr/Index Scan using i/, "$name: the index is used");
		is( $node->safe_psql('postgres', qq{
CREATE TEMP TABLE want AS $query;
$set
CREATE TEMP TABLE got AS $query;
SELECT sum((SELECT count(*) FROM jsonb_array_elements(want.a) x WHERE got.a \@> x)) / sum(jsonb_array_length(want.a)) > 0.95 FROM want JOIN got USING (n)}),
			't', "$name: the nearest are found");
		is( $node->safe_psql('postgres', qq{
$set
SET qhnsw.iterative_scan = relaxed;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM items ORDER BY $column $operator{$metric} vec(1, 24)::vector::$type) s}),
			$node->safe_psql('postgres', 'SELECT count(*), count(*) FROM items'), "$name: all rows, null and zero too");
		is(index_problems($node, 'i'), '', "$name: no problem");
		$node->safe_psql('postgres', "INSERT INTO items SELECT i, vec(i, 24)::vector, vec(i, 24)::vector::halfvec FROM generate_series(6001, 6100) i; DELETE FROM items WHERE id > 6000; VACUUM items; DROP INDEX i");
	}
}
sql_fails($node, q{CREATE INDEX ON items USING qhnsw (v)}, qr/42704/, 'no class is the default, as with hnsw');
sql_fails($node, q{CREATE INDEX i ON items USING qhnsw (v vector_l2_ops); SET enable_seqscan = off; SELECT id FROM items ORDER BY v <-> '[1,2,3]' LIMIT 1}, qr/22000|different vector dimensions/, 'a query of other dimensions');

# Dump and restore; an index on a type without dimensions
my $dir = PostgreSQL::Test::Utils::tempdir();
$node->safe_psql('postgres', q{
DROP INDEX IF EXISTS i;
CREATE TABLE t (id bigint PRIMARY KEY, e vector);
INSERT INTO t SELECT i, vec(i)::vector FROM generate_series(1, 500) i;
CREATE INDEX t_e ON t USING qhnsw (e vector_l2_ops)});
same_rows($node, 't', 'vector without dimensions');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/d", '-d', $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), "$dir/d" ], '... restored');
same_rows($node, 't', '... and the same', 'copy');

# Other schemas; DROP
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', q{
CREATE SCHEMA one; CREATE SCHEMA two; CREATE SCHEMA three;
CREATE EXTENSION vector SCHEMA one;
CREATE EXTENSION pg_swarm SCHEMA two;
CREATE EXTENSION pg_swarm_vector SCHEMA three;
CREATE TABLE t (e one.vector(2));
CREATE INDEX ON t USING qhnsw (e three.vector_cosine_ops)});
is($node->safe_psql('other', q{SELECT count(*) FROM pg_opclass WHERE opcnamespace = 'three'::regnamespace}), '6', 'classes are in the schema that CREATE EXTENSION names');
sql_fails($node, 'DROP EXTENSION pg_swarm_vector', qr/2BP01/, 'DROP EXTENSION with an index', 'other');
sql_fails($node, 'DROP EXTENSION vector', qr/2BP01/, 'DROP EXTENSION of what it needs', 'other');
$node->safe_psql('other', 'DROP EXTENSION pg_swarm_vector CASCADE');
is($node->safe_psql('other', q{SELECT count(*) FROM pg_proc WHERE proname ~ '^_qhnsw_(vector|halfvec)'}), '0', 'DROP EXTENSION leaves nothing');
$node->safe_psql('other', 'CREATE EXTENSION pg_swarm_vector; DROP EXTENSION vector CASCADE; DROP EXTENSION pg_swarm');
pass('... and what it needs can go');

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|was terminated by signal|XX00/, 'no crash');
done_testing();
