// pg_swarm: handlers run inside the server.  k1: a transaction a job; k100: a queue whose jobs share one by the hundred;
// group: a transaction a job, whose commits are flushed together (a job counts as done when it is on disk).
import { open, sleep } from '../lib.mjs'

export async function create (db, variant = 'k1') {
  const batch = variant === 'k100' ? 100 : 1
  const admin = await open(db)
  const runners = async n => {
    await admin.query(`alter system set pg_swarm.max_runners = ${n}`)
    await admin.query('select pg_reload_conf()')
  }
  return {
    inServer: true,
    async setup () {
      await admin.query('create extension pg_swarm')
      await admin.query('create unlogged table jb_start(seq int, started timestamptz)')
      await admin.query(`create function jb_noop(job swarm.job) returns jsonb language plpgsql as 'begin return null; end'`)
      await admin.query(`create function jb_mark(job swarm.job) returns jsonb language plpgsql as $$
        declare t timestamptz := clock_timestamp();
        begin insert into public.jb_start values ((job.args->>'seq')::int, t); return null; end $$`)
      await admin.query("select swarm.handler_register('noop', 'public.jb_noop'), swarm.handler_register('mark', 'public.jb_mark')")
      await admin.query(`select swarm.queue_create('q', batch => ${batch}, group_commit => ${variant === 'group'})`)
    },
    async producer () {
      const c = await open(db)
      const send = (kind, i) => c.query({ name: kind, text: `select swarm.job_enqueue('${kind}', $1::jsonb, queue => 'q')`, values: [JSON.stringify({ seq: i })] })
      return {
        one: i => send('noop', i),
        batch: n => c.query({
          name: 'many',
          text: `select count(*) from swarm.job_enqueue_many((select jsonb_agg(jsonb_build_object('kind', 'noop', 'queue', 'q',
                   'args', jsonb_build_object('seq', g))) from generate_series(1, $1::int) g))`,
          values: [n]
        }),
        async tx (i, mark) { await c.query('begin'); await send('mark', i); mark(); await c.query('commit') },
        close: () => c.end()
      }
    },
    // Nothing may start while a drain is being filled, and enqueueing is measured without the work behind it.
    hold: () => admin.query("select swarm.queue_pause('q')"),
    async workers (n, onJob, live, onStart) {
      await runners(n)
      await sleep(200)
      if (onStart) onStart()
      await admin.query("select swarm.queue_resume('q')")
      return { stop: () => admin.query("select swarm.queue_pause('q')") }
    },
    async collectStarts (starts, off) {
      for (const r of (await admin.query('select seq, extract(epoch from started)*1e6 as t from jb_start')).rows) starts.set(r.seq, Number(r.t) - off)
    },
    running: async () => +(await admin.query("select count(*) as n from pg_stat_activity where backend_type = 'pg_swarm runner' and datname = current_database()")).rows[0].n,
    remaining: async () => +(await admin.query({ name: 'left', text: "select ready + running as n from swarm.queues where queue = 'q'" })).rows[0].n,
    async clear () {
      await admin.query("select swarm.queue_resume('q')")
      while (await this.remaining()) await sleep(50)
      await admin.query('truncate jb_start')
    },
    teardown: () => admin.end()
  }
}
