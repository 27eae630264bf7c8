// pgmq as its SQL file; PGMQ_SQL names it.  k1, k100: messages a read.  poll10: server-side poll of 10 ms in place of 100.
import { execFileSync } from 'node:child_process'
import { open, sleep } from '../lib.mjs'

export async function create (db, variant = 'k1') {
  const k = variant.includes('100') ? 100 : 1
  const poll = variant === 'poll10' ? 10 : 100
  const admin = await open(db)
  return {
    async setup () {
      execFileSync('psql', ['-qX', '-v', 'ON_ERROR_STOP=1', '-d', db, '-f', process.env.PGMQ_SQL], { stdio: ['ignore', 'ignore', 'inherit'] })
      await admin.query("select pgmq.create('q')")
    },
    async producer () {
      const c = await open(db)
      const one = i => c.query({ name: 'one', text: "select pgmq.send('q', $1::jsonb)", values: [JSON.stringify({ seq: i })] })
      return {
        one,
        batch: n => c.query({ name: 'many', text: "select pgmq.send_batch('q', $1::jsonb[])", values: [Array.from({ length: n }, (_, i) => JSON.stringify({ seq: i }))] }),
        async tx (i, mark) { await c.query('begin'); await one(i); mark(); await c.query('commit') },
        close: () => c.end()
      }
    },
    async workers (n, onJob, live) {
      let stop = false
      const cs = []
      const read = live === true
        ? { name: 'poll', text: `select msg_id, message from pgmq.read_with_poll('q', 30, 1, 2, ${poll})` }
        : { name: 'read', text: `select msg_id, message from pgmq.read('q', 30, ${k})` }
      const loops = Array.from({ length: n }, async () => {
        const c = await open(db)
        cs.push(c)
        while (!stop) {
          const { rows } = await c.query(read)
          if (!rows.length) { if (!live) break; if (live === 'poll') await sleep(20); continue }
          for (const r of rows) onJob(r.message.seq)
          if (k === 1) await c.query({ name: 'd1', text: "select pgmq.delete('q', $1::bigint)", values: [rows[0].msg_id] })
          else await c.query({ name: 'dn', text: "select pgmq.delete('q', $1::bigint[])", values: [rows.map(r => r.msg_id)] })
        }
      })
      return { async stop () { stop = true; await Promise.race([Promise.all(loops), sleep(3000)]); for (const c of cs) await c.end().catch(() => {}) } }
    },
    remaining: async () => +(await admin.query('select count(*) from pgmq.q_q')).rows[0].count,
    clear: () => admin.query('truncate pgmq.q_q, pgmq.a_q'),
    settle: () => admin.query('analyze pgmq.q_q'),
    teardown: () => admin.end()
  }
}
