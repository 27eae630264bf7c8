// node idle.mjs LABEL     what a server at rest does in SECS seconds: transactions, WAL, wake-ups and CPU of our processes
import fs from 'node:fs'
import { sleep, open, emit } from './lib.mjs'

const SECS = +(process.env.SECS ?? 60)
const c = await open('postgres')        // the counters are those of jb_idle, so this session does not count itself
const wakeups = pid => { try { return +/^voluntary_ctxt_switches:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))[1] } catch { return NaN } }
const ticks = pid => { try { const s = fs.readFileSync(`/proc/${pid}/stat`, 'utf8'); const f = s.slice(s.lastIndexOf(')') + 2).split(' '); return +f[11] + +f[12] } catch { return NaN } }
const sample = async () => {
  const [s] = (await c.query(`select d.xact_commit + d.xact_rollback as xacts, w.wal_records, w.wal_bytes, pg_current_wal_insert_lsn()::text lsn,
     (select coalesce(json_agg(json_build_object('pid', pid, 'type', backend_type)), '[]') from pg_stat_activity where backend_type like 'pg_swarm%') procs
     from pg_stat_database d, pg_stat_wal w where d.datname = 'jb_idle'`)).rows
  for (const p of s.procs) { p.wakeups = wakeups(p.pid); p.ticks = ticks(p.pid) }
  return s
}
const a = await sample()
await sleep(SECS * 1000)
const b = await sample()
const [{ wal }] = (await c.query('select pg_wal_lsn_diff($1, $2)::int as wal', [b.lsn, a.lsn])).rows
emit({
  engine: process.argv[2], measure: 'idle', unit: `bytes of WAL in ${SECS} s`, value: wal, transactions: b.xacts - a.xacts, wal_records: b.wal_records - a.wal_records,
  processes: b.procs.map(p => { const o = a.procs.find(x => x.pid === p.pid); return { type: p.type, wakeups: o ? p.wakeups - o.wakeups : 'new', cpu_ms: o ? (p.ticks - o.ticks) * 10 : 'new' } })
})
process.exit(0)
