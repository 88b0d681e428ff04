-- Marks the tasks of a batch as running, has their records say so, and reports which of them have ended meanwhile
-- (cancelled, or done elsewhere).
-- A mark that is already there was left by a worker that died with the task in a batch.
--
-- KEYS[1]  hash of running marks           KEYS[2] sorted set of leases     KEYS[3..] record key of each task
-- ARGV[1]  worker      ARGV[2] now, in seconds since the epoch
-- ARGV[3]  prefix of the keys of living workers
-- ARGV[4]  1: also mark tasks with which a worker died
-- ARGV[5]  their pipeline
-- ARGV[6..] of each task, in turn: id; number of tries before this one; tag (empty: not one of our leases); its times
--           before that, as JSON (empty: not known); deaths of its earlier tries
-- Reply: for each task its deaths so far (-1: it has ended, do not run it; -2: its lease is gone, drop it) and its
-- record before that (empty for none). Then, for tasks with deaths alone, in turn: its place (1 for the first) and the
-- tries that ended with a death, as JSON.
--
-- Names in capitals that are not set here, and the functions `object`, `has_ended`, `count` and `deaths_of`, are in the
-- lines that stand above this text: pipeq.contract.record.LUA and blame.lua.
--
-- Any client may have written anything under these keys. A value that is no record or no mark counts as absent, and
-- affects only its own task.

local ids, retries, tags, times, known, records = {}, {}, {}, {}, {}, {}
for i = 3, #KEYS do
  local at = 6 + (i - 3) * 5
  ids[#ids + 1], retries[#retries + 1], tags[#tags + 1] = ARGV[at], count(ARGV[at + 1]), ARGV[at + 2]
  times[#times + 1], known[#known + 1] = ARGV[at + 3], count(ARGV[at + 4])
  records[#records + 1] = KEYS[i]
end
-- MGET returns nothing for a key that holds no string; HMGET raises for a key that is no hash.
records = redis.call('MGET', unpack(records))
local marks = redis.pcall('HMGET', KEYS[1], unpack(ids))
if marks.err then
  marks = {}
end
local leases = redis.call('ZMSCORE', KEYS[2], unpack(tags))
local reply, running, ended, begun, lost_tries = {}, {}, {}, {}, {}
for i, id in ipairs(ids) do
  local record = records[i] or ''
  if tags[i] ~= '' and not leases[i] then
    reply[#reply + 1] = -2
  elseif has_ended(record) then
    if marks[i] then
      ended[#ended + 1] = id
    end
    reply[#reply + 1] = -1
  else
    local deaths, lost = deaths_of(marks[i], known[i], ARGV[1], ARGV[3])
    if lost then
      lost_tries[#lost_tries + 1] = i
      lost_tries[#lost_tries + 1] = cjson.encode(lost)
    end
    if deaths == 0 or ARGV[4] == '1' then
      running[#running + 1] = id
      local mark = cjson.encode({
        [MARK_WORKER] = ARGV[1], [MARK_SINCE] = tonumber(ARGV[2]), [MARK_DEATHS] = deaths,
        [MARK_ATTEMPT] = retries[i] + deaths + 1, [MARK_LOST_TRIES] = lost,
      })
      if times[i] ~= '' then
        mark = string.sub(mark, 1, -2) .. ',"' .. MARK_TIMING_MS .. '":' .. times[i] .. '}'
      end
      running[#running + 1] = mark
      begun[#begun + 1] = i
    end
    reply[#reply + 1] = deaths
  end
  reply[#reply + 1] = #record <= OPEN_MAX_BYTES and record or ''
end
-- This write raises if Redis accepts no writes, before anything is changed. ZREM of nothing also lets a Redis whose
-- memory is full accept the writes after it.
redis.call('ZREM', KEYS[2], '')
redis.pcall('HDEL', KEYS[1], '', unpack(ended))
local kept = #begun > 0 and events_kept()
local marked = #running > 0 and redis.pcall('HSET', KEYS[1], unpack(running))
-- Readers of the record alone, such as Celery's AsyncResult, see that the tasks run. If their marks were refused, they
-- are not said to run.
for _, i in ipairs(type(marked) == 'number' and begun or {}) do
  local record, key = records[i] or '', KEYS[i + 2]
  if string.sub(record, 1, #QUEUED_HEAD) == QUEUED_HEAD then
    redis.pcall('SETRANGE', key, 0, STARTED_HEAD)
  elseif string.sub(record, 1, #RETRY_HEAD) == RETRY_HEAD then
    redis.pcall('SET', key, STARTED_HEAD .. string.sub(record, #RETRY_HEAD + 1), 'KEEPTTL')
  elseif string.sub(record, 1, #PLAIN_QUEUED_HEAD) == PLAIN_QUEUED_HEAD then
    redis.pcall('SET', key, STARTED_HEAD .. string.sub(record, #PLAIN_QUEUED_HEAD + 1), 'KEEPTTL')
  elseif record == '' then
    local text = STARTED_HEAD .. STARTED_REST[1] .. cjson.encode(ids[i]) .. STARTED_REST[2]
    redis.pcall('SET', key, text, 'NX', 'EX', PENDING_TTL_S)
  end
  if kept then
    say_event(kept, ids[i], 'running', ARGV[5], retries[i] + math.max(reply[2 * i - 1], 0) + 1, ARGV[1])
  end
end
for _, one in ipairs(lost_tries) do
  reply[#reply + 1] = one
end
return reply
