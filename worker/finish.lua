-- Stores and publishes results, each only if its task has not ended before: a task ends once.
--
-- KEYS[1]  hash of running marks
-- KEYS[2..] record key and dead-letter list of each result, in turn
-- ARGV[1]  messages kept in a dead-letter list
-- ARGV[2..] id, record, lifetime in seconds (0: for ever) and dead letter (empty for none) of each result, in turn
-- Reply: for each result 1 if it was stored, 0 if the task had ended before.
local FINAL = {SUCCESS = true, FAILURE = true, REVOKED = true}
local reply = {}
for i = 1, (#KEYS - 1) / 2 do
  local key, dead = KEYS[i * 2], KEYS[i * 2 + 1]
  local at = 2 + (i - 1) * 4
  local id, record, lifetime, letter = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  local before = redis.call('GET', key)
  local ok, fields = pcall(cjson.decode, before or '')
  if ok and type(fields) == 'table' and FINAL[fields.status] then
    reply[i] = 0
  else
    if lifetime > 0 then
      redis.call('SET', key, record, 'EX', lifetime)
    else
      redis.call('SET', key, record)
    end
    redis.call('PUBLISH', key, record)
    if letter ~= '' then
      redis.call('LPUSH', dead, letter)
      redis.call('LTRIM', dead, 0, ARGV[1] - 1)
    end
    reply[i] = 1
  end
  redis.call('HDEL', KEYS[1], id)
end
return reply
