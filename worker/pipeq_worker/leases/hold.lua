-- Notes that a worker takes one message alone into its hands, and that it has let go of another one (see history.py).
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases
-- ARGV[1]  tag of the message that it lets go of (empty for none)
-- ARGV[2]  tag of the message that it takes (empty for none)
--
-- If the worker dies meanwhile, the message that is put back says so by itself.
local function split(tag)
  local entry = tag ~= '' and redis.call('HGET', KEYS[1], tag)
  if not entry then
    return nil
  end
  local colon = string.find(entry, ':', 1, true) or 0
  local stop = colon + (tonumber(string.sub(entry, 1, colon - 1)) or #entry)
  local first, last = string.find(entry, '^ *\t*', stop + 1)
  if not first then
    return nil
  end
  return string.sub(entry, 1, last), string.sub(entry, last + 1)
end

-- ZREM of nothing lets a Redis whose memory is full accept the writes after it.
redis.call('ZREM', KEYS[2], '')
local head, rest = split(ARGV[1])
if head and string.sub(rest, 1, 1) == '\r' then
  redis.call('HSET', KEYS[1], ARGV[1], head .. string.sub(rest, 2))
end
head, rest = split(ARGV[2])
if head then
  redis.call('HSET', KEYS[1], ARGV[2], head .. '\r' .. rest)
end
return 0
