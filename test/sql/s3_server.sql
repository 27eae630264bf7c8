-- Servers, user mappings, and who may do what. Nothing here reaches a network.
CREATE SERVER s3_none FOREIGN DATA WRAPPER swarm_s3;
CREATE SERVER s3_none FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'http://127.0.0.1:1', secret_access_key 'HIDDEN');
CREATE SERVER s3_none FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'http://127.0.0.1:1', colour 'red');
CREATE FUNCTION pg_temp.try(option text, value text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE SERVER s3_try FOREIGN DATA WRAPPER swarm_s3 OPTIONS (%s%s %L)',
        CASE WHEN option <> 'endpoint' THEN 'endpoint ''http://127.0.0.1:1'', ' END, option, value);
    DROP SERVER s3_try;
    RETURN 'ok';
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN 'refused';
END $$;
SELECT value, pg_temp.try('endpoint', value) FROM unnest(ARRAY[
    'http://h', 'https://h:9000', 'https://h/', 'http://[::1]:9000', 'ftp://h', 'h:9000', 'http://', 'http://h/path', 'http://h?x=1', 'http://u:p@h',
    'http://h#f', 'http://h:0', 'http://h:99999', 'http://h:x', 'http://a b', E'http://h\r\nX: y', 'http://[::1',
    'file:///nonexistent/store', 'file:///nonexistent/store/', 'file://h/store', 'file:///', 'file:///a/../b', 'file:///a%20b', E'file:///a\nb']) value;
SELECT pg_temp.try('endpoint', 'file://' || current_setting('data_directory') || '/store');
SELECT option, value, pg_temp.try(option, value) FROM (VALUES
    ('region', 'eu-central-1'), ('region', ''), ('region', 'a b'), ('path_style', 'maybe'), ('path_style', 'off'), ('max_parallel', '0'),
    ('max_parallel', '257'), ('max_parallel', '20'), ('ca_file', 'relative'), ('ca_file', '/etc/ssl/x.pem'), ('allowed_bucket', 'docs'),
    ('allowed_bucket', 'a/b'), ('allowed_bucket', '..'), ('allowed_prefix', 'uploads/')) v(option, value);
CREATE SERVER s3_test FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'http://127.0.0.1:1', allowed_bucket 'docs', allowed_prefix 'uploads/');
CREATE USER MAPPING FOR PUBLIC SERVER s3_test OPTIONS (access_key_id 'AK');
CREATE USER MAPPING FOR PUBLIC SERVER s3_test OPTIONS (access_key_id 'AK', secret_access_key E'HIDDEN\nX: y');
CREATE USER MAPPING FOR PUBLIC SERVER s3_test OPTIONS (region 'x');
CREATE USER MAPPING FOR PUBLIC SERVER s3_test OPTIONS (access_key_id 'AK', secret_access_key 'HIDDEN');

-- Rights
CREATE ROLE s3_user;
GRANT USAGE ON FOREIGN DATA WRAPPER swarm_s3 TO s3_user;
SET ROLE s3_user;
CREATE SERVER s3_own FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'http://127.0.0.1:9');
SELECT swarm.s3_upload('s3_test', 'docs', ARRAY[swarm.s3_file('uploads/a', 'x'::bytea)]);
SELECT swarm.s3_upload_sync('s3_test', 'docs', ARRAY[swarm.s3_file('uploads/a', 'x'::bytea)]);
SELECT swarm.s3_get('s3_test', 'docs', 'uploads/a');
SELECT swarm.s3_presign('s3_test', 'docs', 'uploads/a');
SELECT swarm.from_file('/etc/passwd');
SELECT swarm._s3_sign('', '', '{}', '{}', '', '', '', '', '');
RESET ROLE;
SET pg_swarm.s3_allowed_endpoints = 'http://127.0.0.1:9, https://other';
SET ROLE s3_user;
CREATE SERVER s3_own FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'http://127.0.0.1:9');
DROP SERVER s3_own;
-- A folder is for superusers, whatever the list says.
RESET ROLE;
SET pg_swarm.s3_allowed_endpoints = 'file:///nonexistent/store';
SET ROLE s3_user;
CREATE SERVER s3_own FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'file:///nonexistent/store');
RESET ROLE;
RESET pg_swarm.s3_allowed_endpoints;
GRANT EXECUTE ON FUNCTION swarm.s3_upload, swarm.s3_upload_sync, swarm.s3_presign TO s3_user;
SET ROLE s3_user;
SELECT swarm.s3_upload('s3_test', 'docs', ARRAY[swarm.s3_file('uploads/a', 'x'::bytea)]);
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER s3_test TO s3_user;
SET ROLE s3_user;
SELECT swarm.s3_upload('s3_test', 'other', ARRAY[swarm.s3_file('uploads/a', 'x'::bytea)]);
SELECT swarm.s3_upload('s3_test', 'docs', ARRAY[swarm.s3_file('elsewhere/a', 'x'::bytea)]);
SELECT swarm.s3_upload('s3_test', 'docs', ARRAY[swarm.s3_file('uploads/a', ROW('file', NULL, '{"path": "/etc/passwd"}')::swarm.s3_source)]);
SELECT swarm.s3_presign('s3_test', 'docs', 'uploads/../a');
SELECT swarm.s3_presign('s3_test', 'docs', 'uploads/a', 'TRACE');
SELECT swarm.s3_presign('s3_test', 'docs', 'uploads/a', expires => '8 days');
SELECT regexp_replace(swarm.s3_presign('s3_test', 'docs', 'uploads/ü a', 'PUT', '10 min'), '\d{8}(T\d{6}Z)?|[0-9a-f]{64}', '#', 'g');
-- The secret is nowhere to be seen.
SELECT umoptions FROM pg_user_mappings WHERE srvname = 's3_test';
RESET ROLE;
CREATE SERVER s3_bare FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint 'http://127.0.0.1:1');
SELECT swarm.s3_presign('s3_bare', 'docs', 'a');
SELECT swarm.s3_presign('s3_gone', 'docs', 'a');

