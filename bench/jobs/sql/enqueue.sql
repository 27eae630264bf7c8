-- A row like the one that swarm.job_enqueue inserts: the columns and the key of swarm._job.
create sequence plain_id_seq;
create table plain(id bigint primary key, queue int not null, kind int not null, owner oid not null, priority int2 not null,
  max_attempts int not null, timeout_us bigint not null, run_at timestamptz not null, enqueued_at timestamptz not null,
  blocked boolean not null, unique_key text, args jsonb not null, tags jsonb not null)
  with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
