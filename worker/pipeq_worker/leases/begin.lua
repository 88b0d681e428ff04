-- Marks the tasks of a batch as running, and reports which of them have ended meanwhile (cancelled, or done elsewhere).
-- A mark that is already there was left by a worker that died with the task in a batch.
--
-- KEYS[1]  hash of running marks           KEYS[2] sorted set of leases     KEYS[3..] record key of each task
-- ARGV[1]  worker      ARGV[2] now, in seconds since the epoch
-- ARGV[3]  prefix of the keys of living workers
-- ARGV[4]  1: also mark tasks with which a worker died
-- ARGV[5..] id, number of tries before this one and tag (empty: not one of our leases) of each task, in turn
-- Reply: for each task its deaths so far (-1: it has ended, do not run it; -2: its lease is gone, drop it) and its
-- record (empty for none).
--
-- Names in capitals that are not set here are set by the lines that stand above this text: pipeq.contract.record.LUA.
--
-- Any client may have written anything under these keys. A value that is no record or no mark counts as absent, and
-- affects only its own task.
-- More retries or deaths than any worker counts.
local MOST = 1e6

local function object(text)
  if type(text) ~= 'string' or #text > RECORD_MAX_BYTES then
    return {}
  end
  local ok, fields = pcall(cjson.decode, text)
  return ok and type(fields) == 'table' and fields or {}
end

local function count(value)
  local number = tonumber(value)
  -- Comparisons with NaN are always false.
  return number and number >= 0 and number <= MOST and math.floor(number) or 0
end

local ids, retries, tags, records = {}, {}, {}, {}
for i = 3, #KEYS do
  local at = 5 + (i - 3) * 3
  ids[#ids + 1], retries[#retries + 1], tags[#tags + 1] = ARGV[at], count(ARGV[at + 1]), ARGV[at + 2]
  records[#records + 1] = KEYS[i]
end
-- MGET returns nothing for a key that holds no string; HMGET raises for a key that is no hash.
records = redis.call('MGET', unpack(records))
local marks = redis.pcall('HMGET', KEYS[1], unpack(ids))
if marks.err then
  marks = {}
end
local leases = redis.call('ZMSCORE', KEYS[2], unpack(tags))
local reply, running, ended = {}, {}, {}
for i, id in ipairs(ids) do
  local record = records[i] or ''
  if tags[i] ~= '' and not leases[i] then
    reply[#reply + 1] = -2
  elseif ENDED[object(record)[RECORD_STATUS]] then
    if marks[i] then
      ended[#ended + 1] = id
    end
    reply[#reply + 1] = -1
  else
    local deaths = 0
    if marks[i] then
      local left = object(marks[i])
      -- If the mark's worker is alive, the message was delivered twice, and nobody died. A mark must name a worker.
      local worker = left[MARK_WORKER]
      local lives = type(worker) ~= 'string' or worker == ARGV[1] or redis.call('EXISTS', ARGV[3] .. worker) == 1
      deaths = count(left[MARK_DEATHS]) + (lives and 0 or 1)
    end
    if deaths == 0 or ARGV[4] == '1' then
      running[#running + 1] = id
      running[#running + 1] = cjson.encode({
        [MARK_WORKER] = ARGV[1], [MARK_SINCE] = tonumber(ARGV[2]), [MARK_DEATHS] = deaths,
        [MARK_ATTEMPT] = retries[i] + deaths + 1,
      })
    end
    reply[#reply + 1] = deaths
  end
  reply[#reply + 1] = #record <= OPEN_MAX_BYTES and record or ''
end
-- This write raises if Redis accepts no writes, before anything is changed. ZREM of nothing also lets a Redis whose
-- memory is full accept the writes after it.
redis.call('ZREM', KEYS[2], '')
redis.pcall('HDEL', KEYS[1], '', unpack(ended))
if #running > 0 then
  redis.pcall('HSET', KEYS[1], unpack(running))
end
return reply
