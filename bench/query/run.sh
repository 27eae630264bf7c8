#!/usr/bin/env bash
# Query control: from request to paused, what it costs unused, 100 queries at once, the optimizer's tick.
#
#   bench/run query [latency|cost|instructions|many|tick...]
#
# Works in the cluster that bench/run has started. ROUNDS [10], PAUSES of each kind of statement [200], TICK_SECONDS [30],
# SESSIONS of part tick [1000]. Peers in the same run: pg_cancel_backend(), a server without the library, a scheduler without queries.
set -euo pipefail
rounds=${BENCH_ROUNDS:-${ROUNDS:-10}} pauses=${PAUSES:-200} tick=${TICK_SECONDS:-30} sessions=${SESSIONS:-1000} rows=1000000
rounds=${rounds:-10}
if [ -n "${BENCH_QUICK:-}" ]; then rounds=2 pauses=10 tick=6 sessions=50 rows=100000; fi
export PGDATABASE=postgres
work=$(mktemp -d /tmp/pg_swarm-query.XXXX)
victims=()
# ends the sessions of `victim`, and waits for that
finish_victims() {
	[ "${#victims[@]}" -gt 0 ] || return 0
	kill "${victims[@]}" 2>/dev/null || true
	sql -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgbench%'" >/dev/null || true
	wait "${victims[@]}" 2>/dev/null || true
	victims=()
	wait_for "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'pgbench%'"
}
trap 'finish_victims; rm -rf "$work"' EXIT
sql() { psql -X -q -v ON_ERROR_STOP=1 -A -t -F ' ' "$@"; }
load() { echo "load $(cut -d ' ' -f 1-3 /proc/loadavg)"; }
wait_for() {
	for _ in $(seq 600); do
		[ "$(sql -c "$1")" != t ] || return 0
		sleep 0.1
	done
	echo "not reached: $1" >&2
	exit 1
}
# victim SESSIONS SCRIPT: sessions that are queries, and run the script without end
victim() {
	printf '%s\n' "$2" >"$work/script"
	PGOPTIONS='-c pg_swarm.query_control=on -c max_parallel_workers_per_gather=0 -c jit=off' \
		pgbench -n -c "$1" -j 1 -T 100000 -f "$work/script" >/dev/null 2>"$work/pgbench.err" &
	victims+=($!)
	wait_for "SELECT count(*) = $1 FROM swarm.queries WHERE kind = 'session' AND state = 'running' AND pid IS NOT NULL"
}

sql <<SQL
SET client_min_messages = warning;
SET max_parallel_workers_per_gather = 0;
CREATE EXTENSION IF NOT EXISTS pg_swarm;
CREATE SCHEMA b;
CREATE TABLE b.big AS SELECT i AS id, i % 1003 AS g, repeat(chr(97 + i % 26), 20) AS t FROM generate_series(1, $rows) i;
ALTER TABLE b.big ADD PRIMARY KEY (id);
CREATE TABLE b.changed (id int PRIMARY KEY, v int) WITH (fillfactor = 50);
INSERT INTO b.changed SELECT i, i FROM generate_series(1, $rows / 10) i;
CREATE TABLE b.figure (what text, ms float8, ok boolean);
CREATE SEQUENCE b.cancelled;
-- pause and resume a query n times; what a caller waits for
CREATE PROCEDURE b.pause(what text, n int) LANGUAGE plpgsql AS \$\$
DECLARE
    q bigint := (SELECT id FROM swarm.queries WHERE kind = 'session' AND state = 'running' AND pid IS NOT NULL);
    t timestamptz;
    ms float8;
    answer text;
BEGIN
    FOR i IN -4 .. n LOOP
        t := clock_timestamp();
        answer := swarm.query_pause(q, timeout => '10 s');
        ms := extract(epoch FROM clock_timestamp() - t) * 1000;
        IF i > 0 THEN INSERT INTO b.figure VALUES (what, ms, answer = 'paused'); END IF;
        PERFORM swarm.query_resume(q);
        COMMIT;
        PERFORM pg_sleep(0.002 + random() * 0.01);
    END LOOP;
