# gzip and zstd: what is sent is compressed on request, what says that it is compressed is
# decompressed when it is got or imported.
use strict;
use warnings;

use IO::Uncompress::Gunzip qw(gunzip $GunzipError);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
pg_swarm.s3_part_size = '5MB'
X
my $seconds = $PostgreSQL::Test::Utils::timeout_default;
my $s3 = s3_start();
my $store = PostgreSQL::Test::Utils::tempdir_short() . '/store';

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }
sub plain { my ($data) = @_; my $out; gunzip(\$data => \$out, MultiStream => 1) or die $GunzipError; return $out; }

mkdir $store or die;
s3_server($node, 'fake', $s3->{url});
sql("CREATE SERVER folder FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'file://$store')");

# Every kind of source: what is stored is gzip, and says so.
my $file = PostgreSQL::Test::Utils::tempdir() . '/source';
my $text = join '', map { "line $_\n" } 1 .. 100000;
append_to_file($file, $text);
sql(<<"X");
CREATE TABLE t (id int PRIMARY KEY, packed bytea, body bytea);
ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
INSERT INTO t SELECT 1, b, b FROM (SELECT convert_to(string_agg('line ' || i || E'\\n', '' ORDER BY i), 'UTF8') AS b FROM generate_series(1, 100000) i) x;
CREATE TABLE lo AS SELECT lo_from_bytea(0, body) AS oid FROM t
X
my %sources = (bytea => '(SELECT body FROM t)', file => "swarm.from_file('$file')", column => q{swarm.from_column('t', 1, 'body')},
	packed => q{swarm.from_column('t', 1, 'packed')}, large => 'swarm.from_large_object((SELECT oid FROM lo))',
	csv => q{swarm.from_query('SELECT ''line '' || i FROM generate_series(1, 100000) i')}, json => q{swarm.from_query('SELECT i FROM generate_series(1, 3) i', 'json')});
my $files = join ', ', map { "swarm.s3_file('$_', $sources{$_})" } sort keys %sources;
foreach my $name ('plain', 'gzip', 'zstd')
{
	my $options = $name eq 'plain' ? '{}' : "{\"compress\": \"$name\"}";

	foreach my $server ('fake', 'folder')
	{
		my $r = status(sql("SELECT swarm.s3_upload('$server', 'docs', ARRAY[$files], '$options')"));
		is("$r->{status} $r->{count}", '200 ' . keys %sources, "$name, $server: all sources") or diag explain $r;
		is(sql("SELECT string_agg(DISTINCT coalesce(swarm.s3_head('$server', 'docs', key) ->> 'contentEncoding', 'plain'), ',') FROM swarm.s3_list('$server', 'docs')"), $name, '... the server knows');
		is(sql("SELECT count(*) FROM unnest(ARRAY['bytea', 'file', 'column', 'packed', 'large', 'csv']) key WHERE swarm.s3_get('$server', 'docs', key) = (SELECT body FROM t)"), '6', '... get gives what it was');
		is(sql("SELECT convert_from(swarm.s3_get('$server', 'docs', 'json'), 'UTF8') = E'{\"i\":1}\\n{\"i\":2}\\n{\"i\":3}\\n'"), 't', '... and of a query');
	}
	my $stored = s3_objects($s3);
	is(join(' ', grep { $stored->{"docs/$_"} eq $text } 'bytea', 'file', 'column', 'packed', 'large', 'csv'), 'bytea file column packed large csv', '... stored as it was') if $name eq 'plain';
	is(join(' ', grep { plain($stored->{"docs/$_"}) eq $text } 'bytea', 'file', 'column', 'packed', 'large', 'csv'), 'bytea file column packed large csv', '... it is gzip that others read') if $name eq 'gzip';
	is(join(' ', grep { unpack('H*', substr $stored->{"docs/$_"}, 0, 4) eq '28b52ffd' } sort keys %sources), join(' ', sort keys %sources), '... it is zstd') if $name eq 'zstd';
	cmp_ok(length $stored->{'docs/file'}, '<', length($text) / 3, '... and smaller') if $name ne 'plain';
	is(sql(q{SELECT size FROM swarm.s3_list('fake', 'docs', 'file')}), length $stored->{'docs/file'}, '... its size is that of what is stored');
	is(sql(q{SELECT encode(swarm.s3_get('fake', 'docs', 'file', 1, 5), 'hex')}), unpack('H*', substr $stored->{'docs/file'}, 1, 5), '... a range is of what is stored');

	# in parts: what stays large
	my $r = result($node, "SELECT swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('parts', swarm.from_query('SELECT md5(i::text) FROM generate_series(1, 500000) i'))], '$options')");
	is($r->{status}, 200, '... in parts') or diag explain $r;
	cmp_ok((split /-/, $r->{files}[0]{etag})[1], '>=', 2, '... several of them');
	is(sql(q{SELECT md5(swarm.s3_get('fake', 'docs', 'parts')) = md5(string_agg(md5(i::text) || E'\n', '' ORDER BY i)) FROM generate_series(1, 500000) i}), 't', '... the same bytes');
	is(s3_parts($s3), 0, '... no part is left');

	# export and import, twice the options of COPY
	foreach my $format (qw(csv text binary json))
	{
		my $export = $name eq 'plain' ? '{}' : $format eq 'csv' ? "{\"compress\": \"$name\", \"delimiter\": \";\"}" : $options;
		my $import = $format eq 'csv' && $name ne 'plain' ? '{"delimiter": ";"}' : '{}';
		is(sql(qq{SELECT FROM swarm.s3_export('fake', 'docs', 'x', 'SELECT i AS id, repeat(i::text, 10) AS t FROM generate_series(1, 1000) i', '$format', '$export');
			CREATE TABLE u (id int, t text); SELECT swarm.s3_import('fake', 'docs', 'x', 'u', '$format', '$import'); SELECT sum(id), bool_and(t = repeat(id::text, 10)) FROM u; DROP TABLE u}),
			"1000\n500500|t", "... export and import, $format");
	}
	is(sql(q{SELECT coalesce(swarm.s3_head('fake', 'docs', 'x') ->> 'contentEncoding', 'plain')}), $name, '... the export says so');
	is(sql("SELECT length(swarm.s3_get('fake', 'docs', 'e')) FROM swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('e', ''::bytea)], '$options')"), '0', '... an empty file');
	sql(q{SELECT swarm.s3_delete('fake', 'docs', key) FROM swarm.s3_list('fake', 'docs')});
}
is(sql('SELECT count(*) FROM pg_ls_tmpdir()'), '0', 'no temporary file is left');

