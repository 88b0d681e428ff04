-- Tasks that a worker had begun go back on their queues: their marks and records do not say any more that they run.
--
-- KEYS[1]  hash of running marks           KEYS[2..] record key of each task
-- ARGV     id and new mark (empty: none) of each task, in turn
--
-- A task that has ended meanwhile gets no mark: a worker that was stopped for longer than its lease may say of a death
-- what another worker has done since, and nobody would remove the mark any more.
--
-- Names in capitals and the function `has_ended` are in the lines that stand above this text: pipeq.contract.record.LUA.
local kept = events_kept()
for i = 2, #KEYS do
  local id, mark = ARGV[2 * i - 3], ARGV[2 * i - 2]
  local record = redis.pcall('GET', KEYS[i])
  if type(record) == 'string' and string.sub(record, 1, #STARTED_HEAD) == STARTED_HEAD then
    local rest = string.sub(record, #STARTED_HEAD + 1)
    -- The record of a task that waits for a further try has an error as its result.
    local head = string.find(rest, '^ "result": null') and QUEUED_HEAD or RETRY_HEAD
    redis.pcall('SET', KEYS[i], head .. rest, 'KEEPTTL')
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