END \$\$;
-- the same with pg_cancel_backend: until the statement has noticed
CREATE PROCEDURE b.cancel(what text, n int) LANGUAGE plpgsql AS \$\$
DECLARE
    victim int := (SELECT pid FROM swarm.queries WHERE kind = 'session' AND state = 'running' AND pid IS NOT NULL);
    t float8;
    seen bigint;
BEGIN
    FOR i IN 1 .. n LOOP
        SELECT last_value INTO seen FROM b.cancelled;
        t := extract(epoch FROM clock_timestamp());
        PERFORM pg_cancel_backend(victim);
        WHILE (SELECT last_value FROM b.cancelled) = seen LOOP END LOOP;
        INSERT INTO b.figure SELECT what, last_value / 1000.0 - t * 1000, true FROM b.cancelled;
        COMMIT;
        PERFORM pg_sleep(0.002 + random() * 0.01);
    END LOOP;
END \$\$;
-- CPU of this process, ms
CREATE FUNCTION b.cpu() RETURNS float8 LANGUAGE sql AS \$\$ SELECT split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::float8 / 1e6 \$\$;
CREATE FUNCTION b.cost(n int) RETURNS float8 LANGUAGE plpgsql AS \$\$
DECLARE
    least float8;
    c float8;
BEGIN
    FOR i IN 0 .. n LOOP
        c := b.cpu();
        EXECUTE 'SELECT sum(a.g + b.g) FROM b.big a JOIN b.big b USING (id) WHERE a.g < 1000';
        c := b.cpu() - c;
        IF i > 0 THEN least := least(least, c); END IF;
    END LOOP;
    RETURN least;
END \$\$;
VACUUM ANALYZE;
SQL
note() {
	sql -c "SELECT format('%s: median %s ms, 95 %% %s, 99 %% %s, longest %s (%s times, %s not reached)', '$1', round(p[1]::numeric, 2), round(p[2]::numeric, 2), round(p[3]::numeric, 2), round(p[4]::numeric, 2), n, bad)
		FROM (SELECT percentile_cont('{0.5,0.95,0.99,1}'::float8[]) WITHIN GROUP (ORDER BY ms) AS p, count(*) AS n, count(*) FILTER (WHERE NOT ok) AS bad FROM b.figure WHERE what = '$1') s"
}

# --- from the call of query_pause() to its answer
latency() {
	echo "from request to paused, a call of query_pause() ($(load)):"
	local join="SELECT sum(a.g + b.g) FROM b.big a JOIN b.big b ON a.id = b.id + 1"
	pause_of '  sequential scan' 'SELECT sum(length(t)) FROM b.big;'
	pause_of '  index scan' 'SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT sum(length(t)) FROM b.big WHERE id > 0;'
	pause_of '  hash join' "SET enable_mergejoin = off; SET enable_nestloop = off; $join;"
	pause_of '  merge join' "SET enable_hashjoin = off; SET enable_nestloop = off; $join;"
	pause_of '  nested loop' "SET enable_hashjoin = off; SET enable_mergejoin = off; $join;"
	pause_of '  update' 'UPDATE b.changed SET v = v + 1;'
	pause_of '  PL/pgSQL loop' 'DO $$ DECLARE x bigint := 0; BEGIN FOR i IN 1 .. 3000000 LOOP x := x + i; END LOOP; END $$;'
	victim 1 "DO \$\$ BEGIN LOOP BEGIN PERFORM sum(length(t)) FROM b.big; EXCEPTION WHEN query_canceled THEN PERFORM setval('b.cancelled', (extract(epoch FROM clock_timestamp()) * 1e6)::bigint); END; END LOOP; END \$\$;"
	sql -c "CALL b.cancel('  beside it: pg_cancel_backend() of the sequential scan', $pauses)"
	finish_victims
	note '  beside it: pg_cancel_backend() of the sequential scan'
}
pause_of() {
	victim 1 "$2"
	sql -c "CALL b.pause('$1', $pauses)"
	finish_victims
	note "$1"
}

