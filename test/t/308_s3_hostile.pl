# Servers and users that mean no good: answers that nobody should believe, functions that
# meet themselves, roles that are members but inherit nothing, and few resources.
use strict;
use warnings;

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
pg_swarm.s3_max_files = 100
max_files_per_process = 64
X
my $s3 = s3_start();
my $seconds = $PostgreSQL::Test::Utils::timeout_default;
my $six_mb = q{convert_to(repeat('0123456789abcdef', 384 * 1024), 'UTF8')};

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }
s3_server($node, 'fake', $s3->{url});

# What a server says goes to tables and results: nothing of it may be no text.
s3_rules($s3, { match => '^PUT ', etag_hex => 'ff41c0' });
my $r = status(sql(q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])}));
is("$r->{status} $r->{files}[0]{etag}", '200 ?A?', 'an ETag of bytes that are no text');
s3_clear($s3);
s3_rules($s3, { match => '^POST .*uploads', upload_id => 'ff41' });
$r = status(sql("SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', $six_mb)])"));
is("$r->{status} $r->{failed}[0]{code}", '500 UnexpectedAnswer', 'an upload id of such bytes');
is(sql('SELECT count(*) FROM swarm._s3_file WHERE upload_id IS NOT NULL'), '0', '... is not stored');

s3_clear($s3);
sql(q{SELECT FROM swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])});
s3_rules($s3, { match => '^GET ', class => 'ff41c0' });
sql_fails($node, q{SELECT storage_class FROM swarm.s3_list('fake', 'docs')}, qr/22021/, 'a storage class of such bytes');
s3_clear($s3);

# An error that does not fit is cut between characters: the first of these would be cut inside of one.
$r = sql(q{SELECT swarm.s3_upload('fake', 'docs', (SELECT array_agg(swarm.s3_file('cut/' || i, swarm.from_query(format('SELECT %L::int', repeat('x', i) || repeat('ä', 300))))) FROM generate_series(0, 1) i))});
jobs_end($node, 'a batch of queries that fail');
is(sql("SELECT bool_and(length(convert_from(convert_to(error, 'UTF8'), 'UTF8')) > 100 AND octet_length(error) >= 254) FROM swarm._s3_file WHERE batch = $r"), 't', '... an error is cut between characters');

# An answer that does not say where it ends may have been cut.
s3_clear($s3);
sql(q{SELECT FROM swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('a', 'abcdef'::bytea)])});
s3_rules($s3, { match => '^GET ', no_end => 1 });
sql_fails($node, q{SELECT swarm.s3_get('fake', 'docs', 'a')}, qr/08006.*where object "a" ends/s, 'an answer without an end');
s3_clear($s3);

# A trigger that gets and imports while an import is under way
sql(q{
CREATE TABLE outer_t (i int, note text);
CREATE TABLE inner_t (i int);
SELECT FROM swarm.s3_export('fake', 'docs', 'outer', 'SELECT i, repeat(''o'', 1000) FROM generate_series(1, 500) i');
SELECT FROM swarm.s3_export('fake', 'docs', 'inner', 'SELECT i FROM generate_series(1, 7) i');
CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF NEW.i % 100 = 1 THEN
		PERFORM swarm.s3_import('fake', 'docs', 'inner', 'inner_t');
		NEW.note = length(swarm.s3_get('fake', 'docs', 'inner'));
	END IF;
	RETURN NEW; END $$;
CREATE TRIGGER meet BEFORE INSERT ON outer_t FOR EACH ROW EXECUTE FUNCTION meet()});
is(sql(q{SELECT swarm.s3_import('fake', 'docs', 'outer', 'outer_t')}), '500', 'an import within an import');
is(sql(q{SELECT count(*), sum(i), count(*) FILTER (WHERE note = '14'), (SELECT sum(i) FROM inner_t) FROM outer_t}), '500|125250|5|140', '... both have their own bytes');

