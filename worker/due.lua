-- Moves waiting messages whose time has come back to the lists they came from.
--
-- KEYS[1]  sorted set of waiting messages     ARGV[1] now, in seconds since the epoch    ARGV[2] most to move
-- Each member is JSON: {"list": the list's name, "message": the message as text}
-- Reply: how many were moved.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #due > 0 then
  -- Removes nothing; even a Redis whose memory is full takes the other writes after it.
  redis.call('ZREM', KEYS[1], '')
end
for _, member in ipairs(due) do
  local entry = cjson.decode(member)
  redis.call('LPUSH', entry.list, entry.message)
  redis.call('ZREM', KEYS[1], member)
end
return #due
