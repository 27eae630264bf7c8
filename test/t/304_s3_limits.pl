# Uploads: what else can go wrong on the way (rows of the table of failures that 301 and
# 302 do not have), how servers are addressed, who may do what, and that no secret shows.
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
log_statement = all
log_min_messages = debug5
log_error_verbosity = verbose
X
my $s3 = s3_start();
my $seconds = $PostgreSQL::Test::Utils::timeout_default;
my ($secret, $other) = ('hiddenSecretOfTest', 'anotherSecretOfTest');
my $small = q{convert_to('file ' || i, 'UTF8')};
my $two_mb = q{convert_to(repeat('0123456789abcdef', 128 * 1024), 'UTF8')};

s3_server($node, 'fake', $s3->{url});
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }

sub upload
{
	my ($n, $source, $server, $options) = @_;

	return status(sql("SELECT swarm.s3_upload('" . ($server || 'fake') . "', 'docs', " . files_sql($n, $source) . ", '" . ($options || '{}') . "')"));
}

# On the way
foreach my $t (
	[ 'a changed byte', $small, { corrupt => 1, times => 1 }, '200 2' ],
	[ 'always a changed byte', $small, { corrupt => 1 }, '500 5' ],
	[ 'no answer to a body that was read', $small, { wait => 1, times => 1 }, '200 2' ],
	[ 'no answer to a large body that was asked for', $two_mb, { wait => 1, times => 1 }, '200 2' ],
	[ 'never a 100 Continue', $two_mb, { no_continue => 1 }, '200 1' ],
	[ 'a 403 before the body', $two_mb, { status => 403, code => 'AccessDenied', early => 1 }, '500 1' ],
	[ 'an ETag that is no MD5', $small, { etag => 'not-an-md5' }, '200 1' ])
{
	my ($name, $source, $rule, $want) = @$t;

	s3_clear($s3);
	s3_rules($s3, { match => '^PUT ', %$rule });
	my $r = upload(1, $source);
	my $f = $r->{files}[0] || $r->{failed}[0];
	is("$r->{status} $f->{attempts}", $want, $name) or diag explain $r;
}
s3_clear($s3);
s3_server($node, 'far', $s3->{url}, "region 'eu-west-1'");
s3_rules($s3, { match => '^PUT ', redirect => 'http://127.0.0.1:1/', region => 'us-east-1', times => 1 });
my $moved = upload(1, $small, 'far');
is("$moved->{status} $moved->{files}[0]{attempts}", '200 2', 'a redirect: signed for the other region, sent to the same host') or diag explain $moved;
is(join(', ', s3_log($s3)), 'PUT /docs/f1 307, PUT /docs/f1 200', '... twice');
s3_rules($s3, { match => '^PUT ', redirect => 'http://127.0.0.1:1/', region => 'us-west-1' });
$moved = upload(1, $small, 'far');
is("$moved->{status} $moved->{failed}[0]{attempts}", '500 2', '... once only');
s3_clear($s3);

# A source that becomes shorter while it is sent
my $file = PostgreSQL::Test::Utils::tempdir() . '/source';
append_to_file($file, 'x' x (30 * 1024 * 1024));
s3_rules($s3, { match => '^PUT .*partNumber=[1-4]\D', wait => 1 });
my $b = sql("SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('short', swarm.from_file('$file'))])");
is(scalar(grep { wait_log($s3, "partNumber=$_\\D.*WAIT") } 1 .. 4), 4, 'four of six parts of a file are being sent');
truncate $file, 1000;
go($s3);
s3_rules($s3);
my $r = status($b);
is($r->{status}, 500, '... becomes shorter');
like($r->{failed}[0]{error}, qr/became shorter/, '... is no success, and not filled up with zeros');
jobs_end($node, '... no job is left');
is(s3_parts($s3), 0, '... and no part');

# The server does not list the parts of a lost run: they are removed, and sent again.
s3_clear($s3);
truncate $file, 30 * 1024 * 1024;
s3_rules($s3, { match => '^PUT .*partNumber=2\D', wait => 1 }, { match => '^GET .*upload', status => 403, code => 'AccessDenied' });
$b = sql("SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('long', swarm.from_file('$file'))])");
ok(wait_log($s3, 'partNumber=2\D.*WAIT'), 'a file is being sent in parts');
$node->stop('immediate');
s3_rules($s3, { match => '^GET .*upload', status => 403, code => 'AccessDenied' });
go($s3);
$node->start;
is(status($b)->{status}, 200, '... after a crash, without the right to list');
is(s3_parts($s3), 0, '... no part is left');
is(scalar(grep { /^DELETE .*uploadId/ } s3_log($s3)), 1, '... the first upload was aborted');

