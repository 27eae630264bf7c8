// node xmin.mjs ENGINE[:VARIANT]     MINUTES of RATE jobs/s while a transaction stays open
// Every minute the load rests and a probe measures claim and finish: PROBE no-op jobs with two workers, the best of
// three.  The first probe is taken before the transaction opens.  An engine whose cost has grown twentyfold, or
// that no longer empties its queue, is stopped there.  Run with synchronous_commit = off, so that the
// work of claiming shows and not the disk.
import { sleep, recreateDb, open, cpuMs, emit } from './lib.mjs'

const name = process.argv[2]
const env = (k, d) => +(process.env[k] ?? d)
const MINUTES = env('MINUTES', 10), RATE = env('RATE', 1000), PROBE = env('PROBE', 2000), STEP = env('STEP', 60), CHUNK = 20
const [file, variant] = name.split(':')
const db = 'jx_' + name.replace(/[^a-z0-9]/g, '_')
await recreateDb(db)
const E = await (await import(`./engines/${file}.mjs`)).create(db, variant)
await E.setup()
const stats = await open(db)
const producer = await E.producer()

const empty = async limit => {
  const end = performance.now() + limit
  let left
  while ((left = await E.remaining()) && performance.now() < end) await sleep(5)
  return left
}

async function probe () {
  let best = Infinity, cpu = Infinity
  for (let rep = 0; rep < 3; rep++) {
    if (E.hold) await E.hold()
    for (let i = 0; i < PROBE; i += 1000) await producer.batch(Math.min(1000, PROBE - i))
    const c = cpuMs()
    let seen = 0, t0 = 0, all
    const handled = new Promise(resolve => { all = resolve })
    const w = await E.workers(2, () => { if (!seen++) t0 = performance.now(); if (seen >= PROBE) all() }, 'poll', () => { t0 = performance.now() })
    if (!E.inServer) await Promise.race([handled, sleep(120000)])
    await empty(60000)
    best = Math.min(best, performance.now() - t0)
    cpu = Math.min(cpu, cpuMs().server - c.server)
    await w.stop()
  }
  return { ms: best / PROBE * 20, cpu: cpu / PROBE * 1000 }
}

async function load (seconds) {
  const w = await E.workers(2, () => {}, 'poll')
  const t0 = performance.now()
  let sent = 0
  while (performance.now() - t0 < seconds * 1000) {
    const due = (performance.now() - t0) / 1000 * RATE
    if (sent + CHUNK <= due) { await producer.batch(CHUNK); sent += CHUNK } else await sleep(5)
  }
  const backlog = await E.remaining()
  const left = await empty(30000)
  await w.stop()
  return { sent, backlog, left }
}

let sent = 0
const report = async (minute, p, extra) => {
  const [row] = (await stats.query(`select coalesce(sum(n_dead_tup), 0)::bigint dead, coalesce(sum(pg_total_relation_size(relid)), 0)::bigint size
    from pg_stat_all_tables where schemaname not in ('pg_catalog', 'pg_toast', 'information_schema')`)).rows
  emit({ engine: name, measure: 'xmin', unit: 'ms for claim and finish of 20 jobs', round: minute, value: p.ms, cpu_server_us: p.cpu, jobs: sent, dead_tuples: +row.dead, mb: row.size / 1e6, ...extra })
}
await probe()
const first = await probe()
await report(0, first)
const holder = await open(db)
await holder.query('begin isolation level repeatable read')
await holder.query('select pg_current_xact_id()')
for (let done = 0; done < MINUTES * 60; done += STEP) {
  const l = await load(Math.min(STEP, MINUTES * 60 - done))
  sent += l.sent
  if (l.left) { await report((done + STEP) / 60, { ms: NaN, cpu: NaN }, { backlog: l.backlog, left: l.left, stopped: 'queue no longer empties' }); break }
  const p = await probe()
  await report((done + STEP) / 60, p, { backlog: l.backlog, left: l.left, ...(p.ms > 20 * first.ms && { stopped: 'twentyfold' }) })
  if (p.ms > 20 * first.ms) break
}
await holder.query('rollback')
process.exit(0)
