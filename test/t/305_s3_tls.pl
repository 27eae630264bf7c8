# Uploads over TLS: certificates are verified, bodies are not signed but have a digest.
use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

require IO::Socket::SSL if $ENV{PG_SWARM_NEED_S3};
plan skip_all => 'no IO::Socket::SSL here; test/tools/provision s3 installs it' unless eval { require IO::Socket::SSL; 1 };
my ($openssl) = grep { -x "$_/openssl" } split /:/, $ENV{PATH};
plan skip_all => 'no openssl here; test/tools/provision s3 installs it' unless $openssl;

my $dir = PostgreSQL::Test::Utils::tempdir();

# certificate(NAME, NAMES OF THE HOST, DAYS): signed by the authority below
sub certificate
{
	my ($name, $san, $days) = @_;

	append_to_file("$dir/$name.ext", "subjectAltName=$san\n");
	run_quietly('openssl', 'req', '-newkey', 'rsa:2048', '-nodes', '-subj', "/CN=$name", '-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	run_quietly('openssl', 'x509', '-req', '-in', "$dir/$name.csr", '-CA', "$dir/ca.pem", '-CAkey', "$dir/ca.key", '-CAcreateserial',
		'-days', $days, '-extfile', "$dir/$name.ext", '-out', "$dir/$name.pem");
	return "$dir/$name.pem $dir/$name.key";
}
sub run_quietly { my ($out, $err); IPC::Run::run([@_], '>', \$out, '2>', \$err) or die "@_: $err"; return; }

run_quietly('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', 2, '-subj', '/CN=test authority', '-keyout', "$dir/ca.key", '-out', "$dir/ca.pem");
my $good = certificate('good', 'DNS:localhost,DNS:docs.localhost,IP:127.0.0.1', 2);
my $named = certificate('named', 'DNS:other.example', 2);
my $old = certificate('old', 'DNS:localhost,IP:127.0.0.1', -1);

my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
pg_swarm.net_breaker_failures = 1000
pg_swarm.s3_part_size = '5MB'
X
my $seconds = $PostgreSQL::Test::Utils::timeout_default;
my $small = q{convert_to('file ' || i, 'UTF8')};

sub upload
{
	my ($server, $n, $source, $options) = @_;
	my $b = $node->safe_psql('postgres', "SELECT swarm.s3_upload('$server', 'docs', " . files_sql($n, $source) . ", '" . ($options || '{}') . "')");

	return result($node, "SELECT swarm.s3_wait($b, '$seconds s')");
}

my $s3 = s3_start(0, FAKE_TLS => $good);
s3_server($node, 'good', "https://127.0.0.1:$s3->{port}", "ca_file '$dir/ca.pem'");
my $r = upload('good', 20, $small);
is("$r->{status} $r->{count}", '200 20', 'twenty files') or diag explain $r;
is(s3_objects($s3)->{'docs/f7'}, 'file 7', '... byte for byte');
is($node->safe_psql('postgres', q{SELECT convert_from(swarm.s3_get('good', 'docs', 'f7'), 'UTF8')}), 'file 7', '... and back');
$r = upload('good', 1, q{convert_to(repeat('0123456789abcdef', 512 * 1024), 'UTF8')});
is($r->{status}, 200, 'a file in parts') or diag explain $r;
s3_server($node, 'host', "https://localhost:$s3->{port}", "ca_file '$dir/ca.pem', path_style 'false'");
is(upload('host', 1, $small)->{status}, 200, 'bucket in the name of the host');

# A body has a digest that the server verifies: Content-MD5, or the one that was asked for.
foreach my $options ('{}', '{"checksum": "crc32c"}', '{"checksum": "sha256"}')
{
	s3_clear($s3);
	s3_rules($s3, { match => '^PUT ', corrupt => 1, times => 1 });
	$r = upload('good', 1, $small, $options);
	is("$r->{status} $r->{files}[0]{attempts}", '200 2', "a changed byte is noticed: $options") or diag explain $r;
}
s3_clear($s3);
s3_rules($s3, { match => '^PUT ', etag => 'ffffffffffffffffffffffffffffffff', times => 1 });
$r = upload('good', 1, $small);
is("$r->{status} $r->{files}[0]{attempts}", '200 2', 'the ETag of something else') or diag explain $r;
s3_clear($s3);

# Certificates that are not good: no retry, nothing is sent
my $strange = s3_start(0, FAKE_TLS => $named);
my $expired = s3_start(0, FAKE_TLS => $old);
my $plain = s3_start();
s3_server($node, 'unknown', "https://127.0.0.1:$s3->{port}");
s3_server($node, 'strange', "https://127.0.0.1:$strange->{port}", "ca_file '$dir/ca.pem'");
s3_server($node, 'expired', "https://127.0.0.1:$expired->{port}", "ca_file '$dir/ca.pem'");
foreach my $t ([ 'unknown', 'an authority that is not trusted' ], [ 'strange', 'the name of another host' ], [ 'expired', 'an expired certificate' ])
{
	$r = upload($t->[0], 1, $small);
	is("$r->{status} $r->{failed}[0]{code} $r->{failed}[0]{attempts}", '500 curl 60 1', $t->[1]) or diag explain $r;
}
is(join(' ', map { s3_log($_) } $s3, $strange, $expired), '', '... nothing was sent');

# A server that does not speak TLS is not spoken to without.
$node->safe_psql('postgres', q{ALTER SYSTEM SET pg_swarm.net_connect_timeout = '1s'; SELECT pg_reload_conf()});
s3_server($node, 'plain', "https://127.0.0.1:$plain->{port}");
$r = upload('plain', 1, $small);
is($r->{status}, 500, 'no TLS') or diag explain $r;
is(join(' ', s3_log($plain)), '', '... nothing was sent');

s3_stop($_) foreach $s3, $strange, $expired, $plain;
$node->stop;
done_testing();