# Many parts are listed page by page.
my $paged = s3_start(0, FAKE_PAGE => 2);
s3_server($node, 'paged', $paged->{url});
s3_rules($paged, { match => '^PUT .*partNumber=6\D', wait => 1 });
$b = sql("SELECT swarm.s3_upload('paged', 'docs', ARRAY[swarm.s3_file('long', swarm.from_file('$file'))])");
ok(wait_log($paged, 'partNumber=6\D.*WAIT'), 'the last of six parts is being sent');
poll_ok($node, "SELECT bytes_sent >= 25 * 1024 * 1024 FROM swarm.s3_files WHERE batch = $b", '... the others are there');
$node->stop('immediate');
s3_rules($paged);
go($paged);
$node->start;
is(status($b)->{status}, 200, '... after a crash');
is(scalar(grep { /^PUT .*partNumber=[1-5]\D.* 200/ } s3_log($paged)), 5, '... they are not sent again');
cmp_ok(scalar(grep { /^GET .*part-number-marker/ } s3_log($paged)), '>=', 2, '... three pages were read');

# It is gone while it is listed: all is sent again, in a new one.
s3_clear($paged);
s3_rules($paged, { match => '^PUT .*partNumber=6\D', wait => 1 });
$b = sql("SELECT swarm.s3_upload('paged', 'docs', ARRAY[swarm.s3_file('long', swarm.from_file('$file'))])");
ok(wait_log($paged, 'partNumber=6\D.*WAIT'), 'the last of six parts is being sent');
poll_ok($node, "SELECT bytes_sent >= 25 * 1024 * 1024 FROM swarm.s3_files WHERE batch = $b", '... the others are there');
$node->stop('immediate');
s3_rules($paged, { match => '^GET .*part-number-marker=4', status => 404, code => 'NoSuchUpload' });
go($paged);
$node->start;
is(status($b)->{status}, 200, '... and lost after a crash');
is(length(s3_objects($paged)->{'docs/long'}), 30 * 1024 * 1024, '... the object is whole');
s3_stop($paged);

