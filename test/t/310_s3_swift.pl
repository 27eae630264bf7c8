# Uploads to a real S3 server of another make than Ceph's (303): OpenStack Swift refuses a wrong
# region and headers that are not signed, lists seven keys or two parts at a time, and keeps the parts
# of an object as objects.
use strict;
use warnings;

use File::Basename;
use File::Find;
use File::Path 'rmtree';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my @missing = grep { my $p = $_; !grep { -x "$_/$p" } split /:/, $ENV{PATH} } map { "swift-$_-server" } qw(account container object proxy);
die "no @missing here" if @missing && $ENV{PG_SWARM_NEED_S3};
plan skip_all => "no @missing here; test/tools/provision s3 installs Swift" if @missing;

my $tool = dirname(__FILE__) . '/../tools/swift';
my @started;
END { my $rc = $?; foreach (@started) { system($tool, 'stop', $_); rmtree($_); } $? = $rc; }

# start(): its port.  A folder may be on a file system without extended attributes, a port may be taken after all.
sub start
{
	my $rc;

	foreach my $place (PostgreSQL::Test::Utils::tempdir_short(), PostgreSQL::Test::Utils::tempdir(), '/var/tmp', '/dev/shm')
	{
		for my $try (1 .. 3)
		{
			my @ports = map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 4;

			push @started, "$place/pg_swarm-swift-$$-$try";
			$rc = system($tool, 'start', $started[-1], @ports) >> 8;
			return $ports[0] if $rc == 0;
			last if $rc == 3;
		}
		last if $rc != 3;
	}
	die 'Swift does not start' if $rc != 3 || $ENV{PG_SWARM_NEED_S3};
	plan skip_all => 'Swift needs a file system with extended attributes';
}
my $port = start();

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.s3_part_size = '5MB'
pg_swarm.net_backoff = '20ms'
X
my $url = "http://127.0.0.1:$port";
my $seconds = $PostgreSQL::Test::Utils::timeout_default;

sub swift { return signed($node, $url, 'test:tester', @_); }
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }

foreach my $t ([ 'swift', 'test:tester', 'SKTEST', '' ], [ 'wrong', 'test:tester', 'WRONGSECRET', '' ], [ 'nobody', 'test:nobody', 'SKTEST', '' ],
	[ 'far', 'test:tester', 'SKTEST', "region 'eu-west-1'" ], [ 'unsigned', 'test:tester', 'SKTEST', "sign_payload 'false'" ])
{
	my ($name, $access, $secret, $options) = @$t;

	s3_server($node, $name, $url, $options, $secret);
	sql("ALTER USER MAPPING FOR PUBLIC SERVER $name OPTIONS (SET access_key_id '$access')");
}
is(scalar(swift('PUT', '/docs')), 200, 'a bucket');

# Twenty at a time, byte for byte
my $r = status(sql("SELECT swarm.s3_upload('swift', 'docs', " . files_sql(20, q{convert_to(repeat('file ' || i, 20000), 'UTF8')}) . ')'));
is("$r->{status} $r->{count}", '200 20', 'twenty files') or diag explain $r;
is(sql(q{SELECT md5(o) || ' ' || length(o) FROM swarm.s3_get('swift', 'docs', 'f7') o}), sql(q{SELECT md5(repeat('file 7', 20000)) || ' ' || 120000}), '... byte for byte');
is(sql(q{SELECT etag FROM swarm.s3_files WHERE batch = 1 AND key = 'f7'}), sql(q{SELECT md5(repeat('file 7', 20000))}), '... with the ETag');
is(sql(q{SELECT convert_from(swarm.s3_get('swift', 'docs', 'f7', 5, 8), 'UTF8')}), '7file 7f', 'a range');

# Lists in pages
is(sql(q{SELECT string_agg(key, ' ') = (SELECT string_agg('f' || i, ' ' ORDER BY ('f' || i) COLLATE "C") FROM generate_series(1, 20) i) FROM swarm.s3_list('swift', 'docs', '', NULL)}), 't', 'a list of three pages, in order');
is(sql(q{SELECT count(*), min(key COLLATE "C") FROM swarm.s3_list('swift', 'docs', 'f1', 9, 'f1')}), '9|f10', '... as much of it as was asked for');
is(sql(q{SELECT count(*) FROM swarm.s3_list('swift', 'docs', '', NULL) l WHERE size IS NULL OR modified IS NULL OR etag IS NULL}), '0', '... with size, time and ETag');