# New credentials belong to the endpoint as it is when they are read.
my $elsewhere = s3_start();
s3_clear($s3);
s3_server($node, 'moves', $s3->{url});
s3_rules($s3, { match => '^PUT ', status => 400, code => 'ExpiredToken', wait => 1, times => 1 });
my $b = sql(q{SELECT swarm.s3_upload('moves', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])});
ok(wait_log($s3, 'WAIT'), 'a token expires');
sql("ALTER SERVER moves OPTIONS (SET endpoint '$elsewhere->{url}'); ALTER USER MAPPING FOR PUBLIC SERVER moves OPTIONS (SET access_key_id 'AKOTHER')");
go($s3);
status($b);
is(join(' ', s3_log($s3)), 'PUT /docs/a WAIT PUT /docs/a 400', '... while its server moves: what is read then is not sent to where it was');
ok(wait_log($elsewhere, 'PUT'), '... but to where it is now');
s3_stop($elsewhere);

# Without the payload's SHA-256 a checksum protects it.
s3_clear($s3);
s3_server($node, 'trusted', $s3->{url}, "sign_payload 'false'");
foreach my $t ([ '{}', 'Content-MD5' ], [ '{"checksum": "crc32c"}', 'crc32c' ], [ '{"checksum": "sha256"}', 'sha256' ])
{
	my ($options, $name) = @$t;

	s3_clear($s3);
	s3_rules($s3, { match => '^PUT ', corrupt => 1, times => 1 });
	$r = status(sql("SELECT swarm.s3_upload('trusted', 'docs', ARRAY[swarm.s3_file('a', convert_to(repeat('abc', 1000), 'UTF8'))], '$options')"));
	is("$r->{status} $r->{files}[0]{attempts}", '200 2', "payload unsigned: $name finds a changed byte") or diag explain $r;
	is((s3_log($s3))[0], 'PUT /docs/a 400', '... the server says so');
	is(s3_objects($s3)->{'docs/a'}, 'abc' x 1000, '... and has it right in the end');
}

# A member of a role that does not inherit it has none of its rights.
sql(q{CREATE ROLE app; CREATE ROLE heir IN ROLE app; CREATE ROLE member NOINHERIT IN ROLE app; GRANT USAGE ON FOREIGN SERVER fake TO app;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA swarm TO app, heir, member});
$b = (split /\n/, sql(q{SET ROLE app; SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])}))[-1];
is(status($b)->{status}, 200, 'a batch of a role');
like(sql("SET ROLE heir; SELECT swarm.s3_wait($b) ->> 'status', (SELECT count(*) FROM swarm.s3_files WHERE batch = $b)"), qr/^200\|1$/m, '... is seen by who inherits it');
sql_fails($node, "SET ROLE member; SELECT swarm.s3_$_($b)", qr/42704/, "... by others not: s3_$_") foreach 'wait', 'cancel', 'retry';
is(sql("SET ROLE member; SELECT count(*) FROM swarm.s3_batches"), '0', '... nor in the view');
is(sql("SET ROLE member; SELECT count(*) FROM swarm.s3_files"), '0', '... of files neither');

# Who inherits it, or is a superuser, has its batches sent again: with its rights, not with his own.
foreach my $set ('SET ROLE heir;', '')
{
	s3_clear($s3);
	s3_rules($s3, { match => '^PUT ', status => 403, code => 'AccessDenied' });
	$b = (split /\n/, sql(q{SET ROLE app; SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('who', swarm.from_query('SELECT current_user'))])}))[-1];
	is(status($b)->{status}, 500, 'a batch of the role fails');
	s3_clear($s3);
	is((split /\n/, sql("$set SELECT swarm.s3_retry($b)"))[-1], '1', "... \"$set\" has it sent again");
	is(status($b)->{status}, 200, '... which succeeds');
	is(s3_objects($s3)->{'docs/who'}, "app\n", '... as its owner');
}
sql('REVOKE USAGE ON FOREIGN SERVER fake FROM app');
sql_fails($node, "SELECT swarm.s3_retry($b)", qr/42501/, '... if he may still use the server');
sql('GRANT USAGE ON FOREIGN SERVER fake TO app');

# A session that is terminated takes back what it has under way, and no more.
s3_clear($s3);
s3_rules($s3, { match => '^GET ', wait => 1 });
my @sessions = map { start_psql($node, undef) } 1, 2;
my @pids = map { say_psql($_, 'SELECT pg_backend_pid();') } @sessions;
foreach (@sessions)
{
	$_->{out} = '';
	$_->{in} .= "SELECT length(swarm.s3_get('fake', 'docs', 'who'));\n\\q\n";
	$_->{run}->pump_nb;
}
poll_ok($node, 'SELECT sum(running) FROM swarm._s3_endpoints()', 'two sessions wait for a server', '2');
sql("SELECT pg_terminate_backend($pids[0], 60000)");
is(sql('SELECT sum(running) FROM swarm._s3_endpoints()'), '1', '... one is terminated: the other is counted');

