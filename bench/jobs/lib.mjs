// What all parts of the job benchmark share: connections, clocks, statistics, CPU accounting, results.
import fs from 'node:fs'
import pg from 'pg'
export { pg }

const { PGHOST, PGPORT, PGUSER, BENCH_OUT } = process.env
export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
export const conn = database => ({ host: PGHOST, port: +PGPORT, user: PGUSER, database })

export async function open (db) {
  const c = new pg.Client(conn(db))
  c.on('error', () => {})               // an aborted bench ends its sessions
  await c.connect()
  return c
}

/* A fresh database. The drop is tried again: a peer's last session may still be leaving. */
export async function recreateDb (db) {
  const c = await open('postgres')
  for (let i = 0; ; i++) {
    try { await c.query(`drop database if exists ${db} with (force)`); break } catch (e) { if (i === 5) throw e; await sleep(300) }
  }
  await c.query(`create database ${db}`)
  await c.end()
}

export const q = (a, p) => {
  const s = [...a].sort((x, y) => x - y)
  return s.length ? s[Math.min(s.length - 1, Math.floor(p * s.length))] : NaN
}
export const median = a => q(a, 0.5)

/* Wall clock in microseconds, and its distance to the server's, from the shortest of 200 round trips. */
export const nowUs = () => (performance.timeOrigin + performance.now()) * 1000
export async function clockOffsetUs (client) {
  let best = Infinity, off = 0
  for (let i = 0; i < 200; i++) {
    const a = nowUs()
    const r = await client.query({ name: 'clock', text: 'select extract(epoch from clock_timestamp())*1e6 as t' })
    const b = nowUs()
    if (b - a < best) { best = b - a; off = Number(r.rows[0].t) - (a + b) / 2 }
  }
  return off
}

/* CPU milliseconds spent so far by this process and by all of the server's (those that ended count through their parent). */
const TICK = 10
const stat = pid => {
  const s = fs.readFileSync(`/proc/${pid}/stat`, 'utf8')
  const f = s.slice(s.lastIndexOf(')') + 2).split(' ')
  return { ppid: +f[1], self: (+f[11] + +f[12]) * TICK, gone: (+f[13] + +f[14]) * TICK }
}
export function cpuMs () {
  const pm = +process.env.BENCH_PM
  const own = process.cpuUsage()
  let server = NaN
  try {
    const p = stat(pm)
    server = p.self + p.gone
    for (const d of fs.readdirSync('/proc')) {
      if (!/^\d+$/.test(d)) continue
      try { const s = stat(d); if (s.ppid === pm) server += s.self } catch {}
    }
  } catch {}
  return { server, client: (own.user + own.system) / 1000 }
}

/* One result: a line on the terminal and a line in the file. */
export function emit (record) {
  const r = {}
  for (const [k, v] of Object.entries(record)) r[k] = typeof v === 'number' && !Number.isInteger(v) ? +v.toPrecision(4) : v
  const line = JSON.stringify(r)
  console.log(line)
  if (BENCH_OUT) fs.appendFileSync(BENCH_OUT, line + '\n')
}
