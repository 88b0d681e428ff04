-- Reads the records of tasks that run, says in their marks how far they are, and removes the marks of those that ended.
--
-- KEYS[1]  hash of running marks           KEYS[2..] record key of each task
-- ARGV[1]  worker
-- ARGV[2..] id of each task and how far it is, as JSON (empty: not known), in turn
-- Reply: the beginning of each task's record (empty for none).
--
-- Names in capitals that are not set here, and the functions `object` and `has_ended`, are in the lines that stand above
-- this text: pipeq.contract.record.LUA.
--
-- Only a mark of this worker changes, in the same step in which it is read: a task that ends meanwhile has no mark any
-- more, and must not get one back.

local reply, marks, ended = {}, {}, {}
for i = 2, #KEYS do
  local at = 2 + (i - 2) * 2
  local id, progress = ARGV[at], ARGV[at + 1]
  -- A key that holds no string counts as none.
  local record = redis.pcall('GETRANGE', KEYS[i], 0, OPEN_MAX_BYTES)
  record = type(record) == 'string' and record or ''
  reply[#reply + 1] = record
  if has_ended(record) then
    ended[#ended + 1] = id
  elseif progress ~= '' then
    local mark = object(redis.pcall('HGET', KEYS[1], id))
    if mark[MARK_WORKER] == ARGV[1] then
      mark[MARK_PROGRESS] = cjson.decode(progress)
      marks[#marks + 1] = id
      marks[#marks + 1] = cjson.encode(mark)
    end
  end
end
if #ended > 0 then
  redis.pcall('HDEL', KEYS[1], unpack(ended))
end
if #marks > 0 then
  -- If Redis accepts no writes, the marks only say less.
  redis.pcall('HSET', KEYS[1], unpack(marks))
end
return reply
