# SwarmTest: what the TAP tests of pg_swarm have in common.
#
# Nothing here measures time: whoever waits polls for a state, with the
# generous time-out of PostgreSQL::Test (PG_TEST_TIMEOUT_DEFAULT).  Works with
# the modules of PostgreSQL 15 and later.

package SwarmTest;

use strict;
use warnings;

use Exporter 'import';
use File::Basename;
use File::Copy;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  swarm_cluster swarm_conf poll_ok poll_sql crash_is_over start_again jobs_end
  states workers worker_pid sql_error sql_fails
  start_psql finish_psql say_psql answers work_table once_each
  until_true server_start server_stop test_module
);

my %servers;

# until_true(CODE): polls, with the usual time-out
sub until_true
{
	my ($code) = @_;

	for (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if $code->();
		select undef, undef, undef, 0.01;
	}
	return 0;
}

# server_start(COMMAND, ENVIRONMENT): another server that a test needs, in a group of
# processes of its own: {dir, pid, port, url}.  In COMMAND, FOLDER is its scratch folder
# and PORT a free port; without PORT it chooses one and writes it into FOLDER/port.
sub server_start
{
	my ($command, %env) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $s = { dir => $dir };
	my @command;

	$s->{port} = PostgreSQL::Test::Cluster::get_free_port() if grep { $_ eq 'PORT' } @$command;
	@command = map { $_ eq 'FOLDER' ? $dir : $_ eq 'PORT' ? $s->{port} : $_ } @$command;
	$s->{pid} = fork // die "fork: $!";
	if (!$s->{pid})
	{
		$ENV{$_} = $env{$_} foreach keys %env;
		setpgrp;
		open(STDIN, '<', '/dev/null');
		open(STDOUT, '>', '/dev/null');
		open(STDERR, '>', "$dir/errors");
		exec @command;
		die "exec: $!";
	}
	$servers{ $s->{pid} } = 1;
	if (!$s->{port})
	{
		until_true(sub { -e "$dir/port" }) or die "@command did not start";
		$s->{port} = slurp_file("$dir/port");
	}
	$s->{url} = "http://127.0.0.1:$s->{port}";
	return $s;
}

sub server_stop
{
	my ($s) = @_;

	kill 'KILL', -$s->{pid};
	waitpid $s->{pid}, 0;
	delete $servers{ $s->{pid} };
	return;
}

# test_module(NAME): build test/modules/NAME against the server under test, in a scratch
# folder; what to LOAD.  Such a module is for tests only and installed nowhere.
sub test_module
{
	my ($name) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $from = dirname(__FILE__) . "/../modules/$name";

	copy("$from/$_", "$dir/$_") or die "$from/$_: $!" foreach 'Makefile', "$name.c";
	delete local @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES)};
	system('make', '-s', '-C', $dir, 'with_llvm=no', 'PG_CONFIG=' . ($ENV{PG_CONFIG} || 'pg_config')) == 0
	  or die "test module $name does not build";
	return "$dir/$name";
}

END
{
	my $rc = $?;
	kill 'KILL', -$_ foreach keys %servers;
	$? = $rc;
}

# Settings every cluster of these tests starts with; later ones win.
sub swarm_conf
{
	return <<'X';
shared_preload_libraries = 'pg_swarm'
max_worker_processes = 32
max_prepared_transactions = 10
restart_after_crash = on
fsync = off
log_statement = none
pg_swarm.job_backoff = '20ms'
pg_swarm.job_backoff_max = '200ms'
X
}

# swarm_cluster(NAME, conf => TEXT, init => {...}, create => 0): a running
# server with the extension in database postgres.
sub swarm_cluster
{
	my ($name, %p) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(%{ $p{init} || {} });
	$node->append_conf('postgresql.conf', swarm_conf() . ($p{conf} || ''));
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_swarm') unless defined $p{create} && !$p{create};
	return $node;
}

