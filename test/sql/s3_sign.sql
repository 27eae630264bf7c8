-- Signature Version 4: the examples that AWS publishes for S3, and what encoding must do.
CREATE FUNCTION s3sign(method text, path text, query jsonb, headers jsonb, hash text, host text = 'examplebucket.s3.amazonaws.com')
RETURNS text LANGUAGE sql AS $$
SELECT regexp_replace(authorization_header, '^.*SignedHeaders=', '')
FROM swarm._s3_sign(method, path, query,
    jsonb_build_object('host', host, 'x-amz-content-sha256', hash, 'x-amz-date', '20130524T000000Z') || headers,
    hash, '20130524T000000Z', 'us-east-1', 'AKIAIOSFODNN7EXAMPLE', 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY') $$;
-- https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
\set empty e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
SELECT s3sign('GET', '/test.txt', '{}', '{"range": "bytes=0-9"}', :'empty') AS get_object;
SELECT s3sign('PUT', '/test$file.text', '{}', '{"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}',
    encode(sha256('Welcome to Amazon S3.'), 'hex')) AS put_object;
SELECT s3sign('GET', '/', '{"lifecycle": ""}', '{}', :'empty') AS get_lifecycle;
SELECT s3sign('GET', '/', '{"max-keys": "2", "prefix": "J"}', '{}', :'empty') AS list_objects;
-- The path is encoded once and nothing in it is folded; the query is sorted as it is encoded; blanks in headers are one.
SELECT canonical FROM swarm._s3_sign('PUT', E'/b/a b+c/ü/../x//%41=&~*''();:@,$', '{"b": "2 +", "a": "/x", "a-": "", "B": "é"}',
    '{"host": "h", "x-amz-meta-a-b": "  two   blanks ", "x-amz-meta-a": "1", "x-amz-meta-": "0"}', 'HASH', '20130524T000000Z', 'r', 'A', 'S');
DROP FUNCTION s3sign;
