-- Puts messages back at the end of their lists that is served next, in the order in which they were taken. Messages
-- that a worker has looked at and sent back ('last') go to the other end, so that the others are served first.
-- Each gets a blank in front, or two if it goes to the other end. They keep it valid JSON, and tell its next worker that
-- it was delivered before. A tab after the blanks counts a lease that has ended without an answer (see history.py).
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases
-- ARGV[1]  'tags': the tags that follow, in the order in which they were taken
--          'last': the tags that follow, to the other end
--          'lapsed': the tags whose lease has ended, at most ARGV[2]; none if it is later than ARGV[3] (seconds since
--          the epoch), because this call was then delayed, and other workers may have been cut off, too
-- Reply: how many were put back; then the beginning of each entry that is no message of ours, which is removed.
-- A message whose key is no list stays, and is tried again in a minute.
local LATER = 60
local BEGINNING = 1024
local tags = {}
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
if ARGV[1] == 'lapsed' then
  if now <= tonumber(ARGV[3]) then
    tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2])
  end
else
  for i = 2, #ARGV do
    tags[#tags + 1] = ARGV[i]
  end
end
if #tags == 0 then
  return {0}
end
-- ZREM of nothing lets a Redis whose memory is full accept the writes after it.
redis.call('ZREM', KEYS[2], '')
local reply = {0}
local lapsed = ARGV[1] == 'lapsed' and '\t' or ''
local first, last, step, push = #tags, 1, -1, 'RPUSH'
if ARGV[1] == 'last' then
  first, last, step, push = 1, #tags, 1, 'LPUSH'
end
for i = first, last, step do
  local entry = redis.call('HGET', KEYS[1], tags[i])
  local stays = false
  if entry then
    local colon = string.find(entry, ':', 1, true) or 0
    local length = tonumber(string.sub(entry, 1, colon - 1)) or 0
    if length >= 1 and colon + length <= #entry then
      local message = string.sub(entry, colon + length + 1)
      -- A second blank tells a fair list that the message is not served first (see reserve.lua).
      message = (push == 'LPUSH' and '  ' or ' ') .. lapsed .. string.gsub(message, '^ +', '')
      local pushed = redis.pcall(push, string.sub(entry, colon + 1, colon + length), message)
      if type(pushed) ~= 'table' then
        reply[1] = reply[1] + 1
      elseif string.find(pushed.err, 'WRONGTYPE', 1, true) then
        redis.call('ZADD', KEYS[2], now + LATER, tags[i])
        stays = true
      else
        return pushed
      end
    else
      reply[#reply + 1] = string.sub(entry, 1, BEGINNING)
    end
  end
  if not stays then
    redis.call('HDEL', KEYS[1], tags[i])
    redis.call('ZREM', KEYS[2], tags[i])
  end
end
return reply
