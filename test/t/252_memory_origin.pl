# Origins: what a namespace does not have comes from S3, or over HTTP.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use S3Test;
use SwarmTest;

my $node = swarm_cluster('main');
my $s3 = s3_start();
my $T = "$PostgreSQL::Test::Utils::timeout_default s";
my $get = 'SELECT swarm.memory_get';

sub put_object
{
	my ($key, $body, $type) = @_;

	my $file = "$s3->{dir}/objects/" . unpack('H*', $key);
	open(my $h, '>', $file) or die "$file: $!";
	print $h $body;
	close $h;
	open($h, '>', "$file.meta") or die;
	print $h qq({"etag": "\\"x\\"", "type": "$type", "metadata": {}});
	close $h;
	return;
}

# waited(NAMESPACE, KEY): what memory_wait gets
sub waited { my ($space, $key) = @_; return $node->safe_psql('postgres', "SELECT value FROM swarm.memory_wait('$space', '$key', '$T')"); }
sub requests { my ($what) = @_; return scalar grep { /$what/ } s3_log($s3); }

s3_server($node, 'srv', $s3->{url});
$node->safe_psql('postgres', q{CREATE ROLE ann LOGIN; CREATE ROLE bob LOGIN;
	GRANT EXECUTE ON FUNCTION swarm.namespace_create(text, interval, bigint, bigint, text, text, boolean, boolean, int, text) TO ann;
	SET ROLE ann; SELECT swarm.namespace_create('o', default_ttl => '1 day'); SELECT swarm.namespace_grant('o', 'bob', 'read')});
put_object('bucket/pre/doc', 'hello "you"', 'text/plain');
put_object('bucket/pre/j.json', '{"a": [1, 2]}', 'application/octet-stream');
put_object('bucket/pre/typed', '{"a": 3}', 'application/vnd.x+json; charset=utf-8');
put_object('bucket/pre/bad.json', '{"a": ', 'text/plain');
put_object('bucket/pre/binary', "a\0b", 'application/octet-stream');
put_object("bucket/pre/latin", "\xe9", 'text/plain');
put_object('bucket/secret', '"no"', 'application/json');

# Who may name an origin: the owner, with USAGE on the server.
sub alter { my ($json) = @_; return "SELECT swarm.namespace_alter('o', '$json')"; }
sql_fails($node, 'SET ROLE ann; ' . alter('{"origin": "srv", "origin_path": "bucket/pre/"}'), qr/42501.*permission denied for foreign server srv/, 'without USAGE');
sql_fails($node, 'SET ROLE bob; ' . alter('{"origin": "srv", "origin_path": "bucket/pre/"}'), qr/42501.*must be owner/, 'not the owner');
sql_fails($node, alter('{"origin": "srv", "origin_path": "bucket/pre/"}'), qr/42501/, 'a superuser cannot lend the owner what he has not');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER srv TO ann');
sql_fails($node, 'SET ROLE ann; ' . alter('{"origin": "none"}'), qr/42704/, 'no such server');
sql_fails($node, 'SET ROLE ann; ' . alter('{"origin": "srv"}'), qr/22023.*bucket/, 'no bucket');
sql_fails($node, 'SET ROLE ann; ' . alter('{"origin": "srv", "origin_path": "bucket/../x"}'), qr/22023/, 'a path that climbs');
sql_fails($node, 'SET ROLE ann; ' . alter('{"origin_ttl": "0 s"}'), qr/22023/, 'no time to live');
$node->safe_psql('postgres', 'SET ROLE ann; ' . alter('{"origin": "srv", "origin_path": "bucket/pre/", "origin_ttl": "2 hours"}'));
is($node->safe_psql('postgres', q{SET ROLE bob; SELECT origin, origin_path, origin_ttl FROM swarm.namespaces WHERE name = 'o'}), 'srv|bucket/pre/|02:00:00', 'shown');

# A miss answers NULL and asks; also who may only read, in a transaction that only reads and is rolled back.
is($node->safe_psql('postgres', "BEGIN READ ONLY; SET LOCAL ROLE bob; $get('o', 'doc'); ROLLBACK"), '', 'not there yet');
is(waited('o', 'doc'), '"hello \"you\""', 'text is a string');
is($node->safe_psql('postgres', "$get('o', 'doc')"), '"hello \"you\""', 'now there');
is($node->safe_psql('postgres', q{SELECT m.owner, m.expires_at - m.created_at FROM swarm.memory m WHERE key = 'doc'}), 'ann|02:00:00', "the namespace owner's, for its own time");
is($node->safe_psql('postgres', q{SELECT kind, owner, state FROM swarm.job_history}), 'memory_fill|ann|completed', 'by a job of the owner');
is(waited('o', 'j.json'), '{"a": [1, 2]}', 'JSON by its name');
is(waited('o', 'typed'), '{"a": 3}', 'JSON by its type');
is($node->safe_psql('postgres', q{SELECT count(*) FROM swarm.memory_get_many('o', '{doc,j.json,typed}')}), '3', 'many');

