-- Takes messages off their lists and registers them under a lease in one step, so that no message is lost if a worker
-- dies in between. A queue's first list is served first, but each further list gets its share before that.
--
-- A list on which messages with a fair_key were seen is fair: before it is served, its messages are moved into a sorted
-- set, in the order in which they are served: by turns of their keys, as in self-clocked fair queueing. Each message of
-- a key has a time one later than the key's last one, but not before the present, which is one later than the last
-- message served. A few hundred messages are moved in each call; if more are left, the reply says so, and another call
-- moves them. See docs/decisions/fair-reserve.md.
--
-- KEYS[1]  hash of unacknowledged messages     KEYS[2] sorted set of leases: tag -> seconds since the epoch of its end
-- KEYS[3..] lists: those of the first queue by priority, those of the second, ...; then for each list its sorted set
--          (a number and the message -> its time) and its hash of times ("=" and the key -> the time of its next
--          message, "now" -> the present, "number" -> of the last message moved); then, if ARGV[4] is not empty, for
--          each queue a sorted set of idle workers: name -> seconds since the epoch when its mark ends
-- ARGV[1]  length of a lease in seconds        ARGV[2] prefix of the new tags
-- ARGV[3]  number of lists of each queue       ARGV[4] this worker's name among the idle; empty: it takes no part
-- ARGV[5]  how long a mark of an idle worker lasts, in seconds
-- ARGV[6..] of each queue: most messages, most bytes, bytes of the largest message that is returned whole, lifetime of
--          its lists in milliseconds (0: for ever), idle workers that this one can give messages to, whether it is idle
--          itself (0: no; 1: yes; 2: yes, and its mark is to be set), then the share of each of its lists (messages)
-- ARGV[last]  prefix of the records' keys; empty if the records are on another server
-- Reply: two tables, a number and a table. The first has for each message the number of its list (1 for the first), its
-- tag, 0 and its text, in turn. For a message that is too large it has the size in bytes instead of the 0, and instead
-- of the text the id in it (as JSON without its quotes; empty if none is found), a line break, and its beginning. The
-- second table has for each key that is no list its number and the error, in turn; the other lists are still served.
-- Then 1 if fair lists have messages left that were not moved, otherwise 0. The last table has for each queue the number
-- of idle workers whose marks were removed, because this worker can give messages to them and there are none on the
-- lists. Then, if few messages are taken, the places among them of those that nobody had before, and whose records say
-- that their tasks wait.
-- If few messages are taken, or none, the script has read each list by name, and CLIENT TRACKING remembers those keys.
local FEW = 15              -- messages after which the caller pauses, unless CLIENT TRACKING reports more
local RECORD = 65536        -- bytes of a record that is looked at
local GROUP = 128           -- messages that are read together, since their size is known only afterwards
local USUAL = 1048576       -- expected size of a message in bytes, if larger ones are allowed
local BEGINNING = 8192      -- bytes that are returned of a message that is too large
local ID = 1300             -- bytes in which an id must end
local ID_WITHIN = 8192      -- bytes of a bare message in which the id must begin, to be found if it is too large
local FAIR_KEY_WITHIN = 4096 -- ... and the fair_key
-- Keys of Celery's frame (see pipeq.contract.bare).
local FRAME_KEYS = {body = true, headers = true, properties = true, ['content-type'] = true, ['content-encoding'] = true}
local MOVED = 500           -- messages of a fair list that one call moves, at most, and their bytes
local MOVED_BYTES = 1048576
local NEWEST = 16           -- messages at the other end of a list that are searched for keys
local NUMBER = 13           -- digits in front of a message in a sorted set
local FORGET = 1000         -- keys that are remembered beyond two for each message

