# Uploads: rows of the table of failures (src/upload/README.md) that need a server of their own: two jobs for
# a batch, a clock that jumps, a process without memory, a standby; and sources that are larger than is allowed.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

my $node = swarm_cluster('main', init => { allows_streaming => 1 }, conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
X
my $s3 = s3_start();
my $seconds = $PostgreSQL::Test::Utils::timeout_default;
my $small = q{convert_to('file ' || i, 'UTF8')};

s3_server($node, 'fake', $s3->{url});
sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }
sub upload_sql { my ($n, $source) = @_; return "SELECT swarm.s3_upload('fake', 'docs', " . files_sql($n, $source) . ')'; }

# Two jobs for one batch: the second finds it under way, and later that it is not its own.
s3_rules($s3, { match => '^PUT ', wait => 1 });
my $b = sql(upload_sql(3, $small));
ok(wait_log($s3, 'WAIT'), 'a batch is under way');
my $second = sql("SELECT swarm.job_enqueue('s3_upload', '{\"batch\": $b}', max_attempts => 1000)");
poll_ok($node, "SELECT error LIKE '%batch $b is being uploaded already%' FROM swarm.jobs WHERE id = $second", '... a second job for it is refused');
go($s3);
is(status($b)->{status}, 200, '... the first one goes on');
is(sql("SELECT (swarm.job_wait($second, '$seconds s')).state"), 'completed', '... the second one has nothing to do');
is(scalar(grep { /^PUT .* 200/ } s3_log($s3)), 3, '... each file was sent once');

# The clock of the system is set back while a request waits for its next attempt.
s3_clear($s3);
sql(q{SELECT swarm.retry_policy_set('server:fake', '{"first_wait": "2 s"}')});
s3_rules($s3, { match => '^PUT ', times => 1, status => 500 });
$b = sql(upload_sql(1, $small));
ok(wait_log($s3, '^PUT .* 500'), 'an attempt fails');
sql(q{SELECT swarm._clock_advance('-1 day')});
my $r = status($b);
is("$r->{status} $r->{files}[0]{attempts}", '200 2', '... the pause after it is not that of a clock that can be set') or diag explain $r;
sql(q{SELECT swarm._clock_advance(NULL), swarm.retry_policy_drop('server:fake')});

# Names are UTF-8 for a server of S3, whatever the database has.
s3_clear($s3);
sql(q{CREATE DATABASE narrow TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'});
$node->safe_psql('narrow', 'CREATE EXTENSION pg_swarm');
$node->safe_psql('narrow', "CREATE SERVER fake FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint '$s3->{url}'); CREATE USER MAPPING FOR PUBLIC SERVER fake OPTIONS (access_key_id 'AKTEST', secret_access_key 'SKTEST')");
$node->safe_psql('narrow', q{SELECT * FROM swarm.s3_list('fake', 'docs', 'caf' || chr(233), start_after => chr(233))});
is(scalar(grep { /prefix=caf%C3%A9/ && /start-after=%C3%A9/ } s3_log($s3)), 1, 'a prefix in a database with LATIN1') or diag join "\n", s3_log($s3);
sql('DROP DATABASE narrow');

# Larger than an int can say, and than is allowed
my $lo = sql(q{SELECT lo_create(0)});
sql("BEGIN; SELECT lo_lseek64(fd, 5::bigint << 30, 0), lowrite(fd, 'end') FROM lo_open($lo, x'60000'::int) fd; COMMIT");
sql_fails($node, "SET pg_swarm.s3_max_file_size = '5GB'; " . upload_sql(1, "swarm.from_large_object($lo)"), qr/22023: .*File f1 exceeds 5120MB limit/, 'a large object of 5 GB and 3 bytes is refused');
my $large = PostgreSQL::Test::Utils::tempdir() . '/large';
append_to_file($large, '');
truncate $large, 5 * 1024**3 + 1 or die;
sql_fails($node, "SET pg_swarm.s3_max_file_size = '5GB'; " . upload_sql(1, "swarm.from_file('$large')"), qr/22023: .*File f1 exceeds 5120MB limit/, '... a file of 5 GB and a byte as well');
unlink $large;
sql("SELECT lo_unlink($lo)");

# No memory: what a source needs is not there; it costs that file.
SKIP:
{
	skip 'no prlimit here', 4 if !grep { -x "$_/prlimit" } split /:/, $ENV{PATH};
	my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];

	sql(q{CREATE TABLE packed AS SELECT 1 AS id, convert_to(repeat('x', 90000000), 'UTF8') AS body; ALTER TABLE packed ADD PRIMARY KEY (id)});
	# a runner has loaded what it needs; it and those that come after it get 64 MB more
	s3_clear($s3);
	is(status(sql(upload_sql(1, $small)))->{status}, 200, 'a runner is there');
	my @pids = ($postmaster, split /\n/, sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner'}));
	my $most = 0;
	foreach (@pids) { my ($kb) = (-e "/proc/$_/status" ? slurp_file("/proc/$_/status") : '') =~ /^VmSize:\s+(\d+)/m; $most = $kb if ($kb || 0) > $most; }
	my $limit = ($most + 64 * 1024) * 1024;
	system('prlimit', '--pid', $_, "--as=$limit:") foreach @pids;
	$b = sql(upload_sql(3, q{CASE i WHEN 2 THEN swarm.from_column('packed', 1, 'body') ELSE swarm.from_bytea('x') END}));
	$r = status($b);
	system('prlimit', '--pid', $_, '--as=unlimited:') foreach grep { -e "/proc/$_" } @pids;
	is("$r->{status} $r->{message}", '207 2 uploaded, 1 failed', '... without memory for a compressed column') or diag explain $r;
	is("$r->{failed}[0]{originalName} $r->{failed}[0]{code}", 'f2 53200', '... that file fails');
	sql("SELECT swarm.s3_retry($b)");
	is(status($b)->{status}, 200, '... and is stored when there is some');
}

# A standby sends nothing; promoted, it does what was committed.
s3_clear($s3);
$node->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'b', has_streaming => 1);
$standby->start;
sql(q{SELECT swarm.queue_pause('default')});
$b = sql(upload_sql(3, $small));
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is($standby->safe_psql('postgres', "SELECT count(*) FROM swarm.s3_files WHERE batch = $b AND state = 'waiting'"), '3', 'a standby shows a batch');
sql_fails($standby, upload_sql(1, $small), qr/25006/, '... takes none');
is(join(' ', s3_log($s3)), '', '... and sends nothing');
$node->stop('immediate');
$standby->promote;
poll_ok($standby, 'SELECT NOT pg_is_in_recovery()', '... until it is promoted');
$standby->safe_psql('postgres', q{SELECT swarm.queue_resume('default')});
is(result($standby, "SELECT swarm.s3_wait($b, '$seconds s')")->{status}, 200, '... then it sends what was committed');
is(scalar(grep { /^PUT .* 200/ } s3_log($s3)), 3, '... each file once');

s3_stop($s3);
$standby->stop;
done_testing();