# It is fetched again when it has expired, or was deleted.
put_object('bucket/pre/doc', 'new', 'text/plain');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('3 hours')});
is(waited('o', 'doc'), '"new"', 'expired and filled again');
$node->safe_psql('postgres', q{SELECT swarm.memory_delete('o', 'j.json')});
is(waited('o', 'j.json'), '{"a": [1, 2]}', 'deleted and filled again');

# One fill at a time for each key, in whatever number of sessions.
s3_clear($s3);
s3_rules($s3, { match => '^GET ', wait => 1 });
put_object('bucket/pre/one', '1', 'application/json');
my @waiters = map { start_psql($node, "SELECT value FROM swarm.memory_wait('o', 'one', '$T')") } 1 .. 4;
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE kind = 'memory_fill' AND state = 'running'}, 'a job fetches', '1');
is($node->safe_psql('postgres', "$get('o', 'one')"), '', 'a get meanwhile does not wait');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner' AND xact_start IS NOT NULL}), '0', 'no transaction is open meanwhile');
# what was stored meanwhile is not overwritten
$node->safe_psql('postgres', q{SELECT swarm.memory_store('o', 'one', '"mine"')});
is(finish_psql($_), "\"mine\"\n", 'the waiter is woken by a store') foreach @waiters;
go($s3);
poll_ok($node, 'SELECT count(*) FROM swarm._job', 'the job is done', '0');
is($node->safe_psql('postgres', "$get('o', 'one')"), '"mine"', 'the fill does not overwrite');
is(requests('pre/one 200'), 1, 'one request') or diag(join "\n", s3_log($s3));

# What is not there is asked for again only after a while; what cannot be stored is an error of the job.
s3_clear($s3);
is($node->safe_psql('postgres', "$get('o', 'nothing')"), '', 'not there');
poll_ok($node, 'SELECT origin_misses > 0 FROM swarm.stat_cache', 'noticed');
poll_ok($node, 'SELECT count(*) FROM swarm._job', 'and done', '0');
$node->safe_psql('postgres', "$get('o', 'nothing')") for 1 .. 3;
is(waited('o', 'doc'), '"new"', 'others go on');
is(requests('pre/nothing'), 1, 'asked for once');
put_object('bucket/pre/nothing', 'something', 'text/plain');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('1 min')});
is(waited('o', 'nothing'), '"something"', 'asked for again');
foreach my $key (qw(bad.json binary latin))
{
	$node->safe_psql('postgres', "$get('o', '$key')");
	poll_ok($node, qq{SELECT count(*) FROM swarm.jobs WHERE args->'keys' ? '$key' AND attempts > 0 AND error::text ~ 'could not fill 1 keys'}, "$key: an error", '1');
	$node->safe_psql('postgres', q{SELECT swarm.job_cancel(id) FROM swarm._job});
}

# Keys that would be other objects, and other roles' jobs.  A request of the cancelled ones may still come in.
poll_ok($node, 'SELECT count(*) FROM swarm._job', 'nothing to do', '0');
s3_clear($s3);
$node->safe_psql('postgres', "$get('o', '../secret'); $get('o', './doc'); $get('o', ''); $get('o', E'a\\nb')");
poll_ok($node, 'SELECT count(*) FROM swarm._job', 'done', '0');
is(requests('secret|pre/(?!bad|binary|latin)'), 0, 'no request');
$node->safe_psql('postgres', q{SET ROLE bob; SELECT swarm.job_enqueue('memory_fill', jsonb_build_object('namespace', n.id, 'keys', '["x"]'::jsonb), max_attempts => 1)
	FROM swarm._namespace n WHERE name = 'o'});
poll_ok($node, q{SELECT count(*) FROM swarm.job_history WHERE owner = 'bob'::regrole AND state = 'dead'}, 'bob cannot fill', '1');

# The right is looked at each time.
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER srv FROM ann');
put_object('bucket/pre/late', 'late', 'text/plain');
s3_clear($s3);
$node->safe_psql('postgres', "$get('o', 'late')");
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE args->'keys' ? 'late' AND attempts > 0 AND error::text ~ 'permission denied'}, 'refused', '1');
is(requests('late'), 0, 'no request');
$node->safe_psql('postgres', q{GRANT USAGE ON FOREIGN SERVER srv TO ann; SELECT swarm._clock_advance('2 min')});
is(waited('o', 'late'), '"late"', 'and granted again');

