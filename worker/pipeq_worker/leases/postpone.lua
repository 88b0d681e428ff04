-- Moves a message that is not due yet from its worker into the set of waiting ones.
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases     KEYS[3] sorted set of waiting messages
-- ARGV[1]  its tag     ARGV[2] when it is due, in seconds since the epoch
-- Reply: 1, or 0 if its lease is gone.
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry then
  return 0
end
local colon = string.find(entry, ':', 1, true)
local stop = colon + tonumber(string.sub(entry, 1, colon - 1))
-- ZREM of nothing lets a Redis whose memory is full accept the writes after it.
redis.call('ZREM', KEYS[2], '')
redis.call('ZADD', KEYS[3], ARGV[2], cjson.encode({
  list = string.sub(entry, colon + 1, stop), message = string.sub(entry, stop + 1),
}))
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
