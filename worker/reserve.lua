-- Takes messages off their lists and registers them under a lease, in one step: no death loses one in between.
-- Of the lists of a queue the first is served first, but each further one gets its share before that.
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases: tag -> seconds since the epoch of its end
-- KEYS[3..] lists: those of the first queue by priority, those of the second, ...
-- ARGV[1]  length of a lease in seconds        ARGV[2] what the new tags begin with
-- ARGV[3]  number of lists of each queue
-- ARGV[4..] of each queue: most messages, most bytes, then the share of each of its lists (messages)
-- Reply: for each message the number of its list (1 for the first), its tag and its text, in turn; nothing where all
-- lists are empty. Then each list has also been looked at by name, which is what CLIENT TRACKING remembers.
local LARGEST = 262144 -- bytes of a message, about: how many fit is known only when they are read
local GROUP = 1000     -- arguments that Lua can unpack at once are limited

local time = redis.call('TIME')
local deadline = time[1] + time[2] / 1e6 + ARGV[1]
local reply, taken = {}, 0
local left, left_bytes

local function take(at, most)
  most = math.min(most, left)
  while most > 0 and left_bytes > 0 do
    local ask = math.min(most, GROUP, math.max(1, math.floor(left_bytes / LARGEST)))
    local got = redis.call('LRANGE', KEYS[at], -ask, -1)
    if #got == 0 then
      return
    end
    local unacked, leases = {}, {}
    for i = #got, 1, -1 do
      taken = taken + 1
      local tag = ARGV[2] .. string.format('%06d', taken)
      unacked[#unacked + 1] = tag
      unacked[#unacked + 1] = #KEYS[at] .. ':' .. KEYS[at] .. got[i]
      leases[#leases + 1] = deadline
      leases[#leases + 1] = tag
      reply[#reply + 1] = at - 2
      reply[#reply + 1] = tag
      reply[#reply + 1] = got[i]
      left_bytes = left_bytes - #got[i]
    end
    if taken == #got then
      -- The first write of all removes nothing: it fails where Redis takes no writes, and after it even a Redis whose
      -- memory is full takes the others.
      redis.call('ZREM', KEYS[2], '')
    end
    -- Registered before they are taken off: should this be refused, they are still there.
    redis.call('HSET', KEYS[1], unpack(unacked))
    redis.call('ZADD', KEYS[2], unpack(leases))
    redis.call('LTRIM', KEYS[at], 0, -#got - 1)
    left, most = left - #got, most - #got
    if #got < ask then
      return
    end
  end
end

local lists = tonumber(ARGV[3])
for queue = 0, (#KEYS - 2) / lists - 1 do
  local first, arg = 3 + queue * lists, 4 + queue * (lists + 2)
  left, left_bytes = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1])
  for i = 1, lists - 1 do
    take(first + i, tonumber(ARGV[arg + 2 + i]))
  end
  for i = 0, lists - 1 do
    take(first + i, left)
  end
end
if taken == 0 then
  for queue = 0, (#KEYS - 2) / lists - 1 do
    local arg = 4 + queue * (lists + 2)
    if tonumber(ARGV[arg]) > 0 and tonumber(ARGV[arg + 1]) > 0 then
      for i = 0, lists - 1 do
        redis.call('LLEN', KEYS[3 + queue * lists + i])
      end
    end
  end
end
return reply
