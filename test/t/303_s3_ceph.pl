# Uploads to a real S3 server: Ceph's object gateway checks signatures, digests and
# multipart uploads by itself, and keeps keys as they are.
use strict;
use warnings;

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my @missing = grep { my $p = $_; !grep { -x "$_/$p" } split /:/, $ENV{PATH} } qw(ceph-mon ceph-osd radosgw ceph);
die "no @missing here" if @missing && $ENV{PG_SWARM_NEED_S3};
plan skip_all => "no @missing here; test/tools/provision s3 installs Ceph" if @missing;

my $tool = dirname(__FILE__) . '/../tools/ceph';
my $dir = PostgreSQL::Test::Utils::tempdir_short() . '/ceph';
my @started;
END { my $rc = $?; system($tool, 'stop', $_) foreach @started; $? = $rc; }

# start(NAME): a gateway; its port.  It needs forty in a row, which may be taken.
sub start
{
	my ($name) = @_;

	for my $try (1 .. 5)
	{
		my $at = 12000 + int(rand(200)) * 50;

		push @started, "$dir-$name-$try";
		return $at if system($tool, 'start', $started[-1], $at) == 0;
		system($tool, 'stop', $started[-1]);
	}
	BAIL_OUT('Ceph does not start');
}
my $port = start('a');

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.s3_part_size = '5MB'
pg_swarm.net_backoff = '20ms'
X
my $url = "http://127.0.0.1:$port";
my $seconds = $PostgreSQL::Test::Utils::timeout_default;

sub ceph { return signed($node, $url, 'AKTEST', @_); }
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }
# the bytes of an object, as md5 and length
sub digest { my ($key, $bucket) = @_; return sql("SELECT md5(o) || ' ' || length(o) FROM swarm.s3_get('ceph', '" . ($bucket || 'docs') . "', $key) o"); }

s3_server($node, 'ceph', $url);
s3_server($node, 'wrong', $url, '', 'WRONGSECRET');
s3_server($node, 'nobody', $url);
sql(q{ALTER USER MAPPING FOR PUBLIC SERVER nobody OPTIONS (SET access_key_id 'NOBODY')});

is(scalar(ceph('PUT', '/docs')), 200, 'a bucket');

# Twenty at a time, byte for byte
my $r = status(sql("SELECT swarm.s3_upload('ceph', 'docs', " . files_sql(20, q{convert_to(repeat('file ' || i, 20000), 'UTF8')}) . ')'));
is("$r->{status} $r->{count}", '200 20', 'twenty files') or diag explain $r;
is(digest(q{'f7'}), sql(q{SELECT md5(repeat('file 7', 20000)) || ' ' || 120000}), '... byte for byte');
is(sql(q{SELECT etag FROM swarm.s3_files WHERE batch = 1 AND key = 'f7'}), sql(q{SELECT md5(repeat('file 7', 20000))}), '... with the ETag');

