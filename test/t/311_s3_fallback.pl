# While the circuit breaker of a server is open its fallback takes the files that are not stored yet,
# each by itself, of batches that are under way too; what was begun at the first server is aborted there.
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
pg_swarm.s3_part_size = '5MB'
X
my $first = s3_start();
my $second = s3_start();
my $seconds = $PostgreSQL::Test::Utils::timeout_default;
my $small = q{convert_to('file ' || i, 'UTF8')};
my $large = q{convert_to(repeat('0123456789abcdef', 1024 * 1024) || i, 'UTF8')};	# 16 MB, four parts

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }
sub start_upload { my ($n, $source) = @_; return sql("SELECT swarm.s3_upload('first', 'docs', " . files_sql($n, $source) . ')'); }
sub breaker { return sql(q{SELECT state FROM swarm.circuit_breakers WHERE target = 'server:first'}); }
# how many files of a batch went where
sub where { my ($b) = @_; return sql("SELECT string_agg(server || ' ' || n, ', ' ORDER BY server) FROM (SELECT server, count(*) n FROM swarm.s3_files WHERE batch = $b AND state = 'done' GROUP BY server) s"); }
sub keys_of { my ($s) = @_; return scalar keys %{ s3_objects($s) }; }
# both as they were at the beginning; the pause of the first is over
sub again
{
	foreach my $s ($first, $second) { s3_clear($s); unlink glob "$s->{dir}/objects/*"; }
	sql(q{SELECT swarm._clock_advance('2 hours')});
	is(result($node, q{SELECT swarm.s3_upload_sync('first', 'docs', ARRAY[swarm.s3_file('probe', 'x'::bytea)])})->{status}, 200, '(the first server is back)');
	is(breaker(), 'closed', '(its breaker is closed)');
	s3_clear($_) foreach $first, $second;
	unlink glob "$first->{dir}/objects/*";
	return;
}

# one request at a time: no success comes after the first failure, which would close the breaker
s3_server($node, 'first', $first->{url}, "max_parallel '1'");
s3_server($node, 'second', $second->{url});
sql(q{SELECT swarm.retry_policy_set('server:first', '{"first_wait": "1 ms", "max_attempts": 8, "threshold": 4, "cooldown": "1 hour", "fallback": "second"}')});

# A batch that is under way: three files are stored when the first server begins to fail.
s3_rules($first, { match => '^PUT ', skip => 3, status => 500 });
my $b = start_upload(12, $small);
my $r = status($b);
is("$r->{status} $r->{count}", '200 12', 'a server fails while a batch is under way') or diag explain $r;
is(where($b), 'first 3, second 9', '... the fallback has the other files');
is(keys_of($first) . ' ' . keys_of($second), '3 9', '... it has');
is(s3_objects($second)->{'docs/f12'}, 'file 12', '... byte for byte');
is(join(' ', sort map { $_->{server} } @{ $r->{files} }), join(' ', ('first') x 3, ('second') x 9), '... each file says where it is');
is(sql("SELECT server FROM swarm.s3_batches WHERE id = $b"), 'first', '... the batch says what was asked for');
is(breaker(), 'open', '... the breaker is open');
is(scalar(grep { / 500$/ } s3_log($first)), 4, '... after as many failures as the policy allows') or diag join "\n", s3_log($first);
is(sql("SELECT max(attempts) BETWEEN 2 AND 9, min(attempts) FROM swarm.s3_files WHERE batch = $b"), 't|1', '... attempts at both are counted');
s3_clear($_) foreach $first, $second;
is(status(start_upload(3, $small))->{count}, 3, '... the next batch');
is(join(' ', s3_log($first)), '', '... does not ask the first server');
$r = result($node, "SELECT swarm.s3_upload_sync('first', 'docs', " . files_sql(2, $small) . ')');
is("$r->{status} $r->{files}[1]{server}", '200 second', '... nor does s3_upload_sync');
sql_fails($node, q{SELECT swarm.s3_export('first', 'docs', 'x', 'SELECT 1')}, qr/CircuitOpen/, '... an export goes to the server it names, or fails');

# The same with s3_upload_sync
again();
s3_rules($first, { match => '^PUT ', skip => 2, status => 500 });
$r = result($node, "SELECT swarm.s3_upload_sync('first', 'docs', " . files_sql(8, $small) . ')');
is("$r->{status} " . join(' ', sort map { $_->{server} } @{ $r->{files} }), '200 ' . join(' ', ('first') x 2, ('second') x 6), 's3_upload_sync: a server fails under way') or diag explain $r;

