#!/bin/bash
# Memory beside Redis and a plain table; the cache under Zipf; the sweep; search by meaning.
#
#   bench/run memory [ops|hit|zipf|sweep|search...]
#
# Works in the cluster that bench/run has started.  `SWEEP_ROWS=10000000 bench/run memory sweep` takes 4 GB of disk
# and a quarter of an hour.  SECS: length of a measurement [2]; ROUNDS [3]; ZIPF_KEYS [500000];
# SWEEP_ROWS [2000000]; SEARCH_ROWS [100000].  Needs redis-server and redis-benchmark of the distribution; without
# them their lines are left out.
set -euo pipefail
secs=${SECS:-2} rounds=${BENCH_ROUNDS:-${ROUNDS:-3}}
rounds=${rounds:-3}
zipf_keys=${ZIPF_KEYS:-500000} sweep_rows=${SWEEP_ROWS:-2000000} search_rows=${SEARCH_ROWS:-100000}
if [ -n "${BENCH_QUICK:-}" ]; then
	secs=1 rounds=1 zipf_keys=20000 sweep_rows=20000 search_rows=2000
fi
work=$(mktemp -d /tmp/pg_swarm-memory.XXXX)
redis_pid=
trap '[ -z "$redis_pid" ] || kill "$redis_pid"; rm -rf "$work"' EXIT
export PGDATABASE=postgres
sql() { psql -X -q -v ON_ERROR_STOP=1 -A -t -F ' ' "$@"; }
# jiffies of CPU of all processes of the server, also of those that have ended
cpu() {
	local pid total=0
	for pid in "$BENCH_PM" $(cat "/proc/$BENCH_PM/task/$BENCH_PM/children"); do
		read -r -a stat <"/proc/$pid/stat" 2>/dev/null || continue
		total=$((total + stat[13] + stat[14]))
		[ "$pid" != "$BENCH_PM" ] || total=$((total + stat[15] + stat[16]))
	done
	echo "$total"
}
load() { cut -d ' ' -f 1-3 /proc/loadavg; }

# bench NAME CLIENTS SQL: transactions a second, and CPU of the server for one of them in microseconds
bench() {
	local before after out
	printf '%s\n' "$3" >"$work/script"
	before=$(cpu)
	out=$(pgbench -n -M prepared -T "$secs" -c "$2" -j 1 -f "$work/script" 2>"$work/err") || { cat "$work/err" >&2; exit 1; }
	sleep 0.2
	after=$(cpu)
	awk -v name="$1" -v clients="$2" -v jiffies=$((after - before)) '
		/^tps = / { tps = $3 }
		/actually processed:/ { n = $NF; sub(/\/.*/, "", n) }
		END { printf "%-34s %2d %9.0f %7.1f\n", name, clients, tps, jiffies * 10000 / n }' <<<"$out" | tee -a "$work/ops"
}

redis() { redis-benchmark -s "$work/redis.sock" -q --csv "$@" | tail -1 | cut -d, -f2 | tr -d '"'; }

