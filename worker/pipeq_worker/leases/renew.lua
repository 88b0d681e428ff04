-- Renews leases.
--
-- KEYS[1]  sorted set of leases     ARGV[1] length of a lease in seconds     ARGV[2..] tags, 1000 at most
-- Reply: the tags whose lease is gone: it lapsed, and a sweep has put the message back.
local tags = {}
for i = 2, #ARGV do
  tags[#tags + 1] = ARGV[i]
end
local time = redis.call('TIME')
local deadline = time[1] + time[2] / 1e6 + ARGV[1]
local gone, renewed = {}, {}
for i, score in ipairs(redis.call('ZMSCORE', KEYS[1], unpack(tags))) do
  if score then
    renewed[#renewed + 1] = deadline
    renewed[#renewed + 1] = tags[i]
  else
    gone[#gone + 1] = tags[i]
  end
end
if #renewed > 0 then
    -- ZREM of nothing lets a Redis whose memory is full accept the write after it.
  redis.call('ZREM', KEYS[1], '')
  redis.call('ZADD', KEYS[1], unpack(renewed))
end
return gone
