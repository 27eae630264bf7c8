# S3Test: a fake S3 server (test/tools/fake_s3) and what the tests of uploads have
# in common.

package S3Test;

use strict;
use warnings;

use Exporter 'import';
use File::Basename;
use HTTP::Tiny;
use JSON::PP;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;

our @EXPORT = qw(s3_start s3_stop s3_server s3_rules s3_log s3_clear s3_objects s3_parts s3_part_files s3_max wait_log result go files_sql
  http signed);

# s3_start(PORT, ENVIRONMENT): {dir, pid, port, url}
sub s3_start
{
	my ($port, %env) = @_;

	return server_start([ $^X, dirname(__FILE__) . '/../tools/fake_s3', 'FOLDER' ], $port ? (FAKE_PORT => $port) : (), %env);
}

sub s3_stop { my ($s) = @_; return server_stop($s); }

# s3_server(NODE, NAME, URL, OPTIONS, KEY): a foreign server for it
sub s3_server
{
	my ($node, $name, $url, $options, $secret) = @_;

	$secret ||= 'SKTEST';
	$node->safe_psql('postgres', "CREATE SERVER $name FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint '$url'" . ($options ? ", $options" : '') . ");
CREATE USER MAPPING FOR PUBLIC SERVER $name OPTIONS (access_key_id 'AKTEST', secret_access_key '$secret')");
	return;
}

# s3_rules(SERVER, {...}, ...): how it misbehaves from now on
sub s3_rules
{
	my ($s, @rules) = @_;

	open(my $h, '>', "$s->{dir}/rules.new") or die;
	print $h map { encode_json($_) . "\n" } @rules;
	close $h;
	rename "$s->{dir}/rules.new", "$s->{dir}/rules";
	return;
}

sub s3_log { my ($s) = @_; return -e "$s->{dir}/log" ? split /\n/, slurp_file("$s->{dir}/log") : (); }
sub s3_clear { my ($s) = @_; unlink "$s->{dir}/log", "$s->{dir}/rules", "$s->{dir}/go", "$s->{dir}/max"; return; }
sub go { my ($s) = @_; append_to_file("$s->{dir}/go", ''); return; }
sub s3_max { my ($s) = @_; return slurp_file("$s->{dir}/max"); }

# wait_log(SERVER, REGEXP): until it has had such a request
sub wait_log
{
	my ($s, $regexp) = @_;

	return until_true(sub { grep { /$regexp/ } s3_log($s) });
}

# s3_objects(SERVER): {bucket/key => contents}
sub s3_objects
{
	my ($s) = @_;

	return { map { pack('H*', basename($_)) => slurp_file($_) } grep { !/\.(meta|\d+)$/ } glob "$s->{dir}/objects/*" };
}

# s3_parts(SERVER): unfinished multipart uploads
sub s3_parts { my ($s) = @_; return scalar(my @u = glob "$s->{dir}/uploads/*"); }

# s3_part_files(SERVER): parts of unfinished multipart uploads
sub s3_part_files { my ($s) = @_; return scalar(my @u = grep { /\/\d+$/ } glob "$s->{dir}/uploads/*/*"); }

# files_sql(N, SOURCE): an array of files f1 .. fN; SOURCE is SQL in which i is the number
sub files_sql
{
	my ($n, $source) = @_;

	return "(SELECT array_agg(swarm.s3_file('f' || i, $source)) FROM generate_series(1, $n) i)";
}

# http(METHOD, URL, BODY, HEADERS): the status, and the body of the answer
sub http
{
	my ($method, $target, $body, $headers) = @_;
	my $answer = HTTP::Tiny->new->request($method, $target, { content => $body // '', headers => $headers || {} });

	return wantarray ? ($answer->{status}, $answer->{content}) : $answer->{status};
}

# signed(NODE, URL, ACCESS KEY, METHOD, PATH, PARAMETER): what the extension has no function for
sub signed
{
	my ($node, $url, $access, $method, $path, $parameter) = @_;
	my $hash = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';
	my $stamp = POSIX::strftime('%Y%m%dT%H%M%SZ', gmtime);
	my $query = $parameter ? "{\"$parameter\": \"\"}" : '{}';
	my $host = $url =~ s,^http://,,r;
	my $header = $node->safe_psql('postgres', "SELECT authorization_header FROM swarm._s3_sign('$method', '$path', '$query', '{\"host\": \"$host\", \"x-amz-content-sha256\": \"$hash\", \"x-amz-date\": \"$stamp\"}', '$hash', '$stamp', 'us-east-1', '$access', 'SKTEST')");

	return http($method, "$url$path" . ($parameter ? "?$parameter=" : ''), '',
		{ authorization => $header, 'x-amz-content-sha256' => $hash, 'x-amz-date' => $stamp });
}

# result(NODE, SQL): of s3_wait() or s3_upload_sync(), decoded
sub result
{
	my ($node, $sql) = @_;

	return decode_json($node->safe_psql('postgres', $sql));
}

1;
