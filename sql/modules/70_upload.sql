-- 70_upload.sql: uploads to S3.
--
-- src/upload/README.md explains the tables; docs/reference/s3.md the functions.

CREATE FUNCTION swarm._s3_validator(options text[], catalog oid) RETURNS void
LANGUAGE c STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_s3_validator';

CREATE FOREIGN DATA WRAPPER swarm_s3 VALIDATOR swarm._s3_validator;
COMMENT ON FOREIGN DATA WRAPPER swarm_s3 IS 'S3 servers for swarm.s3_upload and the like; no tables';

-- ---------------------------------------------------------------------
-- Files and where they come from
-- ---------------------------------------------------------------------

CREATE TYPE swarm.s3_source AS (kind text, data bytea, ref jsonb);
COMMENT ON TYPE swarm.s3_source IS 'where the bytes of a file come from; a bytea is one, swarm.from_...() make others';

CREATE TYPE swarm.s3_file AS (key text, source swarm.s3_source, content_type text, metadata jsonb);
COMMENT ON TYPE swarm.s3_file IS 'a file to upload';

CREATE FUNCTION swarm.from_bytea(data bytea) RETURNS swarm.s3_source
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT ROW('bytea', data, NULL)::swarm.s3_source $$;
COMMENT ON FUNCTION swarm.from_bytea IS 'a source: these bytes';
CREATE CAST (bytea AS swarm.s3_source) WITH FUNCTION swarm.from_bytea(bytea) AS IMPLICIT;

CREATE FUNCTION swarm.from_large_object(loid oid) RETURNS swarm.s3_source
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT ROW('large_object', NULL, jsonb_build_object('oid', loid::text))::swarm.s3_source $$;
COMMENT ON FUNCTION swarm.from_large_object IS 'a source: a large object, read when it is sent';

CREATE FUNCTION swarm.from_file(path text) RETURNS swarm.s3_source
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT ROW('file', NULL, jsonb_build_object('path', path))::swarm.s3_source $$;
COMMENT ON FUNCTION swarm.from_file IS 'a source: a file of the server, read when it is sent; needs pg_read_server_files';

CREATE FUNCTION swarm.from_column(relation regclass, key text, "column" name, key_column name = NULL)
RETURNS swarm.s3_source
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT ROW('column', NULL, jsonb_build_object('relation', relation::oid::text, 'key', key,
    'column', "column"::text, 'key_column', key_column::text))::swarm.s3_source $$;
COMMENT ON FUNCTION swarm.from_column(regclass, text, name, name) IS 'a source: a column of the row with that key, read when it is sent';

CREATE FUNCTION swarm.from_column(relation regclass, key bigint, "column" name, key_column name = NULL)
RETURNS swarm.s3_source
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm.from_column(relation, key::text, "column", key_column) $$;
COMMENT ON FUNCTION swarm.from_column(regclass, bigint, name, name) IS 'a source: a column of the row with that key, read when it is sent';

CREATE FUNCTION swarm.from_query(sql text, format text = 'csv') RETURNS swarm.s3_source
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT ROW('query', NULL, jsonb_build_object('sql', sql, 'format', format))::swarm.s3_source $$;
COMMENT ON FUNCTION swarm.from_query IS 'a source: the result of a query, run when it is sent; csv, text, binary or json';

CREATE FUNCTION swarm.s3_file(key text, source swarm.s3_source,
    content_type text = 'application/octet-stream', metadata jsonb = NULL)
RETURNS swarm.s3_file
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT ROW(key, source, content_type, metadata)::swarm.s3_file $$;
COMMENT ON FUNCTION swarm.s3_file IS 'a file to upload';

-- ---------------------------------------------------------------------
-- Tables
-- ---------------------------------------------------------------------

CREATE SEQUENCE swarm._s3_batch_id_seq;

-- A call of s3_upload(). finished_at: every file has its outcome.
CREATE TABLE swarm._s3_batch (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._s3_batch_id_seq'),
    owner regrole NOT NULL,
    server text NOT NULL,
    bucket text NOT NULL,
    options jsonb NOT NULL,
    job bigint,
    cancelled boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT swarm._now(),
    started_at timestamptz,
    finished_at timestamptz
);

-- A file of a batch. upload_id: a multipart upload that must be completed or
-- aborted. data: a bytea, until it is stored. server: where it goes, if that is
-- not the batch's server but its fallback.
CREATE TABLE swarm._s3_file (
    batch bigint REFERENCES swarm._s3_batch ON DELETE CASCADE,
    no int,
    name text NOT NULL,
    key text NOT NULL,
    kind text NOT NULL,
    ref jsonb,
    data bytea,
    content_type text NOT NULL,
    metadata jsonb,
    state text NOT NULL DEFAULT 'waiting',
    size bigint,
    etag text,
    attempts int NOT NULL DEFAULT 0,
    status int,
    code text,
    error text,
    upload_id text,
    started_at timestamptz,
    finished_at timestamptz,
    ms bigint,
    server text,
    PRIMARY KEY (batch, no)
);
ALTER TABLE swarm._s3_file ALTER data SET STORAGE EXTERNAL;