# What is refused
sql_fails($node, q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)], '{"compress": "lzma"}')}, qr/22023.*unknown compression "lzma"/s, 'an unknown compression');
sql_fails($node, q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)], '{"compress": "gzip", "content_encoding": "br"}')}, qr/22023.*exclude each other/s, 'two encodings');
sql_fails($node, q{SELECT swarm.s3_import('fake', 'docs', 'a', 't', 'csv', '{"compress": "gzip"}')}, qr/42704|22023/, 'it is no option of import');

# What only says that it is compressed, is cut, or is larger than allowed
sql(q{SELECT FROM swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('wrong', 'no such data'::bytea)], '{"content_encoding": "gzip"}')});
sql_fails($node, q{SELECT swarm.s3_get('fake', 'docs', 'wrong')}, qr/22P03.*not gzip/s, 'what is not gzip');
is(sql(q{SELECT convert_from(swarm.s3_get('fake', 'docs', 'wrong', 0, 100), 'UTF8')}), 'no such data', '... can be got as a range');
foreach my $name ('gzip', 'zstd')
{
	sql(qq{SELECT FROM swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('good', swarm.from_file('$file'))], '{"compress": "$name"}');
		SELECT FROM swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('cut', swarm.s3_get('fake', 'docs', 'good', 0, 1000)),
			swarm.s3_file('twice', swarm.s3_get('fake', 'docs', 'good', 0, 10000000) || swarm.s3_get('fake', 'docs', 'good', 0, 10000000))], '{"content_encoding": "$name"}')});
	sql_fails($node, q{SELECT swarm.s3_get('fake', 'docs', 'cut')}, qr/22P03.*end early/s, "$name: what was cut");
	is(sql(q{SELECT length(swarm.s3_get('fake', 'docs', 'twice'))}), 2 * length $text, '... two of them, one after the other');
	sql_fails($node, q{SET pg_swarm.s3_max_file_size = '500kB'; SELECT swarm.s3_get('fake', 'docs', 'good')}, qr/54000.*exceeds/s, '... what grows beyond the limit');
}

s3_stop($s3);
$node->stop;
done_testing();
