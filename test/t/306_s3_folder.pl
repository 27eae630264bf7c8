# The embedded store: an endpoint file:///path has the same functions and results as a server.
use strict;
use warnings;

use Digest::MD5 'md5_hex';
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
pg_swarm.net_breaker_failures = 1000
pg_swarm.s3_part_size = '5MB'
X
my $seconds = $PostgreSQL::Test::Utils::timeout_default;
my $top = PostgreSQL::Test::Utils::tempdir_short();
my $folder = "$top/store";
my $bucket = "$folder/docs";

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

# refused(SQL): SQLSTATE, and the message
sub refused
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");

	return "nothing was refused: $out" if !$rc && $err !~ /ERROR/;
	return join ' ', $err =~ /ERROR:\s+(\S+): ([^\n]*)/;
}

mkdir $folder or die;
sql("CREATE SERVER folder FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'file://$folder')");
is(sql(q{SELECT swarm.s3_upload_sync('folder', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)]) ->> 'status'}), '200', 'needs no credentials');

# Batches
my $batch = sql(<<'X');
SELECT swarm.s3_upload('folder', 'docs', ARRAY[
	swarm.s3_file('deep/er/hello.txt', 'hello'::bytea, 'text/plain', '{"Author": "ann"}'),
	swarm.s3_file('empty', ''::bytea),
	swarm.s3_file('large', swarm.from_query($$SELECT repeat('0123456789abcdef', 1024) FROM generate_series(1, 512)$$, 'text')),
	swarm.s3_file('a/b', 'below an object'::bytea),
	swarm.s3_file('deep', 'above one'::bytea),
	swarm.s3_file('x//y', 'empty segment'::bytea),
	swarm.s3_file(repeat('x', 256), 'long'::bytea)], '{"cache_control": "no-cache"}')
X
my $r = result($node, "SELECT swarm.s3_wait($batch, '$seconds s')");
is("$r->{status} $r->{message}", '207 3 uploaded, 4 failed', 'every file for itself');
is_deeply([ map { "$_->{path} $_->{size} $_->{type} $_->{etag} $_->{attempts}" } @{ $r->{files} } ],
	[ 'deep/er/hello.txt 5 text/plain 5d41402abc4b2a76b9719d911017c592 1', 'empty 0 application/octet-stream d41d8cd98f00b204e9800998ecf8427e 1',
		'large ' . 512 * 16385 . ' application/octet-stream ' . md5_hex(("0123456789abcdef" x 1024 . "\n") x 512) . ' 1' ],
	'ETags are MD5s, also of what a server would get in parts');
is_deeply([ map { "$_->{code} $_->{http} $_->{attempts}" } @{ $r->{failed} } ],
	[ 'KeyConflict 409 1', 'KeyConflict 409 1', 'InvalidKey 400 1', 'InvalidKey 400 1' ], 'what a folder cannot hold');
is(slurp_file("$bucket/deep/er/hello.txt"), 'hello', 'an object is a file');
is(sql("SELECT string_agg(key || ' ' || state, ',' ORDER BY no) FROM swarm.s3_files WHERE batch = $batch AND no <= 3"),
	'deep/er/hello.txt done,empty done,large done', 's3_files');
is(sql("SELECT endpoint, breaker, slowdowns FROM swarm.s3_endpoints"), "file://$folder|closed|0", 's3_endpoints');
is(sql("BEGIN; SELECT FROM swarm.s3_upload('folder', 'docs', ARRAY[swarm.s3_file('never', 'x'::bytea)]); ROLLBACK; SELECT count(*) FROM swarm.s3_list('folder', 'docs', 'never')"),
	'0', 'a rolled back batch stores nothing');

# Objects
my $head = decode_json(sql(q{SELECT swarm.s3_head('folder', 'docs', 'deep/er/hello.txt')}));
my $modified = delete $head->{modified};
like($modified, qr/^\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT$/, 's3_head: modified');
is_deeply($head, { size => 5, etag => '5d41402abc4b2a76b9719d911017c592', type => 'text/plain', cacheControl => 'no-cache',
	metadata => { author => 'ann' } }, 's3_head');
is(sql(q{SELECT swarm.s3_head('folder', 'docs', key) IS NULL FROM unnest(ARRAY['none', 'deep', 'a/b', 'deep/er']) key}), "t\nt\nt\nt", 's3_head of nothing');
is(sql(q{SELECT convert_from(swarm.s3_get('folder', 'docs', 'deep/er/hello.txt', first, length), 'UTF8') FROM (VALUES (0, NULL), (1, 3), (3, NULL), (4, 100)) v(first, length)}),
	"hello\nell\nlo\no", 's3_get, and ranges');