# poll_sql(NODE, QUERY, EXPECTED ['t'], DATABASE ['postgres']): true when the query
# gives that; else tells what the extension looks like.
sub poll_sql
{
	my ($node, $query, $expected, $db) = @_;

	$db ||= 'postgres';
	# While a server crashes, a psql may end before it has read its query: whoever
	# writes it meets a broken pipe.
	for (1 .. 100)
	{
		return 1 if eval { $node->poll_query_until($db, $query, $expected) };
		last if $@ eq '';
		die $@ if $@ !~ /Broken pipe/;
		select undef, undef, undef, 0.1;
	}
	for my $q (
		'SELECT role, pid, database, slot, state, job, attempt, wait_event FROM swarm.workers',
		'SELECT * FROM swarm.health()',
		'SELECT id, queue, state, attempts, run_at, error FROM swarm.jobs WHERE finished_at IS NULL LIMIT 20',
		'SELECT state, count(*) FROM swarm.jobs GROUP BY 1',
		'SELECT * FROM swarm.queues')
	{
		my ($rc, $out, $err) = $node->psql($db, $q);
		diag "$q\n$out$err";
	}
	return 0;
}

# poll_ok(NODE, QUERY, NAME, EXPECTED, DATABASE): the same as a test.
sub poll_ok
{
	my ($node, $query, $name, $expected, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(poll_sql($node, $query, $expected, $db), $name);
}

# jobs_end(NODE, NAME, DATABASE): a test that passes when no job is live.
sub jobs_end
{
	my ($node, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return poll_ok($node, 'SELECT NOT EXISTS (SELECT FROM swarm._job)', $name, 't', $db);
}

# crash_is_over(NODE, QUERY): the postmaster has started everything again after a
# crash.  Before the crash remember crashes so far: $n = crash_is_over($node).
sub crash_is_over
{
	my ($node, $since) = @_;
	my $again = qr/all server processes terminated; reinitializing/;
	my $count = () = slurp_file($node->logfile) =~ /$again/g;

	return $count unless defined $since;
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my $log = slurp_file($node->logfile);

		# by -c: a psql that is refused ends before it has read its query, and
		# whoever writes it meets a broken pipe
		$count = () = $log =~ /$again/g;
		return 1
		  if $count > $since && $log =~ /.*$again.*ready to accept connections/s
		  && IPC::Run::run([ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres'), '-c', 'SELECT 1' ],
			'<', '/dev/null', '>', \my $out, '2>', \my $err);
		select undef, undef, undef, 0.1;
	}
	return 0;
}

# start_again(NODE): start after kill9(), when the last child has noticed, or after
# the server has ended by itself.
sub start_again
{
	my ($node) = @_;

	my $file = $node->data_dir . '/postmaster.pid';
	my $pid;

	if (-e $file)
	{
		($pid) = slurp_file($file) =~ /^(\d+)/;
	}
	else
	{
		$node->stop('fast', fail_ok => 1);
	}
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if !($pid && kill(0, $pid)) && $node->start(fail_ok => 1);
		select undef, undef, undef, 0.1;
	}
	return 0;
}

# states(NODE, DATABASE): 'completed 3, ready 1'
sub states
{
	my ($node, $db) = @_;

	return $node->safe_psql($db || 'postgres',
		"SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) FROM (SELECT state::text, count(*) n FROM swarm.jobs GROUP BY 1) s");
}

# workers(NODE, DATABASE, [ROLE]): SQL, how many processes the database has by the
# server's own account.
sub workers
{
	my ($db, $role) = @_;

	return "SELECT count(*) FROM pg_stat_activity WHERE datname = '$db' AND backend_type LIKE 'pg_swarm "
	  . ($role || '%') . "'";
}

# worker_pid(NODE, ROLE, DATABASE): pid of one, waits for it; 0 if there is none.
sub worker_pid
{
	my ($node, $role, $db) = @_;
	my $where = "backend_type = 'pg_swarm $role'";

	$where .= " AND datname = '$db'" if $db;
	poll_sql($node, "SELECT count(*) > 0 FROM pg_stat_activity WHERE $where") or return 0;
	return $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE $where LIMIT 1");
}

# sql_error(NODE, SQL, DATABASE): SQLSTATE, message and hint of the error, or ''
sub sql_error
{
	my ($node, $sql, $db, %p) = @_;
	my ($rc, $out, $err) =
	  $node->psql($db || 'postgres', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ], %p);

	return $rc == 0 ? '' : $err;
}

