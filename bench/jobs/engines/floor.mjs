// A bare table and a client: the floor that every queue of this kind pays.  It takes a job with one durable
// commit and deletes it with a second one.  k1: one job a claim, k100: a hundred.
import { open, sleep } from '../lib.mjs'

export async function create (db, variant = 'k1') {
  const k = variant === 'k100' ? 100 : 1
  const admin = await open(db)
  const claim = {
    name: 'claim',
    text: `update job set state = 1, attempts = attempts + 1, started_at = clock_timestamp()
           where id = any(array(select id from job where state = 0 and run_at <= now()
                                order by priority, run_at, id limit ${k} for update skip locked))
           returning id, payload`
  }
  return {
    async setup () {
      await admin.query(`create table job(id bigint generated always as identity primary key, priority int2 not null default 0,
        run_at timestamptz not null default now(), state int2 not null default 0, attempts int2 not null default 0,
        started_at timestamptz, payload jsonb not null)`)
      await admin.query('create index on job(priority, run_at, id) where state = 0')
    },
    async producer () {
      const c = await open(db)
      const one = i => c.query({ name: 'one', text: 'insert into job(payload) values ($1)', values: [JSON.stringify({ seq: i })] })
      return {
        one,
        batch: n => c.query({ name: 'many', text: "insert into job(payload) select jsonb_build_object('seq', g) from generate_series(1, $1::int) g", values: [n] }),
        async tx (i, mark) { await c.query('begin'); await one(i); await c.query('notify jb'); mark(); await c.query('commit') },
        close: () => c.end()
      }
    },
    async workers (n, onJob, live) {
      let stop = false
      const cs = []
      const loops = Array.from({ length: n }, async () => {
        const c = await open(db)
        let wake = () => {}
        cs.push(c)
        if (live) { c.on('notification', () => wake()); await c.query('listen jb') }
        while (!stop) {
          const woken = new Promise(resolve => { wake = resolve })
          const { rows } = await c.query(claim)
          if (!rows.length) {
            if (!live) break
            await Promise.race([woken, sleep(live === 'poll' ? 20 : 2000)])
            continue
          }
          for (const r of rows) onJob(r.payload.seq)
          await c.query({ name: 'done', text: 'delete from job where id = any($1::bigint[])', values: [rows.map(r => r.id)] })
        }
      })
      return { async stop () { stop = true; await Promise.race([Promise.all(loops), sleep(2500)]); for (const c of cs) await c.end().catch(() => {}) } }
    },
    remaining: async () => +(await admin.query('select count(*) from job')).rows[0].count,
    clear: () => admin.query('truncate job'),
    settle: () => admin.query('analyze job'),
    teardown: () => admin.end()
  }
}