is(sql(q{SELECT md5(swarm.s3_get('folder', 'docs', 'large'))}), $r->{files}[2]{etag}, 's3_get of a large one');
is(sql(q{SELECT length(swarm.s3_get('folder', 'docs', 'empty'))}), '0', 's3_get of an empty one');
like(refused(q{SELECT swarm.s3_get('folder', 'docs', 'empty', 1)}), qr/^38000 .*no such range/, 'a range that is not there');
like(refused(q{SELECT swarm.s3_get('folder', 'docs', 'none')}), qr/^42704 .*no such object/, 'no such object');
like(refused(q{SELECT swarm.s3_get('folder', 'none', 'none')}), qr/^42704 .*no such bucket/, 'no such bucket');
like(refused(q{SELECT swarm.s3_list('folder', 'none')}), qr/^42704 .*no such bucket/, 'no such bucket to list');
like(refused(q{SET pg_swarm.s3_max_file_size = '1MB'; SELECT swarm.s3_get('folder', 'docs', 'large')}), qr/^08006 .*larger than allowed/, 'too large');
like(refused(q{SELECT swarm.s3_presign('folder', 'docs', 'a')}), qr/^0A000 /, 's3_presign is refused');
is(sql(q{SELECT r #>> '{failed,0,code}', r #>> '{failed,0,http}' FROM swarm.s3_upload_sync('folder', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)], '{"encryption": "AES256"}') r}),
	'NotImplemented|501', 'no encryption');

# Listings: the order of bytes, pages, and what is no object
sql(q{SELECT FROM swarm.s3_upload_sync('folder', 'list', (SELECT array_agg(swarm.s3_file(key, 'x'::bytea)) FROM unnest(ARRAY['a-b', 'a/c', 'a0', 'b', 'b&<>"é', 'a/B/c']) key))});
my $all = 'a-b,a/B/c,a/c,a0,b,b&<>"é';
is(sql(q{SELECT string_agg(key, ',') FROM swarm.s3_list('folder', 'list')}), $all, 's3_list');
is(sql(q{SELECT string_agg(key, ',') FROM swarm.s3_list('folder', 'list', 'a/')}), 'a/B/c,a/c', 'with a prefix');
is(sql(q{SELECT string_agg(key, ',') FROM swarm.s3_list('folder', 'list', 'a', 2, 'a-b')}), 'a/B/c,a/c', 'with a beginning and an end');
is(sql(q{SELECT string_agg(key, ',') FROM swarm.s3_list('folder', 'list', '', 10, 'a/B/z')}), 'a/c,a0,b,b&<>"é', 'after something that is not there');
is(sql(q{SELECT string_agg(key, ',') FROM swarm.s3_list('folder', 'list', '../')}), '', 'a prefix is no path');
is(sql(q{SELECT size, etag, storage_class, modified > now() - interval '1 day' FROM swarm.s3_list('folder', 'list', 'a0')}), '1|9dd4e461268c8034f5c8564e155c67a6|STANDARD|t', 'what it says of an object');
mkdir "$folder/many";
append_to_file(sprintf("$folder/many/%04d", $_), '') foreach 1 .. 1005;
is(sql(q{SELECT count(*), min(key), max(key), count(DISTINCT key) FROM swarm.s3_list('folder', 'many', max_keys => NULL)}), '1005|0001|1005|1005', 'pages');

# Replace, remove
sql(q{SELECT FROM swarm.s3_upload_sync('folder', 'list', ARRAY[swarm.s3_file('a0', 'other'::bytea, 'text/html')])});
is(sql(q{SELECT h ->> 'type', h ->> 'etag', h ->> 'size' FROM swarm.s3_head('folder', 'list', 'a0') h}), 'text/html|795f3202b17cb6bc3d4b771d8c6c9eaf|5', 'replaced');
my @meta = glob "$folder/.pg_swarm/meta/*";
sql(q{SELECT swarm.s3_delete('folder', 'list', key) FROM unnest(ARRAY['a/B/c', 'a/c', 'none', 'no/ne', 'b']) key});
is(sql(q{SELECT string_agg(key, ',') FROM swarm.s3_list('folder', 'list')}), 'a-b,a0,b&<>"é', 's3_delete');
ok(!-e "$folder/list/a", 'empty folders go');
is(@meta - scalar(my @left = glob "$folder/.pg_swarm/meta/*"), 3, 'and so do metadata');
like(refused(q{SELECT swarm.s3_delete('folder', 'none', 'x')}), qr/^42704 /, 'nothing to delete from');

# A file of another program
append_to_file("$bucket/foreign", 'hello');
is(sql(q{SELECT h ->> 'type', h ->> 'etag' FROM swarm.s3_head('folder', 'docs', 'foreign') h}), 'application/octet-stream|5d41402abc4b2a76b9719d911017c592', 'a file that was put there');
append_to_file("$bucket/deep/er/hello.txt", ' world');
is(sql(q{SELECT h ->> 'type', h ->> 'etag' FROM swarm.s3_head('folder', 'docs', 'deep/er/hello.txt') h}), 'application/octet-stream|' . md5_hex('hello world'), 'one that was changed');

# Of a large one the MD5 can be interrupted: this one would take minutes.
append_to_file("$bucket/sparse", '');
truncate "$bucket/sparse", 100 * 1024 * 1024 * 1024 or die "truncate: $!";
sql_fails($node, q{SET statement_timeout = '200ms'; SELECT swarm.s3_head('folder', 'docs', 'sparse')}, qr/57014/, 'the MD5 of a foreign file can be interrupted');
unlink "$bucket/sparse";

# Export and import
foreach my $format (qw(csv text binary json))
{
	is(sql(qq{
		CREATE TABLE t_$format (id int, e real[], t text);
		SELECT FROM swarm.s3_export('folder', 'docs', 'out/t.$format', 'SELECT i AS id, ARRAY[i, 0.5]::real[] AS e, E''a,"\\n'' || i AS t FROM generate_series(1, 1000) i', '$format');
		SELECT swarm.s3_import('folder', 'docs', 'out/t.$format', 't_$format', '$format');
		SELECT count(*), sum(id), min(e::text), bool_and(t = E'a,"\\n' || id) FROM t_$format}), "1000\n1000|500500|{1,0.5}|t", "export and import: $format");
}

# A row with what the server makes comes back as it was: what is generated is made again, an identity kept.
sql(q{CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY (START 7), gone int, "Up" text GENERATED ALWAYS AS (upper(body)) STORED, body text);
	ALTER TABLE made DROP COLUMN gone; INSERT INTO made (body) VALUES ('a'), ('b')});
is(sql(q{SELECT FROM swarm.s3_export('folder', 'docs', 'out/made', 'SELECT * FROM made', 'json'); TRUNCATE made RESTART IDENTITY;
	SELECT swarm.s3_import('folder', 'docs', 'out/made', 'made', 'json'); SELECT string_agg(made::text, ' ' ORDER BY id) FROM made}), "2\n(7,A,a) (8,B,b)", 'export and import of generated columns');

# Rows as JSON take the memory of some of them, whatever their number: here 20 MB in all.
sql(q{CREATE FUNCTION memory() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts';
	CREATE TABLE lines (i int, x text, m bigint);
	CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.m := memory(); RETURN NEW; END';
	CREATE TRIGGER note BEFORE INSERT ON lines FOR EACH ROW WHEN (NEW.i % 400 = 0) EXECUTE FUNCTION note()});
sql(q{SELECT FROM swarm.s3_export('folder', 'docs', 'out/memory', 'SELECT i, repeat(''x'', 10000) AS x, CASE WHEN i % 400 = 0 THEN memory() END AS m FROM generate_series(1, 2000) i', 'json');
	SELECT swarm.s3_import('folder', 'docs', 'out/memory', 'lines', 'json')});
is(sql('SELECT count(m), max(m) - min(m) < 8000000 FROM lines'), '5|t', 'an import of JSON lines does not collect them');
sql('DROP TRIGGER note ON lines; TRUNCATE lines');
sql(q{SELECT swarm.s3_import('folder', 'docs', 'out/memory', 'lines', 'json')});
is(sql('SELECT count(m), max(m) - min(m) < 8000000 FROM lines'), '5|t', '... nor does an export');

# While an object is fetched, what its target allows may change.
sql(q{CREATE ROLE importer; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA swarm TO importer; GRANT USAGE ON FOREIGN SERVER folder TO importer; CREATE TABLE target (id int, e real[], t text)});
foreach my $change ('REVOKE INSERT ON target FROM importer', 'ALTER TABLE target ENABLE ROW LEVEL SECURITY')
{
	sql("GRANT INSERT ON target TO importer; SELECT swarm._fault_arm('net.turn', 'wait')");
	my $psql = start_psql($node, undef);
	my $pid = say_psql($psql, 'SELECT pg_backend_pid();');
	$psql->{in} .= "SET ROLE importer; SELECT swarm.s3_import('folder', 'docs', 'out/t.csv', 'target');\n\\q\n";
	$psql->{run}->pump_nb;
	poll_ok($node, "SELECT wait_event FROM pg_stat_activity WHERE pid = $pid", 'an object is being fetched', 'Extension');
	sql("$change; SELECT swarm._fault_arm(NULL)");
	finish_psql($psql);
	is(sql('SELECT count(*) FROM target'), '0', "... $change: nothing is imported");
}

# All there is, and numbers as the server reads them
is(sql(q{SELECT convert_from(swarm.s3_get('folder', 'list', 'a0', 2, 9223372036854775807), 'UTF8')}), 'her', 'a length beyond all');
sql("CREATE SERVER hex FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'file://$folder', max_parallel '0x8')");
is(sql(q{SET statement_timeout = '60s'; SELECT length(swarm.s3_get('hex', 'list', 'a0'))}), '5', 'max_parallel in hexadecimal');

# Nothing outside of the folder
mkdir "$top/outside";
append_to_file("$top/outside/secret", 'secret');
symlink "$top/outside", "$bucket/link" or die;
symlink "$top/outside/secret", "$bucket/linked" or die;
symlink "$top/outside", "$folder/linked-bucket" or die;
foreach my $t (
	[ 'a folder that is a link', 'docs', 'link/secret' ],
	[ 'a file that is a link', 'docs', 'linked' ],
	[ 'a bucket that is a link', 'linked-bucket', 'secret' ])
{
	my ($name, $b, $key) = @$t;

	like(refused("SELECT swarm.s3_get('folder', '$b', '$key')"), qr/^38000 .*symbolic links/, "$name: get");
	like(refused("SELECT swarm.s3_export('folder', '$b', '$key', 'SELECT 1')"), qr/^38000 .*symbolic links/, "$name: export");
	$node->psql('postgres', "SELECT swarm.s3_delete('folder', '$b', '$key')");
	is(slurp_file("$top/outside/secret"), 'secret', "$name: nothing happens outside");
}
like(refused(q{SELECT swarm.s3_list('folder', 'linked-bucket')}), qr/^38000 .*symbolic links/, 'a bucket that is a link: list');
is(sql(q{SELECT count(*) FROM swarm.s3_list('folder', 'docs') WHERE key LIKE 'link%'}), '0', 'links are not listed');
like(refused("SELECT swarm.s3_export('folder', 'docs', '$_', 'SELECT 1')"), qr/^(22023|38000) /, "key $_") foreach '../outside/secret', 'x/../../y', '/etc/x', './x', 'x/.';
like(refused("SELECT swarm.s3_export('folder', '$_', 'x', 'SELECT 1')"), qr/^22023 /, "bucket $_") foreach '..', '.pg_swarm', 'a/b', '/etc';
is_deeply([ sort map { s/.*\///r } glob "$top/*" ], [ 'outside', 'store' ], 'nothing is beside it');

# A lost process leaves nothing, and its file is no object
sql("SELECT swarm._fault_arm('s3.folder', 'error')");
like(refused(q{SELECT swarm.s3_export('folder', 'docs', 'a', 'SELECT 1')}), qr/^\S+ /, 'an error on the way');
sql("SELECT swarm._fault_arm(NULL)");
is(sql(q{SELECT convert_from(swarm.s3_get('folder', 'docs', 'a'), 'UTF8')}), 'x', 'leaves what was there');
is(scalar(my @temp = glob "$folder/.pg_swarm/tmp/*"), 0, 'and nothing else');
append_to_file("$folder/.pg_swarm/tmp/1.1", 'lost');
sql(q{SELECT FROM swarm.s3_upload_sync('folder', 'docs', ARRAY[swarm.s3_file('a', 'y'::bytea)])});
is(scalar(@temp = glob "$folder/.pg_swarm/tmp/*"), 0, 'what a lost process was writing is removed');

# Rights
sql('CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER swarm_s3 TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA swarm TO app');
like(refused("SET ROLE app; CREATE SERVER own FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'file://$folder')"), qr/^42501 .*only superusers/, 'servers are made by superusers');
like(refused(q{SET ROLE app; SELECT swarm.s3_get('folder', 'docs', 'a')}), qr/^42501 /, 'and used with USAGE');
sql("GRANT USAGE ON FOREIGN SERVER folder TO app; ALTER SERVER folder OPTIONS (ADD allowed_bucket 'docs', ADD allowed_prefix 'out/')");
like(refused(q{SET ROLE app; SELECT swarm.s3_get('folder', 'docs', 'a')}), qr/^42501 .*does not allow key/, 'within its prefix');
sql('ALTER SERVER folder OWNER TO app');
like(refused(q{SET ROLE app; ALTER SERVER folder OPTIONS (DROP allowed_prefix)}), qr/^42501 .*only superusers/, 'changed by superusers');

# Nobody is there
sql("ALTER SERVER folder OWNER TO CURRENT_USER; ALTER SERVER folder OPTIONS (DROP allowed_prefix, SET endpoint 'file://$top/none')");
like(refused(q{SELECT swarm.s3_get('folder', 'docs', 'a')}), qr/^08006 .*could not open folder/, 'no folder');
$r = result($node, q{SELECT swarm.s3_upload_sync('folder', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])});
is("$r->{status} $r->{failed}[0]{code} $r->{failed}[0]{attempts}", '500 curl 7 5', 'is tried again, as a server that is away');

done_testing();