# A namespace that is dropped while its job runs.
s3_clear($s3);
s3_rules($s3, { match => '^GET ', wait => 1 });
put_object('bucket/pre/x', 'x', 'text/plain');
$node->safe_psql('postgres', q{SELECT swarm.namespace_create('d'), swarm.namespace_alter('d', '{"origin": "srv", "origin_path": "bucket/pre/"}')});
$node->safe_psql('postgres', "$get('d', 'x')");
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE kind = 'memory_fill' AND state = 'running'}, 'running', '1');
$node->safe_psql('postgres', q{SELECT swarm.namespace_drop('d')});
go($s3);
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE state = 'running'}, 'it ends', '0');
$node->safe_psql('postgres', q{SELECT swarm.job_cancel(id) FROM swarm._job});
poll_ok($node, q{SELECT count(*) FROM swarm._memory WHERE key = 'x'}, 'nothing stays', '0');

# HTTP: unsigned requests; the authorization is in a user mapping.
my $http = http_start();
sql_fails($node, "SET ROLE ann; CREATE SERVER h FOREIGN DATA WRAPPER swarm_http OPTIONS (endpoint '$http->{url}')", qr/permission denied/, 'not for everybody');
sql_fails($node, "CREATE SERVER h FOREIGN DATA WRAPPER swarm_http OPTIONS (endpoint 'ftp://x')", qr/22023/, 'an endpoint');
sql_fails($node, "CREATE SERVER h FOREIGN DATA WRAPPER swarm_http OPTIONS (authorization 'x')", qr/invalid option/, 'no secrets in options');
sql_fails($node, "CREATE SERVER h FOREIGN DATA WRAPPER swarm_http OPTIONS (endpoint 'file:///tmp')", qr/22023/, 'no folder');
sql_fails($node, "GRANT USAGE ON FOREIGN DATA WRAPPER swarm_http TO ann; SET ROLE ann; CREATE SERVER h FOREIGN DATA WRAPPER swarm_http OPTIONS (endpoint '$http->{url}')", qr/42501: only superusers may/, 'nor for who may create servers of the wrapper');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN DATA WRAPPER swarm_http FROM ann');
$node->safe_psql('postgres', "CREATE SERVER h FOREIGN DATA WRAPPER swarm_http OPTIONS (endpoint '$http->{url}', allowed_prefix 'api/');
	CREATE USER MAPPING FOR PUBLIC SERVER h OPTIONS (authorization 'Bearer tok'); GRANT USAGE ON FOREIGN SERVER h TO ann;
	SET ROLE ann; " . alter('{"origin": "h", "origin_path": "api/v1/", "origin_ttl": null}'));
is(waited('o', 'a b?c#d'), '{"path": "/api/v1/a%20b%3Fc%23d", "authorization": "Bearer tok"}', 'path and authorization');
is($node->safe_psql('postgres', q{SELECT expires_at - created_at FROM swarm.memory WHERE key = 'a b?c#d'}), '1 day', 'a day by default');
$node->safe_psql('postgres', alter('{"origin_path": "other/"}'));
$node->safe_psql('postgres', "$get('o', 'zz')");
poll_ok($node, q{SELECT count(*) FROM swarm.jobs WHERE args->'keys' ? 'zz' AND attempts > 0 AND error::text ~ 'does not allow path'}, 'not an allowed path', '1');
unlike(slurp_file($node->logfile), qr/Bearer tok'?(?! OPTIONS)[^)']/, 'no secret in the log');
is($node->safe_psql('postgres', q{SELECT count(*) FROM swarm._job_attempt WHERE error::text ~ 'tok'}), '0', 'nor in an error');
kill 'KILL', $http->{pid};
waitpid $http->{pid}, 0;

# The pool of the shared cache: a hit per layer.
is($node->safe_psql('postgres', q{SELECT origin_asks > 0 AND origin_fills > 0 AND origin_misses > 0 FROM swarm.stat_cache}), 't', 'counted');
$node->stop;
s3_stop($s3);
done_testing();

# http_start(): a server that answers with what it was asked
sub http_start
{
	require IO::Socket::INET;
	my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 10) or die "listen: $!";
	my $pid = fork // die "fork: $!";

	return { pid => $pid, url => 'http://127.0.0.1:' . $listen->sockport } if $pid;
	while (my $client = $listen->accept)
	{
		my ($path, $authorization) = ('', '');
		while (defined(my $line = <$client>))
		{
			$path = $1 if $line =~ /^GET (\S+)/;
			$authorization = $1 if $line =~ /^authorization: (.*?)\r?\n/i;
			last if $line =~ /^\r?\n$/;
		}
		my $body = qq({"path": "$path", "authorization": "$authorization"});
		print $client "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
		close $client;
	}
	exit 0;
}