-- A multipart upload that its file has left behind when it went to another
-- server: it must be aborted.
CREATE TABLE swarm._s3_left (
    batch bigint NOT NULL,
    no int NOT NULL,
    server text NOT NULL,
    upload_id text NOT NULL,
    FOREIGN KEY (batch, no) REFERENCES swarm._s3_file ON DELETE CASCADE
);
CREATE INDEX ON swarm._s3_left (batch, no);

SELECT pg_catalog.pg_extension_config_dump('swarm._s3_batch_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._s3_batch', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._s3_file', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._s3_left', '');

ALTER TABLE swarm._s3_batch ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._s3_batch FOR SELECT
    USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._s3_file ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._s3_file FOR SELECT
    USING (EXISTS (SELECT FROM swarm._s3_batch b WHERE b.id = batch));

-- ---------------------------------------------------------------------
-- Batches
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm.s3_upload(server name, bucket text, files swarm.s3_file[], options jsonb = '{}')
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_upload';
COMMENT ON FUNCTION swarm.s3_upload IS 'upload files when this transaction commits; returns the id of the batch';

CREATE FUNCTION swarm.s3_upload_sync(server name, bucket text, files swarm.s3_file[], options jsonb = '{}')
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_upload_sync';
COMMENT ON FUNCTION swarm.s3_upload_sync IS 'upload files now, from this session; stays done if the transaction is rolled back';

CREATE FUNCTION swarm.s3_wait(batch bigint, timeout interval = '5 min') RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_wait';
COMMENT ON FUNCTION swarm.s3_wait IS 'wait until every file of a batch has its outcome, or the timeout is over, and return the result';

