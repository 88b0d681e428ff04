-- Tasks that a worker had begun go back on their queues: their marks and records do not say any more that they run.
--
-- KEYS[1]  hash of running marks     KEYS[2] sorted set of leases     KEYS[3..] record key of each task
-- ARGV[1]  worker
-- ARGV[2..] of each task, in turn: id; tag (empty: not one of our leases); new mark (empty: none)
--
-- The caller may have been stopped for longer than its lease, so that what it says of a death is late. If its lease is
-- gone, it changes only a mark of its own: then nobody has begun the task since. Another mark, or none, is the word of
-- the worker that has the task now, or has ended it, or has let it wait. A task that has ended gets no mark in any case,
-- because nobody would remove it any more.
--
-- Names in capitals and the functions `object` and `has_ended` are in the lines that stand above this text:
-- pipeq.contract.record.LUA.
local ids, tags, marks = {}, {}, {}
for at = 2, #ARGV, 3 do
  ids[#ids + 1], tags[#tags + 1], marks[#marks + 1] = ARGV[at], ARGV[at + 1], ARGV[at + 2]
end
if #ids == 0 then
  return 0
end
local leases = redis.call('ZMSCORE', KEYS[2], unpack(tags))
local kept = events_kept()
for i, id in ipairs(ids) do
  local is_ours = tags[i] == '' or leases[i]
  if is_ours or object(redis.pcall('HGET', KEYS[1], id))[MARK_WORKER] == ARGV[1] then
    local key, mark = KEYS[i + 2], marks[i]
    local record = redis.pcall('GET', key)
    if type(record) == 'string' and string.sub(record, 1, #STARTED_HEAD) == STARTED_HEAD then
      local rest = string.sub(record, #STARTED_HEAD + 1)
      -- The record of a task that waits for a further try has an error as its result.
      local head = string.find(rest, '^ "result": null') and QUEUED_HEAD or RETRY_HEAD
      redis.pcall('SET', key, head .. rest, 'KEEPTTL')
      if kept then
        say_record(kept, id, head .. rest)
      end
    end
    if mark == '' or type(record) == 'string' and has_ended(record) then
      redis.pcall('HDEL', KEYS[1], id)
    else
      redis.pcall('HSET', KEYS[1], id, mark)
    end
  end
end
