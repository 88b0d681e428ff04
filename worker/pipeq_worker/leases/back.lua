-- Tasks that a worker had begun go back on their queues: their marks and records do not say any more that they run.
--
-- KEYS[1]  hash of running marks           KEYS[2..] record key of each task
-- ARGV     id and new mark (empty: none) of each task, in turn
--
-- Names in capitals are set by the lines that stand above this text: pipeq.contract.record.LUA.
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
  if mark == '' then
    redis.pcall('HDEL', KEYS[1], id)
  else
    redis.pcall('HSET', KEYS[1], id, mark)
  end
end
