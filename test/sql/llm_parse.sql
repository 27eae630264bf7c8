-- Answers of models: wherever a stream is cut, they are the same.
CREATE TABLE stream (dialect text, name text, bytes bytea);
INSERT INTO stream SELECT d, n, convert_to(s, 'UTF8') FROM (VALUES
('anthropic', 'text', E'event: message_start\ndata: {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3}}}\n\nevent: ping\ndata: {"type": "ping"}\n\nevent: content_block_start\ndata: {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}\n\nevent: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hall\\u00f6 \\"x\\" € "}}\n\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "world\\n"}}\n\ndata: {"type": "content_block_stop", "index": 0}\n\ndata: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}\n\ndata: {"type": "message_stop"}\n\n'),
('anthropic', 'tool', E'data: {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}\r\n\r\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}\r\n\r\ndata: {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}}\r\n\r\ndata: {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t1", "name": "f", "input": {}}}\r\n\r\ndata: {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{\\"a\\": [1,"}}\r\n\r\ndata: {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": " 2]}"}}\r\n\r\ndata: {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}\r\n\r\n'),
('anthropic', 'unknown', E'data: {"type": "new_event", "x": 1}\n\ndata: {"type": "content_block_start", "index": 0, "content_block": {"type": "redacted_thinking", "data": "zzz"}}\n\ndata: {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "no start"}}\n\ndata: {"type": "message_stop"}\n\n'),
('anthropic', 'error', E'data: {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}\n\n'),
('anthropic', 'bad', E'data: {"type": \n\ndata: [1, 2]\n\ndata: "x"\n\ndata: {"type": "content_block_delta", "index": 99999999, "delta": {"text": "\\u0000"}}\n\n'),
('anthropic', 'cut tool', E'data: {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t1", "name": "f"}}\n\ndata: {"type": "content_block_delta", "index": 0, "delta": {"partial_json": "{\\"a\\": [1,"}}\n\ndata: {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}\n\ndata: {"type": "message_stop"}\n\n'),
('openai', 'text', E'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}\n\ndata: {"choices": [{"delta": {"content": "Hel"}}]}\n\ndata: {"choices": [{"delta": {"content": "lo €"}}]}\n\ndata: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}}\n\ndata: [DONE]\n\n'),
('openai', 'tools', E'data: {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c0", "function": {"name": "f", "arguments": ""}}]}}]}\n\ndata: {"choices": [{"delta": {"tool_calls": [{"index": 1, "id": "c1", "function": {"name": "g", "arguments": "{}"}}]}}]}\n\ndata: {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{\\"x\\": 1}"}}]}}]}\n\ndata: {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}\n\n'),
('openai', 'error', E'data: {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}\n\n'),
('openai', 'no end', E'data: {"choices": [{"delta": {"content": "half"}}]}\n\n')) x(d, n, s);
SELECT dialect, name, jsonb_pretty(swarm._llm_parse(dialect, bytes, length(bytes))) FROM stream ORDER BY dialect, name;

-- cut at every byte, and in pieces of one to forty
SELECT dialect, name, bool_and(swarm._llm_parse(dialect, bytes, i) = swarm._llm_parse(dialect, bytes, length(bytes))) AS same
FROM stream, generate_series(1, length(bytes)) i GROUP BY dialect, name ORDER BY dialect, name;

-- what JSON may escape but no text holds: zero, halves of pairs; in a tool's arguments too
SELECT swarm._llm_parse('openai', convert_to('data: {"choices": [{"delta": {"content": "a\u0000b \ud83d\ude00 \ud83dc \ude00 \\u0000 \uD800\u0041 \"}}]}' || E'\n\n', 'UTF8'), 7)->>'bad_events' AS cut_escape;
SELECT j->>'text' AS text, j->'content'->1->'input' AS input, j->'bad_events' AS bad
FROM swarm._llm_parse('openai', convert_to('data: {"choices": [{"delta": {"content": "a\u0000b \ud83d\ude00 \ud83dc \ude00 \\u0000 \uD800\u0041", "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{\"x\": \"1\\u00002\"}"}}]}}]}' || E'\n\n', 'UTF8'), 7) j;

-- damaged: a byte changed anywhere gives no error
SELECT dialect, name, count(swarm._llm_parse(dialect, set_byte(bytes, i, (get_byte(bytes, i) # b) % 256), 1000)) = 4 * length(bytes) AS no_error
FROM stream, generate_series(0, length(bytes) - 1) i, unnest('{1,32,128,255}'::int[]) b GROUP BY dialect, name, bytes ORDER BY dialect, name;

-- whole documents
SELECT swarm._llm_parse('anthropic', convert_to('{"type": "message", "content": [{"type": "text", "text": "hello"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}], "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 2}}', 'UTF8'), 0);
SELECT swarm._llm_parse('openai', convert_to('{"choices": [{"message": {"content": "hello", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}', 'UTF8'), 0);
SELECT swarm._llm_parse('openai', '[1]', 0)->'complete' AS complete;
DROP TABLE stream;