part_ops() {
	echo "ops: rate a second and, of the server, CPU µs an operation; $rounds rounds of $secs s, load at start $(load)"
	echo "name                        clients      rate  CPU µs"
	sql <<-'X'
		SET client_min_messages = warning;
		CREATE EXTENSION IF NOT EXISTS pg_swarm;
		SELECT swarm.namespace_create('b'), swarm.namespace_create('t', cached => false), swarm.namespace_create('u', durability => 'unlogged') \g /dev/null
		SELECT count(swarm.memory_store(n, 'k' || i, to_jsonb(repeat('x', 200)), '1 hour')) FROM unnest('{b,t,u}'::text[]) n, generate_series(1, 1000) i \g /dev/null
		CREATE TABLE plain (key text PRIMARY KEY, value jsonb NOT NULL, expires_at timestamptz) WITH (fillfactor = 80);
		INSERT INTO plain SELECT 'k' || i, to_jsonb(repeat('x', 200)), now() + interval '1 hour' FROM generate_series(1, 1000) i;
		CREATE UNLOGGED TABLE plain_unlogged (LIKE plain INCLUDING ALL) WITH (fillfactor = 80);
		INSERT INTO plain_unlogged SELECT * FROM plain;
		-- new keys have a table of their own, that grows
		SELECT swarm.namespace_create('new', durability => 'unlogged') \g /dev/null
		CREATE UNLOGGED TABLE plain_new (LIKE plain INCLUDING ALL) WITH (fillfactor = 80);
		-- what a call costs: the plain upsert in a function
		CREATE FUNCTION upsert(k text, v jsonb, ttl interval) RETURNS void LANGUAGE sql
		AS 'INSERT INTO plain_unlogged VALUES (k, v, now() + ttl) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, expires_at = EXCLUDED.expires_at';
	X
	if command -v redis-server >/dev/null; then
		redis-server --port 0 --unixsocket "$work/redis.sock" --save '' --appendonly no --dir "$work" >"$work/redis.log" &
		redis_pid=$!
		until redis-cli -s "$work/redis.sock" ping >/dev/null 2>&1; do sleep 0.1; done
	fi
	local clients upsert='ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, expires_at = EXCLUDED.expires_at'
	local value="to_jsonb(repeat('y', 200))" n=$((secs * 20000))
	for _ in $(seq "$rounds"); do
		for clients in 1 16; do
			bench 'SELECT 1' $clients 'SELECT 1;'
			bench 'get: cache hit' $clients "\\set k random(1, 1000)
SELECT swarm.memory_get('b', 'k' || :k) IS NULL;"
			bench 'get: table' $clients "\\set k random(1, 1000)
SELECT swarm.memory_get('t', 'k' || :k) IS NULL;"
			bench 'get: plain table' $clients "\\set k random(1, 1000)
SELECT value IS NULL FROM plain WHERE key = 'k' || :k AND expires_at > now();"
			bench 'store: logged' $clients "\\set k random(1, 1000)
SELECT swarm.memory_store('b', 'k' || :k, $value, '1 hour');"
			bench 'store: plain table' $clients "\\set k random(1, 1000)
INSERT INTO plain VALUES ('k' || :k, $value, now() + interval '1 hour') $upsert;"
			bench 'store: unlogged' $clients "\\set k random(1, 1000)
SELECT swarm.memory_store('u', 'k' || :k, $value, '1 hour');"
			bench 'store: plain unlogged table' $clients "\\set k random(1, 1000)
INSERT INTO plain_unlogged VALUES ('k' || :k, $value, now() + interval '1 hour') $upsert;"
			bench 'store: function on plain unlogged' $clients "\\set k random(1, 1000)
SELECT upsert('k' || :k, $value, '1 hour');"
			bench 'store: unlogged, new key' $clients "\\set k random(1, 1000000000000)
SELECT swarm.memory_store('new', 'k' || :k, $value, '1 hour');"
			bench 'store: plain unlogged, new key' $clients "\\set k random(1, 1000000000000)
INSERT INTO plain_new VALUES ('k' || :k, $value, now() + interval '1 hour') $upsert;"
			if [ -n "$redis_pid" ]; then
				printf '%-34s %2d %9.0f\n' 'Redis SET EX' $clients "$(redis -c $clients -n $n -r 1000 SET k__rand_int__ "$(printf 'x%.0s' {1..200})" EX 3600)" | tee -a "$work/ops"
				printf '%-34s %2d %9.0f\n' 'Redis GET' $clients "$(redis -c $clients -n $n -r 1000 GET k__rand_int__)" | tee -a "$work/ops"
			fi
			PGOPTIONS='-c synchronous_commit=off' bench 'track_spawn, commit not awaited' $clients "\\set k random(1, 1000)
SELECT swarm.track_spawn('a' || :k, 'coder', 'a task');"
		done
	done
	echo
	echo 'median over the rounds, lowest and highest; CPU: median'
	python3 -c '
import sys, collections, re, statistics
rows = collections.OrderedDict()
for line in sys.stdin:
    m = re.match(r"(.{34}) ([ \d]\d) +(\d+)(?: +([\d.]+))?", line)
    rows.setdefault((m[1].strip(), int(m[2])), []).append((int(m[3]), float(m[4]) if m[4] else None))
med = {}
for (name, clients), values in rows.items():
    rates = [v[0] for v in values]
    cpus = [v[1] for v in values if v[1] is not None]
    med[name, clients] = statistics.median(rates), statistics.median(cpus) if cpus else None
    print(f"{name:34} {clients:2} {med[name, clients][0]:9.0f} {min(rates):9} {max(rates):9}" + (f" {med[name, clients][1]:7.1f}" if cpus else ""))
def show(what, a, b, clients, others=None):
    others = others or clients
    if (a, clients) in med and (b, others) in med:
        ca, cb = med[a, clients][1], med[b, others][1]
        print(f"{what:46} {clients:2} {med[a, clients][0] / med[b, others][0]:6.2f}" + (f"  CPU {ca / cb:5.2f}" if ca and cb else ""))
print("\nratios of rates, and of CPU")
for c in (1, 16):
    show("cache hit : SELECT 1", "get: cache hit", "SELECT 1", c)
    show("cache hit : plain table", "get: cache hit", "get: plain table", c)
    show("table : plain table", "get: table", "get: plain table", c)
    show("store : plain upsert", "store: logged", "store: plain table", c)
    show("unlogged store : plain unlogged upsert", "store: unlogged", "store: plain unlogged table", c)
    show("  function on plain : plain unlogged upsert", "store: function on plain unlogged", "store: plain unlogged table", c)
    show("  unlogged store : function on plain", "store: unlogged", "store: function on plain unlogged", c)
    show("  new key, unlogged : plain unlogged", "store: unlogged, new key", "store: plain unlogged, new key", c)
    show("cache hit : Redis GET of 1 connection", "get: cache hit", "Redis GET", c, 1)
    show("  the floor: SELECT 1 : the same", "SELECT 1", "Redis GET", c, 1)
    show("cache hit : Redis GET of as many", "get: cache hit", "Redis GET", c)
    show("  the floor: SELECT 1 : the same", "SELECT 1", "Redis GET", c)
    show("store unlogged : Redis SET EX of 1 connection", "store: unlogged", "Redis SET EX", c, 1)
    show("  the floor: SELECT 1 : the same", "SELECT 1", "Redis SET EX", c, 1)
hit, one, track = med["get: cache hit", 1], med["SELECT 1", 1], med["track_spawn, commit not awaited", 1]
print(f"a hit above SELECT 1: {1e6 / hit[0] - 1e6 / one[0]:.1f} µs elapsed, {hit[1] - one[1]:.1f} µs CPU; a record of the tracker: {1e3 / track[0]:.2f} ms")' <"$work/ops"
}

