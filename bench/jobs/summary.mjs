// node summary.mjs FILE.jsonl     the markdown beside it: what was promised, then every measure
// A ratio is taken inside one round, so both sides saw the same machine; shown are the median over rounds and the spread.
import fs from 'node:fs'
import { median } from './lib.mjs'

const rows = fs.readFileSync(process.argv[2], 'utf8').trim().split('\n').map(l => JSON.parse(l))
const about = rows.find(r => r.about)?.about ?? {}
const num = v => v === undefined || v === null || Number.isNaN(v) ? '' : Math.abs(v) >= 100 ? Math.round(v).toLocaleString('en') : String(+v.toPrecision(3))
const spread = a => a.length ? `${num(Math.min(...a))} to ${num(Math.max(...a))}` : ''
const of = (engine, measure) => new Map(rows.filter(r => r.engine === engine && r.measure === measure).map(r => [r.round, r]))
const print = (...l) => console.log(...l)

const BATCHED = { 'swarm:k100': 1, 'floor:k100': 1, 'pgmq:k100': 1, 'graphile:batched': 1, 'pgboss:k100': 1 }
const SINGLE = ['pgmq:k1', 'graphile:default', 'pgboss:k1'], HUNDRED = ['pgmq:k100', 'graphile:batched', 'pgboss:k100']

/* Ratios of one engine to the best of others, round by round. */
function ratios (engine, others, measure) {
  const mine = of(engine, measure), theirs = others.map(o => of(o, measure)), out = []
  for (const [round, r] of mine) {
    const best = Math.max(...theirs.map(t => t.get(round)?.value ?? -Infinity))
    if (best > 0) out.push(r.value / best)
  }
  return out
}

print(`# Job store beside its peers, ${about.date}\n`)
for (const k of ['command', 'commit', 'machine', 'versions']) print(`- ${k}: ${k === 'command' ? '`' + about[k] + '`' : about[k]}`)
print('- data: no-op jobs with arguments `{"seq": n}`; fsync, full_page_writes and synchronous_commit on unless said otherwise')
const lost = rows.filter(r => r.failed).map(r => r.failed)
if (lost.length) print(`- did not finish: ${lost.join('; ')}`)

const checks = []
const check = (what, a, want, ok) => { if (a.length) checks.push([what, num(median(a)), spread(a), a.length, want, ok(median(a)) ? 'yes' : '**no**']) }
for (const d of ['drain1', 'drain4']) {
  const n = d.slice(5)
  check(`one at a time, ${n} runner(s): ÷ two-commit floor (node)`, ratios('swarm:k1', ['floor:k1'], d), '≥ 3', v => v >= 3)
  check(`one at a time, ${n} runner(s): ÷ two-commit floor (pgbench)`, ratios('swarm:k1', ['floor:pgbench'], d), '≥ 3', v => v >= 3)
  check(`one at a time, ${n} runner(s): ÷ best peer`, ratios('swarm:k1', SINGLE, d), '≥ 2', v => v >= 2)
  check(`batches of 100, ${n} runner(s): ÷ best peer`, ratios('swarm:k100', HUNDRED, d), '≥ 1', v => v >= 1)
}
check('acknowledged COMMIT to start, median, ms', [...of('swarm:k1', 'latency').values()].map(r => r.value), '< 0.5', v => v < 0.5)
check('enqueue from 16 connections ÷ plain inserts', ratios('swarm', ['plain'], 'enqueue16'), '≥ 0.95', v => v >= 0.95)
const idle = [...of('swarm', 'idle').values()]
check('idle: bytes of WAL', idle.map(r => r.value), '0', v => v === 0)
check('idle: transactions', idle.map(r => r.transactions), '0', v => v === 0)
const held = [...of('swarm:k1', 'xmin').values()].sort((a, b) => a.round - b.round)
if (held.length > 1) check('claim and finish under an open transaction: end ÷ start', [held.at(-1).value / held[0].value], '≤ 1.2', v => v <= 1.2)
if (checks.length) {
  print('\n## What was promised\n\n| what | median | spread | rounds | wanted | kept |\n|---|---:|---:|---:|---:|---|')
  for (const c of checks) print(`| ${c.join(' | ')} |`)
}

