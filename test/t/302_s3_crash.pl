# Transactions, cancellation and crashes: what is sent, what is left.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use SwarmTest;
use S3Test;

local $ENV{http_proxy} = 'http://127.0.0.1:1';
local $ENV{HTTP_PROXY} = 'http://127.0.0.1:1';
local $ENV{ALL_PROXY} = 'http://127.0.0.1:1';
my $node = swarm_cluster('main', conf => <<'X');
pg_swarm.net_backoff = '10ms'
pg_swarm.net_backoff_max = '50ms'
X
my $s3 = s3_start();
my $large = q{convert_to(repeat('0123456789abcdef', 1024 * 1024) || i, 'UTF8')};
my $seconds = $PostgreSQL::Test::Utils::timeout_default;

s3_server($node, 'fake', $s3->{url});

sub upload_sql { my ($n, $source) = @_; return "SELECT swarm.s3_upload('fake', 'docs', " . files_sql($n, $source || 'swarm.from_bytea(\'x\')') . ')'; }
sub upload { return $node->safe_psql('postgres', upload_sql(@_)); }
sub status { my ($b) = @_; return result($node, "SELECT swarm.s3_wait($b, '$seconds s')"); }

# Only what commits
$node->safe_psql('postgres', 'BEGIN; ' . upload_sql(3) . '; ROLLBACK');
my $savepoint = $node->safe_psql('postgres', 'BEGIN; SAVEPOINT a; ' . upload_sql(3) . '; ROLLBACK TO a; ' . upload_sql(1) . '; COMMIT');
is(status((split /\n/, $savepoint)[-1])->{status}, 200, 'after a rollback to a savepoint');
is(scalar(grep { /^PUT/ } s3_log($s3)), 1, 'what is rolled back is not sent');
s3_clear($s3);
my $prepared = $node->safe_psql('postgres', 'BEGIN; ' . upload_sql(2) . q{; PREPARE TRANSACTION 'p'});
is(join(' ', s3_log($s3)), '', 'what is prepared is not sent');
$node->safe_psql('postgres', q{COMMIT PREPARED 'p'});
is(status($prepared)->{status}, 200, '... until it is committed; the environment\'s proxy is not heeded');
sql_fails($node, 'BEGIN; DO $$ BEGIN PERFORM swarm.s3_wait((' . upload_sql(1) . ')) ; END $$', qr/55000/, 'waiting for what is not committed');

