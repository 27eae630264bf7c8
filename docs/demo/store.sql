-- The embedded store, a folder.  docs/demo/run loads this as a superuser; variable: folder.
CREATE SERVER store FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint :'folder', allowed_bucket 'demo');
GRANT USAGE ON FOREIGN SERVER store TO demo;
GRANT EXECUTE ON FUNCTION swarm.s3_upload, swarm.s3_import TO demo;