# Reads of a key beside SELECT 1, each drawn at random for each transaction of the same connection, so that
# whatever else the machine does meets all alike; and calls inside the server, in turns.
part_hit() {
	local round clients scripts=(one hit plain hot plain_hot large plain_large)
	echo "hit: latency of one statement, interleaved at random; $rounds rounds of $secs s; load at start $(load)"
	server_stop
	server_start ''
	sql <<-'X'
		SET client_min_messages = warning;
		CREATE EXTENSION IF NOT EXISTS pg_swarm;
		SELECT swarm.namespace_create('h') \g /dev/null
		CREATE TABLE beside (key text PRIMARY KEY, value jsonb NOT NULL, expires_at timestamptz) WITH (fillfactor = 80);
		INSERT INTO beside SELECT 'k' || i, to_jsonb(repeat('x', 200)), now() + interval '1 day' FROM generate_series(1, 1000) i;
		INSERT INTO beside SELECT 'l' || i, (SELECT jsonb_agg(md5(i::text || j)) FROM generate_series(1, 600) j), now() + interval '1 day' FROM generate_series(1, 500) i;
		SELECT count(swarm.memory_store('h', key, value, '1 day')) FROM beside \g /dev/null
		VACUUM ANALYZE beside;
		CREATE FUNCTION gets(n int, cached boolean) RETURNS float8 LANGUAGE plpgsql AS $$
		DECLARE
			began timestamptz := clock_timestamp();
			k text;
			v jsonb;
		BEGIN
			FOR i IN 1 .. n LOOP
				k := 'k' || i % 1000 + 1;
				IF cached THEN
					v := swarm.memory_get('h', k);
				ELSE
					SELECT value INTO v FROM beside WHERE key = k AND expires_at > now();
				END IF;
			END LOOP;
			RETURN extract(epoch FROM clock_timestamp() - began) * 1e6 / n;
		END $$;
	X
	local get="SELECT swarm.memory_get('h', " plain='FROM beside WHERE expires_at > now() AND key ='
	echo 'SELECT 1;' >"$work/one"
	printf '%s\n' '\set k random(1, 1000)' "$get'k' || :k) IS NULL;" >"$work/hit"
	printf '%s\n' '\set k random(1, 1000)' "SELECT value IS NULL $plain 'k' || :k;" >"$work/plain"
	echo "$get'k1') IS NULL;" >"$work/hot"
	echo "SELECT value IS NULL $plain 'k1';" >"$work/plain_hot"
	printf '%s\n' '\set k random(1, 500)' "SELECT jsonb_array_length(swarm.memory_get('h', 'l' || :k));" >"$work/large"
	printf '%s\n' '\set k random(1, 500)' "SELECT jsonb_array_length(value) $plain 'l' || :k;" >"$work/plain_large"
	for clients in 1 16; do
		for ((round = 1; round <= rounds; round++)); do
			# shellcheck disable=SC2046
			(cd "$work" && pgbench -n -M prepared -T "$((secs * 3))" -c $clients -j 1 $(printf -- '-f %s ' "${scripts[@]}") \
				-l --log-prefix="hit.$clients.$round" >/dev/null)
		done
	done
	for ((round = 1; round <= rounds * 3; round++)); do
		sql -c "SELECT gets(20000, true), gets(20000, false)" | sed "s/^/$((round)) /" >>"$work/inside"
	done
	python3 - "$work" "$rounds" "${scripts[@]}" <<-'X'
		import sys, glob, statistics as st
		work, rounds, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
		label = dict(hit='cache hit, 200 bytes', plain='plain table, 200 bytes', hot='cache hit, one key for all', plain_hot='plain table, one key for all',
		             large='cache hit, 21 kB', plain_large='plain table, 21 kB')
		for clients in (1, 16):
		    above = {}
		    for r in range(1, rounds + 1):
		        times = [[] for _ in names]
		        for file in glob.glob(f'{work}/hit.{clients}.{r}.*'):
		            for line in open(file):
		                word = line.split()
		                times[int(word[3])].append(int(word[2]))
		        middle = [st.median(t) for t in times]
		        for name, m in zip(names, middle):
		            above.setdefault(name, []).append(m - middle[0] if name != 'one' else m)
		    print(f'{clients} client(s): SELECT 1, median {st.median(above["one"]):.0f} µs; above it, median of the rounds, lowest and highest:')
		    for name in names[1:]:
		        print(f'  {label[name]:30} {st.median(above[name]):6.1f} {min(above[name]):6.1f} {max(above[name]):6.1f} µs')
		inside = [[float(x) for x in line.split()[1:]] for line in open(f'{work}/inside')]
		for i, name in ((0, 'cache hit'), (1, 'plain table')):
		    column = [x[i] for x in inside]
		    print(f'in PL/pgSQL, {name:12} {st.median(column):6.2f} {min(column):6.2f} {max(column):6.2f} µs a call')
	X
	echo "  load at the end $(load)"
	sql -c "SELECT swarm.namespace_drop('h')" -c 'DROP TABLE beside' >/dev/null
}