# Keys: what is stored is what was asked for
sql(<<'X');
CREATE TABLE nasty AS SELECT * FROM unnest(ARRAY['a b', 'a+b', '%', '%2F', '%41', 'ü/é', '日本', 'a=b&c;d', '"quoted"', '''',
    '//', '/leading', 'trailing/', 'a//b', '~-_.!*()', '<xml>&amp;', '\back', '?query=x', '#x', 'a:b@c,d$', '...', 'a/..b', ' ',
    repeat('x', 1024), 'x' || repeat('/y', 500), '😀', '{}[]|^`']) WITH ORDINALITY AS k(key, no);
X
$r = status(sql(q{SET pg_swarm.s3_max_files = 100; SELECT swarm.s3_upload('ceph', 'docs', array_agg(swarm.s3_file(key, convert_to('of ' || key, 'UTF8')) ORDER BY no)) FROM nasty}));
is($r->{status}, 200, 'nasty keys') or diag explain $r->{failed};
is(sql(q{SELECT string_agg(key, ' ') FROM nasty WHERE key NOT IN (SELECT key FROM swarm.s3_list('ceph', 'docs', '', NULL))}), '', '... are listed byte for byte');
is(sql(q{SELECT string_agg(key, ' ') FROM nasty WHERE convert_from(swarm.s3_get('ceph', 'docs', key), 'UTF8') <> 'of ' || key}), '', '... have their contents');
is(sql(q{SELECT count(*) FROM nasty WHERE (swarm.s3_head('ceph', 'docs', key) ->> 'size')::int = length(convert_to('of ' || key, 'UTF8'))}), '27', '... and their size');
sql(q{SELECT swarm.s3_delete('ceph', 'docs', key) FROM nasty});
is(sql(q{SELECT count(*) FROM swarm.s3_list('ceph', 'docs', '', NULL)}), '20', '... and are deleted, they alone');

# Sizes around that of a part; sources by reference
sql(<<'X');
CREATE TABLE large (id int PRIMARY KEY, size int, body bytea);
ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
INSERT INTO large SELECT i, size, decode(substr(repeat(md5(i::text), size / 16 + 1), 1, 2 * size), 'hex')
FROM unnest(ARRAY[0, 1, 5242879, 5242880, 5242881, 10485760, 13000000]) WITH ORDINALITY AS s(size, i);
X
$r = status(sql(q{SELECT swarm.s3_upload('ceph', 'docs', array_agg(swarm.s3_file('large/' || id, swarm.from_column('large', id, 'body')) ORDER BY id)) FROM large}));
is($r->{status}, 200, 'empty, one byte, around the size of a part, several parts') or diag explain $r->{failed};
is(join(' ', map { $_->{etag} =~ /-(\d+)$/ ? $1 : 1 } @{ $r->{files} }), '1 1 1 1 2 2 3', '... in so many parts');
is(sql(q{SELECT count(*) FROM large WHERE body = swarm.s3_get('ceph', 'docs', 'large/' || id)}), '7', '... whole');
is(sql(q{SELECT convert_from(swarm.s3_get('ceph', 'docs', 'f7', 5, 8), 'UTF8')}), '7file 7f', 'a range');

# Metadata, type, tags
$r = status(sql(q{SELECT swarm.s3_upload('ceph', 'docs', ARRAY[swarm.s3_file('meta', 'x'::bytea, 'text/plain; charset=utf-8', '{"author": "Ann  Example", "a-b": "1", "a": "2"}')],
  '{"cache_control": "no-store", "tags": {"k": "v w"}, "content_disposition": "attachment"}')}));
is($r->{status}, 200, 'metadata') or diag explain $r->{failed};
my $head = result($node, q{SELECT swarm.s3_head('ceph', 'docs', 'meta')});
is("$head->{type} $head->{metadata}{a} $head->{metadata}{'a-b'} $head->{cacheControl}", 'text/plain; charset=utf-8 2 1 no-store', '... comes back');
is(sql(q{SELECT swarm.s3_head('ceph', 'docs', 'nothing') IS NULL}), 't', 'head of nothing');

# A presigned URL needs no credentials, and is good for its method only.
my $get = sql(q{SELECT swarm.s3_presign('ceph', 'docs', 'f7', 'GET', '5 min')});
is(scalar(http('GET', $get)), 200, 'a presigned GET');
is(scalar(http('PUT', $get, 'x')), 403, '... is no PUT');
is(scalar(http('GET', $get =~ s,/f7\?,/f8?,r)), 403, '... of another object neither');
is(scalar(http('PUT', sql(q{SELECT swarm.s3_presign('ceph', 'docs', 'ü signed', 'PUT')}), 'hello')), 200, 'a presigned PUT');
is(sql(q{SELECT convert_from(swarm.s3_get('ceph', 'docs', 'ü signed'), 'UTF8')}), 'hello', '... has stored it');

# Export and import
sql(q{CREATE TABLE rows (id int, t text, d date); INSERT INTO rows SELECT i, CASE WHEN i % 3 > 0 THEN E'line\n"' || i || '", ü' END, '2020-01-01'::date + i FROM generate_series(1, 1000) i});
foreach my $format ('csv', 'text', 'binary', 'json')
{
	sql("SELECT swarm.s3_export('ceph', 'docs', 'rows.$format', 'SELECT * FROM rows', '$format')");
	is(sql("CREATE TABLE back_$format (LIKE rows); SELECT swarm.s3_import('ceph', 'docs', 'rows.$format', 'back_$format', '$format')"), '1000', "$format: import");
	is(sql("SELECT count(*) FROM (SELECT * FROM rows EXCEPT ALL SELECT * FROM back_$format) x"), '0', '... of what was exported');
}

# Refusals of the server
foreach my $t ([ 'wrong', 'SignatureDoesNotMatch' ], [ 'nobody', 'InvalidAccessKeyId' ])
{
	my $batch = sql("SELECT swarm.s3_upload('$t->[0]', 'docs', " . files_sql(1, q{'x'::bytea}) . ')');

	$r = status($batch);
	is("$r->{status} $r->{failed}[0]{code} $r->{failed}[0]{http} $r->{failed}[0]{attempts}", "500 $t->[1] 403 1", "wrong credentials: $t->[1]") or diag explain $r;
}
$r = status(sql(q{SELECT swarm.s3_upload('ceph', 'no-such-bucket', } . files_sql(2, q{'x'::bytea}) . ')'));
is("$r->{failed}[0]{code} $r->{failed}[1]{http}", 'NoSuchBucket 404', 'a bucket that is not there');

# A kill between the parts: the rest is sent, nothing stays behind.
my $n = crash_is_over($node);
sql(q{SELECT swarm._fault_arm('upload.part', 'kill', 0, 1)});
my $b = sql(q{SELECT swarm.s3_upload('ceph', 'docs', array_agg(swarm.s3_file('killed/' || id, swarm.from_column('large', id, 'body')))) FROM large WHERE id > 4});
ok(crash_is_over($node, $n), 'a runner is killed while it sends parts');
is(status($b)->{status}, 200, '... the next one ends well');
is(sql(q{SELECT count(*) FROM large WHERE id > 4 AND body = swarm.s3_get('ceph', 'docs', 'killed/' || id)}), '3', '... the objects are whole');
jobs_end($node, '... no job is left');
my ($code, $uploads) = ceph('GET', '/docs', 'uploads');
is("$code " . ($uploads =~ /<Upload>/ || 0), '200 0', '... and no multipart upload');

# A gateway that takes two requests at a time and answers SlowDown to the others:
# all twenty files are stored, fewer are sent at a time.
system($tool, 'stop', $started[-1]);
$ENV{CEPH_MAX_CONCURRENT} = 2;
$port = start('b');
$url = "http://127.0.0.1:$port";
s3_server($node, 'slow', $url);
$node->append_conf('postgresql.conf', "pg_swarm.net_max_attempts = 50\npg_swarm.net_breaker_failures = 1000\npg_swarm.net_backoff_max = '1s'");
$node->restart;
my $made;
for (1 .. 50) { $made = ceph('PUT', '/docs'); last if $made == 200; }
is($made, 200, 'a bucket of a busy gateway');
$r = status(sql("SELECT swarm.s3_upload('slow', 'docs', " . files_sql(20, q{convert_to(repeat('file ' || i, 20000), 'UTF8')}) . ')'));
is("$r->{status} $r->{count}", '200 20', '... takes twenty files') or diag explain $r;
is(sql("SELECT requests - slowdowns FROM swarm.s3_endpoints WHERE endpoint = '$url'"), '20', '... the others were told to slow down');

$node->stop;
done_testing();
