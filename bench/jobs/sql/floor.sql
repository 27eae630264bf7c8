-- The floor without a slow client: claim and finish by pgbench, two commits a job (two.sql).
create table job(id bigint generated always as identity primary key, priority int2 not null default 0,
  run_at timestamptz not null default now(), state int2 not null default 0, attempts int2 not null default 0, payload jsonb not null);
create index on job(priority, run_at, id) where state = 0;
insert into job(payload) select '{"seq": 1}' from generate_series(1, :jobs);
analyze job;
