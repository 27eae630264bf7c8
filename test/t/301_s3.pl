# Uploads against a server that misbehaves by script: every failure costs what it
# must cost and no more, and the result says how each file ended.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my $secret = 'SKTEST';
my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
pg_swarm.net_breaker_failures = 1000
log_statement = all
log_min_messages = debug2
X
my $s3 = s3_start();

s3_server($node, 'fake', $s3->{url});

sub upload
{
	my ($n, $source, $server, $options) = @_;
	my $batch = $node->safe_psql('postgres', "SELECT swarm.s3_upload('" . ($server || 'fake') . "', 'docs', " . files_sql($n, $source) . ", '" . ($options || '{}') . "')");

	return result($node, "SELECT swarm.s3_wait($batch, '$PostgreSQL::Test::Utils::timeout_default s')");
}

my $small = q{convert_to('file ' || i, 'UTF8')};
my $large = q{convert_to(repeat('0123456789abcdef', 1024 * 1024) || i, 'UTF8')};	# 16 MB, three parts

# As it should be
my $r = upload(20, $small);
is("$r->{status} $r->{count} $r->{message}", '200 20 20 uploaded', 'twenty files');
is(scalar(keys %{ s3_objects($s3) }), 20, '... are there');
is(s3_objects($s3)->{'docs/f7'}, 'file 7', '... byte for byte');
is($r->{files}[0]{originalName}, 'f1', '... the result names them');
cmp_ok(s3_max($s3), '>', 3, '... they were sent in parallel');
$r = upload(1, $large);
like($r->{files}[0]{etag}, qr/^[0-9a-f]{32}-3$/, 'a large file goes in parts');
is(length s3_objects($s3)->{'docs/f1'}, 16 * 1024 * 1024 + 1, '... whole');
is(s3_parts($s3), 0, '... and leaves none behind');

# Failures of one file, each: rule, result, attempts
foreach my $t (
	[ 'two times 503', { status => 503, code => 'SlowDown', times => 2 }, 200, 3 ],
	[ 'a status 500', { status => 500, code => 'InternalError', times => 1 }, 200, 2 ],
	[ 'Retry-After', { status => 503, code => 'SlowDown', retry_after => 1, times => 1 }, 200, 2 ],
	[ '403', { status => 403, code => 'AccessDenied' }, 500, 1 ],
	[ 'an early 403', { status => 403, code => 'AccessDenied', early => 1 }, 500, 1 ],
	[ 'a redirect to nowhere', { redirect => 'http://169.254.169.254/' }, 500, 1 ],
	[ 'an error inside a 200', { ok_error => 'InternalError', times => 1 }, 200, 2 ],
	[ 'a cut body', { cut_request => 3, times => 1 }, 200, 2 ],
	[ 'a lost answer', { drop => 1, times => 1 }, 200, 2 ],
	[ 'no answer', { hang => 1, times => 1 }, 200, 2 ],
	[ 'always 503', { status => 503, code => 'SlowDown' }, 500, 5 ])
{
	my ($name, $rule, $status, $attempts) = @$t;

	s3_clear($s3);
	s3_rules($s3, { match => '^PUT ', %$rule });
	$node->safe_psql('postgres', q{ALTER SYSTEM SET pg_swarm.net_stall_timeout = '1s'; SELECT pg_reload_conf()}) if $rule->{hang};
	$r = upload(1, $small);
	$node->safe_psql('postgres', q{ALTER SYSTEM RESET pg_swarm.net_stall_timeout; SELECT pg_reload_conf()}) if $rule->{hang};
	my $f = $r->{files}[0] || $r->{failed}[0];
	is("$r->{status} $f->{attempts}", "$status $attempts", "$name: status and attempts") or diag explain $r;
}
# Connections that were closed while nobody used them: one file finds twenty of them
s3_clear($s3);
s3_rules($s3, { match => '^PUT ', delay => 100 });
upload(20, $small);
s3_clear($s3);
s3_rules($s3, { match => '^PUT ', kept => 1 });
$node->safe_psql('postgres', q{ALTER SYSTEM SET pg_swarm.net_breaker_failures = 1; SELECT pg_reload_conf()});
$r = upload(1, $small);
is("$r->{status} $r->{message}", '200 1 uploaded', 'kept connections that have been closed cost no file') or diag explain $r->{failed};
ok((grep { /FORGOTTEN/ } s3_log($s3)), '... there were some');
is($node->safe_psql('postgres', "SELECT breaker, failures_in_row FROM swarm.s3_endpoints WHERE endpoint = '$s3->{url}'"), 'closed|0', '... and is no failure of the endpoint');
$node->safe_psql('postgres', q{ALTER SYSTEM RESET pg_swarm.net_breaker_failures; SELECT pg_reload_conf()});

