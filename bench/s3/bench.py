"""Called by run: measures, writes BENCH_OUT (JSON lines) and the page beside it.

Every figure is from the SQL call to the result: swarm.s3_upload(), COMMIT, swarm.s3_wait().
"""
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

work, port = sys.argv[1], int(sys.argv[2])
parts = sys.argv[3:] or ['small', 'parts', 'many', 'cpu']
quick = bool(os.environ.get('BENCH_QUICK'))
rounds = int(os.environ.get('BENCH_ROUNDS') or (1 if quick else 3))
batches = 2 if quick else 5            # of a process in a round, the first is not counted
out = open(os.environ['BENCH_OUT'], 'w')
ACCESS, SECRET = 'AKTEST', 'SKTEST'
env = dict(os.environ, S3_ACCESS_KEY=ACCESS, S3_SECRET_KEY=SECRET, NODE_NO_WARNINGS='1')
rows = []
ticks = os.sysconf('SC_CLK_TCK')


def psql(script, check=True):
    p = subprocess.run(['psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', '-'], input=script, text=True,
                       capture_output=True, env=env)
    if check and p.returncode:
        raise RuntimeError(p.stderr)
    return p.stdout


def note(engine, measure, rnd, unit, value):
    row = dict(engine=engine, measure=measure, round=rnd, unit=unit, value=round(value, 3))
    rows.append(row)
    out.write(json.dumps(row) + '\n')
    out.flush()


# ---- processes of the server

def server_pids():
    pids = []
    for p in os.listdir('/proc'):
        try:
            if p.isdigit() and open(f'/proc/{p}/stat').read().rsplit(')', 1)[1].split()[1] == os.environ['BENCH_PM']:
                pids.append(p)
        except OSError:
            pass
    return pids


def cpu_of(pids):
    total = 0
    for p in pids:
        try:
            f = open(f'/proc/{p}/stat').read().rsplit(')', 1)[1].split()
            total += int(f[11]) + int(f[12])
        except OSError:
            pass
    return total / ticks


def anonymous(pid):
    try:
        return int(re.search(r'RssAnon:\s+(\d+)', open(f'/proc/{pid}/status').read()).group(1)) / 1024
    except (OSError, AttributeError):
        return 0


