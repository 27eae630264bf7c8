# The documentation is true: every SQL example runs, the state table of
# docs/reference/job.md is the one of the code, and docs/reference mentions every
# public object and setting, and nothing that does not exist.
#
# Examples are the ```sql blocks of README.md and docs/**/*.md, run in order by one
# psql a file, in a database of its own, as superuser.  An HTML comment on the line
# before the fence says more:
#
#   <!-- needs pg_cron -->    skipped where pg_cron cannot be preloaded
#   <!-- error 42704 -->      its last statement fails, with this SQLSTATE if given
use strict;
use warnings;

use File::Basename;
use File::Find;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = dirname(__FILE__) . '/../..';
my @pages = ('README.md');
find({ no_chdir => 1, wanted => sub { push @pages, $_ =~ s,^\Q$top\E/,,r if /\.md$/ } }, "$top/docs");
@pages = sort @pages;

# blocks(FILE): [{line, sql, cron, error}]
sub blocks
{
	my ($file) = @_;
	my (@blocks, $block);
	my ($n, $comment) = (0, '');

	foreach my $line (split /\n/, slurp_file("$top/$file"))
	{
		$n++;
		if ($block && $line =~ /^\s*```\s*$/)
		{
			push @blocks, $block;
			undef $block;
		}
		elsif ($block)
		{
			$block->{sql} .= "$line\n";
		}
		elsif ($line =~ /^\s*```sql\b/)
		{
			$block = { line => $n, sql => '' };
			$block->{cron} = 1 if $comment =~ /needs pg_cron/;
			$block->{error} = $1 || 'any' if $comment =~ /<!-- error\s*(\w{5})?/;
		}
		$comment = $line =~ /^<!--/ ? $line : '';
	}
	die "$file: the block at line $block->{line} has no end" if $block;
	return @blocks;
}

# script(BLOCKS): what psql shall run; it says which block it has passed.
sub script
{
	my $script = "\\set ON_ERROR_STOP 1\nSET client_min_messages = warning;\n";

	foreach my $b (@_)
	{
		$script .= "\\set ON_ERROR_STOP 0\n" if $b->{error};
		$script .= $b->{sql};
		$script .= "\\if :ERROR\n\\else\n\\set SQLSTATE none\n\\endif\n\\set ON_ERROR_STOP 1\n" if $b->{error};
		$script .= "\\echo '<<$b->{line}>>'" . ($b->{error} ? ' :SQLSTATE' : '') . "\n";
	}
	return $script;
}

# run_page(NODE, FILE, DATABASE, CRON)
sub run_page
{
	my ($node, $file, $db, $cron) = @_;
	my @run = grep { $cron || !$_->{cron} } blocks($file);
	my ($out, $err) = ('', '');
	my $failed;

	$node->psql($db, script(@run), stdout => \$out, stderr => \$err,
		timeout => $PostgreSQL::Test::Utils::timeout_default);
	foreach my $b (@run)
	{
		my $name = "$file: example at line $b->{line}";

	  SKIP:
		{
			skip "$name comes after a failure", 1 if $failed;
			if ($out !~ /^<<$b->{line}>> ?(\w*)$/m)
			{
				$failed = 1;
				fail("$name runs");
				diag $err;
			}
			elsif ($b->{error})
			{
				like($1, $b->{error} eq 'any' ? qr/^(?!none)/ : qr/^$b->{error}$/, "$name fails as it should");
			}
			else
			{
				pass("$name runs");
			}
		}
	}
	return;
}

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<'X');
shared_preload_libraries = 'pg_swarm'
max_worker_processes = 32
pg_swarm.job_backoff = '20ms'
X
$node->start;

my $cron = $node->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_cron'");
my $n = 0;

foreach my $file (@pages)
{
	my @blocks = blocks($file) or next;
	my $db = 'docs' . ++$n;
	my $use_cron = $cron && grep { $_->{cron} } @blocks;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	if ($use_cron)
	{
		# pg_cron serves one database only
		$node->append_conf('postgresql.conf', <<"X");
shared_preload_libraries = 'pg_swarm, pg_cron'
cron.database_name = '$db'
cron.use_background_workers = on
X
		$node->restart;
		$node->safe_psql($db, 'CREATE EXTENSION pg_cron');
	}
	$node->safe_psql($db, 'CREATE EXTENSION pg_swarm')
	  unless grep { $_->{sql} =~ /CREATE EXTENSION pg_swarm\b/ } @blocks;
	run_page($node, $file, $db, $use_cron);
	is($node->safe_psql($db, "SELECT id, kind, error FROM swarm.jobs WHERE state IN ('failed', 'dead')"),
		'', "$file: no example leaves a job that failed");
}
cmp_ok($n, '>=', 3, 'there are examples');