CREATE FUNCTION swarm.s3_cancel(batch bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_s3_cancel';
COMMENT ON FUNCTION swarm.s3_cancel IS 'cancel what is not uploaded yet, at commit; false if the batch had ended';

CREATE FUNCTION swarm.s3_retry(batch bigint) RETURNS int
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_s3_retry';
COMMENT ON FUNCTION swarm.s3_retry IS 'upload those files of an ended batch again that failed; returns how many';

-- Handler of kind s3_upload. Everybody may execute it, only a runner can; it
-- does what a batch of the job's owner says, which s3_upload() has made.
CREATE PROCEDURE swarm._s3_run(job swarm.job) LANGUAGE c
AS 'MODULE_PATHNAME', 'swarm_upload_job';
INSERT INTO swarm._handler (id, kind, owner, handler)
VALUES (2, 's3_upload', 10::oid::regrole, 'swarm._s3_run');

-- ---------------------------------------------------------------------
-- Objects
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm.s3_head(server name, bucket text, key text) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_head';
COMMENT ON FUNCTION swarm.s3_head IS 'size, etag, type and metadata of an object; null if there is none';

CREATE FUNCTION swarm.s3_list(server name, bucket text, prefix text = '', max_keys bigint = 1000,
    start_after text = NULL, OUT key text, OUT size bigint, OUT modified timestamptz, OUT etag text,
    OUT storage_class text)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_list';
COMMENT ON FUNCTION swarm.s3_list IS 'objects whose keys begin with prefix, in order';

CREATE FUNCTION swarm.s3_delete(server name, bucket text, key text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_s3_delete';
COMMENT ON FUNCTION swarm.s3_delete IS 'delete an object, now; no error if there is none';

CREATE FUNCTION swarm.s3_get(server name, bucket text, key text, first bigint = 0, length bigint = NULL)
RETURNS bytea LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_get';
COMMENT ON FUNCTION swarm.s3_get IS 'the contents of an object, or a range of it; first counts from 0';

CREATE FUNCTION swarm.s3_presign(server name, bucket text, key text, method text = 'GET',
    expires interval = '1 hour')
RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_presign';
COMMENT ON FUNCTION swarm.s3_presign IS 'a URL with which anybody may do this until it expires; sends nothing';

-- swarm.s3_export(...): a query's result as an object, now. Errors as
-- s3_upload_sync has them in its result are raised: 38000.
CREATE FUNCTION swarm.s3_export(server name, bucket text, key text, query text, format text = 'csv',
    options jsonb = '{}')
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_s3_export';
COMMENT ON FUNCTION swarm.s3_export IS 'store the result of a query as an object: csv, text, binary or json lines';

CREATE FUNCTION swarm.s3_import(server name, bucket text, key text, target regclass,
    format text = 'csv', options jsonb = '{}')
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_s3_import';
COMMENT ON FUNCTION swarm.s3_import IS 'insert the rows of an object into a table; returns how many';

-- ---------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._s3_progress(OUT batch bigint, OUT no int, OUT sent bigint, OUT total bigint,
    OUT ms bigint, OUT step text)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 20
AS 'MODULE_PATHNAME', 'swarm_s3_progress';

CREATE FUNCTION swarm._s3_endpoints(OUT endpoint text, OUT breaker text, OUT open_until timestamptz,
    OUT failures_in_row int, OUT running int, OUT parallel_limit int, OUT requests bigint,
    OUT failures bigint, OUT slowdowns bigint, OUT bytes_sent bigint, OUT bytes_received bigint,
    OUT latency_ms float8, OUT latency_max_ms float8)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10
AS 'MODULE_PATHNAME', 'swarm_s3_endpoint_list';

CREATE FUNCTION swarm._s3_decisions(OUT layer text, OUT what text, OUT verdict text, OUT harms boolean,
    OUT why text)
RETURNS SETOF record LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_s3_decisions';

CREATE FUNCTION swarm._s3_states(OUT machine text, OUT from_state text, OUT event text, OUT to_state text,
    OUT why text)
RETURNS SETOF record LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_s3_states';

-- The signer, for test vectors.
CREATE FUNCTION swarm._s3_sign(method text, path text, query jsonb, headers jsonb, payload_hash text,
    stamp text, region text, access_key text, secret_key text, OUT canonical text, OUT authorization_header text)
RETURNS record LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_s3_sign';

CREATE VIEW swarm.s3_files WITH (security_invoker = true) AS
SELECT f.batch, f.no, f.name, f.key,
       CASE WHEN f.state IN ('done', 'failed', 'cancelled') THEN f.state
            WHEN p.batch IS NOT NULL THEN 'running'
            WHEN b.finished_at IS NULL AND EXISTS (SELECT FROM swarm._job j WHERE j.id = b.job) THEN 'waiting'
            ELSE 'failed' END AS state,
       p.step,
       f.status, f.attempts,
       CASE WHEN f.state = 'done' THEN f.size ELSE coalesce(p.sent, 0) END AS bytes_sent,
       coalesce(f.size, nullif(p.total, 0)) AS bytes_total,
       CASE WHEN f.state = 'done' THEN f.size * 1000 / nullif(f.ms, 0)
            ELSE p.sent * 1000 / nullif(p.ms, 0) END AS rate,
       f.etag, f.code, f.error, f.content_type, f.metadata, f.kind AS source,
       f.started_at, f.finished_at, coalesce(p.ms, f.ms) AS ms, coalesce(f.server, b.server) AS server
FROM swarm._s3_file f
JOIN swarm._s3_batch b ON b.id = f.batch
LEFT JOIN swarm._s3_progress() p ON p.batch = f.batch AND p.no = f.no;
COMMENT ON VIEW swarm.s3_files IS 'files of the batches that the current role may see, with how far each one is';

CREATE VIEW swarm.s3_batches WITH (security_invoker = true) AS
SELECT b.id, b.owner, b.server, b.bucket, b.options, b.job,
       CASE WHEN b.finished_at IS NOT NULL THEN
                CASE WHEN f.done = f.files THEN 'done' WHEN f.cancelled > 0 THEN 'cancelled' ELSE 'failed' END
            WHEN NOT EXISTS (SELECT FROM swarm._job j WHERE j.id = b.job) THEN 'failed'
            WHEN b.started_at IS NOT NULL THEN 'running' ELSE 'waiting' END AS state,
       f.files, f.done, f.failed, f.cancelled, f.bytes_sent, f.bytes_total,
       f.bytes_sent::float8 / nullif(f.bytes_total, 0) AS progress,
       b.created_at, b.started_at, b.finished_at
FROM swarm._s3_batch b
CROSS JOIN LATERAL (
    SELECT count(*) AS files, count(*) FILTER (WHERE state = 'done') AS done,
           count(*) FILTER (WHERE state = 'failed') AS failed,
           count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
           sum(bytes_sent)::bigint AS bytes_sent, sum(bytes_total)::bigint AS bytes_total
    FROM swarm.s3_files WHERE batch = b.id) f;
COMMENT ON VIEW swarm.s3_batches IS 'batches that the current role may see';

CREATE VIEW swarm.s3_endpoints AS
SELECT endpoint, breaker, open_until, failures_in_row, running, parallel_limit, requests, failures, slowdowns,
       bytes_sent, bytes_received, round(latency_ms::numeric, 1) AS latency_ms,
       round(latency_max_ms::numeric, 1) AS latency_max_ms
FROM swarm._s3_endpoints() e
WHERE EXISTS (SELECT FROM pg_catalog.pg_foreign_server s, pg_catalog.pg_options_to_table(s.srvoptions) o
              WHERE o.option_name = 'endpoint' AND pg_catalog.rtrim(o.option_value, '/') = e.endpoint);
COMMENT ON VIEW swarm.s3_endpoints IS 'endpoints of this database''s servers: circuit breaker, limits, counters since server start';
