-- Functions that wait: what their timeout means.  NULL is without limit, zero
-- looks once, less is an error, whether there is something to wait for or not.
SELECT swarm.job_wait(0, '-1 ms');
SELECT swarm.memory_wait('none', 'k', '-1 day');
SELECT swarm.query_wait(0, '-1 month');
SELECT swarm.s3_wait(0, '1 day -1 month');
SELECT swarm.llm_wait(0, '-1 us');
SELECT swarm.task_wait(0, '-1 us');
SELECT count(*) FROM swarm.task_wait(NULL, NULL);
SELECT swarm.job_wait(NULL, NULL) IS NULL, swarm.query_wait(NULL, NULL) IS NULL, swarm.s3_wait(NULL, NULL) IS NULL, swarm.llm_wait(NULL, NULL) IS NULL;

SELECT swarm.queue_create('base_wait');
SELECT swarm.queue_pause('base_wait');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', queue => 'base_wait') AS job \gset
SELECT state FROM swarm.job_wait(:job, '0');
SELECT swarm.queue_resume('base_wait');
SELECT state FROM swarm.job_wait(:job, NULL);
SELECT state FROM swarm.job_wait(:job, '100000 years');
SELECT state FROM swarm.job_wait(:job, '0');

SELECT swarm.query_start('sql', 'SELECT 1') AS query \gset
SELECT swarm.query_wait(:query, NULL);
SELECT swarm.query_wait(:query, '0');
SELECT swarm.query_register() AS query \gset
SELECT swarm.query_wait(:query, '0');

SELECT swarm.task_submit('{"capabilities": ["base_wait"]}') AS task \gset
SELECT state FROM swarm.task_wait(:task, '0');
SELECT swarm.task_cancel(:task);
SELECT state FROM swarm.task_wait(:task, NULL);

SELECT swarm.namespace_create('base_wait');
SELECT swarm.memory_wait('base_wait', 'base_wait', '0');
SELECT swarm.memory_store('base_wait', 'base_wait', '1');
SELECT (swarm.memory_wait('base_wait', 'base_wait', '0')).value, (swarm.memory_wait('base_wait', 'base_wait', NULL)).value;
SELECT swarm.namespace_drop('base_wait', true);