# How the caller waits
s3_clear($s3);
s3_rules($s3, { match => '^PUT ', wait => 1 });
$b = sql("SELECT swarm.s3_upload('fake', 'docs', " . files_sql(1, $small) . ')');
sql_fails($node, "SET statement_timeout = '100ms'; SELECT swarm.s3_wait($b)", qr/57014/, 'waiting ends with statement_timeout');
sql_fails($node, "SET statement_timeout = '500ms'; SELECT swarm.s3_upload_sync('fake', 'docs', " . files_sql(1, $small) . ')', qr/57014/, '... so does s3_upload_sync');
sql_fails($node, q{SET statement_timeout = '500ms'; SET pg_swarm.s3_part_size = '5MB'; SELECT swarm.s3_upload_sync('fake', 'docs', } . files_sql(1, q{convert_to(repeat('0123456789abcdef', 512 * 1024), 'UTF8')}) . ')', qr/57014/, '... in parts');
go($s3);
is(status($b)->{status}, 200, '... the batch goes on');
until_gone();
is(s3_parts($s3), 0, '... no part is left of the other');
sub until_gone { for (1 .. 100) { last unless s3_parts($s3); select undef, undef, undef, 0.1; } return; }

s3_clear($s3);
s3_rules($s3, { match => '^POST .*uploads', wait => 1 });
my $psql = start_psql($node, undef);
my $pid = say_psql($psql, 'SELECT pg_backend_pid();');
$psql->{in} .= 'SELECT swarm.s3_upload_sync(\'fake\', \'docs\', ' . files_sql(1, q{convert_to(repeat('0123456789abcdef', 512 * 1024), 'UTF8')}) . ");\n\\q\n";
$psql->{run}->pump_nb;
ok(wait_log($s3, '^POST .*WAIT'), 'an upload is being begun');
sql("SELECT pg_cancel_backend($pid)");
go($s3);
finish_psql($psql);
is(s3_parts($s3), 0, '... it is aborted, too');
is(scalar(grep { /^DELETE .*uploadId/ } s3_log($s3)), 1, '... when its id is there') or diag join "\n", s3_log($s3);

# No room for a temporary file
sql_fails($node, q{SELECT swarm.s3_export('fake', 'docs', 'x', 'SELECT 1', 'json', '{"encryption": "AES256"}')}, qr/22023.*unknown option "encryption"/s, 'an option of requests is not left out in silence');
sql_fails($node, q{SET temp_file_limit = '1MB'; SELECT swarm.s3_export('fake', 'docs', 'x', 'SELECT repeat(''x'', 1000) FROM generate_series(1, 40000)', 'json')}, qr/53400/, 'temp_file_limit');
sql_fails($node, q{SET temp_file_limit = '1MB'; SELECT swarm.s3_export('fake', 'docs', 'x', 'SELECT repeat(''x'', 1000) FROM generate_series(1, 40000)', 'csv')}, qr/53400.*temp_file_limit/, '... what COPY writes as well');
is(sql(q{SELECT swarm.s3_head('fake', 'docs', 'x') IS NULL}), 't', '... nothing is stored');

# What a query returns is looked at while it grows: it is not all written first.
sql('CREATE SEQUENCE rows_made');
foreach my $t ([ 'csv', '{}' ], [ 'text', '{"compress": "gzip"}' ], [ 'binary', '{}' ], [ 'json', '{}' ])
{
	sql('SELECT setval($$rows_made$$, 1)');
	sql_fails($node, qq{SET pg_swarm.s3_max_file_size = '1MB'; SELECT swarm.s3_export('fake', 'docs', 'x', 'SELECT nextval(''rows_made''), repeat(''x'', 1000) FROM generate_series(1, 20000)', '$t->[0]', '$t->[1]')},
		qr/54000.*exceeds 1MB limit/, "$t->[0] $t->[1]: too large");
	is(sql('SELECT last_value BETWEEN 1000 AND 1300 FROM rows_made'), 't', '... after the rows that there is room for') or diag sql('SELECT last_value FROM rows_made');
	is(sql(qq{SELECT swarm.s3_export('fake', 'docs', 'small', 'SELECT lanname, (SELECT count(*) FROM pg_class) FROM pg_language', '$t->[0]', '$t->[1]')->>'status'}), '200', '... what is not, is exported');
}

# Parts grow by themselves where there would be more than 10,000 of them; the files have no blocks on the disk.
my $large = PostgreSQL::Test::Utils::tempdir() . '/large';
append_to_file($large, '');
foreach my $t ([ 10000 * 5, 0, 5 ], [ 10000 * 5, 1, 10 ], [ 100 * 1024, 0, 20 ])
{
	my ($mb, $more, $part) = @$t;

	s3_clear($s3);
	s3_rules($s3, { match => '^PUT .*partNumber=', length => 1, status => 403, code => 'AccessDenied', early => 1 });
	truncate $large, $mb * 1024 * 1024 + $more or die;
	$r = result($node, qq{SET pg_swarm.s3_max_file_size = '1TB'; SELECT swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('large', swarm.from_file('$large'))])});
	is("$r->{status} $r->{failed}[0]{code}", '500 AccessDenied', "$mb MB and $more bytes") or diag explain $r;
	my %sizes = map { /partNumber=\d+&.* LENGTH (\d+)/ ? ($1 => 1) : () } s3_log($s3);
	is(join(' ', keys %sizes), $part * 1024 * 1024, "... go in parts of $part MB");
	is(s3_parts($s3), 0, '... and nothing of them is left');
}
unlink $large;
s3_clear($s3);