# Parts: what was begun at the first server is aborted there, when it is back.
foreach my $t ([ 'a part', '^PUT .*partNumber=[34]\D' ], [ 'the completion', '^POST .*uploadId' ])
{
	my ($name, $match) = @$t;

	again();
	s3_rules($first, { match => $match, status => 500 }, { match => '^DELETE ', status => 500 });
	$b = start_upload(1, $large);
	$r = status($b);
	is("$r->{status} " . where($b), '200 second 1', "$name fails: the file goes to the fallback from its first part") or diag explain $r;
	is(length s3_objects($second)->{'docs/f1'}, 16 * 1024 * 1024 + 1, '... whole');
	like($r->{files}[0]{etag}, qr/-4$/, '... in parts');
	is(sql("SELECT count(*), min(server) FROM swarm._s3_left WHERE batch = $b"), '1|first', '... what is left at the first server is noted');
	is(s3_parts($first) . ' ' . s3_parts($second), '1 0', '... it is there');
	s3_clear($first);
	sql(q{SELECT swarm._clock_advance('2 hours')});
	jobs_end($node, '... a job of its own aborts it when the server is back');
	is(s3_parts($first), 0, '... nothing is left');
	is(sql('SELECT count(*) FROM swarm._s3_left'), '0', '... and nothing noted');
}

again();
s3_rules($first, { match => '^PUT .*partNumber=[34]\D', status => 500 }, { match => '^DELETE ', status => 500 });
my ($rc, $out, $err) = $node->psql('postgres', "SELECT r ->> 'status', r -> 'files' -> 0 ->> 'server' FROM swarm.s3_upload_sync('first', 'docs', " . files_sql(1, $large) . ') r');
is($out, '200|second', '... at once');
like($err, qr/WARNING:  could not abort a multipart upload of "f1" in bucket "docs" of server "first"/, '... where nobody tries later, it is said');
unlink glob "$first->{dir}/uploads/*/*";
rmdir foreach glob "$first->{dir}/uploads/*";

# A crash while the fallback has a file: it goes on there.
again();
s3_rules($first, { match => '^(PUT|POST) ', status => 500 });
s3_rules($second, { match => '^PUT .*partNumber=3\D', wait => 1 });
$b = start_upload(1, $large);
ok(wait_log($second, 'partNumber=3\D.*WAIT') && wait_log($second, 'partNumber=1\D.* 200'), 'the fallback has some parts of a file');
poll_ok($node, "SELECT bytes_sent >= 10 * 1024 * 1024 AND server = 'second' FROM swarm.s3_files WHERE batch = $b", '... which is shown');
$node->stop('immediate');
s3_rules($second);
s3_clear($first);
go($second);
$node->start;
is(status($b)->{status}, 200, '... after a crash the file is stored');
is(where($b), 'second 1', '... there, though the first server is back');
is(scalar(grep { /^PUT .*partNumber=1\D.* 200/ } s3_log($second)), 1, '... parts are not sent again');
is(s3_parts($second), 0, '... and none is left');

# Both fail
s3_rules($_, { match => '^PUT ', status => 500 }) foreach $first, $second;
sql(q{SELECT swarm.retry_policy_set('server:second', '{"first_wait": "1 ms", "max_attempts": 2, "threshold": 100}')});
$b = start_upload(4, $small);
$r = status($b);
is("$r->{status} " . join(' ', map { "$_->{server} $_->{http}" } @{ $r->{failed} }), '500 ' . join(' ', ('second 500') x 4), 'when the fallback fails as well, the files have failed there') or diag explain $r;
s3_clear($second);
is(sql("SELECT swarm.s3_retry($b)"), '4', '... retry');
is(status($b)->{status}, 200, '... sends them again');
is(where($b), 'second 4', '... to the fallback, as long as the breaker is open');

# A fallback that cannot be used is none.
foreach my $t ([ 'missing', 'server "missing" does not exist' ], [ 'narrow', 'server "narrow" does not allow bucket "docs"' ], [ 'first', '' ])
{
	my ($name, $why) = @$t;

	s3_server($node, 'narrow', $second->{url}, "allowed_bucket 'other'") if $name eq 'narrow';
	again();
	sql(qq{SELECT swarm.retry_policy_set('server:first', '{"first_wait": "1 ms", "max_attempts": 8, "threshold": 4, "cooldown": "1 hour", "fallback": "$name"}')});
	is(status(start_upload(1, $small))->{status}, 200, "a fallback that cannot be used: $name; nobody needs it");
	s3_rules($first, { match => '^PUT ', status => 500 });
	my $at = -s $node->logfile;
	$r = status(start_upload(2, $small));
	is("$r->{status} $r->{failed}[0]{server} $r->{failed}[0]{http} $r->{failed}[0]{attempts}", '500 first 500 8', '... the files fail as without one') or diag explain $r;
	my @said = slurp_file($node->logfile, $at) =~ /WARNING:  fallback "$name" of server "first" is not used: (.*)/g;
	is("@said", $why, $why ? '... the log says why, once' : '... it is the server itself');
	s3_clear($first);
	is(status(start_upload(1, $small))->{failed}[0]{code}, 'CircuitOpen', '... so do the next ones');
}

s3_stop($_) foreach $first, $second;
$node->stop;
done_testing();