part_zipf() {
	local before after
	server_stop
	server_start '-c pg_swarm.cache_size=1MB'
	sql -c "SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS pg_swarm" -c "SELECT swarm.namespace_create('z')" >/dev/null
	# so many keys that a tenth of what is stored is the cache's size
	sql -c "INSERT INTO swarm._memory SELECT n.id, 'k' || i, 1, NULL, NULL, now(), now(), 110, n.owner, '{}', to_jsonb(repeat('x', 100))
		FROM swarm._namespace n, generate_series(1, $zipf_keys) i WHERE name = 'z'"
	sql -c 'VACUUM ANALYZE swarm._memory'
	local mb=$((zipf_keys * 184 / 10 / 1048576 + 1))
	server_stop
	server_start "-c pg_swarm.cache_size=${mb}MB"
	{
		for i in 1 2 3 4 5 6 7 8; do echo "\\set k$i random_zipfian(1, $zipf_keys, 1.001)"; done
		echo "SELECT $(for i in 1 2 3 4 5 6 7 8; do printf "swarm.memory_get('z', 'k' || :k%s) IS NULL%s" $i "$([ $i = 8 ] || echo ,)"; done);"
	} >"$work/zipf"
	pgbench -n -M prepared -t $((zipf_keys * 2 / 16)) -c 2 -f "$work/zipf" >/dev/null
	read -r -a before < <(sql -c 'SELECT hits, misses FROM swarm.stat_cache')
	pgbench -n -M prepared -t $((zipf_keys / 16)) -c 2 -f "$work/zipf" >"$work/out"
	read -r -a after < <(sql -c 'SELECT hits, misses FROM swarm.stat_cache')
	echo "zipf: exponent 1.001 over $zipf_keys keys of 100 bytes, cache of $mb MB"
	sql -c "SELECT 'entries in the cache ' || entries || ', evictions ' || evictions FROM swarm.stat_cache"
	python3 -c "
h, m, n, c = ${after[0]} - ${before[0]}, ${after[1]} - ${before[1]}, $zipf_keys, $(sql -c 'SELECT entries FROM swarm.stat_cache')
best = sum(i ** -1.001 for i in range(1, c + 1)) / sum(i ** -1.001 for i in range(1, n + 1))
print(f'hit rate {h / (h + m):.3f} of {h + m} gets, after 2 warm-up gets a key; the {c} most frequent keys for ever would be {best:.3f}')"
	sql -c "SELECT swarm.namespace_drop('z')" >/dev/null
}

