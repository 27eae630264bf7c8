#!/usr/bin/env bash
# Sources that are larger than what a test can have: a large object of 2.5 GB, a bytea of nearly 1 GB in a
# column, a file of 6 GB with holes.  Each is sent to a server that keeps digests only; the ETag must be
# that of the source's own bytes, and the runner's memory must not grow.  Takes 10 GB of disk for a while.
#
#   bench/run s3large
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d /tmp/pg_swarm-large.XXXX)
pid=
trap '[ -z "$pid" ] || kill "$pid"; rm -rf "$work"' EXIT
chmod 755 "$work"
part=$((8 * 1024 * 1024))

sql() { psql -XqAt -v ON_ERROR_STOP=1 "$@"; }

# memory of the largest runner, MB: private, and the most it ever was with the shared buffers that it touched
memory() {
	local p
	for p in $(sql -c "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner'"); do
		sed -n 's/^RssAnon:[[:space:]]*\([0-9]*\).*/\1/p' "/proc/$p/status" 2>/dev/null || true
	done | sort -n | tail -n 1 | awk '{ printf "%.1f", $1 / 1024 }'
}

# ticks of CPU of all runners
ticks() {
	local p
	for p in $(sql -c "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner'"); do
		sed 's/.*) //' "/proc/$p/stat" 2>/dev/null | cut -d ' ' -f 12,13 || true
	done | awk '{ n += $1 + $2 } END { print n + 0 }'
}

python3 discard.py "$work/port" &
pid=$!
until [ -s "$work/port" ]; do sleep 0.1; done
sql <<X
CREATE EXTENSION pg_swarm;
CREATE SERVER discard FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'http://127.0.0.1:$(cat "$work/port")');
CREATE USER MAPPING FOR PUBLIC SERVER discard OPTIONS (access_key_id 'AKTEST', secret_access_key 'SKTEST');
ALTER SYSTEM SET pg_swarm.s3_max_file_size = '20GB';
SELECT pg_reload_conf() \g /dev/null
CREATE TABLE large (id int PRIMARY KEY, body bytea);
ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
X
head -c 2684354567 /dev/urandom >"$work/bytes"
chmod 644 "$work/bytes"
lo=$(sql -c "SELECT lo_import('$work/bytes')")
sql -c "INSERT INTO large SELECT 1, pg_read_binary_file('$work/bytes', 0, 1073740000)"
truncate -s 6442450941 "$work/bytes"
head -c 1000000 /dev/urandom | dd of="$work/bytes" bs=1M seek=5500 conv=notrunc status=none

# expected BYTES EXPRESSION: the ETag of a source, of which EXPRESSION gives the part at "at"
expected() {
	sql -c "SELECT md5(string_agg(decode(md5($2), 'hex'), '' ORDER BY at)) || '-' || count(*) FROM generate_series(0, $1 - 1, $part) at"
}

# send NAME SOURCE ETAG
send() {
	local idle batch most=0 now began=$EPOCHREALTIME cpu
	idle=$(memory)
	cpu=$(ticks)
	batch=$(sql -c "SELECT swarm.s3_upload('discard', 'docs', ARRAY[swarm.s3_file('$1', $2)])")
	while [ "$(sql -c "SELECT finished_at IS NULL FROM swarm.s3_batches WHERE id = $batch")" = t ]; do
		now=$(memory)
		most=$(awk -v a="$most" -v b="${now:-0}" 'BEGIN { print (a > b ? a : b) }')
		sleep 0.2
	done
	cpu=$(($(ticks) - cpu))
	sql -F ' ' -c "SELECT format('%-14s %s bytes, %s, %s attempts, %s parts; ETag %s', name, bytes_total, state, attempts, substr(etag, 34),
		CASE WHEN etag = '$3' THEN 'right' ELSE 'WRONG' END) FROM swarm.s3_files WHERE batch = $batch"
	awk -v t0="$began" -v t1="$EPOCHREALTIME" -v cpu="$cpu" -v hz="$(getconf CLK_TCK)" -v idle="${idle:-0}" -v most="$most" \
		'BEGIN { printf "               %.1f s, %.2f s CPU of the runner; its private memory: %.1f MB before, %.1f MB at most\n", t1 - t0, cpu / hz, idle, most }'
}

send small "'x'::bytea" '' >/dev/null
send large_object "swarm.from_large_object($lo)" "$(expected 2684354567 "lo_get($lo, at, $part)")"
send column "swarm.from_column('large', 1, 'body')" "$(expected 1073740000 "(SELECT substr(body, at::int + 1, $part) FROM large)")"
send file "swarm.from_file('$work/bytes')" "$(expected 6442450941 "pg_read_binary_file('$work/bytes', at, $part)")"
send folded "swarm.from_query('SELECT repeat(''0123456789'', 1000) FROM generate_series(1, 300000)')" \
	"$(expected 3000300000 "convert_to(substr(repeat(repeat('0123456789', 1000) || E'\\n', 840), (at % 10001)::int + 1, least($part, 3000300000 - at)::int), 'UTF8')")"
psql -XqAt -c "SET pg_swarm.s3_max_file_size = '5GB'; SELECT swarm.s3_upload('discard', 'docs', ARRAY[swarm.s3_file('file', swarm.from_file('$work/bytes'))])" 2>&1 || true
sql -c "SELECT format('temporary files left: %s', count(*)) FROM pg_ls_tmpdir()"