# --- CPU of a row-heavy query: without the library, with it, in a controlled session; two servers, turn by turn
cost() {
	local plain="$BENCH_DIR/plain" port=$((PGPORT + 1)) before after r v
	server_stop
	cp -a "$PGDATA" "$plain"
	# the same addresses in all processes: their layout alone can make a percent
	(cd / && as_server setarch -R "$BENCH_DIR/pg_ctl" start >/dev/null)
	(cd / && as_server setarch -R pg_ctl -D "$plain" -w -l "$plain/log" -o "-p $port -c shared_preload_libraries=''" start >/dev/null)
	before=$(load)
	sql -c 'CREATE TABLE b.cost (round int, plain float8, preloaded float8, controlled float8)'
	for r in $(seq "$rounds"); do
		declare -A ms
		for v in $(shuf -e plain preloaded controlled); do
			case $v in
				plain) ms[$v]=$(PGPORT=$port PGOPTIONS='-c jit=off -c max_parallel_workers_per_gather=0' sql -c 'SELECT b.cost(5)') ;;
				preloaded) ms[$v]=$(PGOPTIONS='-c jit=off -c max_parallel_workers_per_gather=0' sql -c 'SELECT b.cost(5)') ;;
				controlled) ms[$v]=$(PGOPTIONS='-c jit=off -c max_parallel_workers_per_gather=0 -c pg_swarm.query_control=on' sql -c 'SELECT b.cost(5)') ;;
			esac
		done
		sql -c "INSERT INTO b.cost VALUES ($r, ${ms[plain]}, ${ms[preloaded]}, ${ms[controlled]})"
	done
	after=$(load)
	(cd / && as_server pg_ctl -D "$plain" -m fast stop >/dev/null)
	rm -rf "$plain"
	echo "CPU of a join of $rows rows, best of 5 in each of $rounds rounds ($before to $after):"
	sql <<'SQL'
SELECT format('  without the library: %s ms', round((percentile_cont(0.5) WITHIN GROUP (ORDER BY plain))::numeric, 1)) FROM b.cost;
SELECT format('  with it, session %s: %s %% (rounds: %s to %s; best to best: %s)', v,
    to_char((percentile_cont(0.5) WITHIN GROUP (ORDER BY ms / plain) - 1) * 100, 'FMSG990.00'),
    to_char((min(ms / plain) - 1) * 100, 'FMSG990.00'), to_char((max(ms / plain) - 1) * 100, 'FMSG990.00'),
    to_char((min(ms) / min(plain) - 1) * 100, 'FMSG990.00'))
FROM b.cost, LATERAL (VALUES ('not controlled', preloaded), ('controlled', controlled)) x (v, ms) GROUP BY v ORDER BY v DESC;
SQL
	server_stop
	server_start ''
}

