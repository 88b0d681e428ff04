-- Takes messages off their lists and registers them under a lease in one step, so that no message is lost if a worker
-- dies in between. A queue's first list is served first, but each further list gets its share before that.
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases: tag -> seconds since the epoch of its end
-- KEYS[3..] lists: those of the first queue by priority, those of the second, ...
-- ARGV[1]  length of a lease in seconds        ARGV[2] prefix of the new tags
-- ARGV[3]  number of lists of each queue
-- ARGV[4..] of each queue: most messages, most bytes, bytes of the largest message that is returned whole, lifetime of
--          its lists in milliseconds (0: for ever), then the share of each of its lists (messages)
-- Reply: two tables. The first has for each message the number of its list (1 for the first), its tag, 0 and its text,
-- in turn. For a message that is too large it has the size in bytes instead of the 0, and instead of the text the id in
-- it (as JSON without its quotes; empty if none is found), a line break, and its beginning. The second table has for
-- each key that is no list its number and the error, in turn; the other lists are still served.
-- If nothing is taken, the script has read each list by name, and CLIENT TRACKING remembers those keys.
local GROUP = 128           -- messages that are read together, since their size is known only afterwards
local USUAL = 1048576       -- expected size of a message in bytes, if larger ones are allowed
local BEGINNING = 8192      -- bytes that are returned of a message that is too large
local ID = 1300             -- bytes in which an id must end

local time = redis.call('TIME')
local deadline = time[1] + time[2] / 1e6 + ARGV[1]
local reply, refused, taken = {}, {}, 0
local left, left_bytes, largest

-- The id among the headers; its producer may be waiting for the result.
local function id_of(message)
  local at = string.find(message, '"id"', string.find(message, '"headers"', 1, true) or 1, true)
  local text = at and string.sub(message, at + 4, at + 3 + ID) or ''
  local first = string.match(text, '^%s*:%s*"()')
  local stop = first
  while stop do
    stop = string.find(text, '["\\%c]', stop)
    local char = stop and string.sub(text, stop, stop)
    if char == '"' then
      return string.sub(text, first, stop - 1)
    end
    stop = char == '\\' and stop + 2 or nil
  end
  return ''
end

local function take(at, most)
  most = math.min(most, left)
  while most > 0 and left_bytes > 0 and not refused[at] do
    local ask = math.min(most, GROUP, math.max(1, math.floor(left_bytes / math.min(largest, USUAL))))
    local got = redis.pcall('LRANGE', KEYS[at], -ask, -1)
    if got.err then
      refused[at] = got.err
      return
    end
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
      local size, text = 0, got[i]
      if #text > largest then
        size, text = #text, id_of(text) .. '\n' .. string.sub(text, 1, BEGINNING)
      end
      reply[#reply + 1] = at - 2
      reply[#reply + 1] = tag
      reply[#reply + 1] = size
      reply[#reply + 1] = text
      left_bytes = left_bytes - #text
    end
    if taken == #got then
            -- The first write of all is a ZREM of nothing: it raises if Redis accepts no writes, and it lets a Redis
            -- whose
            -- memory is full accept the writes after it.
      redis.call('ZREM', KEYS[2], '')
    end
        -- Registered before they are taken off: if the writes are refused, the messages are still on their lists.
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
  local first, arg = 3 + queue * lists, 4 + queue * (lists + 4)
  left, left_bytes, largest = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  for i = 1, lists - 1 do
    take(first + i, tonumber(ARGV[arg + 4 + i]))
  end
  for i = 0, lists - 1 do
    take(first + i, left)
  end
  local lifetime = tonumber(ARGV[arg + 3])
  for i = 0, lists - 1 do
    if lifetime > 0 then
      redis.pcall('PEXPIRE', KEYS[first + i], lifetime)
    end
  end
end
if taken == 0 then
  for queue = 0, (#KEYS - 2) / lists - 1 do
    local arg = 4 + queue * (lists + 4)
    if tonumber(ARGV[arg]) > 0 and tonumber(ARGV[arg + 1]) > 0 then
      for i = 0, lists - 1 do
        redis.pcall('LLEN', KEYS[3 + queue * lists + i])
      end
    end
  end
end
local errors = {}
for at, problem in pairs(refused) do
  errors[#errors + 1] = at - 2
  errors[#errors + 1] = problem
end
return {reply, errors}