-- What is refused before anything is sent
SELECT swarm.s3_upload('s3_test', 'docs', '{}');
SELECT swarm.s3_upload('s3_test', 'docs', array_agg(swarm.s3_file('uploads/' || i, 'x'::bytea))) FROM generate_series(1, 21) i;
SELECT swarm.s3_upload_sync('s3_test', 'docs', '{}');
SET pg_swarm.s3_max_file_size = '1MB';
SELECT swarm.s3_upload('s3_test', 'docs', ARRAY[swarm.s3_file('uploads/large', convert_to(repeat('x', 1048577), 'UTF8'))]);
SELECT swarm.s3_upload_sync('s3_test', 'docs', ARRAY[swarm.s3_file('uploads/large', convert_to(repeat('x', 1048577), 'UTF8'))]) ->> 'message' AS message;
RESET pg_swarm.s3_max_file_size;
CREATE FUNCTION pg_temp.refused(file swarm.s3_file, options jsonb = '{}') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM swarm.s3_upload('s3_test', 'docs', ARRAY[file], options);
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ': ' || SQLERRM;
END $$;
SELECT pg_temp.refused(swarm.s3_file(key, 'x'::bytea)) FROM unnest(ARRAY['uploads/../x', 'uploads/./x', 'uploads/..', E'uploads/a\nb',
    'uploads/' || repeat('x', 1017), NULL]) key;
SELECT pg_temp.refused(swarm.s3_file('uploads/x', NULL));
SELECT pg_temp.refused(swarm.s3_file('uploads/x', 'x'::bytea, E'text/plain\r\nX: y'));
SELECT pg_temp.refused(swarm.s3_file('uploads/x', 'x'::bytea, 'text/plain', metadata)) FROM unnest(ARRAY['[]', '{"a b": "c"}', '{"a": "x\r\ny"}', '{"a": 1}']::jsonb[]) metadata;
SELECT pg_temp.refused(swarm.s3_file('uploads/x', 'x'::bytea), options) FROM unnest(ARRAY['[]', '{"colour": "red"}', '{"checksum": "md4"}', '{"timestamped": 1}', '{"tags": {"a": 1}}', '{"acl": "x\r\ny"}']::jsonb[]) options;
SELECT pg_temp.refused(swarm.s3_file('uploads/x', swarm.from_large_object(1)));
SELECT pg_temp.refused(swarm.s3_file('uploads/x', swarm.from_file(path))) FROM unnest(ARRAY['relative', '/dev/null', '/nonexistent/file']) path;
SELECT pg_temp.refused(swarm.s3_file('uploads/x', swarm.from_query('SELECT 1', 'parquet')));
SELECT pg_temp.refused(swarm.s3_file('uploads/x', swarm.from_column('pg_class', 1, 'relname')));
SELECT pg_temp.refused(ROW('uploads/x', ROW('magic', NULL, NULL), NULL, NULL)::swarm.s3_file);
SELECT swarm.s3_upload('s3_test', 'docs', ARRAY[swarm.s3_file('uploads/a', 'x'::bytea), swarm.s3_file('uploads/a', 'y'::bytea)]);
SELECT swarm.s3_export('s3_test', 'docs', 'uploads/a', 'DROP TABLE x');
SELECT swarm.s3_export('s3_test', 'docs', 'uploads/a', 'SELECT 1; SELECT 2');
SELECT swarm.s3_wait(0);
SELECT swarm.s3_cancel(0);
SELECT swarm.s3_retry(0);
CALL swarm._s3_run(ROW(1, 'q', 'k', '{"batch": 1}', 1, 1, 'medium', NULL, '{}', now(), now())::swarm.job);
SELECT count(*) FROM swarm.s3_batches;

-- The tables of decisions
SELECT * FROM swarm._s3_decisions();
SELECT * FROM swarm._s3_states();
DROP SERVER s3_test CASCADE;
DROP SERVER s3_bare;
REVOKE ALL ON FUNCTION swarm.s3_upload, swarm.s3_upload_sync, swarm.s3_presign FROM s3_user;
REVOKE ALL ON FOREIGN DATA WRAPPER swarm_s3 FROM s3_user;
DROP ROLE s3_user;