# --- instructions of the same kind, which no neighbour on the machine changes: valgrind counts those of a backend
instructions() {
	if ! command -v valgrind >/dev/null; then
		echo "instructions: left out, there is no valgrind"
		return 0
	fi
	local few=$((rows / 50)) plain="$BENCH_DIR/plain" port=$((PGPORT + 1)) times=4 counts="$BENCH_DIR/counts" rounds=3 r what
	local join='SELECT sum(a.g + b.g) FROM b.few a JOIN b.few b ON a.id = b.id + 1'
	[ -z "${BENCH_QUICK:-}" ] || rounds=1
	declare -A statement=(
		[1 sequential scan]='SELECT sum(length(t)) FROM b.few'
		[2 index scan]='SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT sum(length(t)) FROM b.few WHERE id > 0'
		[3 hash join]="SET enable_mergejoin = off; SET enable_nestloop = off; $join"
		[4 merge join]="SET enable_hashjoin = off; SET enable_nestloop = off; $join"
		[5 nested loop]="SET enable_hashjoin = off; SET enable_mergejoin = off; $join"
		[6 aggregate]='SELECT sum(s) FROM (SELECT g, sum(id) AS s FROM b.few GROUP BY g) x'
		[7 insert, update, delete]='BEGIN; CREATE TEMP TABLE u ON COMMIT DROP AS SELECT id, g FROM b.few; UPDATE u SET g = g + 1; DELETE FROM u; COMMIT'
		[8 PL/pgSQL loop]="DO \$\$ DECLARE x bigint := 0; BEGIN FOR i IN 1 .. $few LOOP x := x + i; END LOOP; END \$\$"
		[9 PL/pgSQL loop with statements]="DO \$\$ DECLARE x bigint := 0; y text; BEGIN FOR i IN 1 .. $few / 10 LOOP SELECT t INTO y FROM b.few WHERE id = i; x := x + length(y); END LOOP; END \$\$"
	)
	sql -c "CREATE TABLE b.few AS SELECT * FROM b.big WHERE id <= $few" -c 'ALTER TABLE b.few ADD PRIMARY KEY (id)' -c 'VACUUM ANALYZE b.few' \
		-c 'CREATE TABLE b.instructions (round int, arm text, what text, n bigint)' -c 'CHECKPOINT'
	server_stop
	cp -a "$PGDATA" "$plain"
	mkdir "$counts"
	chmod 777 "$counts"
	printf '#!/bin/sh\nexec setarch -R valgrind --tool=cachegrind --cache-sim=no --cachegrind-out-file=/dev/null --log-file=%s/%%p "%s" "$@"\n' \
		"$counts" "$(command -v postgres)" >"$BENCH_DIR/counted"
	chmod 755 "$BENCH_DIR/counted"
	(cd / && as_server pg_ctl -p "$BENCH_DIR/counted" -D "$PGDATA" -w -t 300 -l "$PGDATA/log" -o '-c autovacuum=off' start >/dev/null)
	(cd / && as_server pg_ctl -p "$BENCH_DIR/counted" -D "$plain" -w -t 300 -l "$plain/log" \
		-o "-p $port -c autovacuum=off -c shared_preload_libraries=''" start >/dev/null)
	for v in plain preloaded controlled; do
		count_of "$v" 'SELECT 1' >"$work/first" # the first session of a server writes the cache of catalogs
	done
	for r in $(seq "$rounds"); do
		for what in "${!statement[@]}"; do
			for v in $(shuf -e plain preloaded controlled); do
				echo "INSERT INTO b.instructions VALUES ($r, '$v', '$what', $(count_of "$v" "${statement[$what]}"));"
			done
		done
	done >"$work/instructions.sql"
	(cd / && as_server pg_ctl -D "$plain" -m fast stop >/dev/null)
	(cd / && as_server pg_ctl -D "$PGDATA" -m fast stop >/dev/null)
	rm -rf "$plain"
	server_start ''
	sql -f "$work/instructions.sql"
	echo "instructions of statements over $few rows, $rounds rounds, by valgrind:"
	sql <<'SQL'
SELECT format('  %s: %s million without the library; with it, session not controlled %s %%, controlled %s %% (spread of each: %s %%)', substr(what, 3),
    round(plain / 1e6, 1), to_char((preloaded / plain - 1) * 100, 'FMSG990.000'), to_char((controlled / plain - 1) * 100, 'FMSG990.000'), round(spread * 100, 3))
FROM (SELECT what, max(n) FILTER (WHERE arm = 'plain') AS plain, max(n) FILTER (WHERE arm = 'preloaded') AS preloaded,
             max(n) FILTER (WHERE arm = 'controlled') AS controlled, max(spread) AS spread
      FROM (SELECT what, arm, percentile_cont(0.5) WITHIN GROUP (ORDER BY n)::numeric AS n, (max(n) - min(n)) / avg(n) AS spread
            FROM b.instructions GROUP BY what, arm) a GROUP BY what) s ORDER BY what;
SQL
}
# count_of ARM SQL: those of one execution: a session with $times + 1 of them against one with one
count_of() {
	local one many control=off p=$PGPORT
	[ "$1" != plain ] || p=$port
	[ "$1" != controlled ] || control=on
	export PGOPTIONS="-c jit=off -c max_parallel_workers_per_gather=0 -c pg_swarm.query_control=$control"
	one=$(PGPORT=$p count_session 1 "$2")
	many=$(PGPORT=$p count_session $((times + 1)) "$2")
	echo $(((many - one) / times))
}
count_session() {
	local pid
	for _ in $(seq "$1"); do echo "$2;"; done >"$work/counted.sql"
	pid=$(sql -c 'SELECT pg_backend_pid()' -c '\o /dev/null' -f "$work/counted.sql" | head -1)
	for _ in $(seq 600); do
		grep -q 'I *refs:' "$counts/$pid" && break
		sleep 0.1
	done
	sed -n 's/,//g; s/.*I *refs: *//p' "$counts/$pid"
}

