-- Reads what is known of tasks that a worker has not begun: their records, and how many workers have died with them.
--
-- KEYS[1]  hash of running marks     KEYS[2..] record key of each task
-- ARGV[1]  worker                    ARGV[2] prefix of the keys of living workers
-- ARGV[3..] of each task, in turn: id; deaths of its earlier tries
-- Reply: for each task its record (empty for none, or if it is long), its deaths, and the tries that ended so, as JSON
-- (empty for none).
--
-- Names in capitals that are not set here, and the functions `count` and `deaths_of`, are in the lines that stand above
-- this text: pipeq.contract.record.LUA and blame.lua.
local reply = {}
for i = 2, #KEYS do
  local at = 2 * i - 1
  -- A key that holds no string counts as none, and so does one that is no hash.
  local record, mark = redis.pcall('GETRANGE', KEYS[i], 0, OPEN_MAX_BYTES), redis.pcall('HGET', KEYS[1], ARGV[at])
  local deaths, lost = deaths_of(type(mark) == 'string' and mark, count(ARGV[at + 1]), ARGV[1], ARGV[2])
  reply[#reply + 1] = type(record) == 'string' and #record <= OPEN_MAX_BYTES and record or ''
  reply[#reply + 1] = deaths
  reply[#reply + 1] = lost and cjson.encode(lost) or ''
end
return reply
