// pg-boss.  k1, k100: fetch and complete in a loop, one or a hundred jobs a time.
// work: its default worker (2 s poll).  notify: the same with LISTEN/NOTIFY.
import { PgBoss } from 'pg-boss'
import { open, conn, sleep } from '../lib.mjs'

export async function create (db, variant = 'k1') {
  const k = variant.includes('100') ? 100 : 1
  const notify = variant === 'notify'
  const admin = await open(db)
  const start = async () => {
    const b = new PgBoss({ ...conn(db), useListenNotify: notify })
    b.on('error', () => {})
    b.on('warning', () => {})
    await b.start()
    return b
  }
  const boss = await start()
  return {
    setup: () => boss.createQueue('q', { notify }),
    async producer () {
      const c = await open(db)
      const options = { db: { executeSql: (text, values) => c.query(text, values) } }
      return {
        one: i => boss.send('q', { seq: i }, options),
        batch: n => boss.insert('q', Array.from({ length: n }, (_, i) => ({ data: { seq: i } })), options),
        async tx (i, mark) { await c.query('begin'); await boss.send('q', { seq: i }, options); mark(); await c.query('commit') },
        close: () => c.end()
      }
    },
    async workers (n, onJob, live) {
      const b = await start()
      let stop = false
      let loops = []
      if (live === true) {
        await b.work('q', { batchSize: k, localConcurrency: n }, async jobs => { for (const j of jobs) onJob(j.data.seq) })
      } else {
        loops = Array.from({ length: n }, async () => {
          while (!stop) {
            const jobs = await b.fetch('q', { batchSize: k })
            if (!jobs.length) { if (!live) break; await sleep(20); continue }
            for (const j of jobs) onJob(j.data.seq)
            await b.complete('q', jobs.map(j => j.id))
          }
        })
      }
      return { async stop () { stop = true; await Promise.race([Promise.all(loops), sleep(3000)]); await b.stop({ graceful: true, timeout: 3000 }) } }
    },
    remaining: async () => +(await admin.query("select count(*) from pgboss.job where state < 'completed'")).rows[0].count,
    clear: () => admin.query('truncate pgboss.job'),
    settle: () => admin.query('analyze pgboss.job'),
    async teardown () { await boss.stop({ graceful: false }).catch(() => {}); await admin.end() }
  }
}