# --- 100 controlled queries at once, and whether actions succeed
many() {
	sql -c 'ALTER SYSTEM SET max_connections = 130'
	server_stop && server_start ''
	victim 100 'SELECT sum(length(t)) FROM b.big;'
	echo "100 controlled queries at once ($(load)):"
	sql <<'SQL'
CREATE TABLE b.action (action text, ok boolean, ms float8);
CREATE PROCEDURE b.act(action text, params jsonb, expected text, n int) LANGUAGE plpgsql AS $$
DECLARE
    q bigint;
    t timestamptz;
    good boolean;
BEGIN
    FOR q IN SELECT id FROM swarm.queries WHERE kind = 'session' AND state IN ('running', 'paused') AND pid IS NOT NULL LIMIT n LOOP
        t := clock_timestamp();
        BEGIN
            good := swarm.query_control(action, q, params) @> expected::jsonb;
        EXCEPTION WHEN OTHERS THEN
            good := false;
            RAISE WARNING '%: %', action, SQLERRM;
        END;
        INSERT INTO b.action VALUES (action, good, extract(epoch FROM clock_timestamp() - t) * 1000);
        COMMIT;
    END LOOP;
END $$;
CALL b.act('pause', '{"timeout": "10 s"}', '{"state": "paused"}', 100);
SELECT format('  all paused at once: %s', count(*) FILTER (WHERE state = 'paused')) FROM swarm.queries WHERE pid IS NOT NULL;
CALL b.act('status', '{}', '{"query": {"state": "paused"}}', 100);
CALL b.act('execute_command', '{"command": "SELECT 6 * 7"}', '{"result": "42"}', 100);
CALL b.act('change_permissions', '{"mode": "plan"}', '{"state": "paused"}', 100);
CALL b.act('change_permissions', '{"mode": "default"}', '{"state": "paused"}', 100);
CALL b.act('resume', '{}', '{"state": "running"}', 100);
CALL b.act('pause', '{"timeout": "10 s"}', '{"state": "paused"}', 100);
CALL b.act('resume', '{}', '{"state": "running"}', 100);
CALL b.act('terminate', '{}', '{"state": "terminated"}', 100);
SELECT format('  %s: %s of %s, median %s ms, 95 %% %s', action, count(*) FILTER (WHERE ok), count(*),
    round((percentile_cont(0.5) WITHIN GROUP (ORDER BY ms))::numeric, 2), round((percentile_cont(0.95) WITHIN GROUP (ORDER BY ms))::numeric, 2))
FROM b.action GROUP BY action ORDER BY action;
SELECT format('  actions that succeeded: %s %%', round(avg(ok::int) * 100, 2)) FROM b.action;
SQL
	finish_victims
}

# --- CPU of the scheduler with the optimizer on, every 5 s: no query, and 1000 of them
tick() {
	sql -c "ALTER SYSTEM SET max_connections = $((sessions + 50))"
	server_stop && server_start ''
	sql -c "SELECT swarm.optimizer_start('5 s')" >/dev/null
	echo "the scheduler, rules every 5 s, $tick s each ($(load)):"
	scheduler_cpu 'no query'
	victim "$sessions" $'SELECT 1;\n\\sleep 100000 s'
	sleep 3
	scheduler_cpu "$sessions registered sessions"
	finish_victims
}
scheduler_cpu() {
	local pid before
	pid=$(sql -c "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm scheduler' AND datname = current_database()")
	before=$(cut -d ' ' -f 1 "/proc/$pid/schedstat")
	sleep "$tick"
	echo "  $1: $(sql -c "SELECT round(($(cut -d ' ' -f 1 "/proc/$pid/schedstat") - $before) / 1e7 / $tick, 3)") % of a core"
}

for part in "${@:-latency cost instructions many tick}"; do
	for p in $part; do "$p"; done
done
