-- Moves the messages of a fair list (see reserve.lua) back onto it, in their order, for consumers that read only lists.
--
-- KEYS[1]  list     KEYS[2] its sorted set     KEYS[3] its hash of times
-- ARGV[1]  most messages to move
-- Reply: how many are left in the set.
local NUMBER = 13
local last = redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1] - 1)
if #last > 0 then
  -- ZREM of nothing lets a Redis whose memory is full accept the writes after it.
  redis.call('ZREM', KEYS[2], '')
  local messages = {}
  for _, member in ipairs(last) do
    messages[#messages + 1] = string.sub(member, NUMBER + 1)
  end
  redis.call('RPUSH', KEYS[1], unpack(messages))
  redis.call('ZREMRANGEBYRANK', KEYS[2], -#last, -1)
end
local left = redis.call('ZCARD', KEYS[2])
if left == 0 then
  redis.call('DEL', KEYS[3])
end
return left
