-- Puts messages back at the end of their lists that is served next, in the order in which they were taken.
-- Each gets a blank in front, which is still JSON: whoever takes it next knows that it was delivered before.
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases
-- ARGV[1]  'tags': those that follow, in the order in which they were taken
--          'lapsed': the tags whose lease has ended, ARGV[2] at most, unless it is later than ARGV[3] (seconds since the
--          epoch): then this call was on its way for long, and others may have been cut off, too
-- Reply: how many were put back.
local tags = {}
if ARGV[1] == 'lapsed' then
  local time = redis.call('TIME')
  local now = time[1] + time[2] / 1e6
  if now <= tonumber(ARGV[3]) then
    tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2])
  end
else
  for i = 2, #ARGV do
    tags[#tags + 1] = ARGV[i]
  end
end
if #tags == 0 then
  return 0
end
-- Removes nothing; even a Redis whose memory is full takes the other writes after it.
redis.call('ZREM', KEYS[2], '')
local back = 0
for i = #tags, 1, -1 do
  local entry = redis.call('HGET', KEYS[1], tags[i])
  if entry then
    local colon = string.find(entry, ':', 1, true)
    local stop = colon + tonumber(string.sub(entry, 1, colon - 1))
    local message = string.sub(entry, stop + 1)
    if string.sub(message, 1, 1) ~= ' ' then
      message = ' ' .. message
    end
    redis.call('RPUSH', string.sub(entry, colon + 1, stop), message)
    back = back + 1
  end
  redis.call('HDEL', KEYS[1], tags[i])
  redis.call('ZREM', KEYS[2], tags[i])
end
return back
