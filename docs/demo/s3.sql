-- An S3 server.  docs/demo/run loads this as a superuser when DEMO_S3 names one.  Credentials come from the environment,
-- so that no list of processes has them, and a failing statement is not logged with them.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
\set region us-east-1
\getenv region AWS_REGION
\getenv endpoint DEMO_S3
\getenv bucket DEMO_BUCKET
\getenv id AWS_ACCESS_KEY_ID
\getenv secret AWS_SECRET_ACCESS_KEY
\getenv token AWS_SESSION_TOKEN
CREATE SERVER s3 FOREIGN DATA WRAPPER swarm_s3 OPTIONS (endpoint :'endpoint', region :'region', allowed_bucket :'bucket');
CREATE USER MAPPING FOR PUBLIC SERVER s3 OPTIONS (access_key_id :'id', secret_access_key :'secret');
\if :{?token}
ALTER USER MAPPING FOR PUBLIC SERVER s3 OPTIONS (ADD session_token :'token');
\endif
GRANT USAGE ON FOREIGN SERVER s3 TO demo;