const engines = [...new Set(rows.filter(r => r.engine && r.measure).map(r => r.engine))]
for (const m of ['enq1', 'enq4', 'batch', 'drain1', 'drain4']) {
  const list = engines.filter(e => of(e, m).size)
  if (!list.length) continue
  print(`\n## ${{ enq1: 'Enqueue, one a transaction, 1 connection', enq4: 'Enqueue, one a transaction, 4 connections', batch: 'Enqueue, 1,000 a call', drain1: 'Done with 1 worker', drain4: 'Done with 4 workers' }[m]} (jobs/s)\n`)
  print('| engine | median | spread | ÷ floor | CPU of server, µs a job | CPU of client, µs a job |\n|---|---:|---:|---:|---:|---:|')
  for (const e of list) {
    const r = [...of(e, m).values()], v = r.map(x => x.value)
    print(`| ${e} | ${num(median(v))} | ${spread(v)} | ${num(median(ratios(e, [BATCHED[e] ? 'floor:k100' : 'floor:k1'], m)))} | ${num(median(r.map(x => x.cpu_server_us)))} | ${num(median(r.map(x => x.cpu_client_us)))} |`)
  }
}
const lat = engines.filter(e => of(e, 'latency').size)
if (lat.length) {
  print('\n## COMMIT to start of the handler (ms, medians over rounds)\n\n| engine | from acknowledged COMMIT, p50 | spread | p99 | from COMMIT sent, p50 | p99 | the commit itself, p50 | lost |\n|---|---:|---:|---:|---:|---:|---:|---:|')
  for (const e of lat) {
    const r = [...of(e, 'latency').values()], f = k => num(median(r.map(x => x[k])))
    print(`| ${e} | ${f('value')} | ${spread(r.map(x => x.value))} | ${f('p99')} | ${f('sent_p50')} | ${f('sent_p99')} | ${f('commit_p50')} | ${r.reduce((s, x) => s + x.lost, 0)} |`)
  }
}
const e16 = engines.filter(e => of(e, 'enqueue16').size)
if (e16.length) {
  print('\n## Enqueue from 16 connections (transactions/s, pgbench, turns alternate)\n\n| what | median | spread | rounds | ÷ plain |\n|---|---:|---:|---:|---:|')
  for (const e of e16) { const v = [...of(e, 'enqueue16').values()].map(r => r.value); print(`| ${e} | ${num(median(v))} | ${spread(v)} | ${v.length} | ${num(median(ratios(e, ['plain'], 'enqueue16')))} |`) }
}
const rest = rows.filter(r => r.measure === 'idle')
if (rest.length) {
  print(`\n## At rest\n\n| server | ${rest[0].unit} | WAL records | transactions | wake-ups and CPU ms of our processes |\n|---|---:|---:|---:|---|`)
  for (const r of rest) print(`| ${r.engine} | ${r.value} | ${r.wal_records} | ${r.transactions} | ${r.processes.map(p => `${p.type}: ${p.wakeups}, ${p.cpu_ms}`).join('; ')} |`)
}
const xe = engines.filter(e => of(e, 'xmin').size)
if (xe.length) {
  print('\n## Under an open transaction (synchronous_commit off; ms and server CPU µs for claim and finish, minute by minute)\n')
  print('Before it opens, then after each minute of load: ms for 20 jobs with two workers, CPU µs a job; at the end the jobs, dead tuples and size of all tables.\n')
  print('| engine | ms for 20 jobs | CPU µs a job | end ÷ start | jobs | dead tuples | MB | backlog at the end | stopped because |\n|---|---|---|---:|---:|---:|---:|---:|---|')
  for (const e of xe) {
    const r = [...of(e, 'xmin').values()].sort((a, b) => a.round - b.round), z = r.at(-1)
    print(`| ${e} | ${r.map(x => num(x.value)).join(' ')} | ${r.map(x => num(x.cpu_server_us)).join(' ')} | ${num(r.filter(x => x.value).at(-1).value / r[0].value)} | ${num(z.jobs)} | ${num(z.dead_tuples)} | ${num(z.mb)} | ${num(z.backlog)} | ${z.stopped ?? ''} |`)
  }
}
