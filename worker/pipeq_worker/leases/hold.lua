-- Notes that a worker takes one message alone into its hands, and that it has let go of another one (see history.py).
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases
-- ARGV[1]  tag of the message that it lets go of (empty for none), and ARGV[2] how often that one was charged before
-- ARGV[3]  tag of the message that it takes (empty for none), and ARGV[4] how often that one was charged before
--
-- If the worker dies meanwhile, the message that is put back says so by itself. The numbers are said, and not counted
-- here, because this call is sent again if its answer is lost.
local function charge(tag, charges)
  local entry = tag ~= '' and redis.call('HGET', KEYS[1], tag)
  if not entry then
    return
  end
  local colon = string.find(entry, ':', 1, true) or 0
  local stop = colon + (tonumber(string.sub(entry, 1, colon - 1)) or #entry)
  local first, last = string.find(entry, '^ *\t*', stop + 1)
  if first then
    local rest = string.gsub(string.sub(entry, last + 1), '^\r*', string.rep('\r', charges), 1)
    redis.call('HSET', KEYS[1], tag, string.sub(entry, 1, last) .. rest)
  end
end

-- ZREM of nothing lets a Redis whose memory is full accept the writes after it.
redis.call('ZREM', KEYS[2], '')
charge(ARGV[1], tonumber(ARGV[2]))
charge(ARGV[3], tonumber(ARGV[4]) + 1)
return 0
