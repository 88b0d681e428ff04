-- Moves an unreadable message into a list of dead letters, unless its lease is gone: then another worker does that, or
-- this call is sent again, because the answer to the first one was lost.
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases     KEYS[3] list of dead letters
-- ARGV[1]  its tag     ARGV[2] the letter     ARGV[3] most letters
-- Reply: the error of a key that is no list, where the letter is lost; otherwise empty.
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return ''
end
-- ZREM of nothing lets a Redis whose memory is full accept the writes after it.
redis.call('ZREM', KEYS[2], '')
local pushed = redis.pcall('LPUSH', KEYS[3], ARGV[2])
local problem = type(pushed) == 'table' and pushed.err or ''
if problem == '' then
  redis.call('LTRIM', KEYS[3], 0, ARGV[3] - 1)
elseif not string.find(problem, 'WRONGTYPE', 1, true) then
  return pushed
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return problem