# sql_fails(NODE, SQL, REGEXP, NAME, DATABASE)
sub sql_fails
{
	my ($node, $sql, $regexp, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like(sql_error($node, $sql, $db), $regexp, $name);
}

# start_psql(NODE, SQL, DATABASE): a session of its own, in the background; with SQL
# undef it stays open for say_psql().  finish_psql() waits for its end and returns
# its output (both streams).
sub start_psql
{
	my ($node, $sql, $db) = @_;
	my %h = (in => defined $sql ? "$sql;\n" : '', out => '', err => '', n => 0);

	$h{timer} = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	$h{run} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr($db || 'postgres'), '-f', '-' ],
		'<', \$h{in}, '>', \$h{out}, '2>', \$h{err}, $h{timer});
	if (defined $sql)
	{
		$h{run}->pump while length $h{in};
	}
	return \%h;
}

# say_psql(SESSION, SQL): run it to its end, return the output
sub say_psql
{
	my ($h, $sql) = @_;
	my $mark = 'said ' . ++$h->{n};

	$h->{out} = $h->{err} = '';
	$h->{in} .= "$sql\n;\\echo '$mark'\n";
	$h->{run}->pump until $h->{out} =~ /^\Q$mark\E$/m;
	$h->{out} =~ s/^\Q$mark\E\n//m;
	chomp $h->{out};
	return $h->{out} . $h->{err};
}

sub finish_psql
{
	my ($h) = @_;

	$h->{run}->finish;
	return $h->{out} . $h->{err};
}

# answers(NODE, NAME, DATABASE): a test that a job is run there.
sub answers
{
	my ($node, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $got = $node->safe_psql($db || 'postgres', <<"X");
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 6 * 7 AS n"}') AS id \\gset
SELECT j.state, j.result #>> '{data,0,n}'
FROM swarm.job_wait(:id, '$PostgreSQL::Test::Utils::timeout_default s') j
X
	return is($got, 'completed|42', $name);
}

# work_table(NODE, DATABASE): a handler 'work' whose one effect is a row with the id
# of its job, and a procedure 'long' of the same kind that commits half way.  The
# effect has no unique constraint: doubles shall show.
sub work_table
{
	my ($node, $db) = @_;

	$node->safe_psql($db || 'postgres', <<'X');
CREATE TABLE work (job bigint, attempt int, pid int DEFAULT pg_backend_pid());
CREATE FUNCTION work(j swarm.job) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO work VALUES (j.id, j.attempt);
    PERFORM pg_sleep(coalesce((j.args->>'sleep')::float8, 0));
    IF j.attempt <= coalesce((j.args->>'fail')::int, 0) THEN
        RAISE EXCEPTION 'attempt % fails', j.attempt;
    END IF;
    RETURN to_jsonb(j.id);
END $$;
SELECT swarm.handler_register('work', 'public.work');
X
	return;
}

# once_each(NODE, N, NAME, DATABASE): N jobs were enqueued; all are completed, and
# each has left exactly one effect.
sub once_each
{
	my ($node, $n, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is( $node->safe_psql($db || 'postgres', <<'X'),
SELECT count(*), count(DISTINCT h.id), count(*) FILTER (WHERE h.state = 'completed'),
       (SELECT count(*) FROM work), (SELECT count(DISTINCT job) FROM work),
       (SELECT count(*) FROM swarm._job), (SELECT count(*) FROM swarm._job_attempt)
FROM swarm.job_history h WHERE h.kind = 'work'
X
		"$n|$n|$n|$n|$n|0|0", $name);
	return;
}

1;