# The record of an endpoint that is busy is not given away while others are idle.
sql(q{DO $$ BEGIN FOR i IN 1 .. 80 LOOP
	EXECUTE format('CREATE SERVER many_%s FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint %L)', i, 'http://127.0.0.1:' || i);
	EXECUTE format('CREATE USER MAPPING FOR PUBLIC SERVER many_%s OPTIONS (access_key_id ''a'', secret_access_key ''b'')', i);
	PERFORM swarm.s3_presign(('many_' || i)::name, 'docs', 'a');
END LOOP; END $$});
is(sql("SELECT running FROM swarm._s3_endpoints() WHERE endpoint = '$s3->{url}'"), '1', 'eighty endpoints later it is known still');
go($s3);
is(finish_psql($sessions[1]), "4\n", '... and answers');
finish_psql($sessions[0]);
s3_clear($s3);

# Few descriptors: files wait for one another, none fails.
s3_clear($s3);
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/$_", "file $_") foreach 1 .. 60;
$r = status(sql("SELECT swarm.s3_upload('fake', 'docs', (SELECT array_agg(swarm.s3_file('few/' || i, swarm.from_file('$dir/' || i))) FROM generate_series(1, 60) i))"));
is("$r->{status} $r->{count}", '200 60', 'sixty files with descriptors for a few') or diag explain $r;
is(s3_objects($s3)->{'docs/few/60'}, 'file 60', '... each is what it was');

# More than memory has room for, at a server that is slow: some wait on the disk.
s3_clear($s3);
sql("CREATE TABLE big AS SELECT 1 AS id, $six_mb AS body; ALTER TABLE big ADD PRIMARY KEY (id)");
sql('ALTER TABLE big ALTER body SET STORAGE EXTERNAL; UPDATE big SET body = body || \'x\'');
s3_rules($s3, { match => '^PUT ', wait => 1 });
$b = sql(q{SELECT swarm.s3_upload('fake', 'docs', (SELECT array_agg(swarm.s3_file('big/' || i, swarm.from_column('big', 1, 'body'))) FROM generate_series(1, 7) i))});
poll_ok($node, "SELECT count(*) FROM swarm.s3_files WHERE batch = $b AND state = 'running'", 'seven files that do not fit into memory are under way', '7');
go($s3);
$r = status($b);
is("$r->{status} $r->{count}", '200 7', '... and stored');
is(length s3_objects($s3)->{"docs/big/$_"}, 6 * 1024 * 1024 + 1, "... whole: $_") foreach 1, 5, 7;
is(sql('SELECT count(*) FROM pg_ls_tmpdir()'), '0', '... no temporary file is left');

# DROP DATABASE does not wait for uploads.
sql('CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION pg_swarm');
$node->safe_psql('other', "CREATE SERVER fake FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint '$s3->{url}');
CREATE USER MAPPING FOR PUBLIC SERVER fake OPTIONS (access_key_id 'AKTEST', secret_access_key 'SKTEST')");
foreach my $force ('', ' WITH (FORCE)')
{
	s3_clear($s3);
	s3_rules($s3, { match => '^PUT ', wait => 1 });
	$node->safe_psql('other', q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])});
	ok(wait_log($s3, 'WAIT'), 'an upload of another database is under way');
	sql("DROP DATABASE other$force");
	is(sql(q{SELECT count(*) FROM pg_database WHERE datname = 'other'}), '0', "... DROP DATABASE$force is not blocked");
	is(sql('SELECT sum(running) FROM swarm._s3_endpoints()'), '0', '... nothing is counted as running');
	go($s3);
	last if $force;
	sql('CREATE DATABASE other');
	$node->safe_psql('other', 'CREATE EXTENSION pg_swarm');
	$node->safe_psql('other', "CREATE SERVER fake FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint '$s3->{url}');
CREATE USER MAPPING FOR PUBLIC SERVER fake OPTIONS (access_key_id 'AKTEST', secret_access_key 'SKTEST')");
}
$r = status(sql(q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('after', 'x'::bytea)])}));
is($r->{status}, 200, '... uploads of this one go on');

s3_stop($s3);
$node->stop;
done_testing();