# The state machine
$node->safe_psql('postgres', 'CREATE EXTENSION pg_swarm');
my $job = slurp_file("$top/docs/reference/job.md");
my ($table) = $job =~ /^\| from \| event \| to \| why \|\n\|[-| ]+\|\n((?:\|.*\n)+)/m;
is( join("\n", map { s/\s*\|\s*/|/gr =~ s/^\||\|$//gr } split /\n/, $table || ''),
	$node->safe_psql('postgres', 'SELECT * FROM swarm._job_transitions()'),
	'docs/reference/job.md has the transitions of the code');

# What becomes of a failed attempt
my ($decisions) = slurp_file("$top/docs/reference/s3.md") =~ /^\| what \| code \| then .*\n\|[-| ]+\|\n((?:\|.*\n)+)/m;
is( join("\n", map { s/\s*\|\s*/|/gr =~ s/^\||\|$//gr } split /\n/, $decisions || ''),
	$node->safe_psql('postgres', q{SELECT layer, what, verdict, CASE WHEN harms THEN 'yes' ELSE '' END, why FROM swarm._s3_decisions()}),
	'docs/reference/s3.md has the decisions of the code');

# Everything public is mentioned, and nothing else
my $reference = join '', map { slurp_file("$top/$_") } grep { m,^docs/reference/, } @pages;
my %public = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', <<'X');
SELECT 'swarm.' || proname FROM pg_proc WHERE pronamespace = 'swarm'::regnamespace
UNION SELECT 'swarm.' || typname FROM pg_type WHERE typnamespace = 'swarm'::regnamespace AND typelem = 0
UNION SELECT name FROM pg_settings WHERE name LIKE 'pg_swarm.%'
X
my %mentioned = map { $_ => 1 } $reference =~ /(?<![\w.\/-])((?:pg_)?swarm\.\w+)/g;

is_deeply([ sort grep { !/^swarm\._/ && !$mentioned{$_} } keys %public ],
	[], 'docs/reference mentions everything public');
is_deeply([ sort grep { !$public{$_} && !/^pg_swarm\.(c|so|control|conf|inflight)$/ } keys %mentioned ],
	[], '... and nothing that does not exist');

# Headings of functions: `swarm.name(argument type = default, ...)`, all arguments in order
my %signature;
while ($reference =~ /^##+ +(.*)$/mg)
{
	my $heading = $1;

	while ($heading =~ /swarm\.(\w+)\(((?:[^()]|\(\))*)\)/g)
	{
		$signature{$1} = join(' ', map { /^(\w+)/ } split /,\s*/, $2);
	}
}
is_deeply(
	\%signature,
	{
		map { split /=/, $_, 2 } split /\n/,
		$node->safe_psql('postgres', <<"X")
SELECT proname || '=' || coalesce((SELECT string_agg(name, ' ' ORDER BY n)
    FROM unnest(proargnames) WITH ORDINALITY a(name, n) WHERE n <= pronargs), '')
FROM pg_proc WHERE pronamespace = 'swarm'::regnamespace
AND proname IN ('@{[ join("', '", keys %signature) ]}')
X
	},
	'headings show all arguments of a function');
cmp_ok(scalar(keys %signature), '>', 20, '... of many functions');

my @columns = split /\n/, $node->safe_psql('postgres', <<'X');
SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'swarm'::regnamespace AND c.relkind IN ('v', 'c') AND a.attnum > 0 AND c.relname !~ '^_'
X
is_deeply([ grep { my $c = s/.*\.//r; $reference !~ /`$c`/ } @columns ], [], 'columns of views and types are mentioned');

# Links lead somewhere, and README.md to every page of the reference
# anchors(FILE): what "#..." of a link can name: its headings, as GitHub writes them
sub anchors
{
	my $text = slurp_file("$top/$_[0]") =~ s/^```.*?^```//gmsr;

	return map { lc(s/\[([^\]]*)\]\([^)]*\)/$1/gr =~ s/[^\w\- ]//gr =~ s/\s+$//r) =~ tr/ /-/r } $text =~ /^#+ +(.*)$/mg;
}

foreach my $file (@pages, map { s,^\Q$top\E/,,r } glob "$top/src/README.md $top/src/*/README.md")
{
	my @wrong;

	foreach my $link (grep { !/^https?:/ } slurp_file("$top/$file") =~ /\]\(([^)\s]+)\)/g)
	{
		my ($path, $anchor) = split /#/, $link;
		my $target = $path ? dirname($file) . "/$path" : $file;

		push @wrong, $link
		  if !-e "$top/$target" || defined $anchor && !grep { $_ eq $anchor } anchors($target);
	}
	is("@wrong", '', "$file: links lead to files and headings");
}
my $readme = slurp_file("$top/README.md");
is_deeply([ grep { m,^docs/reference/, && $readme !~ /\(\Q$_\E\)/ } @pages ], [], 'README.md leads to all of the reference');

$node->stop;
done_testing();
