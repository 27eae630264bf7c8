-- Messages with fewer tokens.
SELECT swarm.token_estimate(''), swarm.token_estimate('hello world'), swarm.token_estimate('internationalization, 12345 '), swarm.token_estimate('日本語');
\t on
\pset format unaligned
SELECT swarm.message_compress(string_agg('The section on routine vacuuming says that dead rows stay until vacuum removes them (' || i || ').', E'\n'), 1)
FROM generate_series(1, 8) i;
SELECT swarm.message_compress(E'It is important to note that   this  \n\n\n\n    is very really short, in order to show it.', l) FROM generate_series(1, 3) l;
SELECT swarm.message_compress(E'The other theory: bathe the cat.', l) FROM generate_series(1, 3) l;
SELECT swarm.message_compress('x', 4);
SELECT swarm.message_expand(E'§§1\n§A=x\nno end');
SELECT swarm.message_expand(E'§§1\n§A=x\n§§\n§B');
\t off
\pset format aligned

-- A fixed corpus: what an agent has in its context. Level 1 gives all of it back.
CREATE TABLE corpus AS
SELECT 'tool results' AS name, (SELECT jsonb_agg(jsonb_build_object('section', i, 'title', 'Chapter ' || i % 7, 'rank', i * 0.01, 'found_by', 'text search', 'excerpt', 'row ' || i * 37))
                                FROM generate_series(1, 100) i)::text AS message
UNION ALL
SELECT 'dialogue', (SELECT string_agg(format(E'User: please look at section %s of the manual, in order to tell me what it says about vacuum\nAssistant: I will call search_sections with the argument %s.\n', i, i), E'\n')
                    FROM generate_series(1, 30) i)
UNION ALL
SELECT 'nothing recurs', 'Each of these words stands here once, so no symbol could save a token in such a text.'
UNION ALL
SELECT 'markers', E'§§1\nlooks compressed, and is not'
UNION ALL
SELECT 'all markers but one', repeat(E'a passage with § and ¶ and ¤ and ~ that recurs\n', 10)
UNION ALL
SELECT 'empty', '';
SELECT name, swarm.token_estimate(message) AS tokens, swarm.token_estimate(swarm.message_compress(message)) AS compressed,
       swarm.message_expand(swarm.message_compress(message)) = message AS same
FROM corpus ORDER BY name COLLATE "C";
SELECT swarm.message_expand(swarm.message_compress(message::jsonb))::jsonb = message::jsonb AS same FROM corpus WHERE name = 'tool results';

-- random texts of few words, so that much recurs: nothing is lost
SELECT count(*) AS texts, bool_and(swarm.message_expand(swarm.message_compress(t)) = t) AS same
FROM (SELECT string_agg((ARRAY['alpha', 'beta', ' ', E'\n', 'gamma-delta', '=', '§'])[1 + (hashint4(i * 1000 + j) & 2147483647) % (5 + i % 3)], CASE WHEN i % 2 = 0 THEN ' ' ELSE '' END ORDER BY j) AS t
      FROM generate_series(1, 200) i, generate_series(1, 20 + i) j GROUP BY i) x;
DROP TABLE corpus;