s3_clear($s3);
s3_rules($s3, { match => '^PUT /docs/f[1-5]$', status => 403, code => 'AccessDenied' });
$r = upload(20, $small);
is("$r->{status} $r->{message}", '207 15 uploaded, 5 failed', 'five of twenty fail');
is($r->{failed}[0]{code}, 'AccessDenied', '... with the code of the server');

# Multipart
foreach my $t (
	[ 'an error inside the 200 of the last request', { match => '^POST .*uploadId', ok_error => 'InternalError', times => 1 }, 200 ],
	[ 'the answer to the last request is lost', { match => '^POST .*uploadId', drop => 1, times => 1 }, 200 ],
	[ 'the answer to the last request is cut', { match => '^POST .*uploadId', cut_response => 1, times => 1 }, 200 ],
	[ 'no ETag in the last answer', { match => '^POST .*uploadId', empty => 1 }, 200 ],
	[ 'a part fails once', { match => '^PUT .*partNumber=2', status => 500, times => 1 }, 200 ],
	[ 'a part fails for good', { match => '^PUT .*partNumber=2', status => 403, code => 'AccessDenied' }, 500 ],
	[ 'the first request fails', { match => '^POST .*uploads', status => 403, code => 'AccessDenied' }, 500 ])
{
	my ($name, $rule, $status) = @$t;

	s3_clear($s3);
	s3_rules($s3, $rule);
	$r = upload(1, $large);
	is($r->{status}, $status, "multipart: $name") or diag explain $r;
	is(s3_parts($s3), 0, '... no part is left');
}

# A part that cannot be aborted at once is aborted later, by a job of its own.
s3_clear($s3);
s3_rules($s3, { match => '^PUT .*partNumber=2', status => 403, code => 'AccessDenied' }, { match => '^DELETE', status => 500, times => 7 });
$r = upload(1, $large);
is($r->{status}, 500, 'a failed upload that cannot be aborted');
jobs_end($node, '... is cleaned up by another job');
is(s3_parts($s3), 0, '... in the end nothing is left');

# Region and clock
s3_clear($s3);
s3_server($node, 'elsewhere', $s3->{url}, "region 'eu-west-1'");
$r = upload(1, $small, 'elsewhere');
is($r->{status}, 200, 'signed again for the region of the bucket');
my $skewed = s3_start(0, FAKE_SKEW => 4000);
s3_server($node, 'skewed', $skewed->{url});
$r = upload(1, $small, 'skewed');
is($r->{status}, 200, 'signed again by the clock of the server');
s3_stop($skewed);

# Secrets: a wrong one, and none in any log or error
s3_server($node, 'wrong', $s3->{url}, '', 'WRONGSECRET');
$r = upload(1, $small, 'wrong');
is($r->{failed}[0]{code}, 'SignatureDoesNotMatch', 'a wrong secret');
my $log = slurp_file($node->logfile);
$log =~ s/^.*CREATE USER MAPPING.*$//mg;
unlike($log, qr/WRONGSECRET|SKTEST|Signature=/, 'no secret in the log');

# Credentials that expire are read again, once.
my $token = s3_start(0, FAKE_TOKEN => 'second');
s3_server($node, 'token', $token->{url});
$node->safe_psql('postgres', q{ALTER USER MAPPING FOR PUBLIC SERVER token OPTIONS (ADD session_token 'first')});
s3_rules($token, { match => '^PUT', wait => 1, times => 1, status => 400, code => 'ExpiredToken' });
my $batch = $node->safe_psql('postgres', "SELECT swarm.s3_upload('token', 'docs', " . files_sql(1, $small) . ')');
ok(wait_log($token, 'WAIT'), 'a token expires while a file is sent');
$node->safe_psql('postgres', q{ALTER USER MAPPING FOR PUBLIC SERVER token OPTIONS (SET session_token 'second')});
go($token);
$r = result($node, "SELECT swarm.s3_wait($batch)");
is($r->{status}, 200, '... the new one is used');
s3_stop($token);

# Nobody listens: fails by itself, other endpoints go on, the breaker opens.
$node->append_conf('postgresql.conf', "pg_swarm.net_breaker_failures = 3\npg_swarm.net_breaker_pause = '1h'");
$node->reload;
my $gone = s3_start();
s3_stop($gone);
s3_server($node, 'gone', $gone->{url});
my $breaker = "SELECT breaker FROM swarm.s3_endpoints WHERE endpoint = '$gone->{url}'";
$r = upload(4, $small, 'gone');
is("$r->{status} $r->{failed}[0]{code}", '500 curl 7', 'nobody listens');
is($node->safe_psql('postgres', $breaker), 'open', '... the breaker is open');
$r = upload(1, $small);
is($r->{status}, 200, '... another endpoint goes on');
$r = upload(1, $small, 'gone');
is($r->{failed}[0]{code}, 'CircuitOpen', '... requests fail without being sent');
$gone = s3_start($gone->{port});
$r = upload(1, $small, 'gone');
is($r->{failed}[0]{code}, 'CircuitOpen', '... also when somebody listens again');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('2 h')});
$r = upload(1, $small, 'gone');
is($r->{status}, 200, '... until the pause is over');
is($node->safe_psql('postgres', $breaker), 'closed', '... the breaker is closed');
$node->safe_psql('postgres', 'SELECT swarm._clock_advance(NULL)');
s3_stop($gone);