class Watch(threading.Thread):
    """The largest private memory of any runner."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.stop = 0, False

    def run(self):
        pids = psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner'").split()
        while not self.stop:
            self.peak = max([self.peak] + [anonymous(p) for p in pids])
            time.sleep(0.005)


# ---- engines: run(files, size, n) gives {ms, failed, cpu_s}

def swarm(source, server, options='{}'):
    def run(files, size, n):
        expression = {'bytea': 'd', 'column': "swarm.from_column('payload', id, 'd')",
                      'file': f"swarm.from_file('{work}/{files}-{size}/' || no - 1)"}[source]
        if source == 'file':
            folder(files, size)
        limit = 'SET pg_swarm.s3_max_files = 1000;\n'
        batch = (f"SELECT swarm.s3_upload('{server}', 'bench', array_agg(swarm.s3_file('o/' || id, {expression})), '{options}') AS b"
                 f" FROM payload WHERE size = {size} AND no <= {files} \\gset\n"
                 "SELECT concat('failed ', jsonb_array_length(swarm.s3_wait(:b) -> 'failed'));\n")
        # a first batch, not counted; the runner is there then
        psql(limit + batch)
        pids = server_pids()
        before = cpu_of(pids)
        text = psql(limit + '\\timing on\n' + batch * n + "\\timing off\nSELECT concat('cpu ', swarm_bench_cpu());\n")
        times = [float(x) for x in re.findall(r'^Time: ([0-9.]+) ms', text, re.M)]
        own = float(re.search(r'^cpu ([0-9.]+)', text, re.M).group(1))
        return dict(ms=[times[i] + times[i + 1] for i in range(0, len(times), 2)], n=n,
                    failed=sum(int(x) for x in re.findall(r'^failed (\d+)', text, re.M)),
                    cpu_s=cpu_of(pids) - before + own)
    return run


def tool(argv):
    def run(files, size, n):
        p = subprocess.run(argv + [str(files), str(size), str(n + 1)], capture_output=True, text=True, env=env)
        if p.returncode:
            raise RuntimeError(p.stderr)
        r = json.loads(p.stdout)
        return dict(ms=r['ms'][1:], failed=r['failed'], cpu_s=r['cpu_s'], rss_mb=r['rss_mb'], n=n)
    return run


def folder(files, size):
    """A folder with that many files, which the server can read too."""
    path = f'{work}/{files}-{size}'
    if not os.path.isdir(path):
        os.chmod(work, 0o755)
        os.mkdir(path)
        for i in range(files):
            open(f'{path}/{i}', 'wb').write(os.urandom(size))
    return path


def rclone(files, size, n):
    path = folder(files, size)
    ms, failed = [], 0
    for _ in range(n):
        start = time.monotonic()
        p = subprocess.run(['rclone', 'copy', path, ':s3:bench/rclone', '--s3-endpoint', env['S3_ENDPOINT'], '--transfers', '20',
                            '--checkers', '20', '--no-check-dest', '--s3-no-check-bucket', '--s3-no-head', '--config', '/dev/null',
                            '--s3-provider', 'Ceph', '--s3-force-path-style', '--s3-region', 'us-east-1', '--s3-access-key-id', ACCESS, '--s3-secret-access-key', SECRET],
                           capture_output=True, env={k: v for k, v in env.items() if k != 'AWS_CA_BUNDLE'})
        failed += p.returncode != 0
        ms.append((time.monotonic() - start) * 1000)
    return dict(ms=ms, failed=failed, n=n)


def at(ms):
    """The endpoint with that delay, and its foreign server."""
    if ms not in proxies:
        listen = port
        if ms:
            listen = port + 60 + len(proxies)
            process = subprocess.Popen([sys.executable, 'delay.py', str(listen), str(port), str(ms)])
            time.sleep(1)
            running.append(process)
        proxies[ms] = f'http://127.0.0.1:{listen}'
        psql(f"CREATE SERVER at{ms} FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint '{proxies[ms]}');"
             f"CREATE USER MAPPING FOR PUBLIC SERVER at{ms} OPTIONS (access_key_id '{ACCESS}', secret_access_key '{SECRET}');"
             f"CREATE SERVER at{ms}u FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint '{proxies[ms]}', sign_payload 'false');"
             f"CREATE USER MAPPING FOR PUBLIC SERVER at{ms}u OPTIONS (access_key_id '{ACCESS}', secret_access_key '{SECRET}')")
    env['S3_ENDPOINT'] = proxies[ms]
    return f'at{ms}'


proxies, running = {}, []


def compare(delay, files, size, serial, n=None):
    server = at(delay)
    engines = {'swarm, columns': swarm('column', server), 'SDK, allSettled': tool(['node', 'sdk.mjs', 'par']),
               'libcurl, 20 at a time': tool([f'{work}/multiput', 'par'])}
    if size * files <= 10 << 20:
        engines['swarm, bytea'] = swarm('bytea', server)
    if size > 1 << 20:
        engines['SDK, from the rows'] = tool(['node', 'sdk.mjs', 'db'])
        engines['swarm, files'] = swarm('file', server)
        engines['swarm, columns, crc32c'] = swarm('column', server + 'u', '{"checksum": "crc32c"}')
        engines['swarm, files, crc32c'] = swarm('file', server + 'u', '{"checksum": "crc32c"}')
    if serial:
        engines['libcurl, one by one'] = tool([f'{work}/multiput', 'seq'])
        engines['SDK, one by one'] = tool(['node', 'sdk.mjs', 'seq'])
    if shutil.which('rclone'):
        engines['rclone'] = rclone
    name = f'{files} x {size // 1024} KB, {delay} ms'
    order = list(engines)
    for rnd in range(rounds):
        for i in range(len(order)):
            engine = order[(i + rnd * 2) % len(order)]
            few = 1 if 'one by one' in engine or engine == 'rclone' else n or batches
            r = engines[engine](files, size, few)
            note(engine, name, rnd, 'ms', statistics.median(r['ms']))
            if r['failed']:
                note(engine, name + ', failed', rnd, 'files', r['failed'])
            if 'cpu_s' in r and size > 1 << 20:
                note(engine, name + ', CPU for 500 MB', rnd, 's', r['cpu_s'] / r['n'] / files / size * 500e6)
    return name


def memory(name, files, size):
    server = at(0)
    swarm('column', server)(1, 102400, 1)
    idle = max(anonymous(p) for p in psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_swarm runner'").split())
    watch = Watch()
    watch.start()
    swarm('column', server)(files, size, 2)
    watch.stop = True
    watch.join()
    note('swarm, columns', name, 0, 'MB', watch.peak - idle)


def payload():
    psql('DROP EXTENSION IF EXISTS pg_swarm CASCADE; CREATE EXTENSION pg_swarm; DROP TABLE IF EXISTS payload;'
         'CREATE TABLE payload (id serial PRIMARY KEY, no int, size int, d bytea); ALTER TABLE payload ALTER d SET STORAGE EXTERNAL;')
    for n, size in ((500, 102400), (20, 5242880)):
        psql(f"INSERT INTO payload (no, size, d) SELECT i, {size}, (SELECT substring(decode(string_agg(md5(random()::text || i || k), ''), 'hex') FOR {size})"
             f" FROM generate_series(1, {size} / 16 + 1) k) FROM generate_series(1, {n}) i")
    # CPU seconds of the backend that asks
    psql("CREATE OR REPLACE FUNCTION swarm_bench_cpu() RETURNS numeric LANGUAGE sql AS $$"
         " SELECT (f[12]::numeric + f[13]::numeric) / " + str(ticks) +
         " FROM (SELECT string_to_array(split_part(pg_read_file('/proc/' || pg_backend_pid() || '/stat', 0, 4096), ') ', 2), ' ') AS f) x $$")
    psql('CHECKPOINT; VACUUM ANALYZE payload')


def bucket():
    stamp = time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())
    empty = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    header = psql("SELECT authorization_header FROM swarm._s3_sign('PUT', '/bench', '{}', "
                  f"'{{\"host\": \"127.0.0.1:{port}\", \"x-amz-content-sha256\": \"{empty}\", \"x-amz-date\": \"{stamp}\"}}', "
                  f"'{empty}', '{stamp}', 'us-east-1', '{ACCESS}', '{SECRET}')").strip()
    subprocess.run(['curl', '-sf', '-X', 'PUT', '-H', f'x-amz-date: {stamp}', '-H', f'x-amz-content-sha256: {empty}',
                    '-H', f'Authorization: {header}', f'http://127.0.0.1:{port}/bench'], check=True)


def median(engine, name):
    v = [r['value'] for r in rows if r['engine'] == engine and r['measure'] == name]
    return statistics.median(v) if v else None


def ratio(name, above, below):
    """Median over rounds of above / below, taken inside a round."""
    v = []
    for rnd in range(rounds):
        a = [r['value'] for r in rows if r['engine'] == above and r['measure'] == name and r['round'] == rnd]
        b = [r['value'] for r in rows if r['engine'] == below and r['measure'] == name and r['round'] == rnd]
        if a and b and b[0]:
            v.append(a[0] / b[0])
    return (statistics.median(v), min(v), max(v)) if v else None


def page():
    def show(x):
        return f'{x:.3g}' if x < 1000 else f'{x:,.0f}'
    version = psql('SELECT version()').split(' on ')[0]
    sdk = json.load(open('node_modules/@aws-sdk/client-s3/package.json'))['version']
    node = subprocess.run(['node', '--version'], capture_output=True, text=True).stdout.strip()
    curl = subprocess.run(['curl', '--version'], capture_output=True, text=True).stdout.split()[1]
    ceph = subprocess.run(['ceph', '--version'], capture_output=True, text=True).stdout.split()[2]
    cpu = re.search(r'model name\s*: (.*)', open('/proc/cpuinfo').read()).group(1)
    lines = [f'# Uploads beside the AWS SDK, libcurl and rclone, {time.strftime("%F %H:%M UTC", time.gmtime())}', '',
             f'- command: `{os.environ["BENCH_COMMAND"]}`, {rounds} rounds, {batches} batches each after one that is not counted',
             f'- commit: {os.environ["BENCH_COMMIT"]}',
             f'- machine: {os.cpu_count()} x {cpu}, Linux {platform.release()}, load {load:.2g} at the start, {os.getloadavg()[0]:.2g} at the end',
             f'- versions: {version}, SDK {sdk} on node {node}, curl {curl}, Ceph {ceph} (gateway and memory store on the same machine)',
             '- from the SQL call to the result; fsync on. *columns*: `swarm.from_column`; *bytea*: the files are arguments, and stored',
             '- *crc32c*: the server\'s option sign_payload is false and the batch\'s checksum is crc32c; all others, SDK and libcurl too, sign the SHA-256 of the body',
             '- SDK and libcurl have the bytes in memory already; *SDK, from the rows* has them from the rows that *columns* reads, by node-postgres, '
             'and its CPU is that of node and of its backend; rclone is a whole process', '', '## What was promised', '',
             '| what | median | spread | wanted | kept |', '|---|---:|---:|---:|---|']
    ours = 'swarm, columns'

    def promise(what, r, want, kept):
        if r:
            lines.append(f'| {what} | {show(r[0])} | {show(r[1])} to {show(r[2])} | {want} | {"yes" if kept(r[0]) else "**no**"} |')

    def spread(engine, name):
        v = [r['value'] for r in rows if r['engine'] == engine and r['measure'] == name]
        return (statistics.median(v), min(v), max(v)) if v else None
    small, large, many = '20 x 100 KB, 100 ms', '20 x 5120 KB, 100 ms', '500 x 100 KB, 100 ms'
    for o in (ours, 'swarm, bytea'):
        promise(f'{small}: libcurl one by one ÷ {o}', ratio(small, 'libcurl, one by one', o), '≥ 10', lambda x: x >= 10)
        promise(f'{small}: SDK one by one ÷ {o}', ratio(small, 'SDK, one by one', o), '≥ 10', lambda x: x >= 10)
        promise(f'{small}: {o} ÷ SDK', ratio(small, o, 'SDK, allSettled'), '≤ 1', lambda x: x <= 1)
        promise(f'{small}: {o}, ms', spread(o, small), '≤ 200', lambda x: x <= 200)
    promise(f'{large}: ours ÷ SDK', ratio(large, ours, 'SDK, allSettled'), '≤ 1', lambda x: x <= 1)
    promise(f'{many}: ours ÷ libcurl', ratio(many, ours, 'libcurl, 20 at a time'), '≤ 1.3', lambda x: x <= 1.3)
    big = '20 x 5120 KB, 0 ms, CPU for 500 MB'
    promise(f'{large}: ours ÷ SDK, from the rows', ratio(large, ours, 'SDK, from the rows'), '≤ 1', lambda x: x <= 1)
    for o, peer in ((ours, 'SDK, from the rows'), ('swarm, columns, crc32c', 'SDK, from the rows'), (ours, 'SDK, allSettled'),
                    ('swarm, columns, crc32c', 'SDK, allSettled'), ('swarm, files', 'SDK, allSettled'), ('swarm, files, crc32c', 'SDK, allSettled'),
                    ('libcurl, 20 at a time', 'SDK, allSettled')):
        promise(f'CPU for 500 MB, all processes of the server: {o} ÷ {peer}', ratio(big, o, peer), '≤ 0.5', lambda x: x <= 0.5)
    for m in ('memory of the runner above idle, 20 x 5 MB', 'memory of the runner above idle, 500 x 100 KB'):
        promise(m + ', MB', spread(ours, m), '≤ 40', lambda x: x <= 40)
    failed = sum(r['value'] for r in rows if r['unit'] == 'files' and r['engine'].startswith('swarm'))
    promise('files that failed', (failed, failed, failed), '0', lambda x: x == 0)
    for name in dict.fromkeys(r['measure'] for r in rows):
        unit = next(r['unit'] for r in rows if r['measure'] == name)
        lines += ['', f'## {name} ({unit})', '', '| engine | median | spread | ÷ ours |', '|---|---:|---:|---:|']
        for engine in dict.fromkeys(r['engine'] for r in rows if r['measure'] == name):
            s, q = spread(engine, name), ratio(name, engine, ours)
            lines.append(f'| {engine} | {show(s[0])} | {show(s[1])} to {show(s[2])} | {show(q[0]) if q else ""} |')
    open(re.sub(r'\.jsonl$', '.md', os.environ['BENCH_OUT']), 'w').write('\n'.join(lines) + '\n')


load = os.getloadavg()[0]
payload()
bucket()
try:
    if 'small' in parts:
        for delay in (0, 100, 300):
            compare(delay, 20, 102400, True)
    if 'parts' in parts:
        compare(100, 20, 5242880, False)
    if 'many' in parts:
        compare(100, 500, 102400, False, 1 if quick else 2)
    if 'cpu' in parts:
        compare(0, 20, 5242880, False)
        memory('memory of the runner above idle, 20 x 5 MB', 20, 5242880)
        memory('memory of the runner above idle, 500 x 100 KB', 500, 102400)
finally:
    for p in running:
        p.kill()
page()
