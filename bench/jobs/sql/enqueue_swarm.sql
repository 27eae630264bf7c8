select swarm.job_enqueue('noop', '{"seq": 1}', queue => 'q');