# Addresses and names
s3_server($node, 'metadata', 'http://169.254.169.254');
$r = upload(1, $small, 'metadata');
like($r->{failed}[0]{error}, qr/address is not allowed/, 'a metadata address is refused');
is($r->{failed}[0]{attempts}, 1, '... at once');
s3_server($node, 'nowhere', 'http://nowhere.invalid');
$r = upload(1, $small, 'nowhere');
is($r->{failed}[0]{code}, 'curl 6', 'a name that does not resolve');

# The proxy variables of the environment are not heeded: see 302.

# The source is not what it was
my $file = PostgreSQL::Test::Utils::tempdir() . '/source';
append_to_file($file, 'x' x 1000);
s3_clear($s3);
$r = upload(1, "swarm.from_file('$file')");
is($r->{files}[0]{size}, 1000, 'a file of the server');
$batch = $node->safe_psql('postgres', "BEGIN; SELECT swarm.s3_upload('fake', 'docs', " . files_sql(2, "CASE i WHEN 1 THEN swarm.from_file('$file') ELSE swarm.from_bytea('y') END") . "); \\! rm $file
COMMIT");
$r = result($node, "SELECT swarm.s3_wait($batch)");
is("$r->{status} $r->{message}", '207 1 uploaded, 1 failed', 'a file that is not there any more fails alone');

# Sources of all kinds, by reference
$node->safe_psql('postgres', q{
CREATE TABLE doc (id int PRIMARY KEY, body bytea, words text);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
INSERT INTO doc SELECT i, convert_to(repeat('row ' || i || ' ', 500000), 'UTF8'), 'wörter ' || i FROM generate_series(1, 3) i});
$r = upload(3, q{swarm.from_column('doc', i, 'body')});
is($r->{status}, 200, 'columns');
is(s3_objects($s3)->{'docs/f2'}, 'row 2 ' x 500000, '... in slices, whole');
$r = upload(3, q{swarm.from_column('doc', i, 'words')});
is(s3_objects($s3)->{'docs/f3'}, "w\xc3\xb6rter 3", '... text in UTF-8');
my $oid = $node->safe_psql('postgres', q{SELECT lo_from_bytea(0, convert_to(repeat('large', 300000), 'UTF8'))});
$r = upload(1, "swarm.from_large_object($oid)");
is(s3_objects($s3)->{'docs/f1'}, 'large' x 300000, 'a large object');
$r = upload(2, q{swarm.from_query('SELECT id, words FROM doc ORDER BY id', CASE i WHEN 1 THEN 'csv' ELSE 'json' END)});
is(s3_objects($s3)->{'docs/f1'}, join('', map { "$_,w\xc3\xb6rter $_\n" } 1 .. 3), 'a query as csv');
is(s3_objects($s3)->{'docs/f2'}, join('', map { "{\"id\":$_,\"words\":\"w\xc3\xb6rter $_\"}\n" } 1 .. 3), '... and json lines');

# List pages, ranges
is($node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT key) FROM swarm.s3_list('fake', 'docs', 'f', 3)}), '3|3', 'list: as many as asked for');
is($node->safe_psql('postgres', q{SELECT string_agg(key, ' ') FROM swarm.s3_list('fake', 'docs', 'f1', NULL, 'f18')}), 'f19', '... after a key');
is($node->safe_psql('postgres', q{SELECT convert_from(swarm.s3_get('fake', 'docs', 'f1', 2, 5), 'UTF8')}), 'wört', 'a range');
sql_fails($node, q{SELECT swarm.s3_get('fake', 'docs', 'nothing')}, qr/42704.*"nothing" in bucket "docs"/, 'get what is not there');
sql_fails($node, q{SELECT swarm.s3_get('fake', 'missing', 'f1')}, qr/42704/, '... from where is not');

# Timestamped names, checksums, tags: the server verifies that they are signed.
$r = upload(1, $small, 'fake', '{"timestamped": true, "checksum": "crc32c", "tags": {"a b": "c"}, "storage_class": "STANDARD_IA"}');
is($r->{status}, 200, 'options');
like($r->{files}[0]{path}, qr/^uploads\/\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d_f1$/, '... the key has a time');

s3_stop($s3);
$node->stop;
unlike(slurp_file($node->logfile), qr/reference leak|resource was not closed/, 'nothing was left open');
done_testing();