# Many files in a batch, when it is allowed: those that are open at a time are few.
s3_clear($s3);
$r = status((split /\n/, sql(q{SET pg_swarm.s3_max_files = 2000; SELECT swarm.s3_upload('fake', 'docs', } . files_sql(2000, $small) . ')'))[-1]);
is("$r->{status} $r->{count}", '200 2000', 'two thousand files in a batch');
is(s3_max($s3) <= 20, 1, '... twenty at a time');
is(sql('SELECT count(*) FROM pg_ls_tmpdir()'), '0', '... no temporary file is left');

# How servers are addressed
s3_clear($s3);
s3_server($node, 'virtual', "http://localhost:$s3->{port}", "path_style 'false'");
$r = upload(1, $small, 'virtual');
is($r->{status}, 200, 'bucket in the name of the host') or diag explain $r;
is((s3_log($s3))[-1], 'PUT /f1 200', '... not in the path');
is(s3_objects($s3)->{'docs/f1'}, 'file 1', '... the same object');
like(sql(q{SELECT swarm.s3_presign('virtual', 'docs', 'f1')}), qr,^http://docs\.localhost:\d+/f1\?,, '... also presigned');
foreach my $t ([ 'x.localhost', 'a name that resolves to loopback' ], [ '0.0.0.0', 'the unspecified address' ], [ '[::ffff:169.254.169.254]', 'a metadata address in disguise' ],
	[ '[fe80::1]', 'a link-local address' ], [ '224.0.0.1', 'a multicast address' ])
{
	my $name = 'a' . sql("SELECT md5('$t->[0]')");

	s3_server($node, $name, "http://$t->[0]:$s3->{port}");
	$r = upload(1, $small, $name);
	like($r->{failed}[0]{error}, qr/address is not allowed/, "$t->[1] is refused") or diag explain $r;
}
sql(q{ALTER SYSTEM SET pg_swarm.net_allowed_addresses = '127.0.0.0/8'; SELECT pg_reload_conf()});
poll_ok($node, q{SELECT swarm.s3_upload_sync('a' || md5('x.localhost'), 'docs', ARRAY[swarm.s3_file('f', 'x'::bytea)]) ->> 'status'}, '... unless it is listed', '200');

# Options become headers, all of them signed
s3_clear($s3);
$r = upload(1, $small, 'fake', '{"encryption": "aws:kms", "kms_key": "arn:key", "storage_class": "STANDARD_IA", "acl": "private", "checksum": "sha256"}');
is($r->{status}, 200, 'encryption, its key, class, acl, checksum') or diag explain $r;
is(sql(q{SELECT (swarm.s3_head('fake', 'docs', 'f1') ->> 'encryption') || ' ' || (swarm.s3_head('fake', 'docs', 'f1') ->> 'storageClass')}), 'aws:kms STANDARD_IA', '... are stored');
foreach my $checksum ('sha256', 'crc32c')
{
	$r = upload(2, q{convert_to(repeat(i::text, 6 * 1024 * 1024 * (i - 1) + 100), 'UTF8')}, 'fake', "{\"checksum\": \"$checksum\"}");
	is($r->{status}, 200, "$checksum is verified, also of parts") or diag explain $r;
}

# Who may do what: nothing without EXECUTE, nothing without USAGE, and sources only
# with the rights of who asks
my %calls = (
	's3_upload(name, text, swarm.s3_file[], jsonb)' => q{swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])},
	's3_upload_sync(name, text, swarm.s3_file[], jsonb)' => q{swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('a', 'x'::bytea)])},
	's3_head(name, text, text)' => q{swarm.s3_head('fake', 'docs', 'a')},
	's3_list(name, text, text, bigint, text)' => q{swarm.s3_list('fake', 'docs')},
	's3_delete(name, text, text)' => q{swarm.s3_delete('fake', 'docs', 'a')},
	's3_get(name, text, text, bigint, bigint)' => q{swarm.s3_get('fake', 'docs', 'a')},
	's3_presign(name, text, text, text, interval)' => q{swarm.s3_presign('fake', 'docs', 'a')},
	's3_export(name, text, text, text, text, jsonb)' => q{swarm.s3_export('fake', 'docs', 'a', 'SELECT 1')},
	's3_import(name, text, text, regclass, text, jsonb)' => q{swarm.s3_import('fake', 'docs', 'a', 'mine')});
sql(q{CREATE ROLE app; CREATE ROLE stranger; CREATE TABLE mine (i int); GRANT ALL ON mine TO app; CREATE TABLE closed (id int PRIMARY KEY, body bytea);
  INSERT INTO closed VALUES (1, 'secret'); CREATE SCHEMA apart AUTHORIZATION app});