local time = redis.call('TIME')
local deadline = time[1] + time[2] / 1e6 + ARGV[1]
local reply, refused, taken = {}, {}, 0
local left, left_bytes, largest
local lists = tonumber(ARGV[3])
local queues = (#KEYS - 2) / (3 * lists + (ARGV[4] ~= '' and 1 or 0))
local all = queues * lists -- number of lists
local is_unmoved, has_written = 0, false

local function set_of(at)
  return KEYS[2 * at + all - 3]
end

local function times_of(at)
  return KEYS[2 * at + all - 2]
end

local function marks_of(queue)
  return KEYS[3 + 3 * all + queue]
end

-- The first write of all is a ZREM of nothing: it raises if Redis accepts no writes, and it lets a Redis whose memory is
-- full accept the writes after it.
local function may_write()
  if not has_written then
    redis.call('ZREM', KEYS[2], '')
    has_written = true
  end
end

-- A list is fair while its two keys exist. If another client stored something else there, it cannot be (nil).
local function is_fair(at)
  if redis.call('EXISTS', set_of(at), times_of(at)) == 0 then
    return false
  end
  local set, times = redis.call('TYPE', set_of(at)).ok, redis.call('TYPE', times_of(at)).ok
  return (set == 'zset' or set == 'none') and (times == 'hash' or times == 'none') or nil
end

-- Where the value begins that a bare message has under a key at its top, if that is among its first bytes; otherwise
-- nil. Then whether the message is none, but Celery's frame.
local function place_in_bare(message, name, within)
  if string.find(message, '^%s*{%s*"body"') then
    return nil, true -- nearly every frame
  end
  local depth, at = 0, 1
  while true do
    at = string.find(message, '["%[{%]}]', at)
    if not at or at > within then
      return nil
    end
    local char = string.sub(message, at, at)
    if char == '"' then
      local first, stop = at + 1, string.find(message, '["\\]', at + 1)
      while stop and stop <= within and string.sub(message, stop, stop) == '\\' do
        stop = string.find(message, '["\\]', stop + 2)
      end
      if not stop or stop > within then
        return nil
      end
      local value = depth == 1 and string.match(message, '^%s*:%s*()', stop + 1)
      if value then
        local key = string.sub(message, first, stop - 1)
        if key == name then
          return value
        elseif FRAME_KEYS[key] then
          return nil, true
        end
      end
      at = stop
    elseif char == '{' or char == '[' then
      depth = depth + 1
    else
      depth = depth - 1
      if depth == 0 then
        return nil
      end
    end
    at = at + 1
  end
end

-- The JSON text whose quote opens here, without its quotes; empty if there is none, or if it is long.
local function text_at(message, at)
  local first = at and string.match(message, '^"()', at)
  local stop = first
  while stop and stop - first < ID do
    stop = string.find(message, '["\\%c]', stop)
    local char = stop and string.sub(message, stop, stop)
    if char == '"' then
      return string.sub(message, first, stop - 1)
    end
    stop = char == '\\' and stop + 2 or nil
  end
  return ''
end

-- The fair_key of a message, as JSON without its quotes. In a frame it is among the headers, and a body cannot contain
-- the text, because it is base64.
local function key_of(message)
  local at = string.find(message, '"fair_key"', 1, true)
  if not at then
    return ''
  end
  local place, is_frame = place_in_bare(message, 'fair_key', FAIR_KEY_WITHIN)
  if is_frame then
    place = string.match(message, '^%s*:%s*()', at + 10)
  end
  return text_at(message, place)
end

-- Moves messages of a fair list, the oldest first, into its sorted set.
local function move(at)
  local got = redis.pcall('LRANGE', KEYS[at], -GROUP, -1)
  if got.err then
    return -- taking from it reports the error
  end
  local moved, bytes, times = 0, 0, {}
  local now, number = unpack(redis.call('HMGET', times_of(at), 'now', 'number'))
  now, number = tonumber(now or 0) or 0, tonumber(number or 0) or 0
  while #got > 0 do
    may_write()
    local members = {}
    for i = #got, 1, -1 do
      local message = got[i]
      local time
      if string.find(message, '^ [^ ]') then
        time = now - 2 -- it was taken before, so it is served first
      else
        local key = '=' .. key_of(message)
        if not times[key] then
          times[key] = tonumber(redis.call('HGET', times_of(at), key) or 0) or 0
        end
        time = math.max(times[key], now)
        times[key] = time + 1
      end
      number = number + 1
      bytes = bytes + #message
      members[#members + 1] = time
      members[#members + 1] = string.format('%0' .. NUMBER .. '.0f', number) .. message
    end
    redis.call('ZADD', set_of(at), unpack(members))
    redis.call('LTRIM', KEYS[at], 0, -#got - 1)
    moved = moved + #got
    if moved >= MOVED or bytes >= MOVED_BYTES then
      if redis.call('LLEN', KEYS[at]) > 0 then
        is_unmoved = 1
      end
      break
    end
    got = redis.call('LRANGE', KEYS[at], -GROUP, -1)
  end
  if moved > 0 then
    local fields = {'number', number}
    for key, time in pairs(times) do
      fields[#fields + 1] = key
      fields[#fields + 1] = time
    end
    redis.call('HSET', times_of(at), unpack(fields))
    if redis.call('HLEN', times_of(at)) > FORGET + 2 * redis.call('ZCARD', set_of(at)) then
      local known = redis.call('HGETALL', times_of(at))
      for i = 1, #known, 2 do
        if string.sub(known[i], 1, 1) == '=' and tonumber(known[i + 1]) <= now then
          redis.call('HDEL', times_of(at), known[i])
        end
      end
    end
  elseif redis.call('ZCARD', set_of(at)) == 0 then
    redis.call('DEL', times_of(at)) -- nothing waits, so all keys are equal again
  end
end

-- Makes a list fair if keys are seen on it while messages wait there.
local function look(at, got)
  local newest = redis.call('LRANGE', KEYS[at], 0, NEWEST - 1)
  if #newest == 0 then
    return
  end
  for _, some in ipairs({newest, got}) do
    for _, message in ipairs(some) do
      if string.find(message, '"fair_key"', 1, true) and key_of(message) ~= '' then
        redis.call('HSET', times_of(at), 'now', 0)
        is_unmoved = 1
        return
      end
    end
  end
end

-- The id of a message; its producer may be waiting for the result.
local function id_of(message)
  local place, is_frame = place_in_bare(message, 'id', ID_WITHIN)
  if is_frame then
    local at = string.find(message, '"id"', string.find(message, '"headers"', 1, true) or 1, true)
    place = at and string.match(message, '^%s*:%s*()', at + 4)
  end
  return text_at(message, place)
end

-- Whether nobody had a message before, and its record says that its task waits, or there is none. Both commands count as
-- writes, although they write nothing: of what is read, CLIENT TRACKING would report each change.
local function waits(message)
  local id = string.byte(message) ~= 32 and id_of(message) or ''
  if id == '' or string.find(id, '\\', 1, true) then
    return false
  end
  local key = ARGV[#ARGV] .. id
  local length = redis.pcall('SETRANGE', key, 0, '')
  if type(length) ~= 'number' or length > RECORD then
    return false
  end
  local record = length > 0 and redis.pcall('GETEX', key)
  return length == 0 or (type(record) == 'string' and string.find(record, '^{"status": "QUEUED"') ~= nil)
end

local fair, prefix = {}, ARGV[2]

local function take(at, most)
  most = math.min(most, left)
  while most > 0 and left_bytes > 0 and not refused[at] do
    local ask = math.min(most, GROUP, math.max(1, math.floor(left_bytes / math.min(largest, USUAL))))
    local got = fair[at] and redis.call('ZRANGE', set_of(at), 0, ask - 1)
      or redis.pcall('LRANGE', KEYS[at], -ask, -1)
    if got.err then
      refused[at] = got.err
      return
    end
    if #got == 0 then
      return
    end
    if fair[at] then
      -- As they would lie on a list: what is served first comes last.
      local served = {}
      for i = #got, 1, -1 do
        served[#served + 1] = string.sub(got[i], NUMBER + 1)
      end
      got = served
    end
    -- A client that did not hear the answer may have sent the same command again. The messages of the first one keep
    -- their tags, under which nobody holds them, until their leases lapse.
    while taken == 0 and redis.call('HEXISTS', KEYS[1], prefix .. string.format('%06d', 1)) == 1 do
      prefix = prefix .. 'again-'
    end
    local unacked, leases = {}, {}
    for i = #got, 1, -1 do
      taken = taken + 1
      local tag = prefix .. string.format('%06d', taken)
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
    may_write()
    -- Registered before they are taken off: if the writes are refused, the messages are still on their lists.
    redis.call('HSET', KEYS[1], unpack(unacked))
    redis.call('ZADD', KEYS[2], unpack(leases))
    if fair[at] then
      local last = redis.call('ZRANGE', set_of(at), #got - 1, #got - 1, 'WITHSCORES')[2]
      local now = tonumber(redis.call('HGET', times_of(at), 'now') or 0) or 0
      redis.call('HSET', times_of(at), 'now', math.max(now, tonumber(last) + 1))
      redis.call('ZREMRANGEBYRANK', set_of(at), 0, #got - 1)
    else
      redis.call('LTRIM', KEYS[at], 0, -#got - 1)
      if #got == ask and fair[at] == false then
        look(at, got)
      end
    end
    left, most = left - #got, most - #got
    if #got < ask then
      return
    end
  end
end

-- Takes the marks of idle workers off a set, `most` at most. Reading the set makes CLIENT TRACKING report new marks.
-- The set is only a hint: a key of another type counts as empty, and so does one that Redis does not change now.
local function answer(key, most)
  local marks = redis.pcall('ZCOUNT', key, time[1], '+inf')
  if type(marks) ~= 'number' or marks == 0 then
    return 0
  end
  redis.pcall('ZREMRANGEBYSCORE', key, '-inf', '(' .. time[1])
  local popped = redis.pcall('ZPOPMIN', key, most)
  return popped.err and 0 or #popped / 2
end

local answered = {}
for queue = 0, queues - 1 do
  local first, arg = 3 + queue * lists, 6 + queue * (lists + 6)
  local before = taken
  left, left_bytes, largest = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  for at = first, first + lists - 1 do
    fair[at] = is_fair(at)
    if fair[at] then
      move(at)
    end
  end
  for i = 1, lists - 1 do
    take(first + i, tonumber(ARGV[arg + 6 + i]))
  end
  for i = 0, lists - 1 do
    take(first + i, left)
  end
  local lifetime = tonumber(ARGV[arg + 3])
  for i = 0, lists - 1 do
    if lifetime > 0 then
      redis.pcall('PEXPIRE', KEYS[first + i], lifetime)
      if fair[first + i] then
        redis.call('PEXPIRE', set_of(first + i), lifetime)
        redis.call('PEXPIRE', times_of(first + i), lifetime)
      end
    end
  end
  local gives = tonumber(ARGV[arg + 4])
  answered[queue + 1] = gives > 0 and taken == before and answer(marks_of(queue), gives) or 0
end
for queue = 0, queues - 1 do
  local idle, key = ARGV[6 + queue * (lists + 6) + 5], marks_of(queue)
  if idle ~= '0' and taken > 0 then
    redis.pcall('ZREM', key, ARGV[4])
  elseif idle == '2' then
    -- Not read before, so that Redis does not report the marks of idle workers to each other.
    redis.pcall('ZADD', key, time[1] + ARGV[5], ARGV[4])
    redis.pcall('EXPIRE', key, ARGV[5])
  end
end
-- Read last, so that CLIENT TRACKING reports what is pushed from now on.
if taken <= FEW then
  for queue = 0, queues - 1 do
    local arg = 6 + queue * (lists + 6)
    if tonumber(ARGV[arg]) > 0 and tonumber(ARGV[arg + 1]) > 0 then
      for i = 0, lists - 1 do
        redis.pcall('LLEN', KEYS[3 + queue * lists + i])
      end
    end
  end
end
local waiting = {}
if taken <= FEW and ARGV[#ARGV] ~= '' then
  for i = 1, taken do
    if waits(reply[4 * i]) then
      waiting[#waiting + 1] = i
    end
  end
end
local errors = {}
for at, problem in pairs(refused) do
  errors[#errors + 1] = at - 2
  errors[#errors + 1] = problem
end
return {reply, errors, is_unmoved, answered, waiting}
