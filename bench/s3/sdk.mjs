// AWS SDK for JavaScript v3: batches of files, one after another or all at once; db: all at once, from the rows that
// swarm.from_column reads too, by node-postgres (which reads bytea as text), the CPU of its backend included.
//   node sdk.mjs seq|par|db FILES BYTES BATCHES     prints a JSON line: ms of each batch, failed, rss_mb, cpu_s
import { S3Client, PutObjectCommand } from '@aws-sdk/client-s3';
import { NodeHttpHandler } from '@smithy/node-http-handler';
import { randomBytes } from 'node:crypto';
import { Agent } from 'node:http';
import pg from 'pg';

const [mode, files, bytes, batches] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const body = randomBytes(bytes);
const s3 = new S3Client({
  endpoint: process.env.S3_ENDPOINT, region: 'us-east-1', forcePathStyle: true, maxAttempts: 1,
  credentials: { accessKeyId: process.env.S3_ACCESS_KEY, secretAccessKey: process.env.S3_SECRET_KEY },
  requestHandler: new NodeHttpHandler({ httpAgent: new Agent({ keepAlive: true, maxSockets: 20 }) }),
});
const client = mode === 'db' ? new pg.Client() : null;
await client?.connect();
let turn = Promise.resolve();          // a connection has one query at a time
const row = (i) => {
  turn = turn.then(() => client.query('SELECT d FROM payload WHERE size = $1 AND no = $2', [bytes, i + 1]));
  return turn.then((r) => r.rows[0].d);
};
const backend = async () => (client ? Number((await client.query('SELECT swarm_bench_cpu() AS s')).rows[0].s) : 0);
const put = async (i) => s3.send(new PutObjectCommand({ Bucket: 'bench', Key: `sdk/${i}`, Body: client ? await row(i) : body, ContentLength: bytes }));
const ms = [];
let failed = 0;
let before;
let backendBefore = 0;
for (let b = 0; b < batches; b++) {
  // the first batch is not counted: everybody warms up
  if (b === 1 || batches === 1) {
    backendBefore = await backend();
    before = process.resourceUsage();
  }
  const start = performance.now();
  if (mode === 'seq') for (let i = 0; i < files; i++) await put(i).catch(() => { failed++; });
  else failed += (await Promise.allSettled(Array.from({ length: files }, (_, i) => put(i)))).filter((x) => x.status === 'rejected').length;
  ms.push(performance.now() - start);
}
const after = process.resourceUsage();
const own = (after.userCPUTime + after.systemCPUTime - before.userCPUTime - before.systemCPUTime) / 1e6;
const cpu = own + await backend() - backendBefore;
console.log(JSON.stringify({ ms, failed, rss_mb: after.maxRSS / 1024, cpu_s: cpu }));
process.exit(0);