# No transaction is open while the network is waited for.
s3_clear($s3);
s3_rules($s3, { match => '^PUT', wait => 1 });
my $b = upload(3);
ok(wait_log($s3, 'WAIT'), 'a server that does not answer yet');
poll_ok($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner' AND state = 'active' AND xact_start IS NULL AND wait_event IS NOT NULL AND backend_xmin IS NULL AND query LIKE 'job %'}, '... the runner is in no transaction', '1');
poll_ok($node, "SELECT count(*) FROM swarm.s3_files WHERE batch = $b AND state = 'running' AND step = 'sending'", '... the view shows what is under way', '3');
is($node->safe_psql('postgres', "SELECT state FROM swarm.s3_batches WHERE id = $b"), 'running', '... and so does that of batches');
is(result($node, "SELECT swarm.s3_wait($b, '10 ms')")->{status}, 202, '... waiting ends with its timeout');
sql_fails($node, "SELECT swarm.s3_retry($b)", qr/55000/, '... retry is refused');

# Cancel
is($node->safe_psql('postgres', "SELECT swarm.s3_cancel($b)"), 't', 'cancel');
my $r = status($b);
is("$r->{status} $r->{failed}[0]{code}", '500 Cancelled', '... the files are cancelled');
is($node->safe_psql('postgres', "SELECT swarm.s3_cancel($b)"), 'f', '... once');
go($s3);
s3_clear($s3);
is($node->safe_psql('postgres', "SELECT swarm.s3_retry($b)"), '3', 'retry');
is(status($b)->{status}, 200, '... uploads them');
is($node->safe_psql('postgres', "SELECT swarm.s3_retry($b)"), '0', '... and there is nothing more to do');

# Retry sends the failed ones only.
s3_clear($s3);
s3_rules($s3, { match => '^PUT /docs/f2', status => 403, code => 'AccessDenied', times => 1 });
$b = upload(3);
is(status($b)->{status}, 207, 'one file fails');
s3_clear($s3);
$node->safe_psql('postgres', "SELECT swarm.s3_retry($b)");
is(status($b)->{status}, 200, '... is tried again');
is(join(' ', s3_log($s3)), 'PUT /docs/f2 200', '... it alone');

# Multipart, interrupted in every way: no part is left in the end, and the object is whole
sub interrupted
{
	my ($name, $rule, $log, $how, $want) = @_;

	s3_clear($s3);
	s3_rules($s3, $rule);
	my $batch = upload(1, $large);
	ok(wait_log($s3, $log), "multipart: $name");
	$how->($batch);
	go($s3);
	s3_rules($s3);
	my $got = status($batch);
	is($got->{status}, $want, '... its outcome') or diag explain $got;
	jobs_end($node, '... no job is left');
	is(s3_parts($s3), 0, '... no part is left');
	is(length(s3_objects($s3)->{'docs/f1'}), 16 * 1024 * 1024 + 1, '... the object is whole') if $want == 200;
	return;
}
my $part = { match => '^PUT .*partNumber=2', wait => 1 };
interrupted('cancelled', $part, 'WAIT', sub { $node->safe_psql('postgres', "SELECT swarm.s3_cancel($_[0])") }, 500);
interrupted('its job cancelled', $part, 'WAIT', sub { $node->safe_psql('postgres', "SELECT swarm.job_cancel(job) FROM swarm.s3_batches WHERE id = $_[0]"); poll_ok($node, 'SELECT count(*) FROM swarm._s3_batch WHERE finished_at IS NULL AND id = ' . $_[0], '... says so', '0'); }, 500);
interrupted('the runner terminated', $part, 'WAIT',
	sub { $node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner' AND state = 'active' AND query LIKE 'job %' LIMIT 1}) }, 200);
interrupted('the runner killed', $part, 'WAIT', sub {
	my $n = crash_is_over($node);
	kill 'KILL', $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner' AND state = 'active' AND query LIKE 'job %' LIMIT 1});
	ok(crash_is_over($node, $n), '... a crash');
}, 200);
interrupted('the server stopped', $part, 'WAIT', sub { $node->stop('fast'); $node->start; }, 200);
interrupted('the server stopped at once', $part, 'WAIT', sub { $node->stop('immediate'); $node->start; }, 200);

# What a lost run has sent is not sent again; a source that has changed is.
sub puts_of { my ($n) = @_; return scalar grep { /^PUT .*partNumber=$n\D.* 200/ } s3_log($s3); }
foreach my $t ([ 'goes on', 0, 1 ], [ 'a source that has changed', 1, 2 ])
{
	my ($name, $change, $puts) = @$t;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/large';

	unlink $file;
	append_to_file($file, 'a' x (16 * 1024 * 1024) . 'z');
	s3_clear($s3);
	s3_rules($s3, { match => '^PUT .*partNumber=2', wait => 1 });
	my $batch = upload(1, "swarm.from_file('$file')");
	ok(wait_log($s3, 'partNumber=2\D.*WAIT') && wait_log($s3, 'partNumber=1\D.* 200') && wait_log($s3, 'partNumber=3\D.* 200'), "after a crash: $name");
	if ($change)
	{
		unlink $file;
		append_to_file($file, 'b' x (8 * 1024 * 1024) . 'a' x (8 * 1024 * 1024) . 'z');
	}
	$node->stop('immediate');
	go($s3);
	s3_rules($s3);
	$node->start;
	is(status($batch)->{status}, 200, '... ends well');
	is(join(' ', map { puts_of($_) } 1, 3), "$puts 1", '... sends what is missing');
	is(substr(s3_objects($s3)->{'docs/f1'}, 0, 1), $change ? 'b' : 'a', '... of the file as it is now');
	is(length(s3_objects($s3)->{'docs/f1'}), 16 * 1024 * 1024 + 1, '... the object is whole');
	is(s3_parts($s3), 0, '... no part is left');
}

# An upload that was begun without anybody having got its id is found and removed.
s3_clear($s3);
s3_rules($s3, { match => '^POST .*uploads', wait => 1, times => 1 });
my $lost = upload(1, $large);
ok(wait_log($s3, '^POST .*WAIT'), 'a multipart upload is begun');
$node->stop('immediate');
go($s3);
ok(wait_log($s3, '^POST .*uploads= 200'), '... nobody gets its id');
is(s3_parts($s3), 1, '... it is there');
$node->start;
is(status($lost)->{status}, 200, '... the next run ends well');
is(s3_parts($s3), 0, '... and has removed it');

# Fault points: an error or a death at each step
foreach my $point ('upload.open', 'upload.turn', 'upload.store', 'upload.part', 'upload.complete', 'net.turn')
{
	foreach my $action ('error', 'fatal', 'kill')
	{
		my $n = crash_is_over($node);

		s3_clear($s3);
		$node->safe_psql('postgres', "SELECT swarm._fault_arm('$point', '$action', 0, 1)");
		$node->psql('postgres', upload_sql(1, $large));	# may be ended by the crash, after its commit
		ok(crash_is_over($node, $n), "$action at $point: a crash") if $action eq 'kill';
		my $batch = $node->safe_psql('postgres', 'SELECT max(id) FROM swarm.s3_batches');
		my $got = status($batch);
		my $want = $point eq 'upload.open' && $action eq 'error' ? 500 : 200;	# costs the file
		is($got->{status}, $want, "$action at $point: the outcome") or diag explain $got;
		jobs_end($node, '... no job is left');
		is(s3_parts($s3), 0, '... no part is left');
		$node->safe_psql('postgres', 'SELECT swarm._fault_arm(NULL)');
	}
}

# Batches go with the history of their jobs.
my $kept = $node->safe_psql('postgres', 'SELECT swarm._clock_advance(NULL); ' . upload_sql(1)) =~ s/.*\n//sr;
is(status($kept)->{status}, 200, 'a batch of today');
$node->safe_psql('postgres', "UPDATE swarm._s3_file SET upload_id = 'lost' WHERE batch = $b");
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('6 days')});
is(status(upload(1))->{status}, 200, '... is not old after six days');
poll_ok($node, q{SELECT count(*) FROM swarm._s3_batch WHERE finished_at IS NULL}, '... all have ended', '0');
is($node->safe_psql('postgres', "SELECT count(*) FROM swarm.s3_batches WHERE id = $kept"), '1', '... and it is still there');
$node->safe_psql('postgres', q{SELECT swarm._clock_advance('8 days 1 hour')});
poll_ok($node, "SELECT count(*) FROM swarm.s3_batches WHERE id = $kept", '... after eight it is gone', '0');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT batch::text, ',') FROM swarm._s3_file WHERE finished_at < now() + interval '1 day'"), $b, '... with its files; one that nobody could clean up is kept');
$node->safe_psql('postgres', "DELETE FROM swarm._s3_batch WHERE id = $b; SELECT swarm._clock_advance(NULL)");

# The server of the batch goes away
s3_clear($s3);
$b = (split /\n/, $node->safe_psql('postgres', q{SELECT swarm.queue_pause('default') \g /dev/null
} . upload_sql(2) . q{;
DROP SERVER fake CASCADE;
SELECT swarm.queue_resume('default') \g /dev/null
}))[0];
$r = status($b);
is("$r->{status} $r->{failed}[0]{code}", '500 42704', 'a batch whose server was dropped fails');
is(join(' ', s3_log($s3)), '', '... nothing is sent');

# DROP EXTENSION and DROP DATABASE do not wait for uploads.
s3_server($node, 'fake', $s3->{url});
s3_rules($s3, { match => '^PUT', wait => 1 });
$b = upload(1);
ok(wait_log($s3, 'WAIT'), 'an upload is under way');
$node->safe_psql('postgres', 'DROP EXTENSION pg_swarm CASCADE');
is($node->safe_psql('postgres', q{SELECT to_regnamespace('swarm') IS NULL}), 't', '... DROP EXTENSION is not blocked');
s3_stop($s3);
$node->stop;
done_testing();