# fill KEY EXPIRY ROWS: entries of namespace w, in transactions of half a million
fill() {
	local i
	for ((i = 0; i < $3; i += 500000)); do
		sql -c "INSERT INTO swarm._memory SELECT n.id, '$1' || i, 1, e, e, now(), now(), 110, n.owner, '{}', to_jsonb(repeat('x', 100))
			FROM swarm._namespace n, generate_series($i + 1, least($i + 500000, $3)) i, LATERAL (SELECT $2 AS e) x WHERE name = 'w'"
	done
}

part_sweep() {
	local scheduler before after started elapsed jiffies all target half=$((sweep_rows / 2)) cycle
	server_stop
	server_start '-c pg_swarm.memory_sweep_interval=1s'
	sql -c "SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS pg_swarm; SELECT swarm.namespace_create('w')" >/dev/null
	echo "sweep: $sweep_rows entries of 100 bytes, half of them expire in each hour; the clock is moved; load at start $(load)"
	fill stays 'NULL::timestamptz' "$half"
	for cycle in 1 2 3 4; do
		# in the second half of the hour: filling takes a while, too
		fill "c$cycle." "swarm._now() + interval '30 min' * (1 + i::float8 / $half)" "$half"
		scheduler=$(sql -c "SELECT pid FROM swarm.workers WHERE role = 'scheduler'")
		read -r -a before <"/proc/$scheduler/stat"
		all=$(cpu)
		started=$(date +%s.%N)
		target=$(sql -c "SELECT swarm._clock_advance('1 hour')")
		until [ "$(sql -c "SELECT NOT EXISTS (SELECT FROM swarm._memory WHERE sweep_at <= '$target' AND sweep_at >= coalesce((SELECT swept_to FROM swarm._memory_swept WHERE kind = 'swarm._memory'), '-infinity'))")" = t ]; do sleep 0.5; done
		elapsed=$(echo "$(date +%s.%N) - $started" | bc)
		read -r -a after <"/proc/$scheduler/stat"
		jiffies=$((after[13] + after[14] - before[13] - before[14]))
		sql -c 'VACUUM swarm._memory'
		all=$(($(cpu) - all))
		python3 -c "
s, a, n = $jiffies / 100, $all / 100, $half
print(f'hour $cycle: {n} swept in {float($elapsed):.0f} s, {s:.1f} s of CPU ({s / n * 1e6:.1f} µs an entry): {s / 36:.2f} % of a core over the hour; all processes, with VACUUM, {a:.1f} s: {a / 36:.2f} %')"
		sql -c "SELECT '  left ' || count(*) || ' entries; size: table ' || pg_size_pretty(pg_relation_size('swarm._memory')) || ', index of keys ' || pg_size_pretty(pg_relation_size('swarm._memory_pkey')) || ', of sweeps ' || pg_size_pretty(pg_relation_size('swarm._memory_sweep')) FROM swarm._memory"
	done
	echo "  load at the end $(load)"
	sql -c "SELECT swarm._clock_advance(NULL), swarm.namespace_drop('w')" >/dev/null
	sql -c 'TRUNCATE swarm._memory'
}