s3_clear($s3);
foreach my $f (sort keys %calls)
{
	sql_fails($node, "SET ROLE app; SELECT $calls{$f}", qr/42501.*permission denied for function/, "$f: not without EXECUTE");
	sql("GRANT EXECUTE ON FUNCTION swarm.$f TO app");
	sql_fails($node, "SET ROLE app; SELECT $calls{$f}", qr/42501.*permission denied for foreign server/, '... not without USAGE');
}
is(join(' ', s3_log($s3)), '', '... nothing was sent');
sql('GRANT USAGE ON FOREIGN SERVER fake TO app');
my $lo = sql(q{SELECT lo_from_bytea(0, 'x')});
foreach my $t ([ "swarm.from_file('$file')", 'a file of the server' ], [ q{swarm.from_column('closed', 1, 'body')}, 'a column' ], [ "swarm.from_large_object($lo)", 'a large object' ])
{
	sql_fails($node, "SET ROLE app; SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', $t->[0])])", qr/42501/, "$t->[1] needs rights on it");
	sql_fails($node, "SET ROLE app; SELECT swarm.s3_upload_sync('fake', 'docs', ARRAY[swarm.s3_file('a', $t->[0])])", qr/42501/, '... also at once');
}
sub as_app { my ($sql) = @_; return (split /\n/, sql("SET ROLE app; $sql"))[-1]; }
$r = status(as_app(q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', swarm.from_query('SELECT * FROM closed'))])}));
is($r->{failed}[0]{code}, '42501', 'a query is run as who asked for it');
$r = status(as_app(q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', swarm.from_query('SELECT current_user'))])}));
is($r->{status}, 200, '... if it may read what it asks for');
is(s3_objects($s3)->{'docs/a'}, "app\n", '... and as nobody else');
$r = status(as_app(q{SET search_path = apart; CREATE TABLE t AS SELECT 'here' AS place; SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('a', swarm.from_query('SELECT * FROM t'))])}));
is($r->{status}, 200, '... with the search_path of the session') or diag explain $r;
sql('GRANT SELECT ON closed TO app');
sql(q{SELECT swarm.queue_pause('default')});
$b = as_app(q{SELECT swarm.s3_upload('fake', 'docs', ARRAY[swarm.s3_file('b', swarm.from_column('closed', 1, 'body'))])});
sql('REVOKE SELECT ON closed FROM app');
sql(q{SELECT swarm.queue_resume('default')});
$r = status($b);
is($r->{failed}[0]{code}, '42501', 'rights are looked at again when a file is read');
is(sql("SET ROLE stranger; SELECT count(*) FROM swarm.s3_batches"), '0', 'batches of others are not seen');
sql_fails($node, "SET ROLE stranger; SELECT swarm.s3_$_($b)", qr/42704/, "... nor used by s3_$_") foreach 'wait', 'cancel', 'retry';
sql('REVOKE USAGE ON FOREIGN SERVER fake FROM app');
sql_fails($node, "SET ROLE app; SELECT swarm.s3_retry($b)", qr/42501/, 'retry needs USAGE again');

# Secrets: in no log, view, error or process title
my $hidden = s3_start();
sql(<<"X");
SET log_statement = none; SET log_min_messages = warning;
CREATE SERVER hidden FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint '$hidden->{url}');
CREATE USER MAPPING FOR PUBLIC SERVER hidden OPTIONS (access_key_id 'AKTEST', secret_access_key '$secret', session_token '$other');
GRANT USAGE ON FOREIGN SERVER hidden TO app
X
s3_rules($hidden, { match => '^PUT', wait => 1 });
$b = sql(q{SELECT swarm.s3_upload('hidden', 'docs', } . files_sql(3, $small) . ')');
ok(wait_log($hidden, 'WAIT'), 'an upload with a secret');
my $seen = sql(q{SELECT string_agg(a::text, '') FROM pg_stat_activity a});
go($hidden);
s3_rules($hidden);
$r = $node->safe_psql('postgres', "SELECT swarm.s3_wait($b)");
like($r, qr/SignatureDoesNotMatch/, '... which is wrong');
my ($rc, $out, $err) = $node->psql('postgres', q{\set VERBOSITY verbose
SELECT swarm.s3_get('hidden', 'docs', 'x')});
$seen .= $r . $out . $err . sql(q{SELECT string_agg(f::text, '') FROM swarm.s3_files f}) . sql(q{SELECT string_agg(b::text, '') FROM swarm.s3_batches b})
  . sql(q{SELECT string_agg(e::text, '') FROM swarm.s3_endpoints e}) . sql(q{SELECT string_agg(j::text, '') FROM swarm.jobs j})
  . sql(q{SET ROLE app; SELECT string_agg(u::text, '') FROM pg_user_mappings u}) . sql(q{SET ROLE app; SELECT string_agg(s::text, '') FROM pg_foreign_server s})
  . sql(q{SELECT string_agg(f::text, '') FROM swarm._s3_file f});
unlike($seen, qr/$secret|$other|SKTEST/, '... is in no view, error or process title');
my $log = slurp_file($node->logfile);
$log =~ s/^.*CREATE USER MAPPING.*$//mg;
like($log, qr/DEBUG/, 'the log has debug messages');
unlike($log, qr/$secret|$other|SKTEST/, '... and no secret');
unlike($log, qr/Signature=|AWS4-HMAC-SHA256 Credential/, '... and no signature');

s3_stop($_) foreach $hidden, $s3;
$node->stop;
done_testing();