# Keys: what is stored is what was asked for
sql(<<'X');
CREATE TABLE nasty AS SELECT * FROM unnest(ARRAY['a b', 'a+b', '%', '%2F', '%41', 'ü/é', '日本', 'a=b&c;d', '"quoted"', '''',
    '//', '/leading', 'trailing/', 'a//b', '~-_.!*()', '<xml>&amp;', '\back', '?query=x', '#x', 'a:b@c,d$', '...', 'a/..b', ' ',
    repeat('x', 1024), 'x' || repeat('/y', 500), '😀', '{}[]|^`']) WITH ORDINALITY AS k(key, no);
X
$r = status(sql(q{SET pg_swarm.s3_max_files = 100; SELECT swarm.s3_upload('swift', 'docs', array_agg(swarm.s3_file(key, convert_to('of ' || key, 'UTF8')) ORDER BY no)) FROM nasty}));
is($r->{status}, 200, 'nasty keys') or diag explain $r->{failed};
is(sql(q{SELECT string_agg(key, ' ') FROM nasty WHERE key NOT IN (SELECT key FROM swarm.s3_list('swift', 'docs', '', NULL))}), '', '... are listed byte for byte');
is(sql(q{SELECT string_agg(key, ' ') FROM nasty WHERE convert_from(swarm.s3_get('swift', 'docs', key), 'UTF8') <> 'of ' || key}), '', '... have their contents');
is(sql(q{SELECT count(*) FROM nasty WHERE (swarm.s3_head('swift', 'docs', key) ->> 'size')::int = length(convert_to('of ' || key, 'UTF8'))}), '27', '... and their size');
sql(q{SELECT swarm.s3_delete('swift', 'docs', key) FROM nasty});
is(sql(q{SELECT count(*) FROM swarm.s3_list('swift', 'docs', '', NULL)}), '20', '... and are deleted, they alone');

# Sizes around that of a part; sources by reference
sql(<<'X');
CREATE TABLE large (id int PRIMARY KEY, size int, body bytea);
ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
INSERT INTO large SELECT i, size, decode(substr(repeat(md5(i::text), size / 16 + 1), 1, 2 * size), 'hex')
FROM unnest(ARRAY[0, 1, 5242879, 5242880, 5242881, 10485760, 27000000]) WITH ORDINALITY AS s(size, i);
X
$r = status(sql(q{SELECT swarm.s3_upload('swift', 'docs', array_agg(swarm.s3_file('large/' || id, swarm.from_column('large', id, 'body')) ORDER BY id)) FROM large}));
is($r->{status}, 200, 'empty, one byte, around the size of a part, several parts') or diag explain $r->{failed};
is(join(' ', map { $_->{etag} =~ /-(\d+)$/ ? $1 : 1 } @{ $r->{files} }), '1 1 1 1 2 2 6', '... in so many parts');
is(sql(q{SELECT count(*) FROM large WHERE body = swarm.s3_get('swift', 'docs', 'large/' || id)}), '7', '... whole');

# Metadata, type, other headers; what is too much for this server fails alone.
my $long = 'x' x 300;
$r = status(sql(qq{SELECT swarm.s3_upload('swift', 'docs', ARRAY[
	swarm.s3_file('meta', 'x'::bytea, 'text/plain; charset=utf-8', '{"author": "Ann  Example", "a-b": "1", "a": "2"}'),
	swarm.s3_file('fails', 'x'::bytea, 'text/plain', '{"note": "$long"}'), swarm.s3_file('gone', swarm.from_query('SELECT 1/0')), swarm.s3_file('last', 'y'::bytea)],
	'{"cache_control": "no-store", "content_disposition": "attachment"}')}));
is("$r->{status} $r->{message}", '207 2 uploaded, 2 failed', 'two of four fail') or diag explain $r;
like(join(', ', map { "$_->{originalName} $_->{http} $_->{attempts}" } @{ $r->{failed} }), qr/^fails (400 1|500 5), gone 0 0$/, '... the server refuses one, the source of another cannot be read') or diag explain $r;
my $head = result($node, q{SELECT swarm.s3_head('swift', 'docs', 'meta')});
is("$head->{type} $head->{metadata}{a} $head->{metadata}{'a-b'} $head->{metadata}{author}", 'text/plain; charset=utf-8 2 1 Ann  Example', 'metadata come back') or diag explain $head;
is(sql(q{SELECT swarm.s3_head('swift', 'docs', 'nothing') IS NULL}), 't', 'head of nothing');
sql_fails($node, q{SELECT swarm.s3_get('swift', 'docs', 'nothing')}, qr/42704/, 'get what is not there');

# A checksum protects what is not signed.
$r = status(sql("SELECT swarm.s3_upload('unsigned', 'docs', " . files_sql(3, q{convert_to('unsigned ' || i, 'UTF8')}) . ')'));
is("$r->{status} $r->{count}", '200 3', 'payload unsigned, with Content-MD5') or diag explain $r;

# A presigned URL needs no credentials, and is good for its method only.
my $get = sql(q{SELECT swarm.s3_presign('swift', 'docs', 'f7', 'GET', '5 min')});
is(scalar(http('GET', $get)), 200, 'a presigned GET');
is(scalar(http('PUT', $get, 'x')), 403, '... is no PUT');
is(scalar(http('GET', $get =~ s,/f7\?,/f8?,r)), 403, '... of another object neither');
is(scalar(http('PUT', sql(q{SELECT swarm.s3_presign('swift', 'docs', 'ü signed', 'PUT')}), 'hello')), 200, 'a presigned PUT');
is(sql(q{SELECT convert_from(swarm.s3_get('swift', 'docs', 'ü signed'), 'UTF8')}), 'hello', '... has stored it');

# Export and import
sql(q{CREATE TABLE rows (id int, t text, d date); INSERT INTO rows SELECT i, CASE WHEN i % 3 > 0 THEN E'line\n"' || i || '", ü' END, '2020-01-01'::date + i FROM generate_series(1, 1000) i});
foreach my $t ([ 'csv', '{"compress": "gzip"}' ], [ 'text', '{}' ], [ 'binary', '{}' ], [ 'json', '{}' ])
{
	my ($format, $options) = @$t;

	sql("SELECT swarm.s3_export('swift', 'docs', 'rows.$format', 'SELECT * FROM rows', '$format', '$options')");
	is(sql("CREATE TABLE back_$format (LIKE rows); SELECT swarm.s3_import('swift', 'docs', 'rows.$format', 'back_$format', '$format')"), '1000', "$format: import");
	is(sql("SELECT count(*) FROM (SELECT * FROM rows EXCEPT ALL SELECT * FROM back_$format) x"), '0', '... of what was exported');
}

# Refusals of the server; the region, which it does look at
foreach my $server ('wrong', 'nobody')
{
	$r = status(sql("SELECT swarm.s3_upload('$server', 'docs', " . files_sql(1, q{'x'::bytea}) . ')'));
	is("$r->{status} $r->{failed}[0]{code} $r->{failed}[0]{http} $r->{failed}[0]{attempts}", '500 SignatureDoesNotMatch 403 1', "credentials: $server") or diag explain $r;
}
$r = status(sql(q{SELECT swarm.s3_upload('swift', 'no-such-bucket', } . files_sql(2, q{'x'::bytea}) . ')'));
is("$r->{failed}[0]{code} $r->{failed}[1]{http}", 'NoSuchBucket 404', 'a bucket that is not there');
$r = status(sql("SELECT swarm.s3_upload('far', 'docs', " . files_sql(2, q{'far'::bytea}) . ')'));
is("$r->{status} $r->{files}[0]{attempts}", '200 2', 'signed again for the region that the server names') or diag explain $r;

# Multipart: what ends badly leaves nothing, what is interrupted goes on.
sub uploads { my ($code, $doc) = swift('GET', '/docs', 'uploads'); return "$code " . ($doc =~ /<Upload>/ || 0); }
# how many parts, or objects as large, its disk has
sub stored { my $c = 0; find(sub { $c++ if /\.data$/ && (-s $_ || 0) >= 1024 * 1024 }, "$started[-1]/node"); return $c; }
my $b = sql(qq{SELECT swarm.s3_upload('swift', 'docs', ARRAY[swarm.s3_file('refused', swarm.from_column('large', 7, 'body'), 'text/plain', '{"note": "$long"}')])});
is(status($b)->{status}, 500, 'a multipart upload that is refused');
is(uploads(), '200 0', '... leaves none');
my $n = crash_is_over($node);
sql(q{SELECT swarm._fault_arm('upload.part', 'kill', 2, 1)});
$b = sql(q{SELECT swarm.s3_upload('swift', 'docs', ARRAY[swarm.s3_file('killed', swarm.from_column('large', 7, 'body'))])});
ok(crash_is_over($node, $n), 'a runner is killed when it has sent three parts');
is(status($b)->{status}, 200, '... the next one ends well');
is(sql(q{SELECT body = swarm.s3_get('swift', 'docs', 'killed') FROM large WHERE id = 7}), 't', '... the object is whole');
jobs_end($node, '... no job is left');
is(uploads(), '200 0', '... and no multipart upload');
my $stored = stored();
sql(q{SELECT swarm._fault_arm('upload.part', 'wait', 2, 1)});
$b = sql(q{SELECT swarm.s3_upload('swift', 'docs', ARRAY[swarm.s3_file('aborted', swarm.from_column('large', 7, 'body'))])});
ok(until_true(sub { uploads() eq '200 1' && stored() >= $stored + 3 }), 'a multipart upload is under way');
sql("SELECT swarm.s3_cancel($b)");
sql(q{SELECT swarm._fault_arm(NULL)});
is(status($b)->{failed}[0]{code}, 'Cancelled', '... it is cancelled');
jobs_end($node, '... no job is left');
is(uploads(), '200 0', '... and no multipart upload');
is(sql(q{SELECT swarm.s3_head('swift', 'docs', 'aborted') IS NULL}), 't', '... nor an object');
is(stored(), $stored, '... nor a part');

$node->stop;
done_testing();