part_search() {
	server_stop
	server_start ''
	echo "search: $search_rows entries of about 8 words, swarm.embed with 384 dimensions, 10 answers"
	sql <<-X
		SET client_min_messages = warning;
		CREATE EXTENSION IF NOT EXISTS pg_swarm;
		SELECT swarm.namespace_create('s'), setseed(0.5) \g /dev/null
		-- words of a topic, and some of everybody's
		CREATE TABLE text (id serial, body text);
		INSERT INTO text (body) SELECT string_agg(CASE WHEN random() < 0.8 THEN 'word' || i % 500 || 'x' || floor(random() * 30) ELSE 'common' || floor(random() * 500) END, ' ')
			FROM generate_series(1, $search_rows + 1000) i, generate_series(1, 8) GROUP BY i ORDER BY i;
		CREATE TABLE query AS SELECT id - $search_rows AS id, body FROM text WHERE id > $search_rows;
		CREATE UNIQUE INDEX ON query (id);
		INSERT INTO swarm._memory SELECT n.id, 'k' || t.id, 1, NULL, NULL, now(), now(), 110, n.owner, '{}', to_jsonb(t.body)
			FROM swarm._namespace n, text t WHERE name = 's' AND t.id <= $search_rows;
		ANALYZE swarm._memory;
	X
	sql -c '\timing on' -c "SELECT swarm.namespace_alter('s', '{\"embed\": true}')" | sed -n 's/^Time: /  embeddings and index made in /p'
	local recall before after
	recall=$(sql -c "SELECT format('swarm._recall_%s', id) FROM swarm._namespace WHERE name = 's'")
	sql -c "VACUUM ANALYZE $recall"
	sql <<-X
		SET enable_indexscan = off;
		CREATE TABLE truth AS SELECT q.id, (SELECT array_agg(key) FROM (SELECT r.key FROM $recall r ORDER BY r.embedding <=> e LIMIT 10) x) AS keys,
			(SELECT max(d) FROM (SELECT r.embedding <=> e AS d FROM $recall r ORDER BY 1 LIMIT 10) x) AS worst
			FROM query q, swarm.embed(q.body, 384) e WHERE q.id <= 50;
	X
	sql -c "SELECT '  recall of 10, ties counted as found: ' || round(avg(found), 4) FROM (SELECT t.id, count(*) FILTER (WHERE distance <= worst + 1e-5) / 10.0 AS found
		FROM truth t JOIN query q USING (id), swarm.memory_search('s', q.body, 10, 'semantic') m GROUP BY t.id) x"
	for mode in semantic text hybrid; do
		printf '%s\n' '\set i random(1, 1000)' "SELECT count(*) FROM query q, swarm.memory_search('s', q.body, 10, '$mode') WHERE q.id = :i;" >"$work/search"
		before=$(cpu)
		(cd "$work" && pgbench -n -M prepared -T "$((secs * 2))" -c 1 -f search -l --log-prefix "$work/$mode" >/dev/null)
		sleep 0.2
		after=$(cpu)
		cat "$work/$mode".* | python3 -c "
import sys
t = sorted(int(l.split()[2]) / 1000 for l in sys.stdin)
print(f'  $mode: median {t[len(t) // 2]:.2f} ms, lowest tenth {t[len(t) // 10]:.2f} ms, p95 {t[len(t) * 95 // 100]:.2f} ms, {len(t)} calls, {($after - $before) * 10 / len(t):.2f} ms of CPU each')"
	done
	echo "  load at the end $(load)"
}

[ $# -gt 0 ] || set -- ops hit zipf sweep search
for part; do
	"part_$part"
	echo
done
