// node bench.mjs ENGINE[:VARIANT] MEASURE[,MEASURE...]     one engine in a fresh database; `run` calls it
//   enq1 enq4    one job a transaction for SECS seconds, 1 or 4 connections          jobs/s
//   batch        1,000 jobs a call                                                   jobs/s
//   drain1 drain4  JOBS no-op jobs with 1 or 4 workers, until the last completion is durable   jobs/s
//   latency      LAT_N jobs about LAT_GAP ms apart: COMMIT acknowledged, and COMMIT sent, to start of the handler   ms
import { sleep, nowUs, q, median, recreateDb, open, clockOffsetUs, cpuMs, emit } from './lib.mjs'

const [,, name, list] = process.argv
const env = (k, d) => +(process.env[k] ?? d)
const SECS = env('SECS', 2), JOBS = env('JOBS', 1500), LAT_N = env('LAT_N', 200), GAP = env('LAT_GAP', 25)
const [file, variant] = name.split(':')
const db = 'jb_' + name.replace(/[^a-z0-9]/g, '_')
await recreateDb(db)
const E = await (await import(`./engines/${file}.mjs`)).create(db, variant)
await E.setup()

const record = (measure, unit, value, extra) => emit({ round: env('ROUND', 0), engine: name, measure, unit, value, ...extra })
const perJob = (before, n) => { const c = cpuMs(); return { cpu_server_us: (c.server - before.server) / n * 1000, cpu_client_us: (c.client - before.client) / n * 1000 } }

async function enqueue (clients, size) {
  if (E.hold) await E.hold()
  const ps = await Promise.all(Array.from({ length: clients }, () => E.producer()))
  for (const p of ps) await (size ? p.batch(size) : p.one(0))        // plans and caches
  let n = 0
  const cpu = cpuMs(), t0 = performance.now(), end = t0 + SECS * 1000
  await Promise.all(ps.map(async p => { while (performance.now() < end) { await (size ? p.batch(size) : p.one(n)); n += size || 1 } }))
  const rate = n / ((performance.now() - t0) / 1000), extra = perJob(cpu, n)
  for (const p of ps) await p.close()
  await E.clear()
  return [rate, extra]
}

async function drain (workers) {
  if (E.hold) await E.hold()
  const p = await E.producer()
  for (let i = 0; i < JOBS; i += 1000) await p.batch(Math.min(1000, JOBS - i))
  await p.close()
  if (E.settle) await E.settle()
  let seen = 0, t0, all
  const handled = new Promise(resolve => { all = resolve })
  const cpu = cpuMs()
  let w
  if (E.inServer) {
    w = await E.workers(workers, null, false, () => { t0 = performance.now() })
  } else {                              // from the first call of a handler: connecting is not part of it
    w = await E.workers(workers, () => { if (seen++ === 0) t0 = performance.now(); if (seen === JOBS) all() })
    await Promise.race([handled, sleep(60000)])
  }
  const limit = performance.now() + (E.inServer ? 60000 : 5000)
  let left
  do { left = await E.remaining(); if (left) await sleep(E.inServer ? 5 : 2) } while (left && performance.now() < limit)
  const rate = (JOBS - left) / ((performance.now() - t0) / 1000), extra = perJob(cpu, JOBS)
  if (E.running) extra.runners = await E.running()
  await w.stop()
  await E.clear()
  if (left) console.error(`${name}: ${left} of ${JOBS} jobs were not done`)
  return [rate, { ...extra, left }]
}

async function latency () {
  const starts = new Map(), sent = new Map(), acked = new Map()
  const c = await open(db)
  const off = await clockOffsetUs(c)
  const w = await E.workers(1, (seq, t) => { starts.set(seq, t ?? nowUs()) }, true)
  await sleep(1500)
  const p = await E.producer()
  for (let i = 0; i < LAT_N; i++) {
    await p.tx(i, () => sent.set(i, nowUs()))
    acked.set(i, nowUs())
    await sleep(GAP * (0.5 + Math.random()))
  }
  const drift = await clockOffsetUs(c) - off
  const limit = performance.now() + 8000
  do { await sleep(50); if (E.collectStarts) await E.collectStarts(starts, off) } while (starts.size < LAT_N && performance.now() < limit)
  await w.stop(); await p.close(); await c.end(); await E.clear()
  const ids = [...acked.keys()].filter(i => i >= 5 && starts.has(i))      // the first five warm up
  const ms = (from, to) => ids.map(i => (to.get(i) - from.get(i)) / 1000)
  const ack = ms(acked, starts), all = ms(sent, starts)
  record('latency', 'ms from acknowledged COMMIT to start', q(ack, 0.5), {
    p99: q(ack, 0.99), sent_p50: q(all, 0.5), sent_p99: q(all, 0.99), commit_p50: q(ms(sent, acked), 0.5), n: ids.length, lost: LAT_N - starts.size, clock_drift_ms: drift / 1000
  })
}

for (const m of list.split(',')) {
  if (m === 'enq1') record(m, 'jobs/s', ...await enqueue(1))
  else if (m === 'enq4') record(m, 'jobs/s', ...await enqueue(4))
  else if (m === 'batch') record(m, 'jobs/s', ...await enqueue(1, 1000))
  else if (m === 'drain1') record(m, 'jobs/s', ...await drain(1))
  else if (m === 'drain4') record(m, 'jobs/s', ...await drain(4))
  else if (m === 'latency') await latency()
  else throw new Error(`no measure "${m}"`)
}
await E.teardown()
process.exit(0)
