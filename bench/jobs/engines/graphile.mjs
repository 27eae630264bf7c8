// graphile-worker.  default: as it comes.  batched: local queue of 500 and batched completion, its fastest preset.
import { run, makeWorkerUtils, Logger } from 'graphile-worker'
import { open, pg, conn } from '../lib.mjs'

const pool = (db, max) => {
  const p = new pg.Pool({ ...conn(db), max })
  p.on('error', () => {})
  p.on('connect', c => c.on('error', () => {}))
  return p
}
const logger = new Logger(() => () => {})

export async function create (db, variant = 'default') {
  const admin = await open(db)
  const shared = pool(db, 10)
  const utils = await makeWorkerUtils({ pgPool: shared, logger })
  const preset = variant === 'batched' ? { worker: { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } } : {}
  return {
    setup: () => utils.migrate(),
    async producer () {
      const c = await open(db)
      const one = i => c.query({ name: 'one', text: "select graphile_worker.add_job('noop', $1::json)", values: [JSON.stringify({ seq: i })] })
      return {
        one,
        batch: n => utils.addJobs(Array.from({ length: n }, (_, i) => ({ identifier: 'noop', payload: { seq: i } }))),
        async tx (i, mark) { await c.query('begin'); await one(i); mark(); await c.query('commit') },
        close: () => c.end()
      }
    },
    async workers (n, onJob) {
      const own = pool(db, n + 2)
      const r = await run({ pgPool: own, logger, noHandleSignals: true, concurrency: n, preset, taskList: { noop: async p => { onJob(p.seq) } } })
      return { async stop () { await r.stop(); await own.end().catch(() => {}) } }
    },
    remaining: async () => +(await admin.query('select count(*) from graphile_worker._private_jobs')).rows[0].count,
    clear: () => admin.query('truncate graphile_worker._private_jobs'),
    settle: () => admin.query('analyze graphile_worker._private_jobs'),
    async teardown () { await utils.release().catch(() => {}); await shared.end().catch(() => {}); await admin.end() }
  }
}
