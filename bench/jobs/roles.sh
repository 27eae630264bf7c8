#!/usr/bin/env bash
# What it costs that a runner works for one role: 4,000 jobs that do nothing, of 1, 2 and 10 roles in turns, by 2 and 4 runners.
#
#   bench/jobs/roles.sh [TREE]      TREE: of another commit, to compare with
#
# A throw-away cluster of that tree; prints jobs a second, and how many runners have been started until then.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"
dir=$(mktemp -u /tmp/roles.XXXX)
trap 'test/tools/cluster remove "$dir" >/dev/null' EXIT
eval "$(test/tools/cluster start "$dir" -p pg_swarm -c 'max_worker_processes = 24' | grep -v '^#')"
psql -qXAt -v ON_ERROR_STOP=1 <<'SQL'
CREATE EXTENSION IF NOT EXISTS pg_swarm;
SELECT format('CREATE ROLE m%s', i) FROM generate_series(1, 10) i \gexec
CREATE FUNCTION nothing(j swarm.job) RETURNS void LANGUAGE sql AS '';
SELECT swarm.handler_register('nothing', 'nothing') \g /dev/null
CREATE PROCEDURE fill(roles int, n int) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM swarm.queue_pause('default');
    FOR i IN 1 .. n LOOP
        EXECUTE format('SET LOCAL ROLE m%s', 1 + i % roles);
        PERFORM swarm.job_enqueue('nothing');
    END LOOP;
    RESET ROLE;
END $$;
SQL
for runners in 2 4; do
	psql -qXAt -c "ALTER SYSTEM SET pg_swarm.max_runners = $runners" -c 'SELECT pg_reload_conf()' >/dev/null
	for roles in 1 2 10; do
		for _ in 1 2 3; do
			psql -qXAt -c "CALL fill($roles, 4000)"
			psql -qXAt <<SQL
SELECT clock_timestamp() AS t \gset
SELECT swarm.queue_resume('default') \g /dev/null
DO \$\$ BEGIN WHILE EXISTS (SELECT FROM swarm._job LIMIT 1) LOOP COMMIT; PERFORM pg_sleep(0.002); END LOOP; END \$\$;
SELECT format('%s runners, %s roles: %s jobs/s, runners started so far %s', $runners, $roles,
    round(4000 / extract(epoch FROM clock_timestamp() - :'t')), (SELECT sum(generation) FROM swarm.workers WHERE role = 'runner'));
SQL
		done
	done
done
