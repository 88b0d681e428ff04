-- Ends tasks that wait: takes their messages off their list (or sorted set), and stores and publishes a record of each
-- that has not ended before. A message that a worker has taken meanwhile is not there any more, and goes on.
--
-- KEYS[1]  the list, or the sorted set     KEYS[2] hash of running marks     KEYS[3..] record key of each message
-- ARGV[1]  'list' or 'set'     ARGV[2] lifetime of the records in seconds     ARGV[3] seconds since the epoch
-- ARGV[4..] of each message, in turn: SHA-1 of its text; its task's id (empty: it has none); its record
-- Reply: how many messages were taken off.
--
-- The function `has_ended` is in the lines that stand above this text: pipeq.contract.record.LUA. So is what counts the
-- rows of packs: pipeq/contract/job.lua.

local count = #KEYS - 2
local wanted, found, kept, gone = {}, {}, {}, {}
for i = 1, count do
  wanted[ARGV[3 * i + 1]] = i
end
-- The messages were read at this end, where workers take them, too: it now holds some of them, and newer ones.
local got = ARGV[1] == 'list' and redis.call('LRANGE', KEYS[1], -count, -1) or redis.call('ZRANGE', KEYS[1], 0, count - 1)
for _, text in ipairs(got) do
  local i = wanted[redis.sha1hex(text)]
  if i then
    found[i] = true
    gone[#gone + 1] = text
  else
    kept[#kept + 1] = text
  end
end
if #gone == 0 then
  return 0
end
-- The first write only removes something: a Redis whose memory is full accepts it, and then those after it.
if ARGV[1] == 'list' then
  redis.call('LTRIM', KEYS[1], 0, -#got - 1)
  if #kept > 0 then
    redis.call('RPUSH', KEYS[1], unpack(kept))
  end
else
  redis.call('ZREM', KEYS[1], unpack(gone))
end
local kept = events_kept()
for i = 1, count do
  local id, key, record = ARGV[3 * i + 2], KEYS[i + 2], ARGV[3 * i + 3]
  if found[i] and id ~= '' then
    if not has_ended(redis.call('MGET', key)[1]) then
      redis.call('SET', key, record, 'EX', ARGV[2])
      redis.call('PUBLISH', key, record)
      if kept then
        say_record(kept, id, record)
      end
      if pack_of(id) then
        pcall(task_ended, id, record, ARGV[3])
      end
    end
    -- Also the mark of a task that was cancelled after its worker had died: no worker sees its message any more.
    redis.pcall('HDEL', KEYS[2], id)
  end
end
return #gone
